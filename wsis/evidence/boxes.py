"""Centre-context-gap refinement: boxes are moved until scores are high inside them and low around them (CCGR, eqs. 2-3).

The score map is constant over each pixel, so its integral over a box is the prefix sums' bilinear interpolation at the four
corners, exactly, and so is its derivative: by x2, the column sum of scores at x2. A box costs 32 reads however large it is.

The gap's minimum is the tight box of a full rectangle only. A box shrinks on objects that are round, thin or scored softly:
an ellipse ends at an IoU of 0.83 with its tight box, scores of 1 - r^2 at 0.51. A map thresholded at 0.5 gives no better box,
unless the ground around the object is noisy: `benchmarks/box_refinement.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from wsis.errors import InputError

__all__ = ["Form", "centre_context_gap", "refine_boxes", "refinement", "surround_part"]

Form = Literal["ring", "printed"]

_LEAST_AREA = (
    1e-2  # square pixels below which a region has no mean: its derivative would be rounding noise
)
_LEAST_GAIN = 1e-9  # of the gap: a flat map's rounding moves no box
_MOMENTUM, _MEMORY = (
    0.9,
    0.99,
)  # Adam's; its usual 0.999 remembers one steep slope for all of 200 steps


def centre_context_gap(
    boxes: Tensor,
    maps: Tensor,
    context: float = 1.5,
    form: Form = "ring",
    index: Tensor | None = None,
    sizes: Tensor | None = None,
) -> Tensor:
    """Mean score around each box minus mean score inside it (CCGR eqs. 2-3); the lower, the better the box.

    Box and surroundings are clipped to the map and count with their clipped area; a region without area has mean 0.

    Args:
        boxes: (K,4) float xyxy in pixels; pixel i covers [i, i + 1).
        maps: (M,H,W) scores, for instance the probability of the box's class.
        context: side of the surrounding box over that of the box, above 1.
        form: "ring" takes the mean over the surroundings without the box. "printed" takes the paper's difference of the means
            of surrounding box and box, which is no mean of any region and makes boxes smaller.
        index: (K,) int64, the map that each box reads; None where M = K and box k reads map k.
        sizes: (M,2) height and width of each map without padding to the right and below; None where there is none.

    Returns:
        (K,) in the type of `boxes`. Differentiable in `boxes`, exactly; on a pixel's edge by the pixel to its right or below.

    Raises:
        InputError: shapes that do not go together, a value that is not finite, an unknown form.
    """
    sums = _sums(boxes, maps, index, sizes)
    return _gap(boxes.double(), sums, context, form).to(boxes.dtype)


def refine_boxes(
    boxes: Tensor,
    maps: Tensor,
    steps: int = 200,
    context: float = 1.5,
    form: Form = "ring",
    peaks: Sequence[Tensor] | None = None,
    index: Tensor | None = None,
    sizes: Tensor | None = None,
    rate: float = 0.02,
    min_side: float = 8,
) -> Tensor:
    """Move boxes by gradient descent on `centre_context_gap`, the boxes of all images at once.

    Adam moves each edge by about `rate` of the box's first side a step, so a scene twice as large gives boxes twice as large.
    Of all boxes passed on the way the one with the smallest gap is returned: at a sharp border the last one still swings.
    Boxes are clipped to their map and do not move where it is flat; one without area in its map comes back as it was.

    Args:
        boxes: (K,4); this, `maps` (M,H,W), `context`, `form`, `index` and `sizes` as in `centre_context_gap`.
        maps: scores.
        steps: of gradient descent.
        context: side of the surrounding box over that of the box.
        form: of the gap.
        peaks: for each box (n,2) x and y of peaks, its own included. A box stops before the step that would make it hold a
            second one; one that starts with two stays.
        index: map of each box.
        sizes: of maps without padding.
        rate: how far a step moves an edge, in sides of the given box.
        min_side: pixels below which no side shrinks; a side that starts smaller never gets smaller.

    Raises:
        InputError: as `centre_context_gap`; peaks for another number of boxes.
    """
    *_, refined = refinement(boxes, maps, steps, context, form, peaks, index, sizes, rate, min_side)
    return refined


def surround_part(boxes: Tensor, masks: Tensor, context: float = 1.5) -> Tensor:
    """Draw each box anew around the connected part of its mask that it holds most of, as far as its surroundings reach.

    Makes up for what `refine_boxes` takes off objects that do not fill their boxes.

    Args:
        boxes: (K,4) xyxy in pixels.
        masks: (K,H,W) bool.
        context: side of the surrounding box over that of the box; parts are connected within it, by edges or corners.

    Returns:
        (K,4); a box that holds nothing of its mask comes back as it was.
    """
    drawn, (height, width) = boxes.clone(), masks.shape[1:]
    centres, reach = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) * context / 2
    limits = boxes.new_tensor([width, height])
    low, high = (
        (centres + sign * reach).round().clamp(min=0).minimum(limits).int().tolist()
        for sign in (-1, 1)
    )
    inner = boxes.round().clamp(min=0).minimum(limits.repeat(2)).int().tolist()
    for k, (left, top), (right, bottom), (x1, y1, x2, y2) in zip(
        range(len(boxes)), low, high, inner, strict=True
    ):
        window = masks[k, top:bottom, left:right].cpu().numpy()
        parts, count = ndimage.label(window, np.ones((3, 3)))
        held = np.bincount(
            parts[y1 - top : y2 - top, x1 - left : x2 - left].ravel(), minlength=count + 1
        )[1:]
        if held.any():
            rows, columns = ndimage.find_objects(parts)[int(held.argmax())]
            drawn[k] = boxes.new_tensor(
                [left + columns.start, top + rows.start, left + columns.stop, top + rows.stop]
            )
    return drawn


def refinement(
    boxes: Tensor,
    maps: Tensor,
    steps: int = 200,
    context: float = 1.5,
    form: Form = "ring",
    peaks: Sequence[Tensor] | None = None,
    index: Tensor | None = None,
    sizes: Tensor | None = None,
    rate: float = 0.02,
    min_side: float = 8,
) -> Iterator[Tensor]:
    """Yield what `refine_boxes` returns for 0, 1, ..., `steps` steps; its arguments and errors."""
    sums = _sums(boxes, maps.detach(), index, sizes)
    given = boxes.detach().double()
    box = _clip(given, sums.limits)
    sides = box[:, 2:] - box[:, :2]
    free = (sides > 0).all(1)
    marks, least, reach = _pad(peaks, given), sides.clamp(max=min_side), sides.repeat(1, 2)
    lowest, slope = _slope(box, sums, context, form)
    best = torch.where(free[:, None], box, given)
    yield best.to(boxes.dtype)
    mean, square = torch.zeros_like(box), torch.zeros_like(box)
    for step in range(1, steps + 1):
        slope = slope * reach
        mean = _MOMENTUM * mean + (1 - _MOMENTUM) * slope
        square = _MEMORY * square + (1 - _MEMORY) * slope**2
        move = mean / (1 - _MOMENTUM**step) / ((square / (1 - _MEMORY**step)).sqrt() + 1e-8)
        moved = _keep(box - rate * reach * move, least, sums.limits)
        free = free & (_held(marks, moved) <= 1)
        box = torch.where(free[:, None], moved, box)
        gap, slope = _slope(box, sums, context, form)
        better = gap < lowest - _LEAST_GAIN
        best, lowest = torch.where(better[:, None], box, best), torch.where(better, gap, lowest)
        yield best.to(boxes.dtype)


class _Sums(NamedTuple):
    """Prefix sums, and where each box looks."""

    table: Tensor
    """(M,H+1,W+1) float64: [m,y,x] is the sum over rows before y and columns before x. In float32 a column of a 640 x 640 map
    is off by 0.02 pixels' worth."""
    which: Tensor
    """(K,) int64, the map of each box."""
    limits: Tensor
    """(K,4) float64: width, height, width, height."""


def _sums(boxes: Tensor, maps: Tensor, index: Tensor | None, sizes: Tensor | None) -> _Sums:
    _check(boxes, maps, index, sizes)
    count, height, width = maps.shape
    every = torch.arange(count, device=maps.device)
    if sizes is None:
        sizes = torch.tensor([[height, width]]).expand(count, 2)
    sizes = sizes.to(maps.device)
    table = torch.zeros(count, height + 1, width + 1, dtype=torch.float64, device=maps.device)
    table[:, 1:, 1:] = maps
    table = table.cumsum_(1).cumsum_(2)
    rows, columns = sizes.long().unbind(1)
    damaged = ~table[
        every, rows, columns
    ].isfinite()  # one pixel that is not finite leaves its mark on the whole sum
    if damaged.any():
        raise InputError(
            f"map {int(damaged.nonzero()[0])} has values that are not finite; give finite scores"
        )
    which = every if index is None else index.long()
    return _Sums(table, which, sizes.flip(1).repeat(1, 2)[which].double())


def _check(boxes: Tensor, maps: Tensor, index: Tensor | None, sizes: Tensor | None) -> None:
    if boxes.ndim != 2 or boxes.shape[1] != 4 or not boxes.is_floating_point():
        raise InputError(f"boxes are {tuple(boxes.shape)} {boxes.dtype}; give (K,4) float")
    if not boxes.isfinite().all():
        raise InputError(
            f"box {int((~boxes.isfinite()).any(1).nonzero()[0])} is not finite; give its corners in pixels"
        )
    if maps.ndim != 3 or 0 in maps.shape[1:]:
        raise InputError(f"maps are {tuple(maps.shape)}; give (M,H,W)")
    count = len(maps)
    if index is None and count != len(boxes):
        raise InputError(
            f"{len(boxes)} boxes and {count} maps; say by `index` which map each box reads"
        )
    if index is not None and (
        index.shape != boxes.shape[:1] or ((index < 0) | (index >= count)).any()
    ):
        raise InputError(
            f"index must give each of {len(boxes)} boxes one of {count} maps, 0 to {count - 1}"
        )
    if sizes is not None and sizes.shape != (count, 2):
        raise InputError(
            f"sizes are {tuple(sizes.shape)} for {count} maps; give (M,2), height and width"
        )
    if sizes is not None and ((sizes < 1) | (sizes > sizes.new_tensor(maps.shape[1:]))).any():
        raise InputError(f"sizes must lie in 1 to the maps' own {tuple(maps.shape[1:])}")


def _gap(boxes: Tensor, sums: _Sums, context: float, form: Form) -> Tensor:
    if form not in ("ring", "printed"):
        raise InputError(f'form {form!r}: choose "ring" or "printed"')
    if context <= 1:
        raise InputError(f"context {context}: choose a factor above 1")
    centre, half = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) * context / 2
    both = _clip(torch.stack([boxes, torch.cat([centre - half, centre + half], 1)]), sums.limits)
    (inside, whole), (area, wide_area) = (
        _integral(both, sums),
        (both[..., 2:] - both[..., :2]).clamp(min=0).prod(-1),
    )
    box_mean = _mean(inside, area)  # eq. 2
    if form == "ring":
        return _mean(whole - inside, wide_area - area) - box_mean  # eq. 3
    return _mean(whole, wide_area) - box_mean - box_mean


def _integral(boxes: Tensor, sums: _Sums) -> Tensor:
    """Scores summed over boxes (...,K,4) that lie inside their map."""
    near = torch.minimum(boxes.detach().floor(), sums.limits - 1)
    part = boxes - near
    sign = part.new_tensor([-1, -1, 1, 1])[:, None]
    weights = torch.stack([1 - part, part], -1) * sign  # (...,K,4,2)
    cells = torch.stack([near, near + 1], -1).long()
    across, down = (weights[..., i::2, :].flatten(-2) for i in (0, 1))  # (...,K,4)
    columns, rows = (cells[..., i::2, :].flatten(-2) for i in (0, 1))
    _, height, width = sums.table.shape
    cell = (sums.which[:, None, None] * height + rows[..., :, None]) * width + columns[
        ..., None, :
    ]  # (...,K,4,4)
    corners = (
        sums.table.view(-1).index_select(0, cell.view(-1)).view_as(cell)
    )  # 7 times as fast as table[...]
    return ((corners * across[..., None, :]).sum(-1) * down).sum(-1)


def _mean(total: Tensor, area: Tensor) -> Tensor:
    some = area > _LEAST_AREA
    return torch.where(some, total / torch.where(some, area, 1), 0)


def _clip(boxes: Tensor, limits: Tensor) -> Tensor:
    """Clipped, with the derivative towards the inside for an edge that lies on the border, where `clamp` may have none."""
    clipped = torch.minimum(boxes.detach().clamp(min=0), limits)
    return torch.where(boxes == clipped, boxes, clipped)


def _slope(boxes: Tensor, sums: _Sums, context: float, form: Form) -> tuple[Tensor, Tensor]:
    """Gap (K,) and its derivative (K,4), whatever mode the caller is in."""
    with torch.inference_mode(False), torch.enable_grad():
        boxes = boxes.clone().requires_grad_()
        gap = _gap(boxes, sums, context, form)
        return gap.detach(), torch.autograd.grad(gap.sum(), boxes)[0]


def _keep(boxes: Tensor, least: Tensor, limits: Tensor) -> Tensor:
    """Boxes with sides of at least (K,2), moved and clipped into the map."""
    centre, half = (
        (boxes[:, :2] + boxes[:, 2:]) / 2,
        torch.maximum(boxes[:, 2:] - boxes[:, :2], least) / 2,
    )
    centre = torch.minimum(torch.maximum(centre, least / 2), limits[:, :2] - least / 2)
    return _clip(torch.cat([centre - half, centre + half], 1), limits)


def _pad(peaks: Sequence[Tensor] | None, boxes: Tensor) -> Tensor:
    """(K,N,2), NaN where a box has fewer peaks than others."""
    if peaks is None:
        return boxes.new_zeros(len(boxes), 0, 2)
    if len(peaks) != len(boxes) or any(p.ndim != 2 or p.shape[1] != 2 for p in peaks):
        raise InputError(f"peaks must be (n,2) for each of {len(boxes)} boxes")
    return pad_sequence(
        [p.to(boxes) for p in peaks] or [boxes.new_zeros(0, 2)],
        batch_first=True,
        padding_value=torch.nan,
    )


def _held(peaks: Tensor, boxes: Tensor) -> Tensor:
    """(K,) how many of its peaks each box holds."""
    return ((peaks >= boxes[:, None, :2]) & (peaks < boxes[:, None, 2:])).all(-1).sum(-1)
