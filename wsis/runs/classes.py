"""Judge a model on data with other classes: its classes are matched to theirs by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pytorch_lightning.callbacks import Callback

from wsis.datasets.coco import VOC_AS_COCO
from wsis.errors import InputError
from wsis.method import Method
from wsis.metrics.evaluation import Evaluation
from wsis.types import Batch, Prediction

__all__ = ["check_classes", "classes_in", "for_classes_of"]

_NAMED = 8
"""Classes that an error names."""


class _Renumbered(Method):
    """Wrap a model so that its detections have the class numbers of other data.

    Detections of classes that the data do not have are left out, and so are panoptic maps.

    Args:
        model: predicts the images.
        numbers: the data's number of each of the model's classes, -1 where it has none.
        names: the data's classes.
    """

    def __init__(self, model: Method, numbers: Sequence[int], names: Sequence[str]) -> None:
        super().__init__()
        self.model, self.numbers = model, torch.tensor(numbers)
        self.treat_as(model)
        self.class_names, self.panoptic = tuple(names), False

    def configure_callbacks(self) -> list[Callback]:
        """Store what is predicted."""
        return [Evaluation([])]

    def predict_step(self, batch: Batch, batch_idx: int = 0) -> list[Prediction]:
        """Predict each image of a batch."""
        return [self._renumbered(found) for found in self.model.predict_step(batch, batch_idx)]

    def _renumbered(self, found: Prediction) -> Prediction:
        labels = self.numbers.to(found.labels.device)[found.labels]
        kept = labels >= 0
        masks = [mask for mask, keep in zip(found.masks, kept.tolist(), strict=False) if keep]
        return found._replace(
            boxes=found.boxes[kept],
            scores=found.scores[kept],
            labels=labels[kept],
            masks=masks,
            panoptic=None,
        )


def for_classes_of(model: Method, data: Any) -> Method:
    """Return the model, wrapped if it has the data's classes in another order or among others.

    VOC's and COCO's names of the same class count as equal.

    Args:
        model: a trained model with its `class_names`.
        data: a data module.

    Raises:
        InputError: the data have a class that the model does not know.
    """
    ours, theirs = model.class_names, tuple(getattr(data, "class_names", ()))
    if model.needs_boxes or not ours or not theirs or ours == theirs:
        return model
    number = {_common(name): k for k, name in enumerate(theirs)}
    unknown = [name for name in theirs if _common(name) not in map(_common, ours)]
    if unknown:
        raise InputError(
            f"{data.index('train').name} has {_listed(unknown)}, which the run has not learnt; it "
            f"knows {_listed(ours)}: choose data, or --data.classes, with no other classes"
        )
    return _Renumbered(model, [number.get(_common(name), -1) for name in ours], theirs)


def check_classes(model: Method, data: Any) -> None:
    """Raise InputError if a model's class numbers mean other classes than the data's."""
    ours, theirs = model.class_names, tuple(getattr(data, "class_names", ()))
    if not model.needs_boxes and ours and theirs and ours != theirs:
        raise InputError(
            f"the run knows the classes {_listed(ours)}, the data have {_listed(theirs)}; use the "
            "data it was trained on, as they were"
        )


def classes_in(checkpoint: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the thing classes ("categories") and "stuff" that a data module wrote, if any."""
    states = [state for state in checkpoint.values() if isinstance(state, dict)]
    return next((state for state in states if "categories" in state), None)


def _common(name: str) -> str:
    return VOC_AS_COCO.get(name, name)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
