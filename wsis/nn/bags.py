"""What the points of objects say of proposals: the bag of those that each object may be."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from wsis.nn.masks import segments_of
from wsis.types import Proposals, Target

__all__ = ["Bags", "bags_of", "nearest", "points_inside"]


class Bags(NamedTuple):
    """What the points of an image say of its proposals."""

    members: Tensor
    """(M,P) bool, the proposals that each object may be; none is empty."""
    labels: Tensor
    """(M,) int64."""
    objects: Tensor
    """(P,) int64, number of objects of which a proposal holds a point, or is the nearest to one."""
    negatives: Tensor
    """(P,C) bool, proposals that are no objects of a class."""
    complete: Tensor
    """() bool, whether each object of the image has a point."""


def bags_of(proposals: Proposals, target: Target) -> Bags:
    """Return the bags of an image's objects; crowds and objects without a point have none."""
    points, kinds, complete = target["points"], target["point_labels"], target["complete"].clone()
    complete[target["labels"][target["crowd"]]] = False
    hits = points_inside(proposals, points, kinds == 1)
    held = hits > 0
    others = hits.sum(0) - hits
    value = hits - points_inside(proposals, points, kinds == 0) - others
    best = F.pad(value.where(held, -torch.inf), (0, 1), value=-torch.inf).amax(1, keepdim=True)
    members, lost = held & (value == best), ~held.any(1)
    members[lost] = nearest(proposals.boxes, points[lost], kinds[lost] == 1)
    held = held | members
    known = (kinds == 1).any(1) & ~target["crowd"] & (len(proposals.boxes) > 0)
    of_class = F.one_hot(target["labels"], len(complete)).T.float() @ held.float()
    negatives = complete & (of_class.T == 0)
    return Bags(members[known], target["labels"][known], held.sum(0), negatives, complete.all())


def points_inside(proposals: Proposals, points: Tensor, counted: Tensor) -> Tensor:
    """Return how many points of each object lie in each segment, (M,P) int64.

    Args:
        proposals: with segments.
        points: (M,K,2) in pixels, NaN where there is none.
        counted: (M,K) bool, the points to count.
    """
    labels, members = segments_of(proposals)
    x, y = points.nan_to_num().long().unbind(-1)
    superpixels = labels[y, x].long()
    counted = counted & (superpixels >= 0)
    return (members[:, superpixels.clamp(min=0)] & counted).sum(-1).T


def nearest(boxes: Tensor, points: Tensor, counted: Tensor) -> Tensor:
    """Return the boxes (P,4) that are nearest to any of each object's points, (M,P) bool.

    Args:
        boxes: (P,4).
        points: (M,K,2), NaN where there is none.
        counted: (M,K) bool, the points to measure from; an object without any has no box.
    """
    at = points[:, :, None]
    away = torch.maximum(boxes[:, :2] - at, at - boxes[:, 2:]).clamp(min=0)
    distance = away.square().sum(-1).masked_fill(~counted[..., None], torch.inf).amin(1)  # (M,P)
    least = F.pad(distance, (0, 1), value=torch.inf).amin(1, keepdim=True)
    return (distance == least) & distance.isfinite()
