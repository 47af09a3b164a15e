"""Checkpoints and weights of others, read without running anything that they hold."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytorch_lightning as pl
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from wsis.errors import InputError
from wsis.files import atomic_write, read_json
from wsis.nn._weights import unreadable
from wsis.nn.backbone import weights_follow
from wsis.sharing.folder import MODEL, WEIGHTS

__all__ = ["load_model", "load_shared", "read_checkpoint", "write_shared"]

Module = TypeVar("Module", bound=pl.LightningModule)
_FACTS = ("hyper_parameters", "classes")
"""What a shared model has besides its weights."""


def read_checkpoint(path: Path, *needed: str) -> dict[str, Any]:
    """Return the content of a checkpoint; its tensors are read from the file when they are used.

    Args:
        path: the checkpoint, or the safetensors of a shared model.
        needed: what it must hold besides the weights, `state_dict`.

    Raises:
        InputError: no such file, or it is damaged, no checkpoint, or holds more than data.
    """
    try:
        if path.name == WEIGHTS:
            content = {**_read_facts(path.with_name(MODEL)), "state_dict": load_file(path)}
        else:
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except InputError:
        raise
    except Exception as error:  # damaged files raise many kinds
        raise unreadable(path, "checkpoint", error) from error
    if not isinstance(content, dict) or not {"state_dict", *needed} <= content.keys():
        raise InputError(f"{path} is not the checkpoint of a run; give another")
    return content


def load_model(kind: type[Module], path: Path, **settings: Any) -> Module:
    """Make a model from a checkpoint, on the CPU.

    Args:
        kind: class of the model.
        path: the checkpoint.
        settings: constructor arguments that replace those in the checkpoint.

    Raises:
        InputError: as `read_checkpoint`, or the checkpoint is of another class or version.
    """
    read_checkpoint(path)  # Lightning would advise to run what a file holds
    with _as_written_by(path, kind.__name__):
        return kind.load_from_checkpoint(path, map_location="cpu", weights_only=True, **settings)


def load_shared(make: Callable[[dict[str, Any]], Module], path: Path, name: str) -> Module:
    """Make a model from shared weights, on the CPU.

    Args:
        make: makes the model from its constructor arguments.
        path: the weights.
        name: of the model's class.

    Raises:
        InputError: a damaged file, or weights of another class or version.
    """
    content = read_checkpoint(path)
    with _as_written_by(path, name):
        model = make(content["hyper_parameters"])
        model.on_load_checkpoint(content)
        model.load_state_dict(content["state_dict"])
        return model


def write_shared(content: dict[str, Any], folder: Path) -> None:
    """Write model.safetensors and model.json, which `read_checkpoint` reads.

    Args:
        content: tensors as `state_dict`, constructor arguments as `hyper_parameters`, and the
            classes that the data module has written, as `classes`.
        folder: to write to.

    Raises:
        InputError: the model has a state that is no tensor, or arguments that are not plain.
    """
    state = content["state_dict"]
    odd = [name for name, value in state.items() if not isinstance(value, Tensor)]
    if odd:
        raise InputError(f"{odd[0]} of the model is no tensor, and only tensors can be shared")
    facts = {name: content[name] for name in _FACTS}
    try:
        text = json.dumps(facts, indent=1)
    except TypeError as error:
        raise InputError(
            f"constructor arguments of the model cannot be shared, as they are not plain: {error}"
        ) from error
    with atomic_write(folder / MODEL) as scratch:
        scratch.write_text(text, encoding="utf-8")
    with atomic_write(folder / WEIGHTS) as scratch:  # tensors may share memory
        save_file({name: value.clone().contiguous() for name, value in state.items()}, scratch)


def _read_facts(path: Path) -> dict[str, Any]:
    """Return constructor arguments and classes of a shared model."""
    content = read_json(path)
    arguments, classes = (
        content.get(name) if isinstance(content, dict) else None for name in _FACTS
    )
    known = classes if isinstance(classes, dict) else {}
    records = [known.get("categories"), known.get("stuff")]
    if not isinstance(arguments, dict) or not all(map(_are_classes, records)):
        raise InputError(f"{path} does not describe a shared model; get the model again")
    return {"hyper_parameters": arguments, "classes": known}


def _are_classes(records: Any) -> bool:
    return isinstance(records, list) and all(
        isinstance(record, dict)
        and isinstance(record.get("name"), str)
        and isinstance(record.get("id"), int)
        for record in records
    )


@contextmanager
def _as_written_by(path: Path, name: str) -> Iterator[None]:
    """Build backbones without weights; raise InputError if a file does not fit a class."""
    try:
        with weights_follow():
            yield
    except InputError:
        raise
    except (RuntimeError, TypeError, KeyError, AttributeError, ValueError) as error:
        # weights of other names or shapes, unknown arguments, parts that Lightning misses
        raise InputError(
            f"{path} was written by another version of {name}; train it again"
        ) from error
