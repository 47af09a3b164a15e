"""Panoptic quality (Kirillov et al., CVPR 2019): how well every pixel's class and instance are told."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from wsis.metrics.states import Array, array, first_of_each, mean
from wsis.types import Prediction, Truth

__all__ = ["PanopticQuality"]

_PACKED = 1 << 32  # class and instance of a pixel in one number


class PanopticQuality(Metric):
    """Panoptic, segmentation and recognition quality of panoptic maps, as COCO's evaluation counts them.

    A predicted and a true segment of one class match where their IoU is above 0.5. Void pixels of the truth belong to no
    union, and an unmatched prediction that is void by more than half is no mistake. Void pixels of a prediction are simply not
    found; torchmetrics (1.9) instead forgives them as if the truth were void, and takes 0.4 to 0.9 s an image for what is
    counted here in 10 to 30 ms.

    `compute()` gives the scalars `PQ`, `SQ`, `RQ`, the same with `_things` and `_stuff`, means over the classes that were
    predicted or are there, and per class (C + C_stuff,) `per_class/PQ`, `per_class/SQ`, `per_class/RQ`. Images whose prediction
    or truth has no panoptic map are left out.

    Args:
        num_classes: how many classes are things.
        num_stuff: how many are stuff.
    """

    full_state_update = False
    counts: list[Tensor]
    overlap: list[Tensor]

    def __init__(self, num_classes: int, num_stuff: int) -> None:
        super().__init__()
        self.num_classes, self.num_stuff = num_classes, num_stuff
        for state in ("counts", "overlap"):
            self.add_state(state, [], dist_reduce_fx="cat")

    def update(self, predictions: list[Prediction], truths: list[Truth]) -> None:
        """Add images, one truth per prediction.

        Raises:
            ValueError: the maps of an image differ in size, or name a class that there is not.
        """
        counts, overlap = [np.empty((0, 5), np.int64)], [np.empty(0)]
        for prediction, truth in zip(predictions, truths, strict=True):
            if prediction.panoptic is None or truth.panoptic is None:
                continue
            found, true = self._keys(prediction.panoptic), self._keys(truth.panoptic)
            if found.shape != true.shape:
                raise ValueError(
                    f"image {prediction.image_id} is predicted as {found.shape} and annotated as {true.shape}"
                )
            quality, *numbers = _count(found, true, self.num_classes + self.num_stuff)
            seen = np.flatnonzero(np.sum(numbers, 0))
            image = np.full(len(seen), prediction.image_id)
            counts.append(np.stack([image, seen, *(number[seen] for number in numbers)], 1))
            overlap.append(quality[seen])
        self.counts.append(torch.from_numpy(np.concatenate(counts)).to(self.device))
        self.overlap.append(torch.from_numpy(np.concatenate(overlap)).float().to(self.device))

    def compute(self) -> dict[str, Tensor]:
        """Quality over all images so far."""
        counts = array(self.counts).reshape(-1, 5).astype(np.int64)
        once = first_of_each(counts[:, :2])
        _, label, *numbers = counts[once].T
        classes = self.num_classes + self.num_stuff
        overlap, hits, wrong, missed = (
            np.bincount(label, n, classes) for n in (array(self.overlap)[once], *numbers)
        )
        with np.errstate(invalid="ignore"):
            recognition = hits / (hits + wrong / 2 + missed / 2)  # nan where a class is nowhere
        segmentation = np.where(np.isnan(recognition), np.nan, overlap / np.maximum(hits, 1))
        figures: dict[str, Tensor] = {}
        for name, each in (
            ("PQ", segmentation * recognition),
            ("SQ", segmentation),
            ("RQ", recognition),
        ):
            things, stuff = each[: self.num_classes], each[self.num_classes :]
            figures |= {
                name: mean(each),
                f"{name}_things": mean(things),
                f"{name}_stuff": mean(stuff),
            }
            figures[f"per_class/{name}"] = torch.from_numpy(each)
        return figures

    def _keys(self, panoptic: Tensor) -> Array:
        """(H,W,2) -> (H,W) int64, one number for each segment, negative for void."""
        label, instance = np.moveaxis(panoptic.detach().cpu().numpy().astype(np.int64), 2, 0)
        if label.max(initial=-1) >= self.num_classes + self.num_stuff:
            raise ValueError(
                f"a map has class {label.max()}, but there are {self.num_classes} + {self.num_stuff} classes"
            )
        keys: Array = label * _PACKED + np.where(label < self.num_classes, instance, 0)
        return np.where(label < 0, -1, keys)


def _count(found: Array, true: Array, classes: int) -> tuple[Array, Array, Array, Array]:
    """Sum of IoU of matches, matches, wrong predictions and missed truths of each class (classes,), from keys (H,W)."""
    found_keys, rows = np.unique(found, return_inverse=True)
    true_keys, columns = np.unique(true, return_inverse=True)
    places = rows.ravel() * len(true_keys) + columns.ravel()
    areas = np.bincount(places, minlength=len(found_keys) * len(true_keys)).reshape(
        len(found_keys), len(true_keys)
    )
    void = areas[found_keys >= 0][:, true_keys < 0].sum(1)
    area = areas[found_keys >= 0].sum(1)
    shared = areas[found_keys >= 0][:, true_keys >= 0]
    union = (area - void)[:, None] + areas[:, true_keys >= 0].sum(0) - shared
    found_class, true_class = (
        found_keys[found_keys >= 0] // _PACKED,
        true_keys[true_keys >= 0] // _PACKED,
    )
    iou = np.where(found_class[:, None] == true_class, shared / union, 0)
    match = iou > 0.5  # so each segment has one match at most
    hit, caught = match.any(1), match.any(0)
    wrong = ~hit & (void <= area / 2)
    return (
        np.bincount(found_class, (iou * match).sum(1), classes),
        np.bincount(true_class[caught], minlength=classes),
        np.bincount(found_class[wrong], minlength=classes),
        np.bincount(true_class[~caught], minlength=classes),
    )
