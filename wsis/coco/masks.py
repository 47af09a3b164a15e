"""Masks of COCO files: checked, so that pycocotools, which checks nothing, may decode them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import msgspec
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as rle

from wsis.coco.records import LARGEST, RunLengths, describe_fault
from wsis.errors import InputError

__all__ = [
    "FAR",
    "box_of",
    "checked_mask",
    "checked_run_lengths",
    "decode_foreign",
    "run_length",
    "runs_of",
]

RLE = dict[str, Any]
FAR = 1_000_000
"""Largest coordinate in pixels: pycocotools counts fifths of a pixel in 32 bits."""
_LONGEST = 2_000_000  # pixels; pycocotools stores every fifth of a pixel of an outline
_LONGEST_RUN = 7  # letters, of 5 bits each


def checked_mask(segmentation: Any, size: tuple[int, int], place: str) -> Any:
    """Return a mask that pycocotools can decode; None if none of its polygons has three corners.

    Args:
        segmentation: polygons or run lengths, as in `wsis.coco.records.Annotation`.
        size: (height, width) of its image.
        place: file and record, for errors.

    Raises:
        InputError: the mask is not one of an image of this size.
    """
    if isinstance(segmentation, dict):
        return checked_run_lengths(segmentation, size, place)
    for polygon in segmentation:
        _check_polygon(polygon, place)
    usable = [polygon for polygon in segmentation if len(polygon) >= 6]
    return usable or None


def checked_run_lengths(mask: RLE, size: tuple[int, int], place: str) -> RLE:
    """Return run lengths of either form if they cover an image of (height, width).

    Raises:
        InputError: they do not, or they are no run lengths.
    """
    if mask["size"] != [*size]:
        raise InputError(
            f"{place}: the mask is {mask['size']}, but its image is {[*size]} (height, width); "
            "make masks at the image's size"
        )
    counts = mask["counts"]
    runs = runs_of(counts, place) if isinstance(counts, str) else counts
    covered = int(sum(runs)) if isinstance(runs, list) else int(runs.sum())
    if covered != size[0] * size[1]:
        raise InputError(
            f"{place}: the run lengths cover {covered} pixels, not {size[0]} x {size[1]}; "
            "mend or remove it"
        )
    # pycocotools ends a comparison of two masks early where both have an empty run
    if 0 in runs[1:]:
        return {**mask, "counts": _without_empty_runs(runs)}
    return mask


def decode_foreign(mask: Any, place: str) -> NDArray[np.uint8]:
    """Return a run-length mask of an unknown source as (H,W) uint8.

    Raises:
        InputError: it is not a whole run-length mask.
    """
    try:
        known = msgspec.convert(mask, RunLengths, strict=False)
    except msgspec.ValidationError as error:
        raise InputError(describe_fault(error, mask, RunLengths, place)) from error
    height, width = known["size"]
    if not 0 < height * width <= LARGEST:
        raise InputError(
            f"{place}: the mask is {height} x {width} pixels; give masks of an image's size"
        )
    usable = checked_run_lengths(cast(RLE, known), (height, width), place)
    return cast("NDArray[np.uint8]", rle.decode(run_length(usable, (height, width))))


def run_length(segmentation: Any, size: tuple[int, int]) -> RLE:
    """Return a segmentation (polygons, or an RLE of either form) as one compressed RLE."""
    if isinstance(segmentation, list):
        return cast(RLE, rle.merge(rle.frPyObjects(segmentation, *size)))
    if isinstance(segmentation["counts"], list):
        return cast(RLE, rle.frPyObjects(segmentation, *size))
    return cast(RLE, segmentation)


def box_of(segmentation: Any, size: tuple[int, int]) -> list[float]:
    """Return the box [x, y, width, height] of a mask in an image of (height, width)."""
    return cast("list[float]", rle.toBbox(run_length(segmentation, size)).tolist())


def _check_polygon(polygon: Sequence[float], place: str) -> None:
    """Raise InputError for a polygon that would overflow or stall pycocotools."""
    if len(polygon) % 2:
        raise InputError(
            f"{place}: a polygon has {len(polygon)} coordinates; give pairs of x and y"
        )
    if not polygon:
        return
    low, high = min(polygon), max(polygon)
    if not (math.isfinite(sum(polygon)) and low >= -FAR and high <= FAR):
        wrong = next(value for value in polygon if not abs(value) <= FAR)
        raise InputError(f"{place}: a polygon has a corner at {wrong}; mend or remove it")
    # the product bounds the outline, which takes longer to measure
    if len(polygon) * (high - low) > _LONGEST and _outline(polygon) > _LONGEST:
        raise InputError(f"{place}: a polygon's outline is over {_LONGEST} pixels long; mend it")


def _outline(polygon: Sequence[float]) -> float:
    """Return the length of a polygon's outline, of each edge the longer side."""
    corners = np.array([*polygon, *polygon[:2]]).reshape(-1, 2)
    return float(np.abs(np.diff(corners, axis=0)).max(1).sum())


def runs_of(text: str, place: str) -> NDArray[np.int64]:
    """Return the runs of compressed counts.

    A run is a number in base 32, least digits first, of which the last has no bit 32 and begins
    with the sign; from the fourth run on it is the difference from the run before the last one.

    Raises:
        InputError: the text is not of that form.
    """
    letters = np.frombuffer(text.encode(errors="surrogatepass"), np.uint8).astype(np.int64) - 48
    ends = np.flatnonzero(letters < 32)
    whole = len(ends) and ends[-1] == len(letters) - 1 and letters.min() >= 0
    starts = np.concatenate([[0], ends[:-1] + 1])
    if not whole or letters.max() > 63 or (ends - starts).max() >= _LONGEST_RUN:
        raise InputError(f"{place}: {text[:30]!r} are no compressed run lengths; write it again")
    digits = np.arange(len(letters)) - np.repeat(starts, ends - starts + 1)
    runs = np.add.reduceat((letters & 31) << 5 * digits, starts)
    runs -= (letters[ends] & 16) << 5 * (ends - starts) + 1
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    if runs.min() < 0:
        raise InputError(f"{place}: a run length is {runs.min()}; write it again")
    return runs


def _without_empty_runs(runs: Sequence[int] | NDArray[np.int64]) -> list[int]:
    """Return equal run lengths in which only the first may be 0."""
    kept = [int(runs[0])]
    for k, run in enumerate(runs[1:], 1):
        if run and k % 2 == (len(kept) - 1) % 2:
            kept[-1] += int(run)
        elif run:
            kept.append(int(run))
    return kept
