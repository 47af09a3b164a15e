"""Centre-context-gap refinement: boxes move to high scores inside and low ones around (CCGR).

CCGR, eqs. 2-3. The score map is constant over each pixel, so its integral over a box is exactly the
bilinear interpolation of prefix sums at the four corners. Its derivative is exact, too: the one by
x2 is the column sum of scores at x2. A box of any size takes 32 reads.

The gap is lowest at the tight box only for full rectangles. Boxes shrink on objects that are round,
thin or have soft scores: an ellipse ends at an IoU of 0.83 with its tight box, scores of 1 - r^2 at
0.51. Thresholding the map at 0.5 gives no better box, unless the background around the object is
noisy; see `benchmarks/box_refinement.py`.
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

__all__ = [
    "Form",
    "centre_context_gap",
    "merge_boxes",
    "refine_boxes",
    "refinement",
    "surround_part",
]

Form = Literal["ring", "printed"]

_MIN_AREA = 1e-2
"""Square pixels below which a region's mean is 0: its derivative would be rounding noise."""
_MIN_GAIN = 1e-9
"""Decrease of the gap below which a box does not move, such as rounding on a flat map."""
_MOMENTUM, _MEMORY = 0.9, 0.99
"""Adam's betas; with the usual 0.999 one steep slope would last for all of 200 steps."""


def centre_context_gap(
    boxes: Tensor,
    maps: Tensor,
    context: float = 1.5,
    form: Form = "ring",
    index: Tensor | None = None,
    sizes: Tensor | None = None,
) -> Tensor:
    """Return the mean score around each box minus the mean score inside (CCGR eqs. 2-3).

    Better boxes have lower gaps. Boxes and surroundings are clipped to the map; the mean of a
    region without area is 0.

    Args:
        boxes: (K,4) float xyxy in pixels; pixel i covers [i, i + 1).
        maps: (M,H,W) scores, for instance the probability of the box's class.
        context: side of the surrounding box over that of the box, above 1.
        form: "ring" takes the mean of the surroundings without the box. "printed" subtracts the
            box's mean from the mean of the whole surrounding box, as the paper prints it, which is
            no mean of a region and makes boxes smaller.
        index: (K,) int64, the map of each box; by default box k has map k.
        sizes: (M,2), height and width of each map without padding at the right and bottom; by
            default there is no padding.

    Returns:
        (K,) in the type of `boxes`, with an exact gradient in `boxes`. On the edge between two
        pixels it is that of the right or lower pixel.

    Raises:
        InputError: shapes that do not match, a value that is not finite, an unknown form.
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

    In each step Adam moves an edge by about `rate` times the initial side of the box, so results
    scale with the image. The box with the lowest gap of all steps is returned, because at a sharp
    border the last ones oscillate. Boxes are clipped to their map and do not move where it is flat;
    a box without area in its map is returned unchanged.

    Args:
        boxes: (K,4) float xyxy in pixels.
        maps: (M,H,W) scores.
        steps: number of steps.
        context: side of the surrounding box over that of the box, above 1.
        form: "ring" or "printed", as in `centre_context_gap`.
        peaks: (n,2), x and y of peaks for each box, including the box's own. A box stops before a
            step that would include a second peak, and does not move if it starts with two.
        index: (K,) map of each box, as in `centre_context_gap`.
        sizes: (M,2) of maps without padding, as in `centre_context_gap`.
        rate: size of a step as a fraction of the initial side.
        min_side: lowest side in pixels; a side that starts shorter keeps at least its length.

    Raises:
        InputError: as `centre_context_gap`, or peaks for another number of boxes.
    """
    *_, refined = refinement(boxes, maps, steps, context, form, peaks, index, sizes, rate, min_side)
    return refined


def merge_boxes(
    boxes: Tensor,
    maps: Tensor,
    context: float = 1.5,
    form: Form = "ring",
    index: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Merge two boxes of a map while their union has no higher gap than the better of them.

    Two peaks on one object leave two boxes that stop at each other's peak; the gap of their union
    is lower. Boxes of separate objects stay apart, because the union has background inside; those
    of objects that touch are merged. The pair that gains most is merged first.

    Args:
        boxes: (K,4) float xyxy in pixels.
        maps: (M,H,W) scores.
        context: side of the surrounding box over that of the box, above 1.
        form: "ring" or "printed", as in `centre_context_gap`.
        index: (K,) map of each box, as in `centre_context_gap`.

    Returns:
        boxes (L,4), and (K,) int64, the one of them that each given box is part of.

    Raises:
        InputError: as `centre_context_gap`.
    """
    sums = _sums(boxes, maps.detach(), index, None)
    joined, part = boxes.detach().double().clone(), torch.arange(len(boxes), device=boxes.device)
    while True:
        one, other = torch.combinations(torch.unique(part)).unbind(1)
        together = sums.which[one] == sums.which[other]
        one, other = one[together], other[together]
        if not len(one):
            break
        low = torch.minimum(joined[one, :2], joined[other, :2])
        union = torch.cat([low, torch.maximum(joined[one, 2:], joined[other, 2:])], 1)
        apart = _gap(joined, sums, context, form)
        better = torch.minimum(apart[one], apart[other])
        gain = better - _gap(union, sums.of(one), context, form)
        best = gain.argmax()
        if gain[best] < 0:
            break
        joined[one[best]] = union[best]
        part = part.where(part != other[best], one[best])
    kept, part = torch.unique(part, return_inverse=True)
    return joined[kept].to(boxes.dtype), part


def surround_part(boxes: Tensor, masks: Tensor, context: float = 1.5) -> Tensor:
    """Replace each box by the box of the connected part of its mask that it overlaps most.

    This corrects `refine_boxes`, which shrinks boxes of objects that do not fill them.

    Args:
        boxes: (K,4) xyxy in pixels.
        masks: (K,H,W) bool.
        context: side of the surrounding box over that of the box; parts are connected within it, by
            edges or corners, and end at its border.

    Returns:
        (K,4); a box that overlaps no part of its mask is returned unchanged.
    """
    result, (height, width) = boxes.clone(), masks.shape[1:]
    centres, reach = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) * context / 2
    outer = torch.cat([centres - reach, centres + reach], 1)
    limits = boxes.new_tensor([width, height]).repeat(2)
    whole = outer.round().clamp(min=0).minimum(limits).int().tolist()
    inner = boxes.round().clamp(min=0).minimum(limits).int().tolist()
    for k, (left, top, right, bottom) in enumerate(whole):
        x1, y1, x2, y2 = inner[k]
        window = masks[k, top:bottom, left:right].cpu().numpy()
        parts, count = ndimage.label(window, np.ones((3, 3)))
        inside = parts[y1 - top : y2 - top, x1 - left : x2 - left]
        overlaps = np.bincount(inside.ravel(), minlength=count + 1)[1:]
        if overlaps.any():
            rows, columns = ndimage.find_objects(parts)[int(overlaps.argmax())]
            low = left + columns.start, top + rows.start
            high = left + columns.stop, top + rows.stop
            result[k] = boxes.new_tensor([*low, *high])
    return result


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
    """Yield the results of `refine_boxes` for 0, 1, ..., `steps` steps.

    Arguments and errors are those of `refine_boxes`.
    """
    sums = _sums(boxes, maps.detach(), index, sizes)
    given = boxes.detach().double()
    box = _clip(given, sums.limits)
    sides = box[:, 2:] - box[:, :2]
    free = (sides > 0).all(1)
    points = _pad(peaks, given)
    min_sides = sides.clamp(max=min_side)
    reach = sides.repeat(1, 2)
    lowest, slope = _slope(box, sums, context, form)
    best = torch.where(free[:, None], box, given)
    yield best.to(boxes.dtype)
    mean, square = torch.zeros_like(box), torch.zeros_like(box)
    for step in range(1, steps + 1):
        slope = slope * reach
        mean = _MOMENTUM * mean + (1 - _MOMENTUM) * slope
        square = _MEMORY * square + (1 - _MEMORY) * slope**2
        move = mean / (1 - _MOMENTUM**step) / ((square / (1 - _MEMORY**step)).sqrt() + 1e-8)
        moved = _keep(box - rate * reach * move, min_sides, sums.limits)
        free = free & (_count(points, moved) <= 1)
        box = torch.where(free[:, None], moved, box)
        gap, slope = _slope(box, sums, context, form)
        better = gap < lowest - _MIN_GAIN
        best, lowest = torch.where(better[:, None], box, best), torch.where(better, gap, lowest)
        yield best.to(boxes.dtype)


class _Sums(NamedTuple):
    """Prefix sums of maps, and the map of each box."""

    table: Tensor
    """(M,H+1,W+1) float64: [m,y,x] is the sum over rows before y and columns before x.

    In float32 the sum of a column of a 640 x 640 map would be off by 0.02 times a pixel.
    """
    which: Tensor
    """(K,) int64, the map of each box."""
    limits: Tensor
    """(K,4) float64: width, height, width, height."""

    def of(self, rows: Tensor) -> _Sums:
        """Return the sums for other boxes, on the maps of these boxes (L,)."""
        return _Sums(self.table, self.which[rows], self.limits[rows])


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
    damaged = ~table[every, rows, columns].isfinite()  # one such pixel spoils the map's sum
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
            f"box {int((~boxes.isfinite()).any(1).nonzero()[0])} is not finite; give its corners "
            "in pixels"
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
    inside, whole = _integral(both, sums)
    area, wide_area = (both[..., 2:] - both[..., :2]).clamp(min=0).prod(-1)
    box_mean = _mean(inside, area)  # eq. (2)
    if form == "ring":
        return _mean(whole - inside, wide_area - area) - box_mean  # eq. (3)
    return _mean(whole, wide_area) - box_mean - box_mean


def _integral(boxes: Tensor, sums: _Sums) -> Tensor:
    """Return the integral of scores over boxes (...,K,4) inside their map."""
    near = torch.minimum(boxes.detach().floor(), sums.limits - 1)
    part = boxes - near
    sign = part.new_tensor([-1, -1, 1, 1])[:, None]
    weights = torch.stack([1 - part, part], -1) * sign  # (...,K,4,2)
    cells = torch.stack([near, near + 1], -1).long()
    across, down = weights[..., 0::2, :].flatten(-2), weights[..., 1::2, :].flatten(-2)  # (...,K,4)
    columns, rows = cells[..., 0::2, :].flatten(-2), cells[..., 1::2, :].flatten(-2)
    _, height, width = sums.table.shape
    row = sums.which[:, None, None] * height + rows[..., :, None]
    cell = row * width + columns[..., None, :]  # (...,K,4,4)
    # 7 times as fast as table[...]
    corners = sums.table.view(-1).index_select(0, cell.view(-1)).view_as(cell)
    return ((corners * across[..., None, :]).sum(-1) * down).sum(-1)


def _mean(total: Tensor, area: Tensor) -> Tensor:
    """Return the mean, 0 for a region without area."""
    some = area > _MIN_AREA
    return torch.where(some, total / torch.where(some, area, 1), 0)


def _clip(boxes: Tensor, limits: Tensor) -> Tensor:
    """Clip boxes; an edge on the border keeps its derivative, which `clamp` may drop."""
    clipped = torch.minimum(boxes.detach().clamp(min=0), limits)
    return torch.where(boxes == clipped, boxes, clipped)


def _slope(boxes: Tensor, sums: _Sums, context: float, form: Form) -> tuple[Tensor, Tensor]:
    """Return the gap (K,) and its derivative (K,4), also when the caller disables gradients."""
    with torch.inference_mode(False), torch.enable_grad():
        boxes = boxes.clone().requires_grad_()
        gap = _gap(boxes, sums, context, form)
        return gap.detach(), torch.autograd.grad(gap.sum(), boxes)[0]


def _keep(boxes: Tensor, min_sides: Tensor, limits: Tensor) -> Tensor:
    """Enlarge boxes to at least `min_sides` (K,2), then move and clip them into the map."""
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    half = torch.maximum(boxes[:, 2:] - boxes[:, :2], min_sides) / 2
    centre = torch.minimum(torch.maximum(centre, min_sides / 2), limits[:, :2] - min_sides / 2)
    return _clip(torch.cat([centre - half, centre + half], 1), limits)


def _pad(peaks: Sequence[Tensor] | None, boxes: Tensor) -> Tensor:
    """Return peaks as (K,N,2), NaN in unused places."""
    if peaks is None:
        return boxes.new_zeros(len(boxes), 0, 2)
    if len(peaks) != len(boxes) or any(p.ndim != 2 or p.shape[1] != 2 for p in peaks):
        raise InputError(f"peaks must be (n,2) for each of {len(boxes)} boxes")
    rows = [p.to(boxes) for p in peaks] or [boxes.new_zeros(0, 2)]
    return pad_sequence(rows, batch_first=True, padding_value=torch.nan)


def _count(peaks: Tensor, boxes: Tensor) -> Tensor:
    """Return the number (K,) of its peaks inside each box."""
    return ((peaks >= boxes[:, None, :2]) & (peaks < boxes[:, None, 2:])).all(-1).sum(-1)
