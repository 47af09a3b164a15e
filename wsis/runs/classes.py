"""Judge a model on data with other classes: its classes are matched to theirs by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor

from wsis.datasets.coco import VOC_AS_COCO
from wsis.errors import InputError
from wsis.method import Method
from wsis.metrics.evaluation import Evaluation
from wsis.types import Batch, Prediction

__all__ = ["check_classes", "classes_in", "for_classes_of"]

_NAMED = 8
"""Classes that an error names."""


class _Classes(NamedTuple):
    """Names of classes, in order."""

    things: tuple[str, ...]
    stuff: tuple[str, ...]


class _Renumbered(Method):
    """Wrap a model so that its detections and panoptic maps have the class numbers of other data.

    Detections of classes that the data do not have are left out, and void in panoptic maps.

    Args:
        model: predicts the images.
        numbers: the data's number of each of the model's things, then of its stuff, -1 where it has
            none.
        names: the data's things.
        stuff: the data's stuff.
    """

    def __init__(
        self, model: Method, numbers: Sequence[int], names: Sequence[str], stuff: Sequence[str]
    ) -> None:
        super().__init__()
        self.model, self.numbers = model, torch.tensor([*numbers, -1])  # void, -1, is the last
        self.treat_as(model)
        self.class_names, self.stuff_names = tuple(names), tuple(stuff)

    def configure_callbacks(self) -> list[Callback]:
        """Store what is predicted."""
        return [Evaluation([])]

    def predict_step(self, batch: Batch, batch_idx: int = 0) -> list[Prediction]:
        """Predict each image of a batch."""
        return [self._renumbered(found) for found in self.model.predict_step(batch, batch_idx)]

    def _renumbered(self, found: Prediction) -> Prediction:
        numbers = self.numbers.to(found.labels.device)
        labels = numbers[found.labels]
        kept = labels >= 0
        masks = [mask for mask, keep in zip(found.masks, kept.tolist(), strict=False) if keep]
        return found._replace(
            boxes=found.boxes[kept],
            scores=found.scores[kept],
            labels=labels[kept],
            masks=masks,
            panoptic=None if found.panoptic is None else _renumbered_map(found.panoptic, numbers),
        )


def for_classes_of(model: Method, data: Any) -> Method:
    """Return the model, wrapped if it has the data's classes in another order or among others.

    VOC's and COCO's names of the same class count as equal.

    Args:
        model: a trained model with its `class_names` and, if it is panoptic, its `stuff_names`.
        data: a data module.

    Raises:
        InputError: the data have a class that the model does not know.
    """
    ours, theirs = _classes_of(model), _classes_of(data)
    if model.needs_boxes or not ours.things or not theirs.things:
        return model
    if not model.panoptic:
        ours, theirs = ours._replace(stuff=()), theirs._replace(stuff=())
    if ours == theirs:
        return model
    numbers = _numbers(ours.things, theirs.things, data)
    stuff = _numbers(ours.stuff, theirs.stuff, data)
    numbers += [k + len(theirs.things) if k >= 0 else k for k in stuff]
    return _Renumbered(model, numbers, *theirs)


def _numbers(ours: Sequence[str], theirs: Sequence[str], data: Any) -> list[int]:
    """Return the place among `theirs` of each of `ours`, -1 where it has none.

    Raises:
        InputError: one of theirs is not among ours.
    """
    known = {_common(name) for name in ours}
    unknown = [name for name in theirs if _common(name) not in known]
    if unknown:
        raise InputError(
            f"{data.index('train').name} has {_listed(unknown)}, which the run has not learnt; it "
            f"knows {_listed(ours) or 'none'}: choose data, or --data.classes, with no other "
            "classes"
        )
    place = {_common(name): k for k, name in enumerate(theirs)}
    return [place.get(_common(name), -1) for name in ours]


def check_classes(model: Method, data: Any) -> None:
    """Raise InputError if a model's class numbers mean other classes than the data's."""
    ours, theirs = _classes_of(model), _classes_of(data)
    parts = [(ours.things, theirs.things)] if not model.needs_boxes else []
    if model.panoptic:
        parts.append((ours.stuff, theirs.stuff))
    for known, given in parts:
        if known and given and known != given:
            raise InputError(
                f"the run knows the classes {_listed(known)}, the data have {_listed(given)}; use "
                "the data it was trained on, as they were"
            )


def classes_in(checkpoint: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the thing classes ("categories") and "stuff" that a data module wrote, if any."""
    states = [state for state in checkpoint.values() if isinstance(state, dict)]
    return next((state for state in states if "categories" in state), None)


def _classes_of(source: Any) -> _Classes:
    """Return the classes of a model or a data module."""
    if isinstance(source, Method):
        return _Classes(source.class_names, source.stuff_names)
    stuff = tuple(category["name"] for category in getattr(source, "stuff", ()))
    return _Classes(tuple(getattr(source, "class_names", ())), stuff)


def _renumbered_map(panoptic: Tensor, numbers: Tensor) -> Tensor:
    """Return a panoptic map (H,W,2) with other class numbers; the last of `numbers` is of void."""
    labels = numbers.to(panoptic.device)[panoptic[..., 0].long()].to(panoptic.dtype)
    return torch.stack([labels, torch.where(labels < 0, 0, panoptic[..., 1])], -1)


def _common(name: str) -> str:
    return VOC_AS_COCO.get(name, name)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
