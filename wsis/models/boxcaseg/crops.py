"""Training crops of BoxCaseg: a box of an image, scaled to a square."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.ops import box_iou, roi_align

__all__ = ["Crop", "jitter", "lines", "look", "uncrowded"]


class Crop(NamedTuple):
    """The network's input from one image in training, and its labels."""

    image: Tensor
    """(3,S,S) float, 0 to 255."""
    rows: Tensor
    """(S,) bool, whether a row crosses the object."""
    columns: Tensor
    """(S,) bool, whether a column crosses the object."""
    mask: Tensor | None
    """(S,S) float, of salient images only."""


def look(image: Tensor, boxes: Tensor, side: int) -> Tensor:
    """Scale boxes (K,4) of an image (C,H,W) to (K,C,side,side), by averaging if they shrink."""
    if not len(boxes):
        return boxes.new_zeros(0, len(image), side, side)
    return roi_align(image[None].float(), [boxes.float()], side, 1.0, -1, True)


def jitter(box: Tensor, shift: float, scale: float, whole: Tensor) -> Tensor:
    """Move and scale a box (4,) at random, clipped to the image.

    Args:
        box: (4,) xyxy.
        shift: largest shift as a fraction of half the side.
        scale: sides are multiplied by a factor in [1 - scale, 1 + scale].
        whole: (4,) box of the image.

    Returns:
        (4,), at least one pixel wide.
    """
    extent, centre = box[2:] - box[:2], (box[:2] + box[2:]) / 2
    move, grow = (2 * torch.rand(2, device=box.device) - 1 for _ in range(2))
    centre, half = centre + shift * move * extent / 2, (1 + scale * grow) * extent / 2
    low = torch.minimum((centre - half).clamp(min=0), whole[2:] - 1)
    return torch.cat([low, torch.maximum(torch.minimum(centre + half, whole[2:]), low + 1)])


def uncrowded(boxes: Tensor, probability: float) -> Tensor:
    """Return which boxes (K,4) to train on (K,) bool.

    Those whose IoU with another is above 0.5 are dropped with `probability`.
    """
    overlap: Tensor = box_iou(boxes, boxes).fill_diagonal_(0)
    return (overlap <= 0.5).all(1) | (torch.rand(len(boxes), device=boxes.device) >= probability)


def lines(box: Tensor, window: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Return which of `side` rows and columns of a window (4,) have centres inside a box (4,)."""
    steps = (torch.arange(side, device=box.device) + 0.5) / side
    x, y = (window[i] + steps * (window[i + 2] - window[i]) for i in (0, 1))
    return (y >= box[1]) & (y < box[3]), (x >= box[0]) & (x < box[2])
