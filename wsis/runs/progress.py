"""How far a stage has come: a bar on a terminal, elsewhere a line a minute."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
from lightning_utilities.core.rank_zero import rank_zero_only
from pytorch_lightning.callbacks import Callback, TQDMProgressBar

from wsis.types import Index
from wsis.values import without_effect

__all__ = [
    "Bar",
    "Lines",
    "Pace",
    "describe",
    "percents",
    "say",
    "say_idle",
    "say_notes",
    "title",
    "unnumbered",
]


@rank_zero_only
def say(line: str) -> None:
    """Print a line at once, on the first rank."""
    print(line, flush=True)


def say_idle(place: str, given: Collection[str], idle: Mapping[str, str]) -> None:
    """Print the notes of `wsis.values.without_effect`."""
    for note in without_effect(place, given, idle):
        say(note)


def say_notes(*indices: Index) -> None:
    """Print what was noted when indices were read, each note once."""
    for note in dict.fromkeys(note for index in indices for note in index.notes):
        say(note)


def title(name: str, planned: Sequence[str]) -> str:
    """Return what a stage is called while it works: `stage 2 of 4, segments`.

    Args:
        name: of the stage.
        planned: names of all stages; a stage that is alone or not among them is called by its name.
    """
    if len(planned) < 2 or name not in planned:
        return name
    return f"stage {planned.index(name) + 1} of {len(planned)}, {unnumbered(name)}"


def unnumbered(name: str) -> str:
    """Return `classifier` for the stage `1-classifier`."""
    return re.sub("^[0-9]+-", "", name)


def percents(metrics: Mapping[str, Any], names: Iterable[str]) -> str:
    """Return those metrics that are known, in per cent: `val/AP50 63.2%  val/AP25 80.1%`."""
    known = [(name, 100 * float(metrics[name])) for name in names if name in metrics]
    return "  ".join(f"{name} {value:.1f}%" for name, value in known if math.isfinite(value))


def _main(model: pl.LightningModule) -> list[str]:
    """Return the names under which the main metrics of a model's validation are logged."""
    return [f"val/{name}" for name in getattr(model, "main_metrics", ())]


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
        name: what the stage is called.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def on_train_epoch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        """Name the bar, which Lightning calls "Epoch 0"."""
        super().on_train_epoch_start(trainer)
        self.train_progress_bar.set_description(self.name)

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        """Return what is shown beside the bar, metrics in per cent."""
        shown: dict[str, Any] = dict(super().get_metrics(trainer, pl_module))
        main = [name for name in _main(pl_module) if name in shown]
        return shown | {name: f"{100 * float(shown[name]):.1f}%" for name in main}


class Lines(Callback):
    """Print a line now and then: `stage 2 of 2, pdsl: step 120 of 1000, loss 1.31, 35 min left`.

    Args:
        name: what the stage is called.
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
        if trainer.state.fn == "validate":
            self._begin(0)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print what a validation during training measured."""
        measured = percents(trainer.callback_metrics, _main(pl_module))
        if measured and trainer.state.fn == "fit":
            say(f"{self.name}: step {trainer.global_step}, {measured}")

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
            left = "" if trainer.state.fn == "fit" else self._pace.left(batch_idx + 1, total)
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
