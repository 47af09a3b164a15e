"""Panoptic quality (Kirillov et al., CVPR 2019), a metric of every pixel's class and instance."""

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
    """Panoptic, segmentation and recognition quality of panoptic maps, as in COCO's evaluation.

    A predicted and a true segment of one class match if their IoU is above 0.5. Void pixels of the
    ground truth do not count in unions, and an unmatched predicted segment of which more than half
    is void is ignored. Void pixels of a prediction count as missed; torchmetrics (1.9) instead
    excludes them as if the ground truth were void, and takes 0.4 to 0.9 s per image, this 10 to
    30 ms.

    `compute()` returns the scalars `PQ`, `SQ`, `RQ`, the same with `_things` and `_stuff`, means
    over the classes that occur in predictions or ground truth, and (C + C_stuff,) `per_class/PQ`,
    `per_class/SQ`, `per_class/RQ`. Images whose prediction or ground truth has no panoptic map are
    left out.

    Args:
        num_classes: number of thing classes.
        num_stuff: number of stuff classes.
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
            ValueError: the maps of an image differ in size, or contain an unknown class.
        """
        counts, overlap = [np.empty((0, 5), np.int64)], [np.empty(0)]
        for prediction, truth in zip(predictions, truths, strict=True):
            if prediction.panoptic is None or truth.panoptic is None:
                continue
            found, true = self._keys(prediction.panoptic), self._keys(truth.panoptic)
            if found.shape != true.shape:
                raise ValueError(
                    f"image {prediction.image_id} is predicted as {found.shape} and annotated as "
                    f"{true.shape}"
                )
            quality, *numbers = _count(found, true, self.num_classes + self.num_stuff)
            classes = np.flatnonzero(np.sum(numbers, 0))
            image = np.full(len(classes), prediction.image_id)
            columns = [number[classes] for number in numbers]
            counts.append(np.stack([image, classes, *columns], 1))
            overlap.append(quality[classes])
        self.counts.append(torch.from_numpy(np.concatenate(counts)).to(self.device))
        self.overlap.append(torch.from_numpy(np.concatenate(overlap)).float().to(self.device))

    def compute(self) -> dict[str, Tensor]:
        """Return the quality of all images so far."""
        counts = array(self.counts).reshape(-1, 5).astype(np.int64)
        once = first_of_each(counts[:, :2])
        _, label, *numbers = counts[once].T
        classes = self.num_classes + self.num_stuff
        columns = (array(self.overlap)[once], *numbers)
        overlap, hits, wrong, missed = (np.bincount(label, n, classes) for n in columns)
        with np.errstate(invalid="ignore"):
            recognition = hits / (hits + wrong / 2 + missed / 2)  # nan if a class does not occur
        segmentation = np.where(np.isnan(recognition), np.nan, overlap / np.maximum(hits, 1))
        qualities = {"PQ": segmentation * recognition, "SQ": segmentation, "RQ": recognition}
        metrics: dict[str, Tensor] = {}
        for name, each in qualities.items():
            metrics[name] = mean(each)
            metrics[f"{name}_things"] = mean(each[: self.num_classes])
            metrics[f"{name}_stuff"] = mean(each[self.num_classes :])
            metrics[f"per_class/{name}"] = torch.from_numpy(each)
        return metrics

    def _keys(self, panoptic: Tensor) -> Array:
        """Return one number (H,W) int64 per segment of a map (H,W,2), negative for void."""
        label, instance = np.moveaxis(panoptic.detach().cpu().numpy().astype(np.int64), 2, 0)
        if label.max(initial=-1) >= self.num_classes + self.num_stuff:
            raise ValueError(
                f"a map has class {label.max()}, but there are {self.num_classes} + "
                f"{self.num_stuff} classes"
            )
        keys: Array = label * _PACKED + np.where(label < self.num_classes, instance, 0)
        return np.where(label < 0, -1, keys)


def _count(found: Array, true: Array, classes: int) -> tuple[Array, Array, Array, Array]:
    """Count the matches of each class, from the keys (H,W) of a prediction and its ground truth.

    Returns:
        Sum of the IoU of matches, number of matches, of false positives and of false negatives,
        each (classes,).
    """
    found_keys, rows = np.unique(found, return_inverse=True)
    true_keys, columns = np.unique(true, return_inverse=True)
    places = rows.ravel() * len(true_keys) + columns.ravel()
    shape = len(found_keys), len(true_keys)
    areas = np.bincount(places, minlength=shape[0] * shape[1]).reshape(shape)
    void = areas[found_keys >= 0][:, true_keys < 0].sum(1)
    area = areas[found_keys >= 0].sum(1)
    shared = areas[found_keys >= 0][:, true_keys >= 0]
    union = (area - void)[:, None] + areas[:, true_keys >= 0].sum(0) - shared
    found_class = found_keys[found_keys >= 0] // _PACKED
    true_class = true_keys[true_keys >= 0] // _PACKED
    iou = np.where(found_class[:, None] == true_class, shared / union, 0)
    match = iou > 0.5  # so each segment has one match at most
    wrong = ~match.any(1) & (void <= area / 2)
    matched = match.any(0)
    return (
        np.bincount(found_class, (iou * match).sum(1), classes),
        np.bincount(true_class[matched], minlength=classes),
        np.bincount(found_class[wrong], minlength=classes),
        np.bincount(true_class[~matched], minlength=classes),
    )
