"""Images to the input of a network, and its maps back to the pixels of the image.

Sizes that depend on the image are tensors wherever numbers are computed from them: torch.export
follows tensors, but not Python's numbers.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from wsis.nn.backbone import Backbone

__all__ = ["OBJECTS", "Scaled", "best", "count", "extent", "number", "resample", "scale", "tight"]

OBJECTS = {
    "boxes": ("objects", 4),
    "scores": ("objects",),
    "labels": ("objects",),
    "masks": ("objects", "height", "width"),
}
"""What networks return that find objects, and its shapes."""


class Scaled(NamedTuple):
    """An image as a network takes it."""

    batch: Tensor
    """(1,3,h,w) float32, normalised; padded with zeros to what the backbone's divisor divides."""
    size: Tensor
    """(2,) float32, height and width without padding."""
    factor: Tensor
    """(4,) float32, pixels of the image per pixel of the batch: x, y, x, y."""


def scale(image: Tensor, backbone: Backbone, side: int, max_side: int) -> Scaled:
    """Resize, normalise and pad an image as `wsis.nn.views.resize` and `Backbone.normalise` do.

    Args:
        image: (3,H,W) uint8 RGB.
        backbone: the network that the image is for.
        side: short side in pixels; 0 keeps the image's.
        max_side: longest side in pixels.
    """
    given = torch.stack([number(n, torch.float64) for n in image.shape[1:]])
    ratio = ((side or given.amin(0)) / given.amin(0)).minimum(max_side / given.amax(0))
    size = (given * ratio).round().clamp(min=1)
    cells = (size / backbone.divisor).ceil()
    sides = [count(n) for n in size.unbind()]
    padded = [backbone.divisor * count(n) for n in cells.unbind()]
    for inner, outer in zip(sides, padded, strict=True):
        torch._check(outer >= inner)
    rows, columns = (_taps(*n) for n in zip(image.shape[1:], sides, strict=True))
    pixels = (rows @ (image.float() @ columns.T)).round().clamp(0, 255)
    normal = (pixels - backbone.mean) / backbone.std
    batch = F.pad(normal, (0, padded[1] - sides[1], 0, padded[0] - sides[0]))
    return Scaled(batch[None], size.float(), (given / size).flip(0).repeat(2).float())


def _taps(given: int, new: int) -> Tensor:
    """Return the weights (new,given) by which torch resizes a line, bilinear with antialiasing.

    They have torch's roundings. Those of ONNX's Resize differ, and then a pixel value in 1,000 to
    10,000 is rounded to its other neighbour; of two proposals that are nearly as good, the network
    may then keep the other one.
    """
    step = number(given) / number(new)
    steepness = (1 / step.double()).float().clamp(max=1)
    centres = (step.double() * (torch.arange(new, dtype=torch.float64) + 0.5)).float()
    away = torch.arange(given, dtype=torch.float32) - centres[:, None]
    scaled = ((away.double() + 0.5) * steepness.double()).float()
    weights = (1 - scaled.abs()).clamp(min=0)
    return weights / weights.sum(1, keepdim=True)


def number(size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return a size as a tensor ()."""
    return torch.full((), size, dtype=dtype)


def count(value: Tensor) -> int:
    """Return a whole number () of at least 1 as a size."""
    size: Any = value.long().item()
    torch._check(size >= 1)
    return size


def extent(size: Tensor) -> Tensor:
    """Return the box (4,) of an image from its height and width (2,)."""
    return torch.cat([torch.zeros(2), size.flip(0)])


def best(scores: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Return the highest `most` of scores (N,), or all if there are fewer, and their indices."""
    # a slice would be dropped if the example has no more
    values, index = scores.topk(torch.sym_min(most, scores.shape[0]))
    return values, index


def resample(
    maps: Tensor, boxes: Tensor, size: tuple[int, int], last: Tensor | None = None
) -> Tensor:
    """Sample maps over their boxes at the centres of all pixels of an image, linearly.

    Args:
        maps: (N,h,w).
        boxes: (N,4), or (1,4) for all; pixels of the image.
        size: (H, W) of the image.
        last: (2,) row and column of the cell that continues to the end of the image, as the first
            one does to its beginning; None continues maps with 0.

    Returns:
        (N,H,W).
    """
    weights = []
    for axis, (pixels, cells) in enumerate(zip(size, maps.shape[1:], strict=True)):
        start, end = boxes[:, 1 - axis, None], boxes[:, 3 - axis, None]
        per_pixel = number(cells) / (end - start).clamp(min=1e-3)
        at = (torch.arange(pixels) + 0.5 - start) * per_pixel - 0.5
        if last is not None:
            at = at.clamp(min=0).minimum(last[axis])
        weights.append((1 - (at[:, :, None] - torch.arange(cells)).abs()).clamp(min=0))
    return weights[0] @ maps @ weights[1].transpose(1, 2)


def tight(masks: Tensor) -> Tensor:
    """Return the tight boxes (N,4) float32 of masks (N,H,W) bool that are not empty."""
    ends = []
    for axis in (2, 1):
        lines = masks.any(3 - axis)
        at = torch.arange(masks.shape[axis])
        ends.append(torch.where(lines, at, masks.shape[axis]).amin(1))
        ends.append(torch.where(lines, at + 1, 0).amax(1))
    return torch.stack([ends[0], ends[2], ends[1], ends[3]], 1).float()
