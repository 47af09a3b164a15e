"""Checkpoints that survive a power cut, and random numbers that do not remember one."""

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

__all__ = ["Checkpoints", "Reseed", "Save", "intact", "load_weights", "newest"]


class Checkpoints(TorchCheckpointIO):
    """Writes a checkpoint whole or not at all, and keeps the one before as `previous.ckpt`.

    Args:
        last: The file that is written when `flush` is called; others are written at once.
        keep: Whether the checkpoint that is there is worth keeping when the first one is written.
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
        """Write what was held back; a crash in between leaves `last` or `previous.ckpt`."""
        if self._waiting is None:
            return
        with whole(self.last) as scratch:
            with open(scratch, "wb") as file:
                _save(self._waiting, file)
            if self.keep and self.last.is_file():
                os.replace(self.last, self.last.with_name("previous.ckpt"))
        self.keep, self._waiting = True, None


def _save(checkpoint: dict[str, Any], file: Any) -> None:
    """`torch.save`, with the operating system's error where it hides one."""
    try:
        torch.save(checkpoint, file)
    except RuntimeError as error:
        cause = error.__cause__ or error.__context__
        raise cause if isinstance(cause, OSError) else error from None


def newest(folder: Path) -> Path | None:
    """The newest undamaged checkpoint of a stage, None if there is none at all.

    Raises:
        InputError: there are checkpoints, all damaged.
    """
    there = [path for path in (folder / "last.ckpt", folder / "previous.ckpt") if path.is_file()]
    for path in there:
        if intact(path):
            return path
    if there:
        raise InputError(
            f"{there[0]} is damaged and there is no earlier one; delete {folder.parent} to begin this stage again"
        )
    return None


def intact(path: Path) -> bool:
    """Whether a checkpoint is there and every byte as it was written."""
    try:
        with zipfile.ZipFile(path) as file:
            return file.testzip() is None
    except (zipfile.BadZipFile, OSError, EOFError):
        return False


class Save(Checkpoint):
    """Save after every `every`-th optimiser step, between steps only, and at the end.

    Lightning logs a step after its last hook. The file is written before the next step begins, when the row is in
    `metrics.csv`: a run killed between the two would lose the row.

    Args:
        path: The file.
        every: Optimiser steps from one checkpoint to the next.
    """

    def __init__(self, path: Path, every: int) -> None:
        self.every, self.saved = every, 0
        self.writer = Checkpoints(path)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Have the trainer write by our writer."""
        trainer.strategy.checkpoint_io = self.writer

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note where training continues."""
        self.saved = trainer.global_step

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, i: int
    ) -> None:
        """Save if it is time; never inside gradient accumulation, which a checkpoint does not hold."""
        step = trainer.global_step
        between = (i + 1) % trainer.accumulate_grad_batches == 0 or trainer.is_last_batch
        if (
            between
            and step != self.saved
            and (step // self.every > self.saved // self.every or step == trainer.max_steps)
        ):
            self._save(trainer)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, i: int
    ) -> None:
        """Write, before weights change again."""
        self.writer.flush()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save what training that ended early has reached, and write."""
        if trainer.global_step != self.saved:
            self._save(trainer)
        self.writer.flush()

    def _save(self, trainer: pl.Trainer) -> None:
        trainer.save_checkpoint(self.writer.last)
        self.saved = trainer.global_step


class Reseed(Callback):
    """Seed all generators from (seed, step, rank) before each training step, so that no step depends on how it came about.

    Args:
        seed: Of the stage.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, i: int
    ) -> None:
        """Seed for one batch; `i` tells batches of one accumulated step apart."""
        self._seed("train", trainer.global_step, i, trainer.global_rank)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Seed for one validation."""
        self._seed("validate", trainer.global_step, trainer.global_rank)

    def _seed(self, *state: object) -> None:
        seed = zlib.crc32(repr((self.seed, *state)).encode())
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002 - libraries below us draw from the global generator
        torch.manual_seed(seed)


def load_weights(module: nn.Module, checkpoint: Path) -> None:
    """Take up the weights of a checkpoint; a stage that was done before leaves its module as it was built."""
    module.load_state_dict(
        torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"]
    )
