"""Regions as cells of a feature map (JTSM, eq. 6)."""

from __future__ import annotations

import torch
from torch import Tensor

from wsis.errors import InputError

__all__ = ["segment_cells", "segment_windows"]

_CHUNK = 1 << 18
"""Memberships, (region, cell) pairs, that are written at a time: 2 MB of each index."""


def segment_cells(labels: Tensor, members: Tensor, size: tuple[int, int]) -> Tensor:
    """Find the feature cells of each region: those whose window holds any of its pixels (JTSM, eq. 6).

    The window of cell (u, v) is rows [floor(u s), ceil((u + 1) s)) with s = Hs / H, columns likewise with Ws / W.

    Args:
        labels: (Hs,Ws) int, superpixel of each pixel; negative where there is none.
        members: (P,S) bool, the superpixels of each region.
        size: (H, W) of the feature map.

    Returns:
        (P,H,W) bool. A region without a superpixel, or whose superpixels have no pixel, has no cell.

    Raises:
        InputError: a label has no column in `members`, or a size is not positive.
    """
    height, width = size
    if min(labels.shape) < 1 or min(size) < 1:
        raise InputError(
            f"segment_cells: a label map of {tuple(labels.shape)} cannot be laid on {height} x {width} cells"
        )
    count, superpixels = members.shape
    if int(labels.max()) >= superpixels:
        raise InputError(
            f"segment_cells: the label map holds superpixel {int(labels.max())}, members only {superpixels}"
        )
    cell, lengths = _touched(labels, superpixels, height, width)
    begin = lengths.cumsum(0) - lengths
    region, member = members.nonzero(as_tuple=True)
    cells = members.new_zeros(count, height * width)
    pairs = lengths[member]
    ends = pairs.cumsum(0)
    start = 0
    while start < len(region):
        stop = max(
            int(torch.searchsorted(ends, (ends[start - 1] if start else 0) + _CHUNK, right=True)),
            start + 1,
        )
        repeats = pairs[start:stop]
        which = torch.repeat_interleave(torch.arange(start, stop, device=cells.device), repeats)
        offset = torch.arange(len(which), device=cells.device) - torch.repeat_interleave(
            repeats.cumsum(0) - repeats, repeats
        )
        cells[region[which], cell[begin[member[which]] + offset]] = True
        start = stop
    return cells.view(count, height, width)


def segment_windows(
    labels: Tensor, members: Tensor, boxes: Tensor, size: tuple[int, int]
) -> Tensor:
    """Look at regions through boxes, a box each, without making a mask of the image.

    Args:
        labels: (H,W) int, superpixel of each pixel; negative where there is none.
        members: (K,S) bool, the superpixels of each region.
        boxes: (K,4) xyxy in pixels of `labels`.
        size: (h, w) of the grid over each box.

    Returns:
        (K,h,w) bool: whether the pixel under the centre of a grid cell belongs to the region; False outside the map.
    """
    steps = [(torch.arange(n, device=boxes.device) + 0.5) / n for n in (size[1], size[0])]
    x, y = (
        (boxes[:, i : i + 1] + (boxes[:, i + 2] - boxes[:, i])[:, None] * step).floor().long()
        for i, step in enumerate(steps)
    )
    inside = ((y >= 0) & (y < labels.shape[0]))[:, :, None] & ((x >= 0) & (x < labels.shape[1]))[
        :, None
    ]
    rows, columns = y.clamp(0, labels.shape[0] - 1), x.clamp(0, labels.shape[1] - 1)
    seen = labels[rows[:, :, None], columns[:, None]].long()  # (K,h,w)
    belongs = members.gather(1, seen.clamp(min=0).flatten(1)).view_as(seen)
    return belongs & inside & (seen >= 0)


def _touched(labels: Tensor, superpixels: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """The cells in whose window each superpixel has a pixel, one superpixel's after another's, and their numbers (S,)."""
    (row, y), (column, x) = (
        _windows(labels.shape[0], height, labels.device),
        _windows(labels.shape[1], width, labels.device),
    )
    seen = labels[y][:, x].long()
    cell = row[:, None] * width + column
    touched = torch.zeros(superpixels + 1, height * width, dtype=torch.bool, device=labels.device)
    touched[seen.clamp(min=-1), cell] = True  # -1 is the last row, which nobody owns
    superpixel, cell = touched[:-1].nonzero(as_tuple=True)
    return cell, superpixel.bincount(minlength=superpixels)


def _windows(pixels: int, cells: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """All pairs (cell, pixel of its window) along one side, by cell; in whole numbers."""
    cell = torch.arange(cells, device=device)
    first, last = cell * pixels // cells, -(-(cell + 1) * pixels // cells)
    which = torch.repeat_interleave(cell, last - first)
    start = (last - first).cumsum(0) - (last - first)
    return which, first[which] + torch.arange(len(which), device=device) - start[which]
