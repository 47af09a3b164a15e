"""Checkpoints and weights of others, read without running anything that they hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import pytorch_lightning as pl
import torch

from wsis.errors import InputError
from wsis.nn._weights import unreadable
from wsis.nn.backbone import weights_follow

__all__ = ["load_model", "read_checkpoint"]

Module = TypeVar("Module", bound=pl.LightningModule)


def read_checkpoint(path: Path, *needed: str) -> dict[str, Any]:
    """Return the content of a checkpoint; its tensors are read from the file when they are used.

    Args:
        path: the checkpoint.
        needed: what it must hold besides the weights, `state_dict`.

    Raises:
        InputError: no such file, or it is damaged, no checkpoint, or holds more than data.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
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
    try:
        with weights_follow():
            return kind.load_from_checkpoint(
                path, map_location="cpu", weights_only=True, **settings
            )
    except InputError:
        raise
    except (RuntimeError, TypeError, KeyError, AttributeError, ValueError) as error:
        # weights of other names or shapes, unknown arguments, parts that Lightning misses
        raise InputError(
            f"{path} was written by another version of {kind.__name__}; train it again"
        ) from error
