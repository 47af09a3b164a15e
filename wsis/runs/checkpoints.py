"""Crash-safe checkpoints, and seeds per step that make a resumed run equal an uninterrupted one."""

from __future__ import annotations

import os
import random
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from lightning_fabric.plugins import TorchCheckpointIO
from pytorch_lightning.callbacks import Callback, Checkpoint
from torch import nn

from wsis.errors import InputError
from wsis.files import whole

__all__ = [
    "AtomicCheckpointIO",
    "CheckpointCallback",
    "Reseed",
    "intact",
    "load_weights",
    "newest",
]


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write checkpoints atomically, and keep the one before the last as `previous.ckpt`.

    Args:
        last: The file that is written when `flush` is called; others are written at once.
        keep: Whether the first write keeps the `last` that exists as `previous.ckpt`.
    """

    def __init__(self, last: Path, keep: bool = True) -> None:
        self.last, self.keep = last, keep
        self._waiting: dict[str, Any] | None = None

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        """Write `checkpoint`, or hold it back until `flush`."""
        if Path(path) == self.last:
            self._waiting = checkpoint
            return
        with whole(path) as scratch, open(scratch, "wb") as file:
            _save(checkpoint, file)

    def flush(self) -> None:
        """Write the checkpoint held back; a crash meanwhile leaves `last` or `previous.ckpt`."""
        if self._waiting is None:
            return
        with whole(self.last) as scratch:
            with open(scratch, "wb") as file:
                _save(self._waiting, file)
            if self.keep and self.last.is_file():
                os.replace(self.last, self.last.with_name("previous.ckpt"))
        self.keep, self._waiting = True, None


def _save(checkpoint: dict[str, Any], file: Any) -> None:
    """Call `torch.save`, and raise the operating system's error where torch hides it."""
    try:
        torch.save(checkpoint, file)
    except RuntimeError as error:
        cause = error.__cause__ or error.__context__
        raise cause if isinstance(cause, OSError) else error from None


def newest(folder: Path) -> Path | None:
    """Return the newest undamaged checkpoint of a stage, None if there are no checkpoints.

    Raises:
        InputError: there are checkpoints, but all are damaged.
    """
    candidates = (folder / "last.ckpt", folder / "previous.ckpt")
    present = [path for path in candidates if path.is_file()]
    for path in present:
        if intact(path):
            return path
    if present:
        raise InputError(
            f"{present[0]} is damaged and there is no earlier one; delete {folder.parent} to begin "
            "this stage again"
        )
    return None


def intact(path: Path) -> bool:
    """Return True if a checkpoint exists and its checksums are right."""
    try:
        with zipfile.ZipFile(path) as file:
            return file.testzip() is None
    except (zipfile.BadZipFile, OSError, EOFError):
        return False


class CheckpointCallback(Checkpoint):
    """Save a checkpoint after every `every`-th optimiser step and at the end of training.

    Lightning logs a step after its last hook. A checkpoint is therefore held back and written
    before the next step begins, when the step's row is in `metrics.csv`: a run killed between the
    two would otherwise lose the row.

    Args:
        path: The checkpoint's file.
        every: Optimiser steps from one checkpoint to the next.
    """

    def __init__(self, path: Path, every: int) -> None:
        self.every, self.saved = every, 0
        self.writer = AtomicCheckpointIO(path)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Make the trainer write through `writer`."""
        trainer.strategy.checkpoint_io = self.writer

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remember the step at which training starts or continues."""
        self.saved = trainer.global_step

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, i: int
    ) -> None:
        """Save if due, but not during gradient accumulation: checkpoints hold no gradients."""
        step = trainer.global_step
        complete = (i + 1) % trainer.accumulate_grad_batches == 0 or trainer.is_last_batch
        due = step // self.every > self.saved // self.every or step == trainer.max_steps
        if complete and step != self.saved and due:
            self._save(trainer)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, i: int
    ) -> None:
        """Write the checkpoint held back, before weights change again."""
        self.writer.flush()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the last step if training ended early, and write the checkpoint."""
        if trainer.global_step != self.saved:
            self._save(trainer)
        self.writer.flush()

    def _save(self, trainer: pl.Trainer) -> None:
        trainer.save_checkpoint(self.writer.last)
        self.saved = trainer.global_step


class Reseed(Callback):
    """Seed all generators from (seed, step, rank) before each training step.

    The random numbers of a step then do not depend on whether the run was resumed.

    Args:
        seed: Seed of the stage.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, i: int
    ) -> None:
        """Seed one batch; `i` distinguishes the batches of one accumulated step."""
        self._seed("train", trainer.global_step, i, trainer.global_rank)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Seed one validation."""
        self._seed("validate", trainer.global_step, trainer.global_rank)

    def _seed(self, *state: object) -> None:
        seed = zlib.crc32(repr((self.seed, *state)).encode())
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002 - libraries below us draw from the global generator
        torch.manual_seed(seed)


def load_weights(module: nn.Module, checkpoint: Path) -> None:
    """Load the weights of a checkpoint into `module`, as a skipped stage leaves them untrained."""
    content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    module.load_state_dict(content["state_dict"])
