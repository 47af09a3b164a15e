"""How far a stage has come: a bar on a terminal, elsewhere a line a minute."""

from __future__ import annotations

import time
from typing import Any

import pytorch_lightning as pl
from lightning_utilities.core.rank_zero import rank_zero_only
from pytorch_lightning.callbacks import Callback, TQDMProgressBar

__all__ = ["Bar", "Lines", "Pace", "describe", "say"]


@rank_zero_only
def say(line: str) -> None:
    """Print a line at once, on the first rank."""
    print(line, flush=True)


class Pace:
    """Tells how long the rest takes if it goes on as since the start.

    Args:
        first: what was done before the start.
    """

    def __init__(self, first: int) -> None:
        self.first, self._start = first, time.monotonic()

    def left(self, done: int, total: int) -> str:
        """Return `, 35 min left`; empty at the start and the end, or if the end is not known."""
        if done == self.first or done >= total:
            return ""
        seconds = (time.monotonic() - self._start) / (done - self.first) * (total - done)
        return f", {seconds / 60:.0f} min left" if seconds >= 90 else f", {seconds:.0f} s left"


def describe(trainer: pl.Trainer, pace: Pace) -> str:
    """Return how far a training is: `step 120 of 1000, loss 1.31, 35 min left`."""
    step, steps = trainer.global_step, trainer.max_steps
    loss = trainer.callback_metrics.get("train/loss")
    shown = "" if loss is None else f", loss {float(loss):.3g}"
    return f"step {step} of {steps if steps > 0 else '?'}{shown}{pace.left(step, steps)}"


class Bar(TQDMProgressBar):
    """Lightning's progress bar, named after the stage.

    Args:
        name: of the stage.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def on_train_epoch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        """Name the bar, which Lightning calls "Epoch 0"."""
        super().on_train_epoch_start(trainer)
        self.train_progress_bar.set_description(self.name)


class Lines(Callback):
    """Print a line now and then: `2-pdsl: step 120 of 1000, loss 1.31, 35 min left`.

    Args:
        name: of the stage.
        every: seconds between lines; the first comes after a third of it.
    """

    def __init__(self, name: str, every: float = 60) -> None:
        self.name, self.every = name, every

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self._begin(trainer.global_step)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, i: int
    ) -> None:
        """Print the step, the loss and the time that is left, if a line is due."""
        step = trainer.global_step
        if self._is_due() and step != self._pace.first:
            say(f"{self.name}: {describe(trainer, self._pace)}")

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock of a validation after training."""
        if not trainer.training:
            self._begin(0)

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Print the batch, if a line is due."""
        if self._is_due():
            total = int(sum(trainer.num_val_batches))
            left = "" if trainer.training else self._pace.left(batch_idx + 1, total)
            say(f"{self.name}: validating, batch {batch_idx + 1} of {total}{left}")

    def _begin(self, step: int) -> None:
        self._pace = Pace(step)
        self._next = time.monotonic() + self.every / 3

    def _is_due(self) -> bool:
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + self.every
        return True
