"""Write a network as a file that runs without this library."""

from __future__ import annotations

import importlib
import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn
from torch.export import Dim, ExportedProgram

from wsis.errors import InputError
from wsis.files import atomic_write

__all__ = ["SUFFIXES", "Graph", "check_packages", "program_of", "write_onnx", "write_program"]

SUFFIXES = (".onnx", ".pt2")
_MOST_BYTES = 2**31  # of a protobuf


class Graph(Protocol):
    """A network from an image (3,H,W) uint8 RGB to what it finds, in pixels of that image."""

    outputs: Mapping[str, tuple[int | str, ...]]
    """Names of what `forward` returns, each with its shape, in which words are unknown sizes."""


def check_packages(path: Path) -> None:
    """Raise InputError for an unknown suffix, or without the packages that write its format."""
    if path.suffix not in SUFFIXES:
        raise InputError(f"{path}: give a file that ends in {' or '.join(SUFFIXES)}")
    for name in ("onnx", "onnxscript") if path.suffix == ".onnx" else ():
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise InputError(
                f"{path} needs the package {name}: pip install 'wsis[export]'"
            ) from error


def program_of(network: nn.Module) -> ExportedProgram:
    """Follow a network on one image; the program takes images of any size."""
    image = torch.zeros(3, 97, 131, dtype=torch.uint8)
    sizes = ({1: Dim.DYNAMIC, 2: Dim.DYNAMIC},)
    with torch.no_grad(), _quiet():
        return torch.export.export(network, (image,), dynamic_shapes=sizes, strict=False)


def write_onnx(network: Any, facts: Mapping[str, str], path: Path) -> None:
    """Write a `Graph` as an ONNX file with operators of ONNX alone, in one file.

    Args:
        network: in evaluation mode, on the CPU.
        facts: metadata of the file.
        path: file to write.

    Raises:
        InputError: the weights are too large for one file, or the file cannot be written.
    """
    weights = sum(value.nbytes for value in network.state_dict().values())
    if weights >= _MOST_BYTES:
        raise InputError(
            f"{path}: the weights have {weights / 2**30:.1f} GiB, and an ONNX file at most 2; give "
            "a file that ends in .pt2"
        )
    program = program_of(network)
    with _quiet():
        names = list(network.outputs)
        written: Any = torch.onnx.export(
            program, dynamo=True, verbose=False, input_names=["image"], output_names=names
        )
    shape = importlib.import_module("onnx_ir").Shape
    written.model.graph.inputs[0].shape = shape([3, "height", "width"])
    for value, sizes in zip(written.model.graph.outputs, network.outputs.values(), strict=True):
        value.shape = shape(sizes)
    for node in written.model.graph.all_nodes():
        node.metadata_props.clear()  # lines of code, with paths of this machine
    written.model.metadata_props.update(facts)
    with atomic_write(path) as scratch:
        written.save(scratch, external_data=False)


def write_program(network: nn.Module, facts: Mapping[str, str], path: Path) -> None:
    """Write a network for `torch.export.load`, which needs torch and torchvision alone.

    Args:
        network: in evaluation mode, on the CPU.
        facts: what to write into the file's `metadata.json`.
        path: file to write.

    Raises:
        InputError: the file cannot be written.
    """
    program = program_of(network)
    with atomic_write(path) as scratch, open(scratch, "wb") as file:
        torch.export.save(program, file, extra_files={"metadata.json": json.dumps(facts)})


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporters, which print pages about what they cannot follow."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
