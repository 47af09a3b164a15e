"""The mask, box and area of a COCO annotation: checked, and derived from one another if missing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pycocotools import mask as rle

from wsis.coco.masks import FAR, box_of, checked_mask, run_length
from wsis.errors import InputError

__all__ = ["are_fractions", "area_of", "complete", "covers"]

Record = dict[str, Any]
ROUNDING = 0.01
"""Of fractions beyond the image's border."""


def complete(annotation: Record, size: tuple[int, int], path: Path) -> None:
    """Check an annotation's mask, and give it a box if its own is missing or covers nothing.

    The annotation is changed. Without box and mask, it has no `bbox` afterwards; an area that is
    not positive is deleted.

    Args:
        annotation: of `wsis.coco.records.Instances`.
        size: (height, width) of its image.
        path: its file, for errors.

    Raises:
        InputError: the mask is not one of the image, or the box has not four numbers.
    """
    place = f"{path}, annotation {annotation.get('id')!r}"
    mask = annotation.get("segmentation")
    if mask:
        mask = annotation["segmentation"] = checked_mask(mask, size, place)
    box = annotation.pop("bbox", None)
    if box and len(box) != 4:
        raise InputError(f"{place}: bbox is {box[:5]}; give [x, y, width, height]")
    seen = bool(box) and covers(box, size)
    if mask and not seen:
        box = box_of(mask, size)
    if box:
        annotation["bbox"] = _clipped(box, size) if seen else box
    if not 0 < (annotation.get("area") or 0) < math.inf:
        annotation.pop("area", None)


def covers(box: Sequence[float], size: tuple[int, int]) -> bool:
    """Return whether a box [x, y, width, height] covers part of an image; False for NaN."""
    (x, y, w, h), (height, width) = box, size
    return bool(0 < w < math.inf and 0 < h < math.inf and -w < x < width and -h < y < height)


def are_fractions(annotations: Iterable[Record]) -> bool:
    """Return whether boxes and polygons are fractions of the image: all between 0 and 1."""
    is_whole = True
    for annotation in annotations:
        mask = annotation.get("segmentation")
        polygons = mask if isinstance(mask, list) else []
        for numbers in (annotation.get("bbox") or (), *polygons):
            if not all(abs(number) <= 1 + ROUNDING for number in numbers):
                return False
            is_whole = is_whole and all(number in (-1, 0, 1) for number in numbers)
    return not is_whole


def area_of(annotation: Record, size: tuple[int, int]) -> float:
    """Return the area of an annotation's mask in an image of (height, width), else of its box."""
    if annotation.get("segmentation"):
        return int(rle.area(run_length(annotation["segmentation"], size)))
    return float(annotation["bbox"][2] * annotation["bbox"][3])


def _clipped(box: list[float], size: tuple[int, int]) -> list[float]:
    """Return a box, cut at the image's edges if single precision would distort it."""
    if min(box) > -FAR and max(box) < FAR:
        return box
    x, y, w, h = box
    left, top = max(x, 0.0), max(y, 0.0)
    return [left, top, min(x + w, size[1]) - left, min(y + h, size[0]) - top]
