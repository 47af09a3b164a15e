"""Merge instances and a map of stuff into one panoptic map."""

from __future__ import annotations

import numpy as np
import torch
from pycocotools import mask as rle
from torch import Tensor

from wsis.losses import NO_STUFF
from wsis.types import Prediction

__all__ = ["best_as_sum", "merge", "paint"]


def merge(
    prediction: Prediction,
    semantic: Tensor,
    num_classes: int,
    score_threshold: float = 0.5,
    overlap_threshold: float = 0.5,
    stuff_area: int = 4096,
) -> Tensor:
    """Fill the map with instances by descending score, then with stuff.

    Kirillov et al., Panoptic Feature Pyramid Networks, section 4.1.

    Args:
        prediction: instances with masks.
        semantic: (H,W) int64 stuff class of each pixel, 0-based; 255 = none.
        num_classes: number of thing classes; stuff class s becomes `num_classes` + s.
        score_threshold: lowest score of an instance.
        overlap_threshold: largest fraction of an instance that others may cover; the instance is
            dropped above it, else it keeps its free pixels.
        stuff_area: lowest number of free pixels of a stuff class.

    Returns:
        (H,W,2) int32: class (-1 = void) and instance, counted from 1 in order of score, 0 for stuff
        and void.

    Raises:
        ValueError: `semantic` has another size than the image.
    """
    if tuple(semantic.shape) != tuple(prediction.size):
        raise ValueError(
            f"image {prediction.image_id} is {prediction.size}, but its stuff map "
            f"{tuple(semantic.shape)}"
        )
    classes, instances = np.full(prediction.size, -1, np.int32), np.zeros(prediction.size, np.int32)
    scores, labels = prediction.scores.tolist(), prediction.labels.tolist()
    ranked = sorted(range(len(scores)), key=lambda i: -scores[i])
    count = 0
    for i in ranked:
        if scores[i] < score_threshold:
            break
        mask = rle.decode(prediction.masks[i]).astype(bool)
        free = mask & (classes < 0)
        if not free.any() or mask.sum() - free.sum() > overlap_threshold * mask.sum():
            continue
        count += 1
        classes[free], instances[free] = labels[i], count
    stuff = np.where(classes < 0, semantic.cpu().numpy(), NO_STUFF)
    areas = np.bincount(stuff.ravel(), minlength=NO_STUFF + 1)
    large = (areas >= stuff_area) & (np.arange(len(areas)) != NO_STUFF)
    classes = np.where(large[stuff], stuff + num_classes, classes)
    return torch.from_numpy(np.stack([classes, instances], -1).astype(np.int32))


def paint(masks: Tensor, labels: Tensor) -> Tensor:
    """Paint masks (G,H,W) bool of classes (G,), each on top of those before it.

    Returns:
        (H,W) int64; 255 where there is no mask.
    """
    canvas = torch.full(masks.shape[1:], NO_STUFF, device=masks.device)
    for label, mask in zip(labels.tolist(), masks, strict=True):
        canvas[mask] = label
    return canvas


def best_as_sum(prediction: Prediction, scores: Tensor) -> Tensor:
    """Scale the scores of instances so that the best proposal of a class has the class's sum.

    Args:
        prediction: N instances, with scores out of `scores`.
        scores: (P,C) of all proposals of the image.

    Returns:
        (N,).
    """
    if not len(scores):
        return prediction.scores
    factor = scores.sum(0) / scores.amax(0).clamp(min=1e-12)
    return prediction.scores * factor.to(prediction.scores)[prediction.labels]
