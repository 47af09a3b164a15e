"""MoIPool: features of regions of any shape on a grid (JTSM, CVPR 2021, section 3.3).

    symbol     name          shape
    Phi^f      features      (N,D,H,W)
    Omega      cells         (K,H,W)     cells that belong to a region, eq. (6)
    Phi^p      pooled        (K,D,s,s)   eq. (5)
    psi        factor        (K,)        compensation for empty bins, eq. (7)

The operator `wsis::moi_pool` is defined here with a readable reference implementation, its shapes
and its gradient; `wsis.ops.build` adds the compiled kernels, which are used from the first call on.
"""

from __future__ import annotations

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


def moi_pool(
    features: Tensor,
    boxes: Tensor,
    cells: Tensor,
    output_size: int = 7,
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
        output_size: bins on each side, s.
        spatial_scale: feature cells per input pixel.
        compensation: factor on the result: "bins" s^2 / non-empty bins, "released" s^2 / (non-empty
            + 1) as in the released code, None 1.

    Returns:
        (K,D,s,s). Differentiable in `features`.

    Raises:
        InputError: shapes that do not match, or an unknown compensation.
        RuntimeError: a box of an image that is not there. On CUDA its features are NaN instead,
            because a check would wait for the device.
    """
    check(features, boxes, cells, output_size)
    if compensation not in _CODES:
        raise InputError(f"moi_pool: compensation is one of {[*_CODES]}, not {compensation!r}")
    windows = windows_of(boxes, spatial_scale)
    return _operator(features, windows, cells, output_size, _CODES[compensation])


def check(features: Tensor, boxes: Tensor, cells: Tensor, output_size: int) -> None:
    """Check that the arguments of a pooling operator match.

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
    if output_size < 1:
        raise InputError(f"pooling: output_size is at least 1, not {output_size}")


def windows_of(boxes: Tensor, scale: float) -> Tensor:
    """Return the boxes in cells, (K,5) int32: image, first column, first row, columns and rows.

    Every backend uses these, so that all of them round alike.
    """
    first = (boxes[:, 1:3].float() * scale + 0.5).floor()
    last = (boxes[:, 3:].float() * scale + 0.5).floor()
    lengths = (last - first + 1).clamp(min=1)
    return torch.cat([boxes[:, :1].float(), first, lengths], 1).to(torch.int32)


@torch.library.custom_op("wsis::moi_pool", mutates_args=())
def _operator(
    features: Tensor, windows: Tensor, cells: Tensor, size: int, compensation: int
) -> Tensor:
    """Return pooled features (K,D,s,s)."""
    if features.device.type in compiled_devices():  # just loaded: calls its kernel
        return _operator(features, windows, cells, size, compensation)
    return moi_pool_reference(features, windows, cells, size, compensation)


@torch.library.custom_op("wsis::moi_pool_backward", mutates_args=())
def _backward_operator(
    grad: Tensor, features: Tensor, windows: Tensor, cells: Tensor, compensation: int
) -> Tensor:
    """Return the gradient (N,D,H,W) of the features."""
    if grad.device.type in compiled_devices():
        return _backward_operator(grad, features, windows, cells, compensation)
    return moi_pool_backward_reference(grad, features, windows, cells, compensation)


def moi_pool_reference(
    features: Tensor, windows: Tensor, cells: Tensor, size: int, compensation: int
) -> Tensor:
    """Compute `wsis::moi_pool` in plain PyTorch."""
    pooled, _, filled = _pool(features, windows, cells, size)
    return (pooled * _factor(filled, size**2, compensation, pooled)).to(features.dtype)  # eq. (8)


def moi_pool_backward_reference(
    grad: Tensor, features: Tensor, windows: Tensor, cells: Tensor, compensation: int
) -> Tensor:
    """Compute `wsis::moi_pool_backward` in plain PyTorch, deterministically if torch is set so."""
    size = grad.shape[-1]
    _, argmax, filled = _pool(features, windows, cells, size)
    grad = grad.to(_exact(grad))
    scaled = grad * _factor(filled, size**2, compensation, grad)
    images, channels, height, width = features.shape
    channel = torch.arange(channels, device=grad.device)
    plane = windows[:, 0].long()[:, None] * channels + channel  # (K,D)
    index = plane[:, :, None, None] * height * width + argmax
    maps = scaled.new_zeros(images * channels * height * width)
    maps.index_put_((index[argmax >= 0],), scaled[argmax >= 0], accumulate=True)
    return maps.view(images, channels, height, width).to(features.dtype)


def _pool(
    features: Tensor, windows: Tensor, cells: Tensor, size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return maxima (K,D,s,s), their cells (-1 for an empty bin), and non-empty bins (K,)."""
    count, (images, channels, height, width) = len(windows), features.shape
    if count and not 0 <= int(windows[:, 0].min()) <= int(windows[:, 0].max()) < images:
        raise RuntimeError(
            f"moi_pool: a region is of image {int(windows[:, 0].max())}, but there are {images}"
        )
    maps = features.flatten(2).transpose(1, 2).to(_exact(features))  # (N,HW,D)
    chunk = max(_CHUNK // max(max(size**2, channels) * height * width, 1), 1)
    parts = [
        _pool_regions(maps, windows[i : i + chunk], cells[i : i + chunk], size)
        for i in range(0, max(count, 1), chunk)
    ]
    top, argmax, filled = (torch.cat(part) for part in zip(*parts, strict=True))
    shape = count, channels, size, size
    return top.transpose(1, 2).reshape(shape), argmax.transpose(1, 2).reshape(shape), filled


def _pool_regions(
    maps: Tensor, windows: Tensor, cells: Tensor, size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Pool k regions on maps (N,HW,D): maxima (k,s*s,D), cells (k,s*s,D), non-empty bins (k,)."""
    count, channels, (height, width) = len(windows), maps.shape[-1], cells.shape[1:]
    rows = _bins(windows[:, 2], windows[:, 4], size, height)
    columns = _bins(windows[:, 1], windows[:, 3], size, width)
    in_row = cells[:, None, None] & rows[:, :, None, :, None]
    inside = in_row & columns[:, None, :, None, :]  # (k,s,s,H,W)
    region, row, column, y, x = inside.nonzero(as_tuple=True)  # row-major within a bin
    bins, cell = (region * size + row) * size + column, y * width + x
    values = maps[windows[region, 0].long(), cell]
    index = bins[:, None].expand_as(values)
    lowest = values.new_full((count * size**2, channels), -torch.inf)
    top = lowest.scatter_reduce(0, index, values, "amax")  # eq. (5)
    is_top = (values == top[bins]) | values.isnan()
    order = torch.arange(len(cell), device=cell.device)[:, None].where(is_top, len(cell))
    none = order.new_full(top.shape, len(cell))
    first = none.scatter_reduce(0, index, order, "amin")  # among equal values
    argmax = torch.cat([cell, cell.new_tensor([-1])])[first]
    filled = inside.flatten(3).any(3).flatten(1).sum(1)
    shape = count, size**2, channels
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


def _factor(filled: Tensor, bins: int, compensation: int, like: Tensor) -> Tensor:
    """Return the compensation psi (K,1,1,1) of eq. (7), in the type of `like`."""
    if compensation == _CODES[None]:
        return torch.ones_like(filled, dtype=like.dtype).view(-1, 1, 1, 1)
    count = filled + 1 if compensation == _CODES["released"] else filled.clamp(min=1)
    return (torch.full_like(count, bins, dtype=like.dtype) / count).view(-1, 1, 1, 1)


def _exact(values: Tensor) -> torch.dtype:
    """Return the type to compute in."""
    return torch.float64 if values.dtype == torch.float64 else torch.float32


@_operator.register_fake
def _(features: Tensor, windows: Tensor, cells: Tensor, size: int, compensation: int) -> Tensor:
    return features.new_empty(len(windows), features.shape[1], size, size)


@_backward_operator.register_fake
def _(grad: Tensor, features: Tensor, windows: Tensor, cells: Tensor, compensation: int) -> Tensor:
    return features.new_empty(features.shape)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, _, ctx.compensation = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    # the CUDA kernel adds in any order
    ordered = grad.is_cuda and torch.are_deterministic_algorithms_enabled()
    features, windows, cells = ctx.saved_tensors
    backward = moi_pool_backward_reference if ordered else _backward_operator
    return backward(grad, features, windows, cells, ctx.compensation), None, None, None, None


_operator.register_autograd(_backward, setup_context=_remember)
