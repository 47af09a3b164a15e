"""A part that a method trains in a stage of its own, described by one of the method's settings."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

import pytorch_lightning as pl

from wsis import registry
from wsis.data.transforms import Augment
from wsis.errors import InputError
from wsis.runs.checkpoints import load_weights

if TYPE_CHECKING:
    from wsis.runs.run import Run

__all__ = ["Stage"]

Part = TypeVar("Part", bound=pl.LightningModule)


class Stage(NamedTuple, Generic[Part]):
    """A part and how it is trained, such as the Mask R-CNN that a method ends with.

    Made before the first stage of a run, so that a wrong setting is told at once and not after hours.
    """

    model: Part
    steps: int
    augment: Augment | None
    batch_size: int | None
    accumulate: int | None

    @classmethod
    def of(
        cls, part: type[Part], setting: str, given: Mapping[str, Any], **shared: Any
    ) -> Stage[Part]:
        """Make the part from the method's setting.

        Args:
            part: its class.
            setting: the setting's name.
            given: the setting: `steps`; `batch_size`, `accumulate` and `augment` where they differ from the data's and the
                trainer's; and arguments of `part`.
            **shared: arguments that the method has already; `given` may replace them.

        Raises:
            InputError: an unknown argument, or no steps.
        """
        own, where = dict(given), f"model.{setting}"
        steps, augment, batch_size, accumulate = (
            own.pop(name, None) for name in ("steps", "augment", "batch_size", "accumulate")
        )
        if not isinstance(steps, int):
            raise InputError(
                f"{where} needs `steps`, how long {part.__name__} is trained, as in {{steps: 1000}}"
            )
        varied = _make(Augment, f"{where}.augment", augment) if augment else None
        return cls(_make(part, where, own, **shared), steps, varied, batch_size, accumulate)

    def train(self, run: Run, name: str, data: Any, labels: Path | None = None) -> Path:
        """Train as a stage of a run, on the labels of a COCO json in place of the data's own; returns the checkpoint.

        The model has its weights afterwards, whether it was trained now or before.
        """
        if labels or self.augment or self.batch_size:
            data = data.variant(labels, self.augment, self.batch_size)
        trainer = {"max_steps": self.steps} | (
            {"accumulate_grad_batches": self.accumulate} if self.accumulate else {}
        )
        checkpoint = run.fit(name, self.model, data, **trainer)
        load_weights(self.model, checkpoint)
        return checkpoint


def _make(cls: Any, where: str, given: Mapping[str, Any], **shared: Any) -> Any:
    """An instance; an argument that `cls` does not have is the user's mistake."""
    known = inspect.signature(cls).parameters
    for name in given:
        if name not in known:
            raise InputError(f"unknown setting '{where}.{name}'{registry.suggest(name, known)}")
    return cls(**(shared | dict(given)))
