"""Crash-safe checkpoints, and seeds per step that make a resumed run equal an uninterrupted one."""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
import time
import zipfile
import zlib
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import numpy as np
import pytorch_lightning as pl
import torch
from lightning_fabric.plugins import TorchCheckpointIO
from pytorch_lightning.callbacks import Callback, Checkpoint
from torch import nn

from wsis.errors import InputError
from wsis.files import atomic_write
from wsis.nn.backbone import Backbone
from wsis.nn.checkpoint import read_checkpoint
from wsis.sharing.folder import WEIGHTS, is_shared

__all__ = [
    "AtomicCheckpointIO",
    "CheckpointCallback",
    "Reseed",
    "Which",
    "checkpoint_of",
    "intact",
    "load_weights",
    "newest",
    "step_of",
]

Which = Literal["last", "best"]
"""Which checkpoint of a stage: that of its end, or that of its best validation."""


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
        with atomic_write(path) as scratch, open(scratch, "wb") as file:
            _save(checkpoint, file)

    def flush(self) -> None:
        """Write the checkpoint held back; a crash meanwhile leaves `last` or `previous.ckpt`."""
        if self._waiting is None:
            return
        with atomic_write(self.last) as scratch:
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


def checkpoint_of(run: Path, stage: str, which: Which = "last") -> Path:
    """Return the file with the weights of a trained stage, there or not.

    Args:
        run: folder of the run, or of a shared model, which has the weights of one stage.
        stage: name of the stage.
        which: "last" or "best".
    """
    return run / WEIGHTS if is_shared(run) else run / stage / "checkpoints" / f"{which}.ckpt"


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
    """Return True if a checkpoint exists and its checksums are right.

    The digests of a shared model are checked where it is found.
    """
    if path.name == WEIGHTS:
        return path.is_file()
    try:
        with zipfile.ZipFile(path) as file:
            return file.testzip() is None
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError, RuntimeError):
        return False


class CheckpointCallback(Checkpoint):
    """Save a checkpoint every so many optimiser steps and minutes, at Ctrl-C, and at the end.

    Ctrl-C stops a training in one process after the step at hand, so that no step is lost; pressed
    again, it stops at once.

    Lightning logs a step after its last hook. A checkpoint is therefore held back and written
    before the next step begins, when the step's row is in `metrics.csv`: a run killed between the
    two would otherwise lose the row.

    Args:
        path: The checkpoint's file.
        every: Most optimiser steps from one checkpoint to the next.
        minutes: Most minutes from one checkpoint to the next, of a training in one process.
    """

    def __init__(self, path: Path, every: int, minutes: float = 10) -> None:
        self.every, self.minutes, self.saved = every, minutes, 0
        self.writer = AtomicCheckpointIO(path)
        self._since, self._stopping = 0.0, False
        self._handler: Any = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Make the trainer write through `writer`."""
        trainer.strategy.checkpoint_io = self.writer

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remember the step at which training starts or continues."""
        self.saved, self._since, self._stopping = trainer.global_step, time.monotonic(), False
        # ranks would stop at different steps, and only the main thread may handle signals
        if trainer.world_size == 1 and threading.current_thread() is threading.main_thread():
            self._handler = signal.signal(signal.SIGINT, self._interrupt)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, i: int
    ) -> None:
        """Save if due, but not during gradient accumulation: checkpoints hold no gradients."""
        step = trainer.global_step
        complete = (i + 1) % trainer.accumulate_grad_batches == 0 or trainer.is_last_batch
        due = step // self.every > self.saved // self.every or step == trainer.max_steps
        late = trainer.world_size == 1 and time.monotonic() - self._since > 60 * self.minutes
        due |= self._stopping or late
        if complete and step != self.saved and due:
            self._save(trainer)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, i: int
    ) -> None:
        """Write the checkpoint held back, before weights change again."""
        self.writer.flush()
        if self._stopping and trainer.global_step == self.saved:
            raise KeyboardInterrupt

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the last step if training ended early, and write the checkpoint."""
        if trainer.global_step != self.saved:
            self._save(trainer)
        self.writer.flush()
        self._restore()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Leave Ctrl-C as it was found."""
        self._restore()

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if self._stopping:
            raise KeyboardInterrupt
        self._stopping = True
        print("stopping after this step; Ctrl-C again stops at once", file=sys.stderr, flush=True)

    def _restore(self) -> None:
        if self._handler is not None:
            signal.signal(signal.SIGINT, self._handler)
            self._handler = None

    def _save(self, trainer: pl.Trainer) -> None:
        trainer.save_checkpoint(self.writer.last)
        self.saved, self._since = trainer.global_step, time.monotonic()


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


def step_of(checkpoint: Path, module: nn.Module) -> int:
    """Return the step of a checkpoint that training can continue from.

    Raises:
        InputError: it is not the checkpoint of a training, or has other weights than `module`.
    """
    content = read_checkpoint(checkpoint, "global_step", "loops", "optimizer_states")
    theirs, ours = content["state_dict"], module.state_dict()
    shapes = [
        {name: getattr(value, "shape", None) for name, value in weights.items()}
        for weights in (theirs if isinstance(theirs, dict) else {}, ours)
    ]
    if shapes[0] != shapes[1]:
        differing = sorted(name for name, _ in shapes[0].items() ^ shapes[1].items())
        raise InputError(
            f"{checkpoint} holds other weights than {type(module).__name__} has, such as "
            f"{differing[0]}; delete {checkpoint.parents[1]} to begin this stage again"
        )
    return int(content["global_step"])


def load_weights(module: nn.Module, checkpoint: Path) -> None:
    """Load the weights of a checkpoint into `module`, as a skipped stage leaves them untrained."""
    module.load_state_dict(read_checkpoint(checkpoint)["state_dict"])
    for part in module.modules():
        if isinstance(part, Backbone):
            part.is_random = False
