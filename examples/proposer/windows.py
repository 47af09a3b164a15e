"""Superpixels inside the windows of a grid: a proposer of your own in one file."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from skimage.segmentation import slic

from wsis.types import Proposals


def windows(
    image: NDArray[np.uint8],
    superpixels: int = 300,
    sides: tuple[float, ...] = (1 / 6, 1 / 4, 1 / 3, 1 / 2),
) -> Proposals:
    """Propose, for each window of a grid, the superpixels that lie by more than half inside it.

    Args:
        image: (H,W,3) uint8 RGB.
        superpixels: Approximate number of superpixels.
        sides: Sides of windows over those of the image; each is half a side from the next.

    Returns:
        Proposals in image pixels, scored by the part of their box that they fill.
    """
    labels = slic(image, n_segments=superpixels, start_label=0).astype(np.int32)
    area = np.bincount(labels.ravel())
    inside = [np.bincount(part.ravel(), minlength=len(area)) for part in _cut(labels, sides)]
    members = np.unique(np.stack(inside) > area / 2, axis=0)
    members = members[members.any(1)]
    boxes = _boxes(labels, members)
    scores = (members @ area) / np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    order = np.argsort(-scores, kind="stable")
    columns = boxes[order], scores[order].astype(np.float32), labels, members[order]
    return Proposals(*map(torch.from_numpy, columns))


windows.supervision = "none"  # nothing was trained


def _cut(labels: NDArray[np.int32], sides: Sequence[float]) -> list[NDArray[np.int32]]:
    """Return the parts of a label map (H,W) that the windows show."""
    height, width = labels.shape
    parts = []
    for side in sides:
        h, w = max(int(side * height), 2), max(int(side * width), 2)
        for y in range(0, height - h // 2, h // 2):
            parts += [labels[y : y + h, x : x + w] for x in range(0, width - w // 2, w // 2)]
    return parts


def _boxes(labels: NDArray[np.int32], members: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return the tight boxes (P,4) of sets (P,S) of superpixels."""
    size = max(labels.shape)
    low = np.full((2, members.shape[1]), size)
    high = np.zeros_like(low)
    for axis, at in enumerate(np.indices(labels.shape)[::-1]):  # x, then y
        np.minimum.at(low[axis], labels, at)
        np.maximum.at(high[axis], labels, at + 1)
    first = np.where(members[:, None], low, size).min(2)
    last = np.where(members[:, None], high, 0).max(2)
    return np.concatenate([first, last], axis=1).astype(np.float32)
