"""Foreground inside boxes from colour, in the manner of GrabCut (Rother et al., SIGGRAPH 2004).

The fast setting works on a small grid over each box, all boxes at once. It alternates between
colour histograms inside and outside the foreground and the foreground probability under them and a
prior on places; a guided filter then aligns the map with the image's edges. A graph cut at this
size would return empty masks, because OpenCV's fixed smoothness outweighs the few pixels.

Things are expected at the centre of their box. Stuff may be anywhere in it: without a centre prior,
all pixels start alike, as foreground if nothing is known (as GrabCut starts from a rectangle), and
undecided beside sure pixels, which tell what foreground looks like. So stuff whose box is the whole
image, with nothing outside to learn from, does not swallow colours that its sure pixels lack.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from wsis.errors import InputError
from wsis.proposals.objectness import lab_bins

__all__ = [
    "SIZE",
    "clip",
    "crops",
    "foreground",
    "resample",
    "sample_masks",
    "spread_masks",
]


SIZE = 48
"""Side of a mask in cells; 32 lose 1.0 point of mask IoU on COCO, 64 gain none."""
_MARGIN = 8  # cells around the box, sampled as background
_BINS = 24  # per colour axis
_ROUNDS = 3
_CHUNK = 64  # boxes at a time: their histograms take 7 MB
_RADIUS = 2  # of the guided filter, in cells
_EDGE = 1e-3  # variance of grey (0 to 1) that counts as an edge in the guided filter

Array = NDArray[Any]


def foreground(
    image: Any,
    boxes: Any,
    sure: Any = None,
    setting: str = "fast",
    background: Any = None,
    centred: bool = True,
) -> Any:
    """Return foreground masks at image size.

    Sure pixels are kept (JTSM, section 3.4), so that a segment that overshoots stays too large; the
    box alone can correct it.

    Args:
        image: (H,W,3) uint8 RGB, array or tensor.
        boxes: (K,4) xyxy in pixels, array or tensor.
        sure: (K,H,W) bool, pixels known to be foreground.
        setting: "fast", or "authors": cv2.grabCut as in the releases of JTSM and PDSL (400 px, 5
            iterations).
        background: (K,H,W) bool, pixels known to be background, even where `sure` says otherwise.
        centred: whether foreground is expected at the centre of the box, as things are; False for
            stuff. Without effect on "authors".

    Returns:
        (K,H,W) bool, False outside each box, which masks of "authors" may exceed by one pixel of
        the shrunk image; a tensor on the device of `boxes` if that is a tensor, else an array.

    Raises:
        InputError: unknown setting.
    """
    image = _array(image)
    height, width = image.shape[:2]
    corners = clip(_array(boxes).astype(np.float64).reshape(-1, 4), height, width)
    known = None if sure is None else _array(sure).astype(bool)
    never = None if background is None else _array(background).astype(bool)
    if known is not None and never is not None:
        known = known & ~never
    if setting == "authors":
        masks = _as_authors(image, corners, known, never)
    elif setting == "fast":
        masks = _fast(image, corners, known, never, centred)
    else:
        raise InputError(f'evidence {setting!r}: choose "fast" or "authors"')
    return torch.from_numpy(masks).to(boxes.device) if isinstance(boxes, Tensor) else masks


def _fast(
    image: Array, boxes: Array, sure: Array | None, background: Array | None, centred: bool
) -> Array:
    """Return the masks of `crops` at image size, with known pixels as they are known."""
    height, width = image.shape[:2]
    known, never = (None if m is None else sample_masks(m, boxes) for m in (sure, background))
    _, small_masks = crops(image, boxes, known, never, centred)
    masks = np.zeros((len(boxes), height, width), dtype=bool)
    corners = _pixels(boxes, height, width)
    for mask, (x1, y1, x2, y2), small in zip(masks, corners, small_masks, strict=True):
        if x2 > x1 and y2 > y1:
            mask[y1:y2, x1:x2] = cv2.resize(small.astype(np.float32), (x2 - x1, y2 - y1)) >= 0.5
    if sure is not None:
        masks |= sure & _rectangles(boxes, height, width)
    return masks if background is None else masks & ~background


def crops(
    image: Array,
    boxes: Array,
    sure: Array | None = None,
    background: Array | None = None,
    centred: bool = True,
) -> tuple[Array, Array]:
    """Return foreground masks on a small grid over each box, without any array of image size.

    Args:
        image: (H,W,3) uint8 RGB.
        boxes: (K,4) xyxy in pixels.
        sure: (K,SIZE,SIZE) bool on the same grids, cells known to be foreground.
        background: (K,SIZE,SIZE) bool, cells known to be background, even where `sure` says
            otherwise.
        centred: whether foreground is expected at the centre, as in `foreground`.

    Returns:
        windows (K,4) float32, the boxes, at least one pixel wide and high; masks (K,SIZE,SIZE) bool
        over them, False outside the image. A mask does not depend, not by one bit, on the other
        boxes.
    """
    windows = np.array(boxes, dtype=np.float64).reshape(-1, 4)
    windows[:, 2:] = np.maximum(windows[:, 2:], windows[:, :2] + 1)
    masks = np.zeros((len(windows), SIZE, SIZE), dtype=bool)
    for start in range(0, len(windows), _CHUNK):
        part = slice(start, start + _CHUNK)
        pixels, valid = _sample(image, windows[part])
        known, never = np.zeros_like(valid), np.zeros_like(valid)
        if background is not None:
            _inner(never)[:] = background[part]
        if sure is not None:
            _inner(known)[:] = sure[part] & ~_inner(never)
        prior = _place_prior() if centred else _even_prior(valid, 1.0 if sure is None else 0.0)
        logits = _separate(pixels, valid, known, never, prior)
        masks[part] = ((logits > 0) | _inner(known)) & ~_inner(never) & _inner(valid)
    return windows.astype(np.float32), masks


def resample(
    windows: Tensor, masks: Tensor, which: Tensor, boxes: Tensor, size: int | tuple[int, int] = 28
) -> Tensor:
    """Resample masks on grids over other boxes.

    Args:
        windows: (K,4) xyxy that the masks cover.
        masks: (K,m,m) bool or float.
        which: (R,) int, the mask that each box samples.
        boxes: (R,4) xyxy.
        size: side of the result, or its (height, width).

    Returns:
        (R,height,width) float: bilinear between mask cells, 0 outside the window.
    """
    height, width = (size, size) if isinstance(size, int) else size
    if not len(boxes):
        return boxes.new_zeros(0, height, width)
    x = _relative(boxes, windows[which], 0, width)[:, None].expand(-1, height, -1)
    y = _relative(boxes, windows[which], 1, height)[:, :, None].expand(-1, -1, width)
    grid = torch.stack([x, y], -1)
    values = F.grid_sample(
        masks[which][:, None].to(grid.dtype), grid, padding_mode="border", align_corners=False
    )[:, 0]
    return values * (grid.abs() <= 1).all(-1)


def _relative(boxes: Tensor, windows: Tensor, axis: int, cells: int) -> Tensor:
    """Return cell centres (R,cells) of boxes along an axis, from -1 to 1 within their windows."""
    steps = torch.arange(cells, device=boxes.device) + 0.5
    side = (boxes[:, axis + 2] - boxes[:, axis])[:, None]
    window_side = (windows[:, axis + 2] - windows[:, axis]).clamp(min=1e-6)[:, None]
    centres = boxes[:, axis, None] + side * steps / len(steps)
    return 2 * (centres - windows[:, axis, None]) / window_side - 1


def _array(values: Any) -> Array:
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


def clip(boxes: Array, height: int, width: int) -> Array:
    """Clip boxes to the image, at least one pixel wide and high."""
    limit = np.array([width, height])
    low = np.clip(boxes[:, :2], 0, limit - 1)
    high = np.minimum(np.maximum(boxes[:, 2:], low + 1), limit)
    return np.concatenate([low, high], 1)


def _pixels(boxes: Array, height: int, width: int) -> Array:
    """Return (K,4) int, the pixels whose centre lies in the box."""
    return np.clip(np.ceil(boxes - 0.5), 0, [width, height, width, height]).astype(int)


def _rectangles(boxes: Array, height: int, width: int) -> Array:
    """Return (K,H,W) bool, True in the boxes."""
    x1, y1, x2, y2 = _pixels(boxes, height, width).T[..., None]
    x, y = np.arange(width), np.arange(height)
    return ((x >= x1) & (x < x2))[:, None, :] & ((y >= y1) & (y < y2))[:, :, None]


def spread_masks(grids: Array, boxes: Array, height: int, width: int) -> Array:
    """Return masks (K,H,W) with the cell (K,SIZE,SIZE) that holds each pixel's centre.

    The inverse of `sample_masks`; False outside the boxes.
    """
    masks = np.zeros((len(boxes), height, width), dtype=bool)
    for mask, grid, box, (x1, y1, x2, y2) in zip(
        masks, grids, boxes, _pixels(boxes, height, width), strict=True
    ):
        scale = SIZE / (box[2:] - box[:2])
        column = ((np.arange(x1, x2) + 0.5 - box[0]) * scale[0]).astype(int)
        row = ((np.arange(y1, y2) + 0.5 - box[1]) * scale[1]).astype(int)
        mask[y1:y2, x1:x2] = grid[np.minimum(row, SIZE - 1)[:, None], np.minimum(column, SIZE - 1)]
    return masks


def sample_masks(masks: Array, boxes: Array) -> Array:
    """Sample masks (K,H,W) at the cell centres of the boxes' grids."""
    centres = (np.arange(SIZE) + 0.5) / SIZE
    x = (boxes[:, 0, None] + (boxes[:, 2] - boxes[:, 0])[:, None] * centres).astype(int)
    y = (boxes[:, 1, None] + (boxes[:, 3] - boxes[:, 1])[:, None] * centres).astype(int)
    return masks[np.arange(len(boxes))[:, None, None], y[:, :, None], x[:, None, :]]


def _sample(image: Array, windows: Array) -> tuple[Array, Array]:
    """Return pixels (K,M,M,3) on grids over windows with margin; True (K,M,M) inside the image."""
    steps = (np.arange(-_MARGIN, SIZE + _MARGIN) + 0.5) / SIZE
    x = windows[:, 0, None] + (windows[:, 2] - windows[:, 0])[:, None] * steps
    y = windows[:, 1, None] + (windows[:, 3] - windows[:, 1])[:, None] * steps
    height, width = image.shape[:2]
    valid = ((y >= 0) & (y < height))[:, :, None] & ((x >= 0) & (x < width))[:, None, :]
    columns, rows = np.broadcast_arrays((x - 0.5)[:, None, :], (y - 0.5)[:, :, None])
    flat = (-1, len(steps))
    pixels = cv2.remap(
        image,
        columns.reshape(flat).astype(np.float32),
        rows.reshape(flat).astype(np.float32),
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE,
    )
    return pixels.reshape(*valid.shape, 3), valid


def _separate(pixels: Array, valid: Array, known: Array, never: Array, prior: Array) -> Array:
    """Return the log odds of foreground (K,SIZE,SIZE), smoothed within edges.

    Args:
        pixels: (K,M,M,3) of grids with margin.
        valid: (K,M,M) bool, cells inside the image.
        known: (K,M,M) bool, cells known to be foreground.
        never: (K,M,M) bool, cells known to be background.
        prior: (M,M) or (K,M,M) log odds of places.
    """
    count, side = pixels.shape[:2]
    flat = pixels.reshape(count * side, side, 3)
    colours = lab_bins(cv2.cvtColor(flat, cv2.COLOR_RGB2LAB).reshape(count, -1, 3), _BINS)
    logits = np.broadcast_to(prior, valid.shape)
    for _ in range(_ROUNDS):
        probability = np.where(known, 1.0, 1 / (1 + np.exp(-np.clip(logits, -30, 30))))
        probability[never] = 0.0
        inside = _histogram(colours, probability * valid)
        outside = _histogram(colours, (1 - probability) * valid)
        evidence = np.take_along_axis(np.log(inside) - np.log(outside), colours, 1)
        logits = prior + evidence.reshape(valid.shape)
    grey = cv2.cvtColor(flat, cv2.COLOR_RGB2GRAY).reshape(valid.shape)
    return _inner(_guided(np.clip(logits, -4, 4), grey))


def _place_prior() -> Array:
    """Return prior log odds (M,M): 1 at the centre, 0 on the inscribed ellipse, -30 outside."""
    steps = 2 * (np.arange(-_MARGIN, SIZE + _MARGIN) + 0.5) / SIZE - 1
    prior = 1 - steps[:, None] ** 2 - steps[None, :] ** 2
    prior[np.maximum(abs(steps[:, None]), abs(steps[None, :])) > 1] = -30
    return prior


def _even_prior(valid: Array, inside: float) -> Array:
    """Return prior log odds (K,M,M): `inside` anywhere in the box, -30 outside.

    Cells beyond the image repeat its border, so that the filter does not see background there.
    """
    prior = np.where(valid, -30.0, inside)
    _inner(prior)[:] = inside
    return prior


def _inner(grid: Array) -> Array:
    """Return the box's part of a grid with margin."""
    return grid[..., _MARGIN:-_MARGIN, _MARGIN:-_MARGIN]


def _histogram(colours: Array, weight: Array) -> Array:
    """Return smoothed and normalised densities (K,bins)."""
    count, bins = len(colours), _BINS**3
    places = colours + bins * np.arange(count)[:, None]
    counts = np.bincount(places.ravel(), weight.ravel(), count * bins)
    counts = counts.reshape(count, _BINS, _BINS, _BINS)
    for axis in (1, 2, 3):
        counts = _smooth(counts, axis)
    density = counts.reshape(count, bins)
    return density / np.maximum(density.sum(1, keepdims=True), 1e-6) + 0.1 / bins


def _smooth(counts: Array, axis: int) -> Array:
    """Apply the binomial filter 1 2 1 along one axis."""
    after = np.take(counts, [*range(1, _BINS), _BINS - 1], axis)
    before = np.take(counts, [0, *range(_BINS - 1)], axis)
    return (before + 2 * counts + after) / 4


def _guided(values: Array, grey: Array) -> Array:
    """Filter values (K,M,M) guided by grey pixels (K,M,M); He et al., ECCV 2010, eqs. 5-8."""
    guide, values = (np.moveaxis(v, 0, -1).astype(np.float32) for v in (grey / 255, values))

    def mean(v: Array) -> Array:
        return np.atleast_3d(cv2.blur(np.ascontiguousarray(v), (2 * _RADIUS + 1,) * 2))

    mean_guide, mean_values = mean(guide), mean(values)
    slope = (mean(guide * values) - mean_guide * mean_values) / (
        mean(guide * guide) - mean_guide**2 + _EDGE
    )
    smooth = mean(slope) * guide + mean(mean_values - slope * mean_guide)
    return np.moveaxis(smooth, -1, 0)


def _as_authors(image: Array, boxes: Array, sure: Array | None, background: Array | None) -> Array:
    """Apply cv2.grabCut to an image of at most 400 px, as the PDSL and JTSM releases do."""
    height, width = image.shape[:2]
    scale = min(400 / max(height, width), 1)
    size = (max(round(width * scale), 1), max(round(height * scale), 1))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    masks = np.zeros((len(boxes), height, width), dtype=bool)
    for k, box in enumerate(boxes):
        known, never = (None if m is None else _shrink(m[k], size) for m in (sure, background))
        mask = _cut(small, box * scale, known, never).astype(np.float32)
        masks[k] = cv2.resize(mask, (width, height)) >= 0.5
    return masks


def _shrink(mask: Array, size: tuple[int, int]) -> Array:
    """Resize a mask (H,W) to (width, height) by its nearest pixels."""
    return cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) > 0


def _cut(image: Array, box: Array, sure: Array | None, background: Array | None) -> Array:
    """Return one mask (H,W) bool of cv2.grabCut, started from the rectangle and known pixels."""
    height, width = image.shape[:2]
    never = np.zeros((height, width), bool) if background is None else background
    x1, y1 = np.clip(np.floor(box[:2]), 0, [width - 1, height - 1]).astype(int)
    x2, y2 = np.clip(np.ceil(box[2:]), [x1 + 1, y1 + 1], [width, height]).astype(int)
    if (x1, y1, x2, y2) == (0, 0, width, height) and not never.any():  # a cut needs some background
        x1, y1 = min(3, width // 4), min(3, height // 4)
        x2, y2 = max(width - 3, 1), max(height - 3, 1)
    state = np.full((height, width), cv2.GC_BGD, np.uint8)
    state[y1:y2, x1:x2] = cv2.GC_PR_FGD
    state[never] = cv2.GC_BGD
    if sure is not None:
        state[sure & (state == cv2.GC_PR_FGD)] = cv2.GC_FGD
    rectangle = state != cv2.GC_BGD
    if rectangle.all() or not rectangle.any():
        return rectangle
    cv2.setRNGSeed(0)  # for its k-means
    models = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.grabCut(image, state, (0, 0, 1, 1), *models, 5, cv2.GC_INIT_WITH_MASK)
    mask = (state == cv2.GC_FGD) | (state == cv2.GC_PR_FGD)
    return mask if mask.sum() >= 9 else rectangle
