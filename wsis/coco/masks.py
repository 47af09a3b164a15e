"""Masks of COCO files: checked, so that pycocotools, which checks nothing, may decode them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NoReturn, cast

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as rle

from wsis.coco.runs import Runs, decode_counts, runs_of
from wsis.errors import InputError

__all__ = [
    "FAR",
    "box_of",
    "checked_mask",
    "checked_run_lengths",
    "run_length",
    "runs_of_masks",
]

RLE = dict[str, Any]
FAR = 1_000_000
"""Largest coordinate in pixels: pycocotools counts fifths of a pixel in 32 bits."""
_LONGEST = 2_000_000  # pixels; pycocotools stores every fifth of a pixel of an outline


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
    _check_size(mask, size, place)
    counts = mask["counts"]
    runs = runs_of(counts, place) if isinstance(counts, str) else counts
    covered = int(sum(runs)) if isinstance(runs, list) else int(runs.sum())
    if covered != size[0] * size[1]:
        _refuse_sum(covered, size, place)
    # pycocotools ends a comparison of two masks early where both have an empty run
    if 0 in runs[1:]:
        return {**mask, "counts": _without_empty_runs(runs)}
    return mask


def runs_of_masks(
    segmentations: Sequence[Any], size: tuple[int, int], places: Sequence[str]
) -> Runs:
    """Return masks of any form of COCO, polygons included, as run lengths.

    Polygons with fewer than three corners are left out, so that a mask may be empty.

    Args:
        segmentations: P masks, as `checked_mask` takes them; compressed counts may be bytes.
        size: (height, width) of their image.
        places: file and record of each, for errors.

    Raises:
        InputError: a mask is not one of an image of this size.
    """
    counts = [
        _counts(segmentation, size, place)
        for segmentation, place in zip(segmentations, places, strict=True)
    ]
    packed = [k for k, known in enumerate(counts) if isinstance(known, (str, bytes))]
    runs, numbers = decode_counts([counts[k] for k in packed], [places[k] for k in packed])
    for k, part in zip(packed, np.split(runs, np.cumsum(numbers)[:-1]), strict=False):
        counts[k] = part
    each = np.array([len(known) for known in counts], np.int64)
    lengths = np.concatenate([np.zeros(0, np.int64), *counts]).astype(np.int64)
    found = Runs(lengths, np.cumsum(each) - each, size)
    for k in np.flatnonzero(found.sums != size[0] * size[1])[:1]:
        _refuse_sum(int(found.sums[k]), size, places[k])
    return found


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


def _counts(segmentation: Any, size: tuple[int, int], place: str) -> Any:
    """Return the run lengths of a mask, as a list or compressed, checked but for their sum."""
    if isinstance(segmentation, dict):
        _check_size(segmentation, size, place)
        return segmentation["counts"]
    usable = checked_mask(segmentation, size, place)
    return run_length(usable, size)["counts"] if usable else [size[0] * size[1]]


def _check_size(mask: RLE, size: tuple[int, int], place: str) -> None:
    if [*mask["size"]] != [*size]:
        raise InputError(
            f"{place}: the mask is {[*mask['size']]}, but its image is {[*size]} (height, width); "
            "make masks at the image's size"
        )


def _refuse_sum(covered: int, size: tuple[int, int], place: str) -> NoReturn:
    raise InputError(
        f"{place}: the run lengths cover {covered} pixels, not {size[0]} x {size[1]}; "
        "mend or remove it"
    )


def _without_empty_runs(runs: Sequence[int] | NDArray[np.int64]) -> list[int]:
    """Return equal run lengths in which only the first may be 0."""
    kept = [int(runs[0])]
    for k, run in enumerate(runs[1:], 1):
        if run and k % 2 == (len(kept) - 1) % 2:
            kept[-1] += int(run)
        elif run:
            kept.append(int(run))
    return kept
