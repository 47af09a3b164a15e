"""The best checkpoint of a stage, beside the last one, where validation runs more than once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Checkpoint

from wsis.nn.checkpoint import read_checkpoint
from wsis.runs.checkpoints import intact

__all__ = ["BestCheckpoint", "measured"]


class BestCheckpoint(Checkpoint):
    """Keep the checkpoint of the best validation, the latest of equals.

    The earliest could be untrained, where a metric is soon at 100 %. A training that is validated
    at its end alone has none, as it would be the last one.

    Args:
        path: The checkpoint's file.
        metrics: Names of metrics, of which the first that is measured decides; higher is better.
    """

    def __init__(self, path: Path, metrics: Sequence[str]) -> None:
        self.path = path
        self.metrics = [f"val/{name}" for name in metrics]
        self._best: dict[str, float] = {}

    def begin(self, step: int) -> None:
        """Go on from the file, unless it is of a later step than training continues at.

        A crash can lose steps whose validation was the best; they are trained and judged again.
        """
        found = _read(self.path)
        self._best = found if found.get("step", math.inf) <= step else {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Delete a file that does not count."""
        if not self._best and trainer.is_global_zero:
            self.path.unlink(missing_ok=True)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save if no validation before was better."""
        step = trainer.global_step
        now = {name: v for name, v in measured(trainer).items() if name.startswith("val/")}
        name = next((name for name in self.metrics if name in (self._best or now)), "")
        at_end = trainer.state.fn == "validate" or step == trainer.max_steps
        if trainer.sanity_checking or name not in now or (at_end and not self._best):
            return
        if (now[name], step) > (self._best.get(name, -math.inf), self._best.get("step", -1)):
            self._best = {"step": step, **now}
            trainer.save_checkpoint(self.path)

    def state_dict(self) -> dict[str, Any]:
        """Return step and metrics of the best validation; the file has them, too."""
        return self._best


def measured(trainer: pl.Trainer) -> dict[str, float]:
    """Return the metrics of a trainer's validation that are numbers."""
    values = {name: float(value) for name, value in trainer.callback_metrics.items()}
    values.pop("step", None)
    return {name: value for name, value in values.items() if not math.isnan(value)}


def _read(path: Path) -> dict[str, float]:
    """Return step and metrics of a best checkpoint; empty if it is missing or damaged."""
    if not intact(path):
        return {}
    callbacks = read_checkpoint(path).get("callbacks", {})
    state: dict[str, float] = callbacks.get(BestCheckpoint.__qualname__, {})
    return state
