"""The interpolated variant of MoIPool: a region is warped to a rectangle by a thin plate spline (JTSM, section 3.3).

The paper says no more than that, so the control points are ours: at three heights the region's left and right ends in its
box, at three widths its upper and lower ends, and the cells furthest towards the four corners; each goes to its place on the
rectangle's border. Those are the same for all regions, so the spline is one constant matrix, and a full rectangle is left as
it is: RoIAlign.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from wsis.ops.moi_pool import check

__all__ = ["moi_pool_interpolated"]

_POINTS = (0.25, 0.5, 0.75)
_CHUNK = 256
"""Regions sampled at a time; 256 x 512 channels x 14 x 14 samples are 103 MB."""


def moi_pool_interpolated(
    features: Tensor,
    boxes: Tensor,
    cells: Tensor,
    output_size: int = 7,
    spatial_scale: float = 1 / 8,
) -> Tensor:
    """Pool regions warped to rectangles: four bilinear samples in each bin, averaged as RoIAlign does.

    Args:
        features: (N,D,H,W) float.
        boxes: (K,5), index of the image and x1, y1, x2, y2 in input pixels.
        cells: (K,H,W) bool, the cells of each region.
        output_size: bins on a side, s.
        spatial_scale: feature cells per input pixel.

    Returns:
        (K,D,s,s). Differentiable in `features`.

    Raises:
        InputError: shapes that do not go together.
    """
    check(features, boxes, cells, output_size)
    warp = _spline(output_size).to(features.device)
    corners = boxes[:, 1:].float() * spatial_scale - 0.5  # the centre of cell i is at i
    parts = [slice(i, i + _CHUNK) for i in range(0, len(boxes), _CHUNK)]
    with torch.autocast(
        features.device.type, enabled=False
    ):  # bfloat16 would put samples half a cell off
        pooled = [
            _sample(features, boxes[p, 0].long(), warp @ _ends(corners[p], cells[p])) for p in parts
        ]
        return (
            torch.cat(pooled)
            if parts
            else features.new_zeros(0, features.shape[1], output_size, output_size)
        )


def _sample(features: Tensor, image: Tensor, points: Tensor) -> Tensor:
    """Sample at points (k,4 s^2,2) in cells and average each bin's four."""
    size = round((points.shape[1] // 4) ** 0.5)
    limit = points.new_tensor([features.shape[3], features.shape[2]])
    exact = torch.promote_types(features.dtype, points.dtype)
    grid = ((2 * points + 1) / limit - 1).to(exact).view(-1, 2 * size, 2 * size, 2)
    pooled = features.new_zeros(len(points), features.shape[1], size, size)
    for n in torch.unique(image).tolist():
        here = image == n
        rows = grid[here].view(1, -1, 2 * size, 2)  # one image, its regions below each other
        samples = F.grid_sample(
            features[n : n + 1].to(exact), rows, padding_mode="border", align_corners=False
        )
        values = (
            F.avg_pool2d(samples, 2)[0]
            .to(features.dtype)
            .view(features.shape[1], -1, size, size)
            .transpose(0, 1)
        )
        pooled = pooled.index_put((here.nonzero().flatten(),), values)
    return pooled


def _ends(corners: Tensor, cells: Tensor) -> Tensor:
    """Where regions end (k,16,2), in the order of `_border`; the box's own border where a line meets no cell."""
    x1, y1, x2, y2 = (side[:, None] for side in corners.unbind(1))
    fractions = corners.new_tensor(_POINTS)
    across, down = x1 + fractions * (x2 - x1), y1 + fractions * (y2 - y1)  # (k,3)
    first, last = _extent(cells, x1, x2)
    left, right = (_at(ends, down) for ends in (first, last))
    top, bottom = (_at(ends, across) for ends in _extent(cells.transpose(1, 2), y1, y2))
    sides = [
        torch.stack(side, 2)
        for side in ((left, down), (right, down), (across, top), (across, bottom))
    ]
    rows = torch.arange(cells.shape[1], device=cells.device) - 0.5
    upper, lower = rows.clamp(y1, y2), (rows + 1).clamp(y1, y2)  # (k,H)
    empty = torch.where(cells.any(2), 0, torch.inf)
    for x, y, to_x, to_y in (
        (first, upper, x1, y1),
        (last, upper, x2, y1),
        (first, lower, x1, y2),
        (last, lower, x2, y2),
    ):
        away = (
            (x - to_x).abs() / (x2 - x1).clamp(min=1e-6)
            + (y - to_y).abs() / (y2 - y1).clamp(min=1e-6)
            + empty
        )
        nearest, row = away.min(1, keepdim=True)
        point = torch.stack([x.gather(1, row), y.gather(1, row)], 2)
        sides.append(
            torch.where(nearest[..., None].isfinite(), point, torch.stack([to_x, to_y], 2))
        )
    return torch.cat(sides, 1)


def _extent(cells: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """First and last end (k,H) of each region along every row, within its box."""
    first, last = cells.int().argmax(2) - 0.5, cells.shape[2] - 0.5 - cells.flip(2).int().argmax(2)
    some = cells.any(2)
    return torch.where(some, first.clamp(low, high), low), torch.where(
        some, last.clamp(low, high), high
    )


def _at(ends: Tensor, rows: Tensor) -> Tensor:
    """The ends (k,3) of the rows nearest to `rows`."""
    return ends.gather(1, rows.round().long().clamp(0, ends.shape[1] - 1))


@functools.cache
def _spline(size: int) -> Tensor:
    """The matrix (4 s^2, 16) from where the control points lie in the map to where the samples do."""
    centres = (torch.arange(2 * size, dtype=torch.float64) + 0.5) / (2 * size)
    y, x = torch.meshgrid(centres, centres, indexing="ij")
    samples, border = torch.stack([x, y], -1).view(-1, 2), _border()
    affine = torch.cat([torch.ones(len(border), 1, dtype=torch.float64), border], 1)
    system = torch.cat(
        [
            torch.cat([_kernel(border, border), affine], 1),
            torch.cat([affine.T, affine.new_zeros(3, 3)], 1),
        ]
    )
    solve = torch.linalg.inv(system)[:, : len(border)]
    return (
        torch.cat([_kernel(samples, border), samples.new_ones(len(samples), 1), samples], 1) @ solve
    ).float()


def _border() -> Tensor:
    """The control points (16,2) on the border of the unit square: left, right, top, bottom, corners."""
    sides = (
        [(0.0, t) for t in _POINTS]
        + [(1.0, t) for t in _POINTS]
        + [(t, 0.0) for t in _POINTS]
        + [(t, 1.0) for t in _POINTS]
    )
    return torch.tensor([*sides, (0, 0), (1, 0), (0, 1), (1, 1)], dtype=torch.float64)


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    """The spline's r^2 log r^2 between two sets of points."""
    squared = (a[:, None] - b[None]).square().sum(2)
    return torch.special.xlogy(squared, squared)
