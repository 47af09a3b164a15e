"""Peaks of class maps, each a hint of one object, and the proposals that could be that object.

Zhou et al., CVPR 2018 (PRM) read off peaks which objects an image holds; CCGR takes each peak as a bag of proposals.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import box_iou

from wsis.errors import InputError
from wsis.evidence.cam import finite, inside

__all__ = ["Bags", "Peaks", "bags", "bags_of_boxes", "class_peaks"]


class Peaks(NamedTuple):
    """Peaks of a batch, the highest first; K of them, none is legal."""

    images: Tensor
    """(K,) int64, index in the batch."""
    labels: Tensor
    """(K,) int64, 0-based class."""
    points: Tensor
    """(K,2) float32, (x, y) in pixels of the network's input."""
    scores: Tensor
    """(K,) float32, the map's value."""

    def of(self, image: int) -> Peaks:
        """Those of one image."""
        return Peaks(*(column[self.images == image] for column in self))


class Bags(NamedTuple):
    """The best proposals of each bag, the best first."""

    proposals: Tensor
    """(K,size) int64 indices of proposals; 0 where there are no more."""
    valid: Tensor
    """(K,size) bool, False where there are no more; a row without any is an empty bag."""


@torch.no_grad()
def class_peaks(
    maps: Tensor,
    tags: Tensor,
    stride: float,
    sizes: Sequence[tuple[int, int]] | None = None,
    least: float = 0.5,
    window: int = 3,
    smoothing: int = 1,
) -> Peaks:
    """Find the local maxima of the tagged classes' maps (PRM, peak stimulation).

    A peak is a positive cell that no cell of its window exceeds and that is at least the map's median. Equal cells side
    by side are one peak, at the first of them, and none where a higher cell touches any of them; so a constant map has none.
    Between cells the peak lies where parabolas through its neighbours put it: PRM's bilinear enlargement never moves it.

    Args:
        maps: (N,C,h,w), such as class activation maps or logits. Cell (i, j) has its centre at ((j + .5), (i + .5)) x stride.
        tags: (N,C) 0 or 1.
        stride: input pixels per cell.
        sizes: (H, W) in input pixels of each image, where the batch is padded; what begins beyond it holds no peak.
        least: the lowest peak as a share of the map's highest value. PRM's 30 is on the scale of its own logits.
        window: side of the window in cells, odd; PRM's is 3. On fine maps an object has many peaks in windows smaller than it.
        smoothing: side in cells, odd, of the square whose mean a cell takes first; 1 leaves maps as they are.

    Raises:
        InputError: a map that was asked for is not finite, or a side is even.
    """
    if window % 2 == 0 or smoothing % 2 == 0:
        raise InputError(f"window {window}, smoothing {smoothing}: give odd numbers of cells")
    images, labels = (tags > 0).nonzero(as_tuple=True)
    maps = finite(maps[images, labels].float())
    height, width = maps.shape[1:]
    sizes = sizes or [(round(height * stride), round(width * stride))] * len(tags)
    beyond = ~inside(sizes, maps, stride)[images]
    if smoothing > 1:
        reached = (~beyond).to(maps)
        maps = _mean(maps * reached, smoothing) / _mean(reached, smoothing).clamp(min=1e-6)
    known = maps.masked_fill(beyond, torch.nan).flatten(1)
    floor = torch.maximum(known.nanmedian(1).values, least * known.nan_to_num(-torch.inf).amax(1))
    maps = maps.masked_fill(beyond, -torch.inf)
    found = (
        _maxima(maps)
        & (_window(maps, window) == maps)
        & (maps >= floor[:, None, None])
        & (maps > 0)
    )
    which, row, column = found.nonzero(as_tuple=True)
    points = (torch.stack([column, row], 1) + 0.5 + _shift(maps, which, row, column)) * stride
    scores, order = maps[which, row, column].sort(descending=True, stable=True)
    limits = (
        torch.tensor(sizes, device=maps.device).reshape(-1, 2).flip(1)
    )  # (N,2), the greatest x and y
    which, points = which[order], points[order]
    return Peaks(images[which], labels[which], points.minimum(limits[images[which]]), scores)


def bags(
    points: Tensor,
    boxes: Tensor,
    objectness: Tensor,
    foreground: Tensor | None = None,
    size: int = 10,
    penalty: float = 0.1,
) -> Bags:
    """For each peak of an image the best proposals that contain it and no other peak (CCGR, "initialisation", eq. 4).

    Where every proposal around a peak contains others too, the candidates are those with the fewest others.

    Args:
        points: (K,2) peaks of the image, of all classes.
        boxes: (P,4) proposals, in the same pixels.
        objectness: (P,).
        foreground: (H,W) in [0, 1], the map O of eq. 4; without it objectness decides alone.
        size: most proposals in a bag.
        penalty: weight of a box's mean background in its rank.
    """
    corners = boxes[None]
    contains = ((corners[..., :2] <= points[:, None]) & (points[:, None] <= corners[..., 2:])).all(
        2
    )
    others = (contains.sum(0) - 1).expand_as(contains).masked_fill(~contains, len(points))
    fewest = F.pad(others, (0, 1), value=len(points)).amin(
        1, keepdim=True
    )  # a minimum of no boxes has a value, too
    rank = (
        objectness.float()
        if foreground is None
        else objectness - penalty * (1 - _means(foreground, boxes))
    )
    return _best(
        rank.expand_as(contains).masked_fill(~contains | (others > fewest), -torch.inf), size
    )


def bags_of_boxes(boxes: Tensor, proposals: Tensor, size: int = 10) -> Bags:
    """For each box (K,4) the up to `size` proposals (P,4) of highest IoU, those that touch it (CCGR, later iterations)."""
    overlap = box_iou(boxes, proposals)
    return _best(overlap.masked_fill(overlap <= 0, -torch.inf), size)


def _best(rank: Tensor, size: int) -> Bags:
    """The `size` highest of each row (K,P), without -inf; ties go to the lower index."""
    rank = F.pad(rank, (0, max(size - rank.shape[1], 0)), value=-torch.inf)
    rank, index = (column[:, :size] for column in rank.sort(dim=1, descending=True, stable=True))
    valid = rank > -torch.inf
    return Bags(index * valid, valid)


def _maxima(maps: Tensor) -> Tensor:
    """The first cell of each plateau of (M,h,w) that nothing around exceeds, unless the whole map is one."""
    top = _window(maps) == maps
    while (sloping := top & (_window(maps.masked_fill(top, -torch.inf)) == maps)).any():
        top &= ~sloping  # a neighbour is as high, and touches something higher
    top &= maps > maps.where(maps.isfinite(), torch.inf).amin((1, 2), keepdim=True)
    height, width = maps.shape[1:]
    first = torch.arange(height * width, 0, -1, device=maps.device).float().view(height, width)
    number = first * top
    while not torch.equal(spread := _window(number) * top, number):
        number = spread
    return top & (number == first)


def _window(maps: Tensor, side: int = 3) -> Tensor:
    return F.max_pool2d(maps[:, None], side, 1, side // 2)[:, 0]


def _mean(maps: Tensor, side: int) -> Tensor:
    return F.avg_pool2d(maps[:, None], side, 1, side // 2)[:, 0]


def _shift(maps: Tensor, which: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """(K,2) from a cell's centre to the top of the parabola along x and along y, in cells: at most half of one."""
    around = F.pad(maps, (1, 1, 1, 1), value=-torch.inf)
    middle, shifts = maps[which, row, column], []
    for dy, dx in ((0, 1), (1, 0)):
        before, after = (around[which, row + 1 + s * dy, column + 1 + s * dx] for s in (-1, 1))
        before, after = (
            before.where(before.isfinite(), after),
            after.where(after.isfinite(), before),
        )  # the border mirrors
        shifts += [((after - before) / (2 * (2 * middle - before - after))).nan_to_num(0, 0, 0)]
    return torch.stack(shifts, 1)


def _means(values: Tensor, boxes: Tensor) -> Tensor:
    """Mean of (H,W) over each box (P,4), rounded to whole pixels, at least one."""
    height, width = values.shape
    sums = F.pad(values.double().cumsum(0).cumsum(1), (1, 0, 1, 0))
    x1, y1 = (
        boxes[:, 0].round().long().clamp(0, width - 1),
        boxes[:, 1].round().long().clamp(0, height - 1),
    )
    x2, y2 = (boxes[:, i].round().long().clamp(max=limit) for i, limit in ((2, width), (3, height)))
    x2, y2 = x2.maximum(x1 + 1), y2.maximum(y1 + 1)
    total = sums[y2, x2] - sums[y1, x2] - sums[y2, x1] + sums[y1, x1]
    return (total / ((x2 - x1) * (y2 - y1))).float()
