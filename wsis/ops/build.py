"""Compiles the kernels on first use, seconds for the CPU's, and loads them; without a compiler the reference serves.

What is built lies in the user's cache, keyed by sources, torch's ABI, compiler and processor. `WSIS_OPS=reference` builds
nothing, `WSIS_OPS=compiled` insists.
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
from wsis.files import cache_folder, whole
from wsis.fingerprint import digest, file_hash

__all__ = ["backend", "compile_kernels", "compiled_devices"]

SOURCES = Path(__file__).parent / "csrc"
_TORCH = Path(torch.__file__).parent
_TORCH_TARGET = (
    "0x020a000000000000"  # torch 2.10: the library runs under that and all later releases
)


def backend() -> str:
    """Say whose kernels serve: "cuda" (and the CPU's), "cpu", or "reference" for readable PyTorch. Builds on first use.

    Raises:
        InputError: `WSIS_OPS` asks for compiled kernels and they cannot be had.
    """
    devices = compiled_devices()
    return "cuda" if "cuda" in devices else "cpu" if "cpu" in devices else "reference"


@functools.cache
def compiled_devices() -> frozenset[str]:
    """Build and load what this machine can run; the device types that have kernels.

    Raises:
        InputError: `WSIS_OPS` is no known word, or asks for compiled kernels and they cannot be had.
    """
    asked = os.environ.get("WSIS_OPS", "")
    if asked not in ("", "reference", "compiled"):
        raise InputError(f"WSIS_OPS is '{asked}'; it can be 'compiled' or 'reference', or not set")
    if asked == "reference":
        return frozenset()
    loaded = set()
    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        try:
            torch.ops.load_library(str(compile_kernels(device, _folder())))  # type: ignore[no-untyped-call]
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
    """Compile the kernels of one kind of device, unless that was done before; returns the library.

    Args:
        device: "cpu" or "cuda".
        folder: where libraries are kept.
        architectures: of CUDA, such as ("80", "90"); those of the GPUs at hand when empty.

    Raises:
        InputError: no compiler, or it fails.
    """
    command = _cuda_command(architectures) if device == "cuda" else _cpu_command()
    sources = [file_hash(source) for source in sorted(SOURCES.iterdir())]
    key = digest([command, _version(command[0]), _processor(), sources])
    library = folder / f"moi_pool_{device}_{key}{_suffix()}"
    if not library.exists():
        with whole(library) as scratch:
            done = subprocess.run([*command, "-o", str(scratch)], capture_output=True, text=True)
            if done.returncode:
                said = (done.stderr or done.stdout).strip() or f"exit code {done.returncode}"
                raise InputError(f"{command[0]} failed: {said.splitlines()[0]}")
    return library


def _cpu_command() -> list[str]:
    compiler = _compiler()
    # no fused multiply-add, as in the reference; strict floating point otherwise
    flags = [
        "-O3",
        "-std=c++20",
        "-march=native",
        "-ffp-contract=off",
        "-fPIC",
        "-shared",
        "-fvisibility=hidden",
    ]
    return [compiler, *flags, *_headers(), str(SOURCES / "moi_pool.cpp"), *_libraries("torch_cpu")]


def _cuda_command(architectures: tuple[str, ...]) -> list[str]:
    home = os.environ.get("CUDA_HOME")
    nvcc = str(Path(home) / "bin" / "nvcc") if home else shutil.which("nvcc")
    if nvcc is None or not Path(nvcc).is_file():
        raise InputError("nvcc was not found; install the CUDA toolkit or set CUDA_HOME to it")
    names = architectures or tuple(
        sorted({"{}{}".format(*torch.cuda.get_device_capability(i)) for i in _gpus()})
    )
    targets = [f"-gencode=arch=compute_{name},code=sm_{name}" for name in names]
    flags = ["-O3", "-std=c++20", "-shared", "-Xcompiler", "-fPIC", "-ccbin", _compiler(), *targets]
    return [
        nvcc,
        *flags,
        *_headers(),
        "-DUSE_CUDA",
        str(SOURCES / "moi_pool.cu"),
        *_libraries("torch_cpu", "torch_cuda"),
    ]


def _headers() -> list[str]:
    return [f"-DTORCH_TARGET_VERSION={_TORCH_TARGET}", "-I", str(_TORCH / "include")]


def _libraries(*names: str) -> list[str]:
    """Torch's libraries, which are loaded already; where torch has no CUDA its kernels are compiled all the same."""
    return [
        "-L",
        str(_TORCH / "lib"),
        *(f"-l{name}" for name in names if any((_TORCH / "lib").glob(f"lib{name}.*"))),
    ]


def _compiler() -> str:
    asked = os.environ.get("CXX")
    for name in (asked,) if asked else ("g++", "clang++", "c++"):
        if found := shutil.which(name):
            return found
    raise InputError(
        f"the C++ compiler {asked} was not found"
        if asked
        else "no C++ compiler was found; install g++ or clang"
    )


def _gpus() -> range:
    return range(torch.cuda.device_count())


def _version(compiler: str) -> str:
    return subprocess.run([compiler, "--version"], capture_output=True, text=True).stdout


def _processor() -> str:
    """What `-march=native` depends on: a home folder can be shared by machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(
            (line for line in lines if line.startswith(("flags", "Features"))), platform.machine()
        )
    except OSError:
        return platform.machine() + platform.processor()


def _suffix() -> str:
    return ".dylib" if sys.platform == "darwin" else ".so"


def _folder() -> Path:
    """Give the folder of libraries; one that others can write could make us run their code, so it is refused."""
    folder = cache_folder() / "ops"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise InputError(
            f"cannot make {folder}: {error.strerror}; set WSIS_CACHE to a folder that can be written"
        ) from error
    status = folder.stat()
    if hasattr(os, "getuid") and (
        status.st_uid != os.getuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    ):
        raise InputError(
            f"others can write {folder}; make it yours alone (chmod 700) or set WSIS_CACHE to another folder"
        )
    return folder
