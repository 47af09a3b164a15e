"""Tensors of the points of objects: stacked, cut, covered, and drawn from masks.

M objects, K points each at most. A label is 1 in the object, 0 outside of it, -1 for no point,
whose coordinates are NaN; Segment Anything counts in the same way.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from wsis.data.transforms import Cut

__all__ = ["cover_points", "cut_points", "middle_points", "stack_points"]

_NONE = (math.nan, math.nan, -1)


def stack_points(given: Sequence[Sequence[Sequence[float]]]) -> tuple[Tensor, Tensor]:
    """Return points (M,K,2) and their labels (M,K) of M lists of [x, y, label]; K is at least 1."""
    most = max([1, *map(len, given)])
    rows = [[*points, *[_NONE] * (most - len(points))] for points in given]
    table = torch.tensor(rows, dtype=torch.float32).view(-1, most, 3)
    return table[..., :2].contiguous(), table[..., 2].long()


def cut_points(points: Tensor, labels: Tensor, cut: Cut) -> tuple[Tensor, Tensor]:
    """Cut points (M,K,2) with labels (M,K); those outside of the crop are no points any more."""
    moved = cut.view.points_to_input(points)
    height, width = cut.size
    inside = (moved >= 0).all(-1) & (moved < torch.tensor([width, height])).all(-1)
    return _only(moved, labels, inside)


def cover_points(points: Tensor, labels: Tensor, covered: Tensor) -> tuple[Tensor, Tensor]:
    """Drop the points in an object that lie on the pixels `covered` (H,W) bool.

    One outside of the object is so wherever something else covers it.
    """
    known = labels >= 0
    x, y = points.nan_to_num().long().unbind(-1)
    return _only(points, labels, known & ~((labels == 1) & covered[y, x]))


def middle_points(masks: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Return the middle of each mask's pixels, row by row, as the only one of K points.

    Args:
        masks: (M,H,W) bool; an empty one has no point.
        most: K.
    """
    flat = masks.flatten(1)
    rank, count = flat.cumsum(1, dtype=torch.int32), flat.sum(1)
    place = (rank > (count // 2)[:, None]).int().argmax(1)
    points = torch.full((len(masks), most, 2), math.nan)
    labels = torch.full((len(masks), most), -1)
    width = masks.shape[-1]
    points[:, 0] = torch.stack([place % width, place // width], 1) + 0.5
    labels[:, 0] = 1
    return _only(points, labels, (labels == 1) & (count > 0)[:, None])


def _only(points: Tensor, labels: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """Return the points and labels that are `kept` (M,K) bool, and nothing in place of others."""
    return points.where(kept[..., None], math.nan), labels.where(kept, -1)
