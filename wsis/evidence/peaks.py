"""Peaks of class maps, each a sign of one object, and bags of proposals around them.

Zhou et al., CVPR 2018 (PRM) find the objects of an image at these peaks; CCGR collects a bag of
proposals for each peak.
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
    """K peaks of a batch, highest first; K may be 0."""

    images: Tensor
    """(K,) int64, index in the batch."""
    labels: Tensor
    """(K,) int64, 0-based class."""
    points: Tensor
    """(K,2) float32, (x, y) in pixels of the network's input."""
    scores: Tensor
    """(K,) float32, value of the map."""

    def of(self, image: int) -> Peaks:
        """Return the peaks of one image."""
        return Peaks(*(column[self.images == image] for column in self))


class Bags(NamedTuple):
    """Proposals of K bags, best first."""

    proposals: Tensor
    """(K,size) int64, indices of proposals; 0 in unused places."""
    valid: Tensor
    """(K,size) bool, False in unused places; an empty bag has no other."""


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
    """Return the local maxima of the tagged classes' maps (PRM, peak stimulation).

    A peak is a positive cell that is the maximum of its window and at least the map's median.
    Adjacent equal cells are one peak, at the first of them, unless a higher cell touches any of
    them; a constant map has no peak. Parabolas through a peak's neighbours refine its position
    between cells; PRM enlarges maps bilinearly, which never moves a peak.

    Args:
        maps: (N,C,h,w), such as class activation maps or logits. The centre of cell (i, j) is at
            ((j + .5), (i + .5)) x stride.
        tags: (N,C) 0 or 1.
        stride: input pixels per cell.
        sizes: (H, W) of each image in input pixels, if the batch is padded; cells that begin
            outside are no peaks.
        least: lowest peak as a fraction of the map's maximum. PRM's threshold of 30 is on the scale
            of its logits.
        window: side of the window in cells, odd; PRM uses 3. On fine maps an object has several
            peaks if the window is smaller than the object.
        smoothing: side in cells, odd, of a mean filter that is applied first; 1 is no filter.

    Raises:
        InputError: the map of a tagged class is not finite, or a side is even.
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
    peaks = _maxima(maps) & (_window(maps, window) == maps)
    peaks &= (maps >= floor[:, None, None]) & (maps > 0)
    index, row, column = peaks.nonzero(as_tuple=True)
    points = (torch.stack([column, row], 1) + 0.5 + _shift(maps, index, row, column)) * stride
    scores, order = maps[index, row, column].sort(descending=True, stable=True)
    limits = torch.tensor(sizes, device=maps.device).reshape(-1, 2).flip(1)  # (N,2), largest x, y
    index, points = index[order], points[order]
    return Peaks(images[index], labels[index], points.minimum(limits[images[index]]), scores)


def bags(
    points: Tensor,
    boxes: Tensor,
    objectness: Tensor,
    foreground: Tensor | None = None,
    size: int = 10,
    penalty: float = 0.1,
) -> Bags:
    """Return the best proposals that contain a peak and no other, for each peak of an image.

    CCGR, "initialisation", eq. (4). If all proposals around a peak contain other peaks, the
    candidates are those that contain the fewest.

    Args:
        points: (K,2) peaks of the image, of all classes.
        boxes: (P,4) proposals, in the same pixels.
        objectness: (P,).
        foreground: (H,W) in [0, 1], the map O of eq. (4); without it objectness alone ranks.
        size: maximum number of proposals in a bag.
        penalty: weight of a box's mean background in its rank.
    """
    low, high = boxes[None, :, :2], boxes[None, :, 2:]
    contains = ((low <= points[:, None]) & (points[:, None] <= high)).all(2)
    others = (contains.sum(0) - 1).expand_as(contains).masked_fill(~contains, len(points))
    # one more column, because the minimum over no boxes is undefined
    fewest = F.pad(others, (0, 1), value=len(points)).amin(1, keepdim=True)
    rank = objectness.float()
    if foreground is not None:
        rank = objectness - penalty * (1 - _means(foreground, boxes))
    excluded = ~contains | (others > fewest)
    return _best(rank.expand_as(contains).masked_fill(excluded, -torch.inf), size)


def bags_of_boxes(boxes: Tensor, proposals: Tensor, size: int = 10) -> Bags:
    """Return at most `size` proposals (P,4) per box (K,4), by IoU (CCGR, later iterations)."""
    overlap = box_iou(boxes, proposals)
    return _best(overlap.masked_fill(overlap <= 0, -torch.inf), size)


def _best(rank: Tensor, size: int) -> Bags:
    """Return the `size` highest of each row (K,P) except -inf; ties go to the lower index."""
    rank = F.pad(rank, (0, max(size - rank.shape[1], 0)), value=-torch.inf)
    rank, index = (column[:, :size] for column in rank.sort(dim=1, descending=True, stable=True))
    valid = rank > -torch.inf
    return Bags(index * valid, valid)


def _maxima(maps: Tensor) -> Tensor:
    """Mark the first cell of each plateau of (M,h,w) without higher neighbours.

    A map that is one plateau has none.
    """
    top = _window(maps) == maps
    # a cell is not on top if an equal neighbour touches a higher cell
    while (sloping := top & (_window(maps.masked_fill(top, -torch.inf)) == maps)).any():
        top &= ~sloping
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


def _shift(maps: Tensor, index: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """Return (K,2) in cells, at most half of one: from a cell's centre to its parabolas' tops."""
    padded = F.pad(maps, (1, 1, 1, 1), value=-torch.inf)
    middle, shifts = maps[index, row, column], []
    for dy, dx in ((0, 1), (1, 0)):
        previous = padded[index, row + 1 - dy, column + 1 - dx]
        following = padded[index, row + 1 + dy, column + 1 + dx]
        before = previous.where(previous.isfinite(), following)  # mirrored at the border
        after = following.where(following.isfinite(), previous)
        shifts += [((after - before) / (2 * (2 * middle - before - after))).nan_to_num(0, 0, 0)]
    return torch.stack(shifts, 1)


def _means(values: Tensor, boxes: Tensor) -> Tensor:
    """Return the mean of (H,W) over each box (P,4), rounded to whole pixels, at least one."""
    height, width = values.shape
    sums = F.pad(values.double().cumsum(0).cumsum(1), (1, 0, 1, 0))
    x1, y1, x2, y2 = boxes.round().long().unbind(1)
    x1, y1 = x1.clamp(0, width - 1), y1.clamp(0, height - 1)
    x2, y2 = x2.clamp(max=width).maximum(x1 + 1), y2.clamp(max=height).maximum(y1 + 1)
    total = sums[y2, x2] - sums[y1, x2] - sums[y2, x1] + sums[y1, x1]
    return (total / ((x2 - x1) * (y2 - y1))).float()
