"""MoIPool: features of regions of any shape on a grid (JTSM, CVPR 2021, section 3.3).

    symbol     name          shape
    Phi^f      features      (N,D,H,W)
    Omega      cells         (K,H,W)     cells that belong to a region, eq. (6)
    Phi^p      pooled        (K,D,s,s)   eq. (5)
    psi        factor        (K,)        compensation for empty bins, eq. (7)

The operator `wsis::moi_pool` is defined here with its readable implementation, shapes and gradient; `wsis.ops.build` adds
the compiled kernels, which take over from the first call on.
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
"""Bin memberships, or values of cells, that the reference holds at a time; a value takes 25 bytes, 400 MB in all."""


def moi_pool(
    features: Tensor,
    boxes: Tensor,
    cells: Tensor,
    output_size: int = 7,
    spatial_scale: float = 1 / 8,
    compensation: Compensation = "bins",
) -> Tensor:
    """Pool regions of any shape: the largest value among a region's own cells in each bin of its box (JTSM, eqs. 5-8).

    Bins are those of Caffe's RoIPool: corners are rounded to cells, halves up, the last one inclusive. A bin without a cell
    of the region is 0; of equal values the first in row-major order gets the gradient.

    Args:
        features: (N,D,H,W) float; half and bfloat16 too.
        boxes: (K,5), index of the image and x1, y1, x2, y2 in input pixels.
        cells: (K,H,W) bool, the cells of each region, as `segment_cells` gives them.
        output_size: bins on a side, s.
        spatial_scale: feature cells per input pixel.
        compensation: factor on the result: "bins" s^2 / non-empty bins, "released" s^2 / (non-empty + 1) as in the released
            code, None 1.

    Returns:
        (K,D,s,s). Differentiable in `features`.

    Raises:
        InputError: shapes that do not go together, or an unknown compensation.
    """
    check(features, boxes, cells, output_size)
    if compensation not in _CODES:
        raise InputError(f"moi_pool: compensation is one of {[*_CODES]}, not {compensation!r}")
    windows = windows_of(boxes, spatial_scale)
    return _operator(features, windows, cells, output_size, _CODES[compensation])


def check(features: Tensor, boxes: Tensor, cells: Tensor, output_size: int) -> None:
    """Refuse arguments of a pooling that do not go together.

    Raises:
        InputError: which one, and what it should be.
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
            f"pooling: cells are {expected} bool, a map for each box, not {tuple(cells.shape)} {cells.dtype}"
        )
    if output_size < 1:
        raise InputError(f"pooling: output_size is at least 1, not {output_size}")


def windows_of(boxes: Tensor, scale: float) -> Tensor:
    """Image, first column, first row, columns and rows of each box, in cells (K,5) int32; the same for every backend."""
    first, last = ((part.float() * scale + 0.5).floor() for part in (boxes[:, 1:3], boxes[:, 3:]))
    return torch.cat([boxes[:, :1].float(), first, (last - first + 1).clamp(min=1)], 1).to(
        torch.int32
    )


@torch.library.custom_op("wsis::moi_pool", mutates_args=())
def _operator(
    features: Tensor, windows: Tensor, cells: Tensor, size: int, compensation: int
) -> Tensor:
    """Pooled features (K,D,s,s)."""
    if features.device.type in compiled_devices():  # just built: its kernel answers this time
        return _operator(features, windows, cells, size, compensation)
    return moi_pool_reference(features, windows, cells, size, compensation)


@torch.library.custom_op("wsis::moi_pool_backward", mutates_args=())
def _backward_operator(
    grad: Tensor, features: Tensor, windows: Tensor, cells: Tensor, compensation: int
) -> Tensor:
    """Gradient (N,D,H,W) of the features."""
    if grad.device.type in compiled_devices():
        return _backward_operator(grad, features, windows, cells, compensation)
    return moi_pool_backward_reference(grad, features, windows, cells, compensation)


def moi_pool_reference(
    features: Tensor, windows: Tensor, cells: Tensor, size: int, compensation: int
) -> Tensor:
    """Do what `wsis::moi_pool` does, in plain PyTorch."""
    pooled, _, filled = _pool(features, windows, cells, size)
    return (pooled * _factor(filled, size**2, compensation, pooled)).to(features.dtype)  # eq. (8)


def moi_pool_backward_reference(
    grad: Tensor, features: Tensor, windows: Tensor, cells: Tensor, compensation: int
) -> Tensor:
    """Do what `wsis::moi_pool_backward` does, in plain PyTorch, whose sums have one order where it is told so."""
    size = grad.shape[-1]
    _, argmax, filled = _pool(features, windows, cells, size)
    grad = grad.to(_exact(grad))
    scaled = grad * _factor(filled, size**2, compensation, grad)
    images, channels, height, width = features.shape
    plane = windows[:, 0].long()[:, None] * channels + torch.arange(
        channels, device=grad.device
    )  # (K,D)
    index = plane[:, :, None, None] * height * width + argmax
    maps = scaled.new_zeros(images * channels * height * width)
    maps.index_put_((index[argmax >= 0],), scaled[argmax >= 0], accumulate=True)
    return maps.view(images, channels, height, width).to(features.dtype)


def _pool(
    features: Tensor, windows: Tensor, cells: Tensor, size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Maxima (K,D,s,s), the cells they are in, -1 in an empty bin, and how many bins of each region are not empty (K,)."""
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
    top, argmax = (
        values.transpose(1, 2).reshape(count, channels, size, size) for values in (top, argmax)
    )
    return top, argmax, filled


def _pool_regions(
    maps: Tensor, windows: Tensor, cells: Tensor, size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The same of a few regions on maps (N,HW,D): (k,s*s,D), (k,s*s,D), (k,)."""
    count, channels, (height, width) = len(windows), maps.shape[-1], cells.shape[1:]
    rows, columns = (
        _bins(windows[:, 2], windows[:, 4], size, height),
        _bins(windows[:, 1], windows[:, 3], size, width),
    )
    inside = (
        cells[:, None, None] & rows[:, :, None, :, None] & columns[:, None, :, None, :]
    )  # (k,s,s,H,W)
    region, row, column, y, x = inside.nonzero(as_tuple=True)  # row-major within a bin
    place, cell = (region * size + row) * size + column, y * width + x
    values = maps[windows[region, 0].long(), cell]
    index = place[:, None].expand_as(values)
    top = values.new_full((count * size**2, channels), -torch.inf).scatter_reduce(
        0, index, values, "amax"
    )  # eq. (5)
    order = torch.arange(len(cell), device=cell.device)[:, None].where(
        (values == top[place]) | values.isnan(), len(cell)
    )
    first = order.new_full(top.shape, len(cell)).scatter_reduce(
        0, index, order, "amin"
    )  # of equals
    argmax = torch.cat([cell, cell.new_tensor([-1])])[first]
    shape = count, size**2, channels
    return (
        top.where(argmax >= 0, 0).view(shape),
        argmax.view(shape),
        inside.flatten(3).any(3).flatten(1).sum(1),
    )


def _bins(start: Tensor, length: Tensor, size: int, limit: int) -> Tensor:
    """Which cells of a side of `limit` lie in each bin (k,s,limit); in whole numbers, so that no rounding adds one."""
    bins, cells = (
        torch.arange(size, device=start.device)[None, :],
        torch.arange(limit, device=start.device),
    )
    first = start[:, None] + bins * length[:, None] // size
    last = start[:, None] - (-(bins + 1) * length[:, None]) // size
    return (cells >= first[..., None]) & (cells < last[..., None])


def _factor(filled: Tensor, bins: int, compensation: int, like: Tensor) -> Tensor:
    """Compensation psi (K,1,1,1) of eq. (7), in the type of `like`."""
    if compensation == _CODES[None]:
        return torch.ones_like(filled, dtype=like.dtype).view(-1, 1, 1, 1)
    count = filled + 1 if compensation == _CODES["released"] else filled.clamp(min=1)
    return (torch.full_like(count, bins, dtype=like.dtype) / count).view(-1, 1, 1, 1)


def _exact(values: Tensor) -> torch.dtype:
    """The type to compute in."""
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
    ordered = (
        grad.is_cuda and torch.are_deterministic_algorithms_enabled()
    )  # the kernel on CUDA adds in any order
    features, windows, cells = ctx.saved_tensors
    backward = moi_pool_backward_reference if ordered else _backward_operator
    return backward(grad, features, windows, cells, ctx.compensation), None, None, None, None


_operator.register_autograd(_backward, setup_context=_remember)
