"""Foreground inside boxes from colour alone, in the manner of GrabCut (Rother et al., SIGGRAPH 2004).

The fast setting works on a small grid over each box: colour histograms of inside and outside and a centre prior take turns
with the foreground probability, for all boxes at once; then the map follows the image's edges. A graph cut at this size falls
to the empty mask, because OpenCV's fixed smoothness outweighs the few pixels.
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

__all__ = ["SIZE", "clip", "crops", "foreground", "resample", "sample_masks"]


SIZE = 48
"""Cells of a mask's side: 32 lose 1.0 point of mask IoU on COCO, 64 gain none."""
_MARGIN = 8  # cells around the box that show what background looks like
_BINS = 24  # per colour axis
_ROUNDS = 3
_CHUNK = 64  # boxes at a time: their histograms take 7 MB
_RADIUS, _EDGE = (
    2,
    1e-3,
)  # guided filter: cells, and variance of grey (of 0 to 1) that counts as an edge

Array = NDArray[Any]


def foreground(image: Any, boxes: Any, sure: Any = None, setting: str = "fast") -> Any:
    """Foreground masks at image size.

    Args:
        image: (H,W,3) uint8 RGB, array or tensor.
        boxes: (K,4) xyxy in pixels, array or tensor.
        sure: (K,H,W) bool, pixels known to be foreground (JTSM section 3.4).
        setting: "fast", or "authors": cv2.grabCut as the releases of JTSM and PDSL use it (400 px, 5 iterations).

    Returns:
        (K,H,W) bool, False outside each box ("authors": up to one pixel of the shrunk image beyond it); a tensor on the
        device of `boxes` where that is one, else an array.

    Raises:
        InputError: another setting.
    """
    image = _array(image)
    height, width = image.shape[:2]
    corners = clip(_array(boxes).astype(np.float64).reshape(-1, 4), height, width)
    known = None if sure is None else _array(sure).astype(bool)
    if setting == "authors":
        masks = _as_authors(image, corners, known)
    elif setting == "fast":
        grids = None if known is None else sample_masks(known, corners)
        masks = np.zeros((len(corners), height, width), dtype=bool)
        for mask, box, small in zip(
            masks, _pixels(corners, height, width), crops(image, corners, grids)[1], strict=True
        ):
            x1, y1, x2, y2 = box
            if x2 > x1 and y2 > y1:
                mask[y1:y2, x1:x2] = cv2.resize(small.astype(np.float32), (x2 - x1, y2 - y1)) >= 0.5
        if known is not None:
            masks |= known & _rectangles(corners, height, width)
    else:
        raise _unknown(setting)
    return torch.from_numpy(masks).to(boxes.device) if isinstance(boxes, Tensor) else masks


def crops(image: Array, boxes: Array, sure: Array | None = None) -> tuple[Array, Array]:
    """Foreground on a small grid over each box, with nothing of the image's size made.

    Args:
        image: (H,W,3) uint8 RGB.
        boxes: (K,4) xyxy in pixels.
        sure: (K,SIZE,SIZE) bool over the same grids, cells known to be foreground.

    Returns:
        windows (K,4) float32, the boxes, at least a pixel wide; masks (K,SIZE,SIZE) bool over them, False beyond the image.
        Each box's mask is the same to the bit whichever boxes come with it.
    """
    windows = np.array(boxes, dtype=np.float64).reshape(-1, 4)
    windows[:, 2:] = np.maximum(windows[:, 2:], windows[:, :2] + 1)
    masks = np.zeros((len(windows), SIZE, SIZE), dtype=bool)
    for start in range(0, len(windows), _CHUNK):
        part = slice(start, start + _CHUNK)
        known = None if sure is None else sure[part]
        pixels, seen = _look(image, windows[part])
        masks[part] = _separate(pixels, seen, known) > 0
        if known is not None:
            masks[part] |= known
        masks[part] &= _inner(seen)
    return windows.astype(np.float32), masks


def resample(
    windows: Tensor, masks: Tensor, which: Tensor, boxes: Tensor, size: int | tuple[int, int] = 28
) -> Tensor:
    """Masks seen through other boxes.

    Args:
        windows: (K,4) xyxy that the masks cover.
        masks: (K,m,m) bool or float.
        which: (R,) int, the mask that each box looks at.
        boxes: (R,4) xyxy.
        size: Side of the result, or its (height, width).

    Returns:
        (R,height,width) float: bilinear between mask cells, 0 outside the window.
    """
    height, width = (size, size) if isinstance(size, int) else size
    if not len(boxes):
        return boxes.new_zeros(0, height, width)
    window, (across, down) = (
        windows[which],
        (torch.arange(n, device=boxes.device) + 0.5 for n in (width, height)),
    )
    x, y = (
        2
        * (
            boxes[:, i, None]
            + (boxes[:, i + 2] - boxes[:, i])[:, None] * steps / len(steps)
            - window[:, i, None]
        )
        / (window[:, i + 2] - window[:, i]).clamp(min=1e-6)[:, None]
        - 1
        for i, steps in enumerate((across, down))
    )
    x, y = x[:, None].expand(-1, height, -1), y[:, :, None].expand(-1, -1, width)
    grid = torch.stack([x, y], -1)
    values = F.grid_sample(
        masks[which][:, None].to(grid.dtype), grid, padding_mode="border", align_corners=False
    )[:, 0]
    return values * (grid.abs() <= 1).all(-1)


def _array(values: Any) -> Array:
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


def clip(boxes: Array, height: int, width: int) -> Array:
    """Boxes inside the image, at least one pixel wide and high."""
    limit = np.array([width, height])
    low = np.clip(boxes[:, :2], 0, limit - 1)
    high = np.minimum(np.maximum(boxes[:, 2:], low + 1), limit)
    return np.concatenate([low, high], 1)


def _pixels(boxes: Array, height: int, width: int) -> Array:
    """(K,4) int: the pixels whose centre lies in the box."""
    return np.clip(np.ceil(boxes - 0.5), 0, [width, height, width, height]).astype(int)


def _rectangles(boxes: Array, height: int, width: int) -> Array:
    x1, y1, x2, y2 = (_pixels(boxes, height, width)[:, i, None] for i in range(4))
    x, y = np.arange(width), np.arange(height)
    return ((x >= x1) & (x < x2))[:, None, :] & ((y >= y1) & (y < y2))[:, :, None]


def sample_masks(masks: Array, boxes: Array) -> Array:
    """(K,H,W) at the cell centres of the boxes' grids."""
    centres = (np.arange(SIZE) + 0.5) / SIZE
    x = (boxes[:, 0, None] + (boxes[:, 2] - boxes[:, 0])[:, None] * centres).astype(int)
    y = (boxes[:, 1, None] + (boxes[:, 3] - boxes[:, 1])[:, None] * centres).astype(int)
    return masks[np.arange(len(boxes))[:, None, None], y[:, :, None], x[:, None, :]]


def _look(image: Array, windows: Array) -> tuple[Array, Array]:
    """Pixels (K,M,M,3) of grids over the windows and their margin, and which cells (K,M,M) lie in the image."""
    steps = (np.arange(-_MARGIN, SIZE + _MARGIN) + 0.5) / SIZE
    x = windows[:, 0, None] + (windows[:, 2] - windows[:, 0])[:, None] * steps
    y = windows[:, 1, None] + (windows[:, 3] - windows[:, 1])[:, None] * steps
    height, width = image.shape[:2]
    seen = ((y >= 0) & (y < height))[:, :, None] & ((x >= 0) & (x < width))[:, None, :]
    columns, rows = np.broadcast_arrays((x - 0.5)[:, None, :], (y - 0.5)[:, :, None])
    flat = (-1, len(steps))
    pixels = cv2.remap(
        image,
        columns.reshape(flat).astype(np.float32),
        rows.reshape(flat).astype(np.float32),
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE,
    )
    return pixels.reshape(*seen.shape, 3), seen


def _separate(pixels: Array, seen: Array, sure: Array | None) -> Array:
    """Log odds of foreground (K,SIZE,SIZE): histograms and probabilities in turn, then smoothed along edges."""
    count, side = pixels.shape[:2]
    flat = pixels.reshape(count * side, side, 3)
    colours = lab_bins(cv2.cvtColor(flat, cv2.COLOR_RGB2LAB).reshape(count, -1, 3), _BINS)
    prior = _place_prior()
    known = np.zeros(seen.shape, dtype=bool)
    if sure is not None:
        _inner(known)[:] = sure
    logits = np.broadcast_to(prior, seen.shape)
    for _ in range(_ROUNDS):
        probability = np.where(known, 1.0, 1 / (1 + np.exp(-np.clip(logits, -30, 30))))
        inside = _histogram(colours, probability * seen)
        outside = _histogram(colours, (1 - probability) * seen)
        evidence = np.take_along_axis(np.log(inside) - np.log(outside), colours, 1).reshape(
            seen.shape
        )
        logits = prior + evidence
    grey = cv2.cvtColor(flat, cv2.COLOR_RGB2GRAY).reshape(seen.shape)
    return _inner(_guided(np.clip(logits, -4, 4), grey))


def _place_prior() -> Array:
    """Log odds from place alone (M,M): 1 at the box's centre, 0 on its inscribed ellipse, outside the box none at all."""
    steps = 2 * (np.arange(-_MARGIN, SIZE + _MARGIN) + 0.5) / SIZE - 1
    prior = 1 - steps[:, None] ** 2 - steps[None, :] ** 2
    prior[np.maximum(abs(steps[:, None]), abs(steps[None, :])) > 1] = -30
    return prior


def _inner(grid: Array) -> Array:
    """The box's part of a grid with margin."""
    return grid[..., _MARGIN:-_MARGIN, _MARGIN:-_MARGIN]


def _histogram(colours: Array, weight: Array) -> Array:
    """Smoothed and normalised (K,bins) densities."""
    count, bins = len(colours), _BINS**3
    places = colours + bins * np.arange(count)[:, None]
    counts = np.bincount(places.ravel(), weight.ravel(), count * bins).reshape(
        count, _BINS, _BINS, _BINS
    )
    for axis in (1, 2, 3):
        counts = _smooth(counts, axis)
    density = counts.reshape(count, bins)
    return density / np.maximum(density.sum(1, keepdims=True), 1e-6) + 0.1 / bins


def _smooth(counts: Array, axis: int) -> Array:
    """Binomial filter 1 2 1 along one axis."""
    after = np.take(counts, [*range(1, _BINS), _BINS - 1], axis)
    before = np.take(counts, [0, *range(_BINS - 1)], axis)
    return (before + 2 * counts + after) / 4


def _guided(values: Array, grey: Array) -> Array:
    """Guided filter (He et al., ECCV 2010, eqs. 5-8) of (K,M,M) values along the edges of (K,M,M) grey pixels."""
    guide, values = (np.moveaxis(v, 0, -1).astype(np.float32) for v in (grey / 255, values))

    def mean(v: Array) -> Array:
        return np.atleast_3d(cv2.blur(np.ascontiguousarray(v), (2 * _RADIUS + 1,) * 2))

    mean_guide, mean_values = mean(guide), mean(values)
    slope = (mean(guide * values) - mean_guide * mean_values) / (
        mean(guide * guide) - mean_guide**2 + _EDGE
    )
    smooth = mean(slope) * guide + mean(mean_values - slope * mean_guide)
    return np.moveaxis(smooth, -1, 0)


def _as_authors(image: Array, boxes: Array, sure: Array | None) -> Array:
    """cv2.grabCut on an image of at most 400 px (methods of the PDSL and JTSM releases)."""
    height, width = image.shape[:2]
    scale = min(400 / max(height, width), 1)
    size = (max(round(width * scale), 1), max(round(height * scale), 1))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    masks = np.zeros((len(boxes), height, width), dtype=bool)
    for k, box in enumerate(boxes):
        known = (
            None
            if sure is None
            else cv2.resize(sure[k].astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) > 0
        )
        masks[k] = (
            cv2.resize(_cut(small, box * scale, known).astype(np.float32), (width, height)) >= 0.5
        )
    return masks


def _cut(image: Array, box: Array, sure: Array | None) -> Array:
    """One cv2.grabCut, from the rectangle or from sure pixels; (H,W) bool."""
    height, width = image.shape[:2]
    x1, y1 = np.clip(np.floor(box[:2]), 0, [width - 1, height - 1]).astype(int)
    x2, y2 = np.clip(np.ceil(box[2:]), [x1 + 1, y1 + 1], [width, height]).astype(int)
    if (x1, y1, x2, y2) == (0, 0, width, height):  # without background there is nothing to cut from
        x1, y1, x2, y2 = (
            min(3, width // 4),
            min(3, height // 4),
            max(width - 3, 1),
            max(height - 3, 1),
        )
    state = np.full((height, width), cv2.GC_BGD, np.uint8)
    state[y1:y2, x1:x2] = cv2.GC_PR_FGD
    if sure is not None:
        state[sure & (state == cv2.GC_PR_FGD)] = cv2.GC_FGD
    rectangle = state != cv2.GC_BGD
    if rectangle.all():
        return rectangle
    cv2.setRNGSeed(0)  # its k-means draws
    cv2.grabCut(
        image, state, (0, 0, 1, 1), np.zeros((1, 65)), np.zeros((1, 65)), 5, cv2.GC_INIT_WITH_MASK
    )
    mask = (state == cv2.GC_FGD) | (state == cv2.GC_PR_FGD)
    return mask if mask.sum() >= 9 else rectangle


def _unknown(setting: str) -> InputError:
    return InputError(f'evidence {setting!r}: choose "fast" or "authors"')
