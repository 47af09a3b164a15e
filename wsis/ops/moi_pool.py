"""MoIPool: features of regions of any shape on a grid (JTSM, CVPR 2021, section 3.3).

    symbol     name          shape
    Phi^f      features      (N,D,H,W)
    Omega      cells         (K,H,W)     cells that belong to a region, eq. (6)
    Phi^p      pooled        (K,D,r,s)   eq. (5), r rows of s bins
    psi        factors       (K,)        compensation for empty bins, eq. (7)
               places        (K,D,r,s)   cells y * W + x of the maxima, -1 in an empty bin

The operator `wsis::moi_pool` is defined here with a readable reference implementation, its shapes
and its gradient; `wsis.ops.build` adds the compiled kernels, which are used from the first call on.
Places are kept only if a gradient is needed; the backward pass then needs no features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from wsis.errors import InputError
from wsis.ops.build import compiled_devices

__all__ = [
    "Compensation",
    "check",
    "moi_pool",
    "moi_pool_backward_reference",
    "moi_pool_reference",
    "windows_of",
]

Compensation = Literal["bins", "released"] | None
_CODES: dict[Compensation, int] = {None: 0, "bins": 1, "released": 2}
_FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_CHUNK = 1 << 24
"""Bin memberships or cell values that the reference holds at a time: 25 bytes each, 400 MB."""
_FAR = float(1 << 24)
"""Corners are clipped to whole numbers that a float can tell apart; NaN is the lowest of these."""


def moi_pool(
    features: Tensor,
    boxes: Tensor,
    cells: Tensor,
    output_size: int | Sequence[int] = 7,
    spatial_scale: float = 1 / 8,
    compensation: Compensation = "bins",
) -> Tensor:
    """Return the maximum over a region's cells in each bin of its box (JTSM, eqs. 5-8).

    Bins are those of Caffe's RoIPool: corners are rounded to cells, halves up, the last one
    inclusive. A bin without cells of the region is 0. If all cells of the box belong to the region,
    the result is RoIPool's; a rectangular segment need not fill its rounded box, see
    `wsis.nn.regions.pool_segments`. Among equal values the first in row-major order gets the
    gradient.

    Args:
        features: (N,D,H,W) of any float type.
        boxes: (K,5), index of the image, then x1, y1, x2, y2 in input pixels.
        cells: (K,H,W) bool, the cells of each region, from `segment_cells`.
        output_size: bins on each side, or rows and columns of bins (r, s).
        spatial_scale: feature cells per input pixel.
        compensation: factor on the result: "bins" bins / non-empty bins, "released" bins /
            (non-empty + 1) as in the released code, None 1.

    Returns:
        (K,D,r,s). Differentiable in `features`; gradients are the same from run to run.

    Raises:
        InputError: shapes that do not match, or an unknown compensation.
        RuntimeError: a box of an image that is not there. On CUDA its features are NaN instead,
            because a check would wait for the device.
    """
    rows, columns = check(features, boxes, cells, output_size)
    if compensation not in _CODES:
        raise InputError(f"moi_pool: compensation is one of {[*_CODES]}, not {compensation!r}")
    keep = torch.is_grad_enabled() and features.requires_grad
    pooled, _, _ = _operator(
        features,
        boxes.detach().float(),
        cells,
        rows,
        columns,
        spatial_scale,
        _CODES[compensation],
        keep,
    )
    return pooled


def check(
    features: Tensor, boxes: Tensor, cells: Tensor, output_size: int | Sequence[int]
) -> tuple[int, int]:
    """Check that the arguments of a pooling operator match; return rows and columns of bins.

    Raises:
        InputError: one does not; the message says which, and what it should be.
    """
    if features.ndim != 4 or features.dtype not in _FLOATS:
        raise InputError(
            f"pooling: features are (N,D,H,W) floats, not {tuple(features.shape)} {features.dtype}"
        )
    if boxes.ndim != 2 or boxes.shape[1] != 5:
        raise InputError(
            f"pooling: boxes are (K,5) with the image's index first, not {tuple(boxes.shape)}"
        )
    if not features.device == boxes.device == cells.device:
        places = f"{features.device}, {boxes.device} and {cells.device}"
        raise InputError(f"pooling: features, boxes and cells lie on one device, not on {places}")
    expected = (boxes.shape[0], *features.shape[2:])
    if tuple(cells.shape) != expected or cells.dtype != torch.bool:
        raise InputError(
            f"pooling: cells are {expected} bool, a map for each box, not {tuple(cells.shape)} "
            f"{cells.dtype}"
        )
    sides = [output_size] * 2 if isinstance(output_size, int) else [*output_size]
    if len(sides) != 2 or min(sides) < 1:
        raise InputError(
            f"pooling: output_size is one number or two, each at least 1, not {output_size}"
        )
    return sides[0], sides[1]


def windows_of(boxes: Tensor, scale: float) -> Tensor:
    """Return the boxes in cells, (K,5) int32: image, first column, first row, columns and rows.

    The kernels round just so, in csrc/moi_pool.h.
    """
    corners = _whole((boxes[:, 1:].float() * scale + 0.5).floor())
    lengths = (corners[:, 2:] - corners[:, :2] + 1).clamp(min=1)
    return torch.cat([_whole(boxes[:, :1].float()), corners[:, :2], lengths], 1)


def _whole(values: Tensor) -> Tensor:
    return values.nan_to_num(nan=-_FAR).clamp(-_FAR, _FAR).to(torch.int32)


@torch.library.custom_op("wsis::moi_pool", mutates_args=())
def _operator(
    features: Tensor,
    boxes: Tensor,
    cells: Tensor,
    rows: int,
    columns: int,
    scale: float,
    compensation: int,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return pooled features (K,D,r,s), their places if kept (else none), and factors (K,).

    Boxes are float32 here.
    """
    if features.device.type in compiled_devices():  # just loaded: calls its kernel
        return _operator(features, boxes, cells, rows, columns, scale, compensation, keep)
    return moi_pool_reference(features, boxes, cells, rows, columns, scale, compensation, keep)


@torch.library.custom_op("wsis::moi_pool_backward", mutates_args=())
def _backward_operator(
    grad: Tensor,
    places: Tensor,
    factors: Tensor,
    boxes: Tensor,
    images: int,
    height: int,
    width: int,
) -> Tensor:
    """Return the gradient (N,D,H,W) of the features."""
    if grad.device.type in compiled_devices():
        return _backward_operator(grad, places, factors, boxes, images, height, width)
    return moi_pool_backward_reference(grad, places, factors, boxes, images, height, width)


def moi_pool_reference(
    features: Tensor,
    boxes: Tensor,
    cells: Tensor,
    rows: int,
    columns: int,
    scale: float,
    compensation: int,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute `wsis::moi_pool` in plain PyTorch."""
    top, argmax, filled = _pool(features, windows_of(boxes, scale), cells, rows, columns)
    factors = _factors(filled, rows * columns, compensation, top)
    pooled = (top * factors[:, None, None, None]).to(features.dtype)  # eq. (8)
    places = argmax.to(_place_type(*features.shape[2:]))
    return pooled, places if keep else places.new_empty(0), factors


def moi_pool_backward_reference(
    grad: Tensor,
    places: Tensor,
    factors: Tensor,
    boxes: Tensor,
    images: int,
    height: int,
    width: int,
) -> Tensor:
    """Compute `wsis::moi_pool_backward` in plain PyTorch, deterministically if torch is set so."""
    channels = grad.shape[1]
    scaled = grad.to(factors.dtype) * factors[:, None, None, None]
    channel = torch.arange(channels, device=grad.device)
    plane = _whole(boxes[:, 0]).long()[:, None] * channels + channel  # (K,D)
    index = plane[:, :, None, None] * height * width + places
    maps = scaled.new_zeros(images * channels * height * width)
    maps.index_put_((index[places >= 0],), scaled[places >= 0], accumulate=True)
    return maps.view(images, channels, height, width).to(grad.dtype)


def _pool(
    features: Tensor, windows: Tensor, cells: Tensor, rows: int, columns: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return maxima (K,D,r,s), their cells (-1 for an empty bin), and non-empty bins (K,)."""
    count, (images, channels, height, width) = len(windows), features.shape
    if count and not 0 <= int(windows[:, 0].min()) <= int(windows[:, 0].max()) < images:
        raise RuntimeError(
            f"moi_pool: a region is of image {int(windows[:, 0].max())}, but there are {images}"
        )
    maps = features.flatten(2).transpose(1, 2).to(_exact(features))  # (N,HW,D)
    chunk = max(_CHUNK // max(max(rows * columns, channels) * height * width, 1), 1)
    parts = [
        _pool_regions(maps, windows[i : i + chunk], cells[i : i + chunk], rows, columns)
        for i in range(0, max(count, 1), chunk)
    ]
    top, argmax, filled = (torch.cat(part) for part in zip(*parts, strict=True))
    shape = count, channels, rows, columns
    return top.transpose(1, 2).reshape(shape), argmax.transpose(1, 2).reshape(shape), filled


def _pool_regions(
    maps: Tensor, windows: Tensor, cells: Tensor, rows: int, columns: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Pool k regions on maps (N,HW,D): maxima (k,r*s,D), cells (k,r*s,D), non-empty bins (k,)."""
    count, channels, (height, width) = len(windows), maps.shape[-1], cells.shape[1:]
    down = _bins(windows[:, 2], windows[:, 4], rows, height)
    across = _bins(windows[:, 1], windows[:, 3], columns, width)
    in_row = cells[:, None, None] & down[:, :, None, :, None]
    inside = in_row & across[:, None, :, None, :]  # (k,r,s,H,W)
    region, row, column, y, x = inside.nonzero(as_tuple=True)  # row-major within a bin
    bins, cell = (region * rows + row) * columns + column, y * width + x
    values = maps[windows[region, 0].long(), cell]
    index = bins[:, None].expand_as(values)
    lowest = values.new_full((count * rows * columns, channels), -torch.inf)
    top = lowest.scatter_reduce(0, index, values, "amax")  # eq. (5)
    is_top = (values == top[bins]) | values.isnan()
    order = torch.arange(len(cell), device=cell.device)[:, None].where(is_top, len(cell))
    none = order.new_full(top.shape, len(cell))
    first = none.scatter_reduce(0, index, order, "amin")  # among equal values
    argmax = torch.cat([cell, cell.new_tensor([-1])])[first]
    filled = inside.flatten(3).any(3).flatten(1).sum(1)
    shape = count, rows * columns, channels
    return top.where(argmax >= 0, 0).view(shape), argmax.view(shape), filled


def _bins(start: Tensor, length: Tensor, size: int, limit: int) -> Tensor:
    """Return (k,s,limit) bool, True for the cells of each bin along a side of `limit` cells.

    Integer arithmetic, so that no rounding adds a cell.
    """
    bins = torch.arange(size, device=start.device)[None, :]
    cells = torch.arange(limit, device=start.device)
    first = start[:, None] + bins * length[:, None] // size
    last = start[:, None] - (-(bins + 1) * length[:, None]) // size
    return (cells >= first[..., None]) & (cells < last[..., None])


def _factors(filled: Tensor, bins: int, compensation: int, like: Tensor) -> Tensor:
    """Return the compensation psi (K,) of eq. (7), in the type of `like`."""
    if compensation == _CODES[None]:
        return torch.ones_like(filled, dtype=like.dtype)
    count = filled + 1 if compensation == _CODES["released"] else filled.clamp(min=1)
    return torch.full_like(count, bins, dtype=like.dtype) / count


def _exact(values: Tensor) -> torch.dtype:
    """Return the type to compute in."""
    return torch.float64 if values.dtype == torch.float64 else torch.float32


def _place_type(height: int, width: int) -> torch.dtype:
    return torch.int16 if height * width <= 1 << 15 else torch.int32


@_operator.register_fake
def _(
    features: Tensor,
    boxes: Tensor,
    cells: Tensor,
    rows: int,
    columns: int,
    scale: float,
    compensation: int,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    shape = len(boxes), features.shape[1], rows, columns
    places = features.new_empty(shape if keep else 0, dtype=_place_type(*features.shape[2:]))
    factors = features.new_empty(len(boxes), dtype=_exact(features))
    return features.new_empty(shape), places, factors


@_backward_operator.register_fake
def _(
    grad: Tensor,
    places: Tensor,
    factors: Tensor,
    boxes: Tensor,
    images: int,
    height: int,
    width: int,
) -> Tensor:
    return grad.new_empty(images, grad.shape[1], height, width)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    features, boxes, *_ = inputs
    _, places, factors = output
    ctx.sides = features.shape[0], *features.shape[2:]
    ctx.save_for_backward(places, factors, boxes)
    ctx.mark_non_differentiable(places, factors)


def _backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    return _backward_operator(grad, *ctx.saved_tensors, *ctx.sides), *[None] * 7


_operator.register_autograd(_backward, setup_context=_remember)
