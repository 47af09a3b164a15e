"""Compilation of the kernels on first use; without a compiler, plain PyTorch is used.

Compiling takes seconds for the CPU. Libraries are kept in the user's cache folder, keyed by
sources, torch's ABI, compiler and processor. `WSIS_OPS=reference` builds nothing;
`WSIS_OPS=compiled` makes a failed build an error.
"""

from __future__ import annotations

import functools
import os
import platform
import shutil
import stat
import subprocess
import sys
import warnings
from pathlib import Path

import torch

from wsis.errors import InputError
from wsis.files import atomic_write, cache_folder
from wsis.fingerprint import digest, file_hash

__all__ = ["backend", "compile_kernels", "compiled_devices"]

SOURCES = Path(__file__).parent / "csrc"
_TORCH = Path(torch.__file__).parent
# torch 2.10: the library runs with that and all later releases
_TORCH_TARGET = "0x020a000000000000"


def backend() -> str:
    """Return the kernels in use, building them if needed: "cuda", "cpu" or "reference".

    "cuda" includes the CPU's kernels; "reference" is plain PyTorch.

    Raises:
        InputError: `WSIS_OPS` requires compiled kernels and they are unavailable.
    """
    devices = compiled_devices()
    return "cuda" if "cuda" in devices else "cpu" if "cpu" in devices else "reference"


@functools.cache
def compiled_devices() -> frozenset[str]:
    """Build and load the kernels that this machine can run; return their device types.

    Raises:
        InputError: `WSIS_OPS` has an unknown value, or requires compiled kernels and they are
            unavailable.
    """
    asked = os.environ.get("WSIS_OPS", "")
    if asked not in ("", "reference", "compiled"):
        raise InputError(f"WSIS_OPS is '{asked}'; it can be 'compiled' or 'reference', or not set")
    if asked == "reference":
        return frozenset()
    loaded = set()
    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        try:
            library = str(compile_kernels(device, _folder()))
            torch.ops.load_library(library)  # type: ignore[no-untyped-call]
            loaded.add(device)
        except (InputError, OSError) as error:
            if asked == "compiled":
                raise InputError(
                    f"WSIS_OPS=compiled, but there are no {device} kernels: {error}"
                ) from error
            warnings.warn(
                f"MoIPool runs as plain PyTorch on {device}, which is slower: {error}", stacklevel=2
            )
    return frozenset(loaded)


def compile_kernels(device: str, folder: Path, architectures: tuple[str, ...] = ()) -> Path:
    """Compile the kernels of one device type unless they exist, and return the library's path.

    Args:
        device: "cpu" or "cuda".
        folder: folder of libraries.
        architectures: CUDA architectures such as ("80", "90"); those of the machine's GPUs if
            empty.

    Raises:
        InputError: there is no compiler, or it fails.
    """
    command = _cuda_command(architectures) if device == "cuda" else _cpu_command()
    sources = [file_hash(source) for source in sorted(SOURCES.iterdir())]
    key = digest([command, _version(command[0]), _processor(), sources])
    library = folder / f"moi_pool_{device}_{key}{_suffix()}"
    if not library.exists():
        with atomic_write(library) as scratch:
            result = subprocess.run([*command, "-o", str(scratch)], capture_output=True, text=True)
            if result.returncode:
                output = (result.stderr or result.stdout).strip()
                reason = output or f"exit code {result.returncode}"
                raise InputError(f"{command[0]} failed: {reason.splitlines()[0]}")
    return library


def _cpu_command() -> list[str]:
    compiler = _compiler()
    # no fused multiply-add, as in the reference; strict floating point otherwise
    flags = ["-O3", "-std=c++20", "-march=native", "-ffp-contract=off"]
    flags += ["-fPIC", "-shared", "-fvisibility=hidden"]
    return [compiler, *flags, *_headers(), str(SOURCES / "moi_pool.cpp"), *_libraries("torch_cpu")]


def _cuda_command(architectures: tuple[str, ...]) -> list[str]:
    home = os.environ.get("CUDA_HOME")
    nvcc = str(Path(home) / "bin" / "nvcc") if home else shutil.which("nvcc")
    if nvcc is None or not Path(nvcc).is_file():
        raise InputError("nvcc was not found; install the CUDA toolkit or set CUDA_HOME to it")
    if not architectures:
        gpus = range(torch.cuda.device_count())
        present = {"{}{}".format(*torch.cuda.get_device_capability(gpu)) for gpu in gpus}
        architectures = tuple(sorted(present))
    targets = [f"-gencode=arch=compute_{name},code=sm_{name}" for name in architectures]
    flags = ["-O3", "-std=c++20", "-shared", "-Xcompiler", "-fPIC", "-ccbin", _compiler(), *targets]
    source = ["-DUSE_CUDA", str(SOURCES / "moi_pool.cu")]
    return [nvcc, *flags, *_headers(), *source, *_libraries("torch_cpu", "torch_cuda")]


def _headers() -> list[str]:
    return [f"-DTORCH_TARGET_VERSION={_TORCH_TARGET}", "-I", str(_TORCH / "include")]


def _libraries(*names: str) -> list[str]:
    """Return linker flags for torch's libraries.

    Libraries that this torch does not have are skipped: CUDA kernels compile without torch's CUDA.
    """
    folder = _TORCH / "lib"
    present = [name for name in names if any(folder.glob(f"lib{name}.*"))]
    return ["-L", str(folder), *(f"-l{name}" for name in present)]


def _compiler() -> str:
    asked = os.environ.get("CXX")
    for name in (asked,) if asked else ("g++", "clang++", "c++"):
        path = shutil.which(name)
        if path:
            return path
    if asked:
        raise InputError(f"the C++ compiler {asked} was not found")
    raise InputError("no C++ compiler was found; install g++ or clang")


def _version(compiler: str) -> str:
    return subprocess.run([compiler, "--version"], capture_output=True, text=True).stdout


def _processor() -> str:
    """Return the processor's features, on which `-march=native` depends.

    Machines of different processors may share a home folder, and so the cache.
    """
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine() + platform.processor()
    features = (line for line in lines if line.startswith(("flags", "Features")))
    return next(features, platform.machine())


def _suffix() -> str:
    return ".dylib" if sys.platform == "darwin" else ".so"


def _folder() -> Path:
    """Return the folder of libraries.

    Raises:
        InputError: the folder cannot be made, or others can write to it and so plant code.
    """
    folder = cache_folder() / "ops"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise InputError(
            f"cannot make {folder}: {error.strerror}; set WSIS_CACHE to a folder that can be "
            "written"
        ) from error
    status = folder.stat()
    shared = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    if hasattr(os, "getuid") and (status.st_uid != os.getuid() or shared):
        raise InputError(
            f"others can write {folder}; make it yours alone (chmod 700) or set WSIS_CACHE to "
            "another folder"
        )
    return folder
