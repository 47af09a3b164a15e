"""Compositional paste: cut-out objects on a background, and the masks of what is seen of each (EM-Paste, section 3.3).

The paper leaves open what its scale is relative to and what a random location may be; here, as in its authors' code, an object
is scaled relative to its own pixels, and the centre of its smallest enclosing circle falls anywhere in the image, so objects
may stick out. Where they are as large as the background the authors leave them out; here they are scaled to fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsis.errors import InputError
from wsis.nn.masks import tight_boxes

__all__ = ["Blend", "Composition", "Where", "compose"]

Where = Literal["random", "space"]
Blend = Literal["gaussian", "poisson", "none"]

Array = NDArray[Any]

_REACH = 2  # pixels that the 5 x 5 blur of a mask reaches beyond it
_ERODED = (
    3  # pixels along a mask's edge whose gradients cv2.seamlessClone takes from the background
)


class Composition(NamedTuple):
    """An image with K objects pasted, and what is left to see of the M that were there."""

    image: Tensor
    """(3,H,W) uint8."""
    masks: Tensor
    """(K,H,W) bool, what is seen of each pasted object, in the order they were given; disjoint, empty for a hidden one."""
    boxes: Tensor
    """(K,4) float32, tight around `masks`; zeros for a hidden object."""
    existing: Tensor
    """(M,H,W) bool, what is still seen of the background's own objects."""


def compose(
    background: Tensor,
    foregrounds: Sequence[Tensor],
    masks: Sequence[Tensor],
    where: Where = "random",
    blend: Blend = "gaussian",
    seed: int | np.random.Generator = 0,
    scale: tuple[float, float] = (0.3, 1.0),
    rotation: float = 30.0,
    existing: Tensor | None = None,
) -> Composition:
    """Paste objects on a background one after the other, each turned and scaled; later ones cover earlier ones.

    Equal seeds give equal bits. An object of which nothing is seen, being covered, outside, or too thin when scaled down,
    keeps its place in the result with an empty mask and a box of zeros, so that classes stay in step.

    Args:
        background: (3,H,W) uint8.
        foregrounds: (3,h,w) uint8, each with what surrounds its object: that shows through where edges are blended.
        masks: (h,w) bool, the objects.
        where: "random" puts an object anywhere and scales it by a factor from `scale`. "space" fits its smallest enclosing
            circle to the largest one in the image that is free of objects, existing and pasted; without any it stays hidden.
        blend: "gaussian" weighs with the mask blurred by 5 x 5 pixels of sigma 2, "poisson" keeps the object's gradients and
            takes its colours from around its box, "none" copies. The mask is binary in any case.
        seed: of turns, scales and places.
        scale: least and largest factor, relative to the foreground's own pixels.
        rotation: largest turn either way, in degrees.
        existing: (M,H,W) bool, objects that the background shows already.

    Raises:
        InputError: shapes or types that do not go together, an empty mask, an unknown way or an impossible range.
    """
    height, width = _check(background, foregrounds, masks, existing)
    _check_settings(where, blend, scale, rotation)
    rng = np.random.default_rng(seed)
    canvas = background.permute(1, 2, 0).numpy().copy(order="C")
    owner = np.full((height, width), -1, np.int32)
    own = torch.zeros((0, height, width), dtype=torch.bool) if existing is None else existing
    free = (~own.any(0)).numpy().astype(np.uint8)
    free[[0, -1]], free[:, [0, -1]] = 0, 0  # no circle sticks out
    for number, (foreground, shape) in enumerate(zip(foregrounds, masks, strict=True)):
        image, mask = foreground.permute(1, 2, 0).numpy(), shape.numpy() * np.uint8(255)
        outline = _outline(mask)
        angle = rng.uniform(-rotation, rotation)
        if where == "space":
            matrix = _in_largest_circle(outline, angle, free)
        else:
            matrix = _anywhere(
                outline, angle, rng.uniform(*scale), rng.uniform(size=2), (height, width)
            )
        x1, y1, x2, y2 = _window(outline, matrix, (height, width))
        window = np.s_[y1:y2, x1:x2]
        matrix[:, 2] -= x1, y1
        pixels, covered = _warp(image, mask, matrix, (y2 - y1, x2 - x1))
        if where == "space":
            covered &= free[window].astype(bool)  # of circles that touch, pixels may overlap
        _blend(canvas[window], pixels, covered, blend)
        owner[window][covered], free[window][covered] = number, 0
    visible = torch.from_numpy(owner == np.arange(len(masks))[:, None, None])
    composed = torch.from_numpy(canvas).permute(2, 0, 1).contiguous()
    return Composition(composed, visible, tight_boxes(visible), own & torch.from_numpy(owner < 0))


def _outline(mask: Array) -> Array:
    """Give the corners (N,2) of a mask's convex hull, of pixel centres."""
    contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    return cv2.convexHull(np.concatenate(contours))[:, 0].astype(np.float32)


def _anywhere(
    outline: Array, angle: float, factor: float, place: Any, size: tuple[int, int]
) -> Array:
    """Turn and scale about the enclosing circle's centre, which goes to `place`, in shares of the image's sides.

    What the image is too small for is scaled to fit.
    """
    centre, _ = cv2.minEnclosingCircle(outline)
    matrix = cv2.getRotationMatrix2D(centre, angle, 1.0)
    extent = np.ptp(outline @ matrix[:, :2].T, 0) + 1
    matrix[:, :2] *= min(factor, size[1] / extent[0], size[0] / extent[1])
    matrix[:, 2] = place * size[::-1] - 0.5 - matrix[:, :2] @ centre
    return matrix


def _in_largest_circle(outline: Array, angle: float, free: Array) -> Array:
    """Turn about the centre of the smallest enclosing circle, and fit that to the largest circle of `free` pixels.

    Of circles of one size, the one whose centre is highest, then furthest left: squares of distances are whole numbers. OpenCV
    (Intel's IPP in it) gives their roots, the last bit of which depends on where in memory the result happens to lie.
    """
    distances = cv2.distanceTransform(free, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    squares = np.rint(np.square(distances, dtype=np.float64))
    y, x = divmod(int(squares.argmax()), free.shape[1])
    centre, radius = cv2.minEnclosingCircle(outline)
    scale = np.sqrt(squares[y, x]) / (radius + 0.5)  # pixels end half a pixel from their centres
    matrix = cv2.getRotationMatrix2D(centre, angle, scale)
    matrix[:, 2] += np.subtract((x, y), centre)
    return matrix


def _window(outline: Array, matrix: Array, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Give the part of the image, xyxy, that an object at its place can change."""
    moved = outline @ matrix[:, :2].T + matrix[:, 2]
    margin = 0.5 * np.hypot(*matrix[:, 0]) + _REACH
    low = np.floor(moved.min(0) - margin).clip(0)
    high = np.ceil(moved.max(0) + margin + 1).clip(max=size[::-1])
    return int(low[0]), int(low[1]), int(high[0]), int(high[1])


def _warp(image: Array, mask: Array, matrix: Array, size: tuple[int, int]) -> tuple[Array, Array]:
    """Give an object's pixels (h,w,3) and mask (h,w) in a window of `size`; those that are more than half covered are in."""
    turn, shift = matrix[:, :2], matrix[:, 2]
    step = int(1 / max(np.hypot(*turn[:, 0]), 1 / max(mask.shape)))
    if step > 1:  # else the warp would skip pixels
        small = max(mask.shape[1] // step, 1), max(mask.shape[0] // step, 1)
        ratio = np.divide(mask.shape[::-1], small)
        image, mask = (
            cv2.resize(part, small, interpolation=cv2.INTER_AREA) for part in (image, mask)
        )
        turn, shift = turn * ratio, shift + turn @ (ratio / 2 - 0.5)  # of pixel centres
    matrix = np.column_stack([turn, shift])
    pixels = cv2.warpAffine(image, matrix, size[::-1], borderMode=cv2.BORDER_REPLICATE)
    return pixels, cv2.warpAffine(mask, matrix, size[::-1]) > 127


def _blend(window: Array, pixels: Array, covered: Array, blend: Blend) -> None:
    """Put an object's pixels where it covers the window, in place."""
    if blend == "gaussian":
        weight = cv2.GaussianBlur(covered.astype(np.float32), (2 * _REACH + 1,) * 2, 2)[..., None]
        window[:] = np.rint(window + weight * (pixels.astype(np.float32) - window))
    elif blend == "poisson" and covered.any():
        window[:] = _clone(window, pixels, covered)
    else:
        window[covered] = pixels[covered]


def _clone(window: Array, pixels: Array, covered: Array) -> Array:
    """Blend by Poisson's equation (Perez et al., 2003), up to the object's edge even where that is the window's.

    OpenCV solves it in the mask's box, with the background's gradients beside the mask, so colours bleed within the box.
    """
    edge = _ERODED + 2
    source, target = (
        cv2.copyMakeBorder(part, *(edge,) * 4, cv2.BORDER_REPLICATE) for part in (pixels, window)
    )
    mask = cv2.dilate(
        np.pad(covered.astype(np.uint8) * 255, edge), np.ones((3, 3), np.uint8), iterations=_ERODED
    )
    left, top, width, height = cv2.boundingRect(mask)
    cloned = cv2.seamlessClone(
        source, target, mask, (left + width // 2, top + height // 2), cv2.NORMAL_CLONE
    )
    return cloned[edge:-edge, edge:-edge]


def _check(
    background: Tensor,
    foregrounds: Sequence[Tensor],
    masks: Sequence[Tensor],
    existing: Tensor | None,
) -> tuple[int, int]:
    """Refuse what cannot be composed; give the background's height and width."""
    if len(foregrounds) != len(masks):
        raise InputError(
            f"{len(foregrounds)} foregrounds but {len(masks)} masks; give each foreground one mask"
        )
    for name, image in (
        ("background", background),
        *((f"foreground {k}", image) for k, image in enumerate(foregrounds)),
    ):
        if (
            image.dtype != torch.uint8
            or image.ndim != 3
            or image.shape[0] != 3
            or not image.numel()
        ):
            raise InputError(f"{name} is {tuple(image.shape)} {image.dtype}; give (3,H,W) uint8")
    for number, (image, mask) in enumerate(zip(foregrounds, masks, strict=True)):
        if mask.dtype != torch.bool or mask.shape != image.shape[1:]:
            wanted = f"its image's {tuple(image.shape[1:])} bool"
            raise InputError(
                f"the mask of foreground {number} is {tuple(mask.shape)} {mask.dtype}; give {wanted}"
            )
        if not mask.any():
            raise InputError(f"the mask of foreground {number} is empty; leave it out")
    height, width = background.shape[1:]
    if existing is not None and (
        existing.dtype != torch.bool or existing.ndim != 3 or existing.shape[1:] != (height, width)
    ):
        raise InputError(
            f"existing masks are {tuple(existing.shape)} {existing.dtype}; give (M,{height},{width}) bool"
        )
    return height, width


def _check_settings(where: str, blend: str, scale: tuple[float, float], rotation: float) -> None:
    for name, value, known in (
        ("where", where, get_args(Where)),
        ("blend", blend, get_args(Blend)),
    ):
        if value not in known:
            raise InputError(f'{name} "{value}" is unknown; take one of {", ".join(known)}')
    if not (0 < scale[0] <= scale[1] < np.inf and 0 <= rotation <= 180):
        raise InputError(
            f"scale {scale}, rotation {rotation}: give factors above 0, the least first, and degrees up to 180"
        )
