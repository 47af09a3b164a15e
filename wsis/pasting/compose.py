"""Compositional paste (EM-Paste, section 3.3): paste objects on a background, with visible masks.

The paper does not define what its scale is relative to or what a random location is. As in the
authors' code, an object is scaled relative to its own size, and the centre of its smallest
enclosing circle falls anywhere in the image, so objects may be truncated. Objects larger than the
background are scaled to fit; the authors leave them out.
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

_REACH = 2  # pixels by which a 5 x 5 blur extends a mask
# pixels along a mask's edge whose gradients cv2.seamlessClone takes from the background
_ERODED = 3


class Composition(NamedTuple):
    """An image with K pasted objects, and the visible parts of its M existing objects."""

    image: Tensor
    """(3,H,W) uint8."""
    masks: Tensor
    """(K,H,W) bool, disjoint visible masks of the pasted objects in the given order.

    The mask of a hidden object is empty.
    """
    boxes: Tensor
    """(K,4) float32, tight around `masks`; zeros for a hidden object."""
    existing: Tensor
    """(M,H,W) bool, visible masks of the background's existing objects."""


def compose(
    background: Tensor,
    foregrounds: Sequence[Tensor],
    masks: Sequence[Tensor],
    where: Where = "random",
    blend: Blend | Sequence[Blend] = "gaussian",
    seed: int | np.random.Generator = 0,
    scale: tuple[float, float] = (0.3, 1.0),
    rotation: float = 30.0,
    existing: Tensor | None = None,
) -> Composition:
    """Rotate, scale and paste objects on a background one by one; later ones cover earlier ones.

    Equal seeds give identical results. An object that is not visible (covered, outside the image,
    or too thin after scaling) keeps its position in the result, with an empty mask and a box of
    zeros, so that results correspond to the given objects.

    Args:
        background: (3,H,W) uint8.
        foregrounds: (3,h,w) uint8, each with the surroundings of its object, which show through at
            blended edges.
        masks: (h,w) bool, the objects.
        where: "random" scales an object by a factor from `scale` and puts it anywhere. "space" fits
            its smallest enclosing circle to the largest circle in the image without existing or
            pasted objects; without such a circle it stays hidden.
        blend: "gaussian" blends with the mask blurred by 5 x 5 pixels of sigma 2, "poisson" keeps
            the object's gradients and takes the colours from the surroundings of its box, "none"
            copies. Of several, each object draws one. The mask is binary in all cases.
        seed: seed of rotations, scales and locations.
        scale: min and max factor, relative to the foreground's own size.
        rotation: maximum rotation in either direction, in degrees.
        existing: (M,H,W) bool, objects already in the background.

    Raises:
        InputError: inconsistent shapes or types, an empty mask, an unknown choice or an impossible
            range.
    """
    height, width = _check(background, foregrounds, masks, existing)
    blends: tuple[Blend, ...] = (blend,) if isinstance(blend, str) else tuple(blend)
    check_settings(where, blends, scale, rotation)
    rng = np.random.default_rng(seed)
    canvas = background.permute(1, 2, 0).numpy().copy(order="C")
    owner = np.full((height, width), -1, np.int32)
    own = torch.zeros((0, height, width), dtype=torch.bool) if existing is None else existing
    free = (~own.any(0)).numpy().astype(np.uint8)
    free[[0, -1]], free[:, [0, -1]] = 0, 0  # circles stay inside the image
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
            covered &= free[window].astype(bool)  # pixels of touching circles may overlap
        which = int(rng.integers(len(blends))) if len(blends) > 1 else 0
        _blend(canvas[window], pixels, covered, blends[which])
        owner[window][covered], free[window][covered] = number, 0
    visible = torch.from_numpy(owner == np.arange(len(masks))[:, None, None])
    composed = torch.from_numpy(canvas).permute(2, 0, 1).contiguous()
    return Composition(composed, visible, tight_boxes(visible), own & torch.from_numpy(owner < 0))


def _outline(mask: Array) -> Array:
    """Return the corners (N,2) of the convex hull of a mask's pixel centres."""
    contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    return cv2.convexHull(np.concatenate(contours))[:, 0].astype(np.float32)


def _anywhere(
    outline: Array, angle: float, factor: float, place: Any, size: tuple[int, int]
) -> Array:
    """Return the matrix that rotates and scales an object and moves its circle's centre to `place`.

    `place` is in fractions of the image's sides. An object larger than the image is scaled to fit.
    """
    centre, _ = cv2.minEnclosingCircle(outline)
    matrix = cv2.getRotationMatrix2D(centre, angle, 1.0)
    extent = np.ptp(outline @ matrix[:, :2].T, 0) + 1
    matrix[:, :2] *= min(factor, size[1] / extent[0], size[0] / extent[1])
    matrix[:, 2] = place * size[::-1] - 0.5 - matrix[:, :2] @ centre
    return matrix


def _in_largest_circle(outline: Array, angle: float, free: Array) -> Array:
    """Return the matrix that rotates an object and fits it to the largest circle of `free` pixels.

    Among circles of equal size, the topmost, then leftmost centre is taken. Squared distances are
    integers; their roots from OpenCV (Intel IPP) differ in the last bit with the alignment of
    memory, so they are squared and rounded first.
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
    """Return the part of the image, xyxy, that a placed object can change."""
    moved = outline @ matrix[:, :2].T + matrix[:, 2]
    margin = 0.5 * np.hypot(*matrix[:, 0]) + _REACH
    low = np.floor(moved.min(0) - margin).clip(0)
    high = np.ceil(moved.max(0) + margin + 1).clip(max=size[::-1])
    return int(low[0]), int(low[1]), int(high[0]), int(high[1])


def _warp(image: Array, mask: Array, matrix: Array, size: tuple[int, int]) -> tuple[Array, Array]:
    """Return an object's pixels (h,w,3) and mask (h,w) in a window of `size`.

    The mask has the pixels that are more than half covered.
    """
    turn, shift = matrix[:, :2], matrix[:, 2]
    step = int(1 / max(np.hypot(*turn[:, 0]), 1 / max(mask.shape)))
    if step > 1:  # otherwise the warp would skip pixels
        small = max(mask.shape[1] // step, 1), max(mask.shape[0] // step, 1)
        ratio = np.divide(mask.shape[::-1], small)
        image, mask = (
            cv2.resize(part, small, interpolation=cv2.INTER_AREA) for part in (image, mask)
        )
        turn, shift = turn * ratio, shift + turn @ (ratio / 2 - 0.5)  # between pixel centres
    matrix = np.column_stack([turn, shift])
    pixels = cv2.warpAffine(image, matrix, size[::-1], borderMode=cv2.BORDER_REPLICATE)
    return pixels, cv2.warpAffine(mask, matrix, size[::-1]) > 127


def _blend(window: Array, pixels: Array, covered: Array, blend: Blend) -> None:
    """Blend an object's pixels into the window, in place."""
    if blend == "gaussian":
        weight = cv2.GaussianBlur(covered.astype(np.float32), (2 * _REACH + 1,) * 2, 2)[..., None]
        window[:] = np.rint(window + weight * (pixels.astype(np.float32) - window))
    elif blend == "poisson" and covered.any():
        window[:] = _clone(window, pixels, covered)
    else:
        window[covered] = pixels[covered]


def _clone(window: Array, pixels: Array, covered: Array) -> Array:
    """Blend by Poisson's equation (Perez et al., 2003), also along the window's edge.

    OpenCV solves the equation in the mask's box, with the background's gradients outside the mask,
    so colours bleed within the box.
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
    """Return the background's height and width; raise InputError for inconsistent inputs."""
    if len(foregrounds) != len(masks):
        raise InputError(
            f"{len(foregrounds)} foregrounds but {len(masks)} masks; give each foreground one mask"
        )
    numbered = [(f"foreground {k}", image) for k, image in enumerate(foregrounds)]
    for name, image in [("background", background), *numbered]:
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
                f"the mask of foreground {number} is {tuple(mask.shape)} {mask.dtype}; give "
                f"{wanted}"
            )
        if not mask.any():
            raise InputError(f"the mask of foreground {number} is empty; leave it out")
    height, width = background.shape[1:]
    if existing is not None and (
        existing.dtype != torch.bool or existing.ndim != 3 or existing.shape[1:] != (height, width)
    ):
        raise InputError(
            f"existing masks are {tuple(existing.shape)} {existing.dtype}; give "
            f"(M,{height},{width}) bool"
        )
    return height, width


def check_settings(
    where: str, blends: Sequence[str], scale: tuple[float, float], rotation: float
) -> None:
    """Raise InputError for unknown choices and impossible ranges; see `compose`."""
    if not blends:
        raise InputError("blend is empty; give at least one of " + ", ".join(get_args(Blend)))
    choices = [("where", where, get_args(Where))]
    choices += [("blend", blend, get_args(Blend)) for blend in blends]
    for name, value, known in choices:
        if value not in known:
            raise InputError(f'{name} "{value}" is unknown; take one of {", ".join(known)}')
    if not (0 < scale[0] <= scale[1] < np.inf and 0 <= rotation <= 180):
        raise InputError(
            f"scale {scale}, rotation {rotation}: give factors above 0, the least first, and "
            "degrees up to 180"
        )
