"""Regions as cells of a feature map (JTSM, eq. (6))."""

from __future__ import annotations

import torch
from torch import Tensor

from wsis.errors import InputError

__all__ = ["segment_cells", "segment_windows", "superpixel_windows"]

_CHUNK = 1 << 18
"""Memberships, (region, cell) pairs, written at a time; each index of them takes 2 MB."""


def segment_cells(labels: Tensor, members: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the feature cells of each region: their windows hold a pixel of it (JTSM, eq. (6)).

    The window of cell (u, v) is rows [floor(u s), ceil((u + 1) s)) with s = Hs / H, columns
    likewise with Ws / W.

    Args:
        labels: (Hs,Ws) int, superpixel of each pixel; negative for none.
        members: (P,S) bool, the superpixels of each region.
        size: (H, W) of the feature map.

    Returns:
        (P,H,W) bool. A region without superpixels, or whose superpixels have no pixels, has no
        cells.

    Raises:
        InputError: a label has no column in `members`, or a size is not positive.
    """
    height, width = size
    if min(labels.shape) < 1 or min(size) < 1:
        raise InputError(
            f"segment_cells: a label map of {tuple(labels.shape)} cannot be laid on {height} x "
            f"{width} cells"
        )
    count, superpixels = members.shape
    if int(labels.max()) >= superpixels:
        raise InputError(
            f"segment_cells: the label map holds superpixel {int(labels.max())}, members only "
            f"{superpixels}"
        )
    cell, lengths = _touched(labels, superpixels, height, width)
    begin = lengths.cumsum(0) - lengths
    region, member = members.nonzero(as_tuple=True)
    cells = members.new_zeros(count, height * width)
    pairs = lengths[member]
    ends = pairs.cumsum(0)
    start = 0
    while start < len(region):
        limit = (ends[start - 1] if start else 0) + _CHUNK
        stop = max(int(torch.searchsorted(ends, limit, right=True)), start + 1)
        repeats = pairs[start:stop]
        first = torch.repeat_interleave(repeats.cumsum(0) - repeats, repeats)
        pair = torch.repeat_interleave(torch.arange(start, stop, device=cells.device), repeats)
        offset = torch.arange(len(pair), device=cells.device) - first
        cells[region[pair], cell[begin[member[pair]] + offset]] = True
        start = stop
    return cells.view(count, height, width)


def segment_windows(
    labels: Tensor, members: Tensor, boxes: Tensor, size: tuple[int, int]
) -> Tensor:
    """Sample each region on a grid over its box, without a mask of the image's size.

    Args:
        labels: (H,W) int, superpixel of each pixel; negative for none.
        members: (K,S) bool, the superpixels of each region.
        boxes: (K,4) xyxy in pixels of `labels`.
        size: (h, w) of the grid over each box.

    Returns:
        (K,h,w) bool, True if the pixel under the centre of a grid cell belongs to the region; False
        outside the map.
    """
    superpixel = superpixel_windows(labels, boxes, size)
    belongs = members.gather(1, superpixel.clamp(min=0).flatten(1)).view_as(superpixel)
    return belongs & (superpixel >= 0)


def superpixel_windows(labels: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Sample a label map on a grid over each box.

    Args:
        labels: (H,W) int, superpixel of each pixel; negative for none.
        boxes: (K,4) xyxy in pixels of `labels`.
        size: (h, w) of the grid over each box.

    Returns:
        (K,h,w) int64, the superpixel of the pixel under the centre of each grid cell; -1 for none
        and outside the map.
    """
    height, width = labels.shape
    x, y = _centres(boxes, 0, size[1]), _centres(boxes, 1, size[0])
    inside = ((y >= 0) & (y < height))[:, :, None] & ((x >= 0) & (x < width))[:, None]
    rows, columns = y.clamp(0, height - 1), x.clamp(0, width - 1)
    found = labels[rows[:, :, None], columns[:, None]].long().clamp(min=-1)
    return torch.where(inside, found, -1)


def _centres(boxes: Tensor, axis: int, cells: int) -> Tensor:
    """Return the pixels (K,cells) under the cell centres along one axis, 0 for x and 1 for y."""
    steps = (torch.arange(cells, device=boxes.device) + 0.5) / cells
    side = (boxes[:, axis + 2] - boxes[:, axis])[:, None]
    return (boxes[:, axis : axis + 1] + side * steps).floor().long()


def _touched(labels: Tensor, superpixels: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Return the cells whose window holds a pixel of each superpixel, and their numbers (S,).

    The cells of one superpixel follow those of the previous one.
    """
    row, y = _windows(labels.shape[0], height, labels.device)
    column, x = _windows(labels.shape[1], width, labels.device)
    pixels = labels[y][:, x].long()
    cell = row[:, None] * width + column
    touched = torch.zeros(superpixels + 1, height * width, dtype=torch.bool, device=labels.device)
    touched[pixels.clamp(min=-1), cell] = True  # -1 is the last row, which is dropped
    superpixel, cell = touched[:-1].nonzero(as_tuple=True)
    return cell, superpixel.bincount(minlength=superpixels)


def _windows(pixels: int, cells: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return all pairs (cell, pixel of its window) along one side, by cell."""
    index = torch.arange(cells, device=device)
    first, last = index * pixels // cells, -(-(index + 1) * pixels // cells)
    cell = torch.repeat_interleave(index, last - first)
    start = (last - first).cumsum(0) - (last - first)
    return cell, first[cell] + torch.arange(len(cell), device=device) - start[cell]
