"""Interpolated MoIPool: thin plate splines warp regions to rectangles (JTSM, section 3.3).

The paper gives no details, so the control points are ours: the region's left and right ends at
three heights of its box, its upper and lower ends at three widths, and its cells nearest to the
four corners. Each maps to its place on the rectangle's border. These places are the same for all
regions, so the spline is one constant matrix. For a region that fills its box the result equals
RoIAlign.
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
    """Pool regions warped to rectangles, with four bilinear samples per bin as in RoIAlign.

    Args:
        features: (N,D,H,W) float.
        boxes: (K,5), index of the image, then x1, y1, x2, y2 in input pixels.
        cells: (K,H,W) bool, the cells of each region.
        output_size: bins on each side, s.
        spatial_scale: feature cells per input pixel.

    Returns:
        (K,D,s,s). Differentiable in `features`.

    Raises:
        InputError: shapes that do not match.
    """
    check(features, boxes, cells, output_size)
    warp = _spline(output_size).to(features.device)
    corners = boxes[:, 1:].float() * spatial_scale - 0.5  # the centre of cell i is at i
    parts = [slice(i, i + _CHUNK) for i in range(0, len(boxes), _CHUNK)]
    pooled = [features.new_zeros(0, features.shape[1], output_size, output_size)]
    with torch.autocast(features.device.type, enabled=False):  # bfloat16: half a cell off
        for part in parts:
            points = warp @ _control_points(corners[part], cells[part])
            pooled.append(_sample(features, boxes[part, 0].long(), points))
        return torch.cat(pooled)


def _sample(features: Tensor, image: Tensor, points: Tensor) -> Tensor:
    """Sample at points (k,4 s^2,2) in cells and average the four of each bin."""
    size = round((points.shape[1] // 4) ** 0.5)
    limit = points.new_tensor([features.shape[3], features.shape[2]])
    exact = torch.promote_types(features.dtype, points.dtype)
    grid = ((2 * points + 1) / limit - 1).to(exact).view(-1, 2 * size, 2 * size, 2)
    pooled = features.new_zeros(len(points), features.shape[1], size, size)
    for n in torch.unique(image).tolist():
        regions = image == n
        rows = grid[regions].view(1, -1, 2 * size, 2)  # regions of one image, one below another
        samples = F.grid_sample(
            features[n : n + 1].to(exact), rows, padding_mode="border", align_corners=False
        )
        means = F.avg_pool2d(samples, 2)[0].to(features.dtype)
        values = means.view(features.shape[1], -1, size, size).transpose(0, 1)
        pooled = pooled.index_put((regions.nonzero().flatten(),), values)
    return pooled


def _control_points(corners: Tensor, cells: Tensor) -> Tensor:
    """Return the ends (k,16,2) of regions in the order of `_border`.

    Where a line meets no cell of the region, the end is on the border of the box.
    """
    x1, y1, x2, y2 = (side[:, None] for side in corners.unbind(1))
    fractions = corners.new_tensor(_POINTS)
    across, down = x1 + fractions * (x2 - x1), y1 + fractions * (y2 - y1)  # (k,3)
    first, last = _extent(cells, x1, x2)
    upmost, lowest = _extent(cells.transpose(1, 2), y1, y2)
    points = [
        torch.stack([_at(first, down), down], 2),
        torch.stack([_at(last, down), down], 2),
        torch.stack([across, _at(upmost, across)], 2),
        torch.stack([across, _at(lowest, across)], 2),
    ]
    rows = torch.arange(cells.shape[1], device=cells.device) - 0.5
    upper, lower = rows.clamp(y1, y2), (rows + 1).clamp(y1, y2)  # (k,H)
    empty = torch.where(cells.any(2), 0, torch.inf)
    width, height = (x2 - x1).clamp(min=1e-6), (y2 - y1).clamp(min=1e-6)
    for x, y, corner_x, corner_y in (
        (first, upper, x1, y1),
        (last, upper, x2, y1),
        (first, lower, x1, y2),
        (last, lower, x2, y2),
    ):
        distance = (x - corner_x).abs() / width + (y - corner_y).abs() / height + empty
        nearest, row = distance.min(1, keepdim=True)
        point = torch.stack([x.gather(1, row), y.gather(1, row)], 2)
        corner = torch.stack([corner_x, corner_y], 2)
        points.append(torch.where(nearest[..., None].isfinite(), point, corner))
    return torch.cat(points, 1)


def _extent(cells: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Return the first and last end (k,H) of each region along every row, within its box."""
    first, last = cells.int().argmax(2) - 0.5, cells.shape[2] - 0.5 - cells.flip(2).int().argmax(2)
    some = cells.any(2)
    first = torch.where(some, first.clamp(low, high), low)
    last = torch.where(some, last.clamp(low, high), high)
    return first, last


def _at(ends: Tensor, rows: Tensor) -> Tensor:
    """Return the ends (k,3) of the rows nearest to `rows`."""
    return ends.gather(1, rows.round().long().clamp(0, ends.shape[1] - 1))


@functools.cache
def _spline(size: int) -> Tensor:
    """Return the matrix (4 s^2, 16) from the control points in the map to the sample points."""
    centres = (torch.arange(2 * size, dtype=torch.float64) + 0.5) / (2 * size)
    y, x = torch.meshgrid(centres, centres, indexing="ij")
    samples, border = torch.stack([x, y], -1).view(-1, 2), _border()
    affine = torch.cat([torch.ones(len(border), 1, dtype=torch.float64), border], 1)
    upper = torch.cat([_kernel(border, border), affine], 1)
    lower = torch.cat([affine.T, affine.new_zeros(3, 3)], 1)
    solve = torch.linalg.inv(torch.cat([upper, lower]))[:, : len(border)]
    ones = samples.new_ones(len(samples), 1)
    return (torch.cat([_kernel(samples, border), ones, samples], 1) @ solve).float()


def _border() -> Tensor:
    """Return the control points (16,2) on the border of the unit square.

    Left, right, top, bottom, then corners.
    """
    points = [(0.0, t) for t in _POINTS]
    points += [(1.0, t) for t in _POINTS]
    points += [(t, 0.0) for t in _POINTS]
    points += [(t, 1.0) for t in _POINTS]
    points += [(0, 0), (1, 0), (0, 1), (1, 1)]
    return torch.tensor(points, dtype=torch.float64)


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    """Return the spline's kernel r^2 log r^2 between two sets of points."""
    squared = (a[:, None] - b[None]).square().sum(2)
    return torch.special.xlogy(squared, squared)
