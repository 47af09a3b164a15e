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

from wsis.files import InputError
from wsis.ops.build import compiled_devices

__all__ = ["Compensation", "check", "moi_pool", "moi_pool_backward_reference", "moi_pool_reference", "windows_of"]

Compensation = Literal["bins", "released"] | None
_CODES: dict[Compensation, int] = {None: 0, "bins": 1, "released": 2}
_CHUNK = 1 << 24
"""Bin memberships that the reference holds at a time, one byte each."""


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
    keep = features.requires_grad and torch.is_grad_enabled()
    windows = windows_of(boxes, spatial_scale)
    return _operator(features, windows, cells, output_size, _CODES[compensation], keep)[0]  # type: ignore[no-any-return]


def check(features: Tensor, boxes: Tensor, cells: Tensor, output_size: int) -> None:
    """Refuse arguments of a pooling that do not go together.

    Raises:
        InputError: which one, and what it should be.
    """
    if features.ndim != 4 or not features.is_floating_point():
        raise InputError(f"pooling: features are (N,D,H,W) floats, not {tuple(features.shape)} {features.dtype}")
    if boxes.ndim != 2 or boxes.shape[1] != 5:
        raise InputError(f"pooling: boxes are (K,5) with the image's index first, not {tuple(boxes.shape)}")
    expected = (boxes.shape[0], *features.shape[2:])
    if tuple(cells.shape) != expected or cells.dtype != torch.bool:
        raise InputError(f"pooling: cells are {expected} bool, a map for each box, not {tuple(cells.shape)} {cells.dtype}")
    if output_size < 1:
        raise InputError(f"pooling: output_size is at least 1, not {output_size}")


def windows_of(boxes: Tensor, scale: float) -> Tensor:
    """Image, first column, first row, columns and rows of each box, in cells (K,5) int32; the same for every backend."""
    first, last = ((part.float() * scale + 0.5).floor() for part in (boxes[:, 1:3], boxes[:, 3:]))
    return torch.cat([boxes[:, :1].float(), first, (last - first + 1).clamp(min=1)], 1).to(torch.int32)


@torch.library.custom_op("wsis::moi_pool", mutates_args=())
def _operator(
    features: Tensor, windows: Tensor, cells: Tensor, size: int, compensation: int, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Pooled (K,D,s,s), index of each value's cell (K,D,s,s) or (0,D,s,s) int32, number of non-empty bins (K,) int32."""
    if features.device.type in compiled_devices():  # just built: its kernel answers this time
        return _operator(features, windows, cells, size, compensation, keep)  # type: ignore[no-any-return]
    return moi_pool_reference(features, windows, cells, size, compensation, keep)


@torch.library.custom_op("wsis::moi_pool_backward", mutates_args=())
def _backward_operator(
    grad: Tensor, windows: Tensor, argmax: Tensor, filled: Tensor, images: int, height: int, width: int, compensation: int
) -> Tensor:
    """Gradient (N,D,H,W) of the features."""
    if grad.device.type in compiled_devices():
        return _backward_operator(  # type: ignore[no-any-return]
            grad, windows, argmax, filled, images, height, width, compensation
        )
    return moi_pool_backward_reference(grad, windows, argmax, filled, images, height, width, compensation)


def moi_pool_backward_reference(
    grad: Tensor, windows: Tensor, argmax: Tensor, filled: Tensor, images: int, height: int, width: int, compensation: int
) -> Tensor:
    """Do what `wsis::moi_pool_backward` does, in plain PyTorch, whose sums have one order where it is told so."""
    channels = grad.shape[1]
    scaled = grad.to(_exact(grad)) * _factor(filled, grad.shape[2] * grad.shape[3], compensation, grad).view(-1, 1, 1, 1)
    plane = windows[:, 0].long()[:, None] * channels + torch.arange(channels, device=grad.device)  # (K,D)
    size = images * channels * height * width
    index = (plane[:, :, None, None] * height * width + argmax).where(argmax >= 0, size)  # one more place, for empty bins
    maps = scaled.new_zeros(size + 1).index_put((index,), scaled, accumulate=True)[:-1]
    return maps.view(images, channels, height, width).to(grad.dtype)


def moi_pool_reference(
    features: Tensor, windows: Tensor, cells: Tensor, size: int, compensation: int, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Do what `wsis::moi_pool` does, in plain PyTorch."""
    count, (images, channels, height, width) = len(windows), features.shape
    if count and not 0 <= int(windows[:, 0].min()) <= int(windows[:, 0].max()) < images:
        raise RuntimeError(f"moi_pool: a region is of image {windows[:, 0].tolist()}, but there are {images}")
    maps = features.flatten(2).transpose(1, 2).to(_exact(features))  # (N,HW,D)
    chunk = max(_CHUNK // max(size**2 * height * width, 1), 1)
    parts = [_pool_regions(maps, windows[i : i + chunk], cells[i : i + chunk], size) for i in range(0, max(count, 1), chunk)]
    pooled, argmax, filled = (torch.cat(part) for part in zip(*parts, strict=True))
    pooled = pooled * _factor(filled, size**2, compensation, pooled).view(-1, 1, 1)  # eq. (8)
    pooled, argmax = (values.transpose(1, 2).reshape(count, channels, size, size) for values in (pooled, argmax))
    return pooled.to(features.dtype), argmax if keep else argmax[:0], filled


def _pool_regions(maps: Tensor, windows: Tensor, cells: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Maxima and their cells (k,s*s,D) of a few regions, and how many of their bins are not empty (k,)."""
    count, channels, (height, width) = len(windows), maps.shape[-1], cells.shape[1:]
    rows, columns = _bins(windows[:, 2], windows[:, 4], size, height), _bins(windows[:, 1], windows[:, 3], size, width)
    inside = cells[:, None, None] & rows[:, :, None, :, None] & columns[:, None, :, None, :]  # (k,s,s,H,W)
    region, row, column, y, x = inside.nonzero(as_tuple=True)  # row-major within a bin
    place, cell = (region * size + row) * size + column, y * width + x
    values = maps[windows[region, 0].long(), cell]
    index = place[:, None].expand_as(values)
    top = values.new_full((count * size**2, channels), -torch.inf).scatter_reduce(0, index, values, "amax")  # eq. (5)
    order = torch.arange(len(cell), device=cell.device)[:, None].where(values == top[place], len(cell))
    first = order.new_full(top.shape, len(cell)).scatter_reduce(0, index, order, "amin")
    found = first < len(cell)
    argmax = torch.cat([cell, cell.new_tensor([-1])])[first].to(torch.int32)
    filled = inside.flatten(3).any(3).flatten(1).sum(1, dtype=torch.int32)
    shape = count, size**2, channels
    return top.where(found, 0).view(shape), argmax.view(shape), filled


def _bins(start: Tensor, length: Tensor, size: int, limit: int) -> Tensor:
    """Which cells of a side of `limit` lie in each bin (k,s,limit); in whole numbers, so that no rounding adds one."""
    bins, cells = torch.arange(size, device=start.device)[None, :], torch.arange(limit, device=start.device)
    first = start[:, None] + bins * length[:, None] // size
    last = start[:, None] - (-(bins + 1) * length[:, None]) // size
    return (cells >= first[..., None]) & (cells < last[..., None])


def _factor(filled: Tensor, bins: int, compensation: int, like: Tensor) -> Tensor:
    """Compensation psi (K,) of eq. (7), in the type of `like`."""
    if compensation == _CODES[None]:
        return torch.ones_like(filled, dtype=like.dtype)
    count = filled + 1 if compensation == _CODES["released"] else filled.clamp(min=1)
    return torch.full_like(count, bins, dtype=like.dtype) / count


def _exact(values: Tensor) -> torch.dtype:
    """The type to compute in."""
    return torch.float64 if values.dtype == torch.float64 else torch.float32


@_operator.register_fake
def _(features: Tensor, windows: Tensor, cells: Tensor, size: int, compensation: int, keep: bool) -> tuple[Tensor, ...]:
    shape = (len(windows), features.shape[1], size, size)
    argmax = windows.new_empty(shape if keep else (0, *shape[1:]))
    return features.new_empty(shape), argmax, windows.new_empty(len(windows))


@_backward_operator.register_fake
def _(
    grad: Tensor, windows: Tensor, argmax: Tensor, filled: Tensor, images: int, height: int, width: int, compensation: int
) -> Tensor:
    return grad.new_empty(images, grad.shape[1], height, width)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    features, windows, _, _, ctx.compensation, _ = inputs
    _, argmax, filled = output
    ctx.save_for_backward(windows, argmax, filled)
    ctx.mark_non_differentiable(argmax, filled)
    ctx.images, _, ctx.height, ctx.width = features.shape


def _backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    windows, argmax, filled = ctx.saved_tensors
    if len(argmax) != len(windows):
        raise RuntimeError("wsis::moi_pool has no gradient when called with keep=False")
    ordered = grad.is_cuda and torch.are_deterministic_algorithms_enabled()  # the kernel on CUDA adds in any order
    backward = moi_pool_backward_reference if ordered else _backward_operator
    maps = backward(grad, windows, argmax, filled, ctx.images, ctx.height, ctx.width, ctx.compensation)
    return maps, None, None, None, None, None


_operator.register_autograd(_backward, setup_context=_remember)
