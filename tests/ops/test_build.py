"""Building, falling back and insisting, each in a process of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from wsis.errors import InputError
from wsis.ops.build import SOURCES, compile_kernels

pytestmark = pytest.mark.slow

COMPILER = shutil.which("g++") or shutil.which("clang++") or shutil.which("c++")
NVCC = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "bin" / "nvcc"
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler here")
SAY = """
import torch, wsis.ops as ops
features, inside = torch.ones(1, 2, 4, 4), torch.ones(1, 4, 4) > 0
pooled = ops.moi_pool(features, torch.tensor([[0.0, 0, 0, 24, 24]]), inside)
print(pooled.sum().item(), len(ops.moi_pool(features, torch.zeros(0, 5), inside[:0])), ops.backend())
"""


def ask(tmp_path, **environment):
    full = {**os.environ, "WSIS_CACHE": str(tmp_path), "CUDA_VISIBLE_DEVICES": "", **environment}
    done = subprocess.run([sys.executable, "-c", SAY], env=full, capture_output=True, text=True)
    return done.stdout.strip(), done.stderr


@needs_compiler
def test_built_once_on_first_use(tmp_path):
    assert ask(tmp_path) == ("98.0 0 cpu", "")
    (library,) = (tmp_path / "ops").iterdir()
    made = library.stat().st_mtime_ns
    assert ask(tmp_path)[0] == "98.0 0 cpu"
    assert library.stat().st_mtime_ns == made


def test_without_a_compiler_the_reference_serves_and_says_so_once(tmp_path):
    said, warned = ask(tmp_path, CXX="no-such-compiler")
    assert said == "98.0 0 reference"
    assert warned.count("MoIPool runs as plain PyTorch on cpu") == 1
    assert "no-such-compiler was not found" in warned


def test_forced(tmp_path):
    assert ask(tmp_path, WSIS_OPS="reference") == ("98.0 0 reference", "")
    assert not (tmp_path / "ops").exists()
    said, wrong = ask(tmp_path, WSIS_OPS="compiled", CXX="no-such-compiler")
    assert not said
    assert "InputError: WSIS_OPS=compiled, but there are no cpu kernels" in wrong
    assert "it can be 'compiled' or 'reference'" in ask(tmp_path, WSIS_OPS="fast")[1]


@needs_compiler
def test_a_folder_that_others_can_write_is_not_trusted(tmp_path):
    (tmp_path / "ops").mkdir()
    (tmp_path / "ops").chmod(0o777)
    said, warned = ask(tmp_path)
    assert said == "98.0 0 reference"
    assert "others can write" in warned


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "ops").write_text("a file")
    said, warned = ask(tmp_path)
    assert said == "98.0 0 reference"
    assert "set WSIS_CACHE to a folder that can be written" in warned


@needs_compiler
@pytest.mark.parametrize(
    ("says", "told"),
    [('echo "first line" >&2\necho "second line" >&2', "first line"), ("true", "exit code 1")],
)
def test_a_failing_compiler_says_its_first_line(tmp_path, monkeypatch, says, told):
    broken = tmp_path / "broken"
    broken.write_text(f'#!/bin/sh\n[ "$1" = --version ] && exit 0\n{says}\nexit 1\n')
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    with pytest.raises(InputError, match=rf"failed: {told}$"):
        compile_kernels("cpu", tmp_path / "libraries")
    assert not list((tmp_path / "libraries").iterdir())


@pytest.mark.skipif(not NVCC.is_file() or COMPILER is None, reason="no nvcc here")
def test_cuda_compiles(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_HOME", str(NVCC.parents[1]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        library = compile_kernels("cuda", tmp_path, ("80",))
    assert library.stat().st_size > 10_000


def test_sources_are_part_of_the_package():
    assert {path.name for path in SOURCES.iterdir()} == {
        "moi_pool.cpp",
        "moi_pool.cu",
        "moi_pool.h",
    }
    assert torch.ops.wsis.moi_pool is not None
