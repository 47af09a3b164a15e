"""The mask, box, points and area of a COCO annotation: checked; a missing box is the mask's."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pycocotools import mask as rle

from wsis.coco.masks import FAR, box_of, checked_mask, run_length
from wsis.coco.points import KEYS, checked_points, coordinates, points_of
from wsis.errors import InputError

__all__ = ["are_fractions", "area_of", "complete", "covers", "kind_of"]

Record = dict[str, Any]
ROUNDING = 0.01
"""Of fractions beyond the image's border."""


def complete(annotation: Record, size: tuple[int, int], path: Path) -> None:
    """Check an annotation's mask and points, and give it a box if its own covers nothing.

    The annotation is changed. Without box and mask, it has no `bbox` afterwards, and without
    points no `points`, which are [x, y, label]; an area that is not positive is deleted.

    Args:
        annotation: of `wsis.coco.records.Instances`.
        size: (height, width) of its image.
        path: its file, for errors.

    Raises:
        InputError: the mask or a point is not one of the image, the box has not four numbers, or
            the only points are outside of the object.
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
    _complete_points(annotation, size, place)
    if not 0 < (annotation.get("area") or 0) < math.inf:
        annotation.pop("area", None)


def covers(box: Sequence[float], size: tuple[int, int]) -> bool:
    """Return whether a box [x, y, width, height] covers part of an image; False for NaN."""
    (x, y, w, h), (height, width) = box, size
    return bool(0 < w < math.inf and 0 < h < math.inf and -w < x < width and -h < y < height)


def kind_of(annotation: Record) -> str:
    """Return what is known of an object: "mask", "box", "point" or "tag", the strongest of them."""
    keys = {"mask": "segmentation", "box": "bbox", "point": "points"}
    return next((kind for kind, key in keys.items() if annotation.get(key)), "tag")


def are_fractions(annotations: Iterable[Record]) -> bool:
    """Return whether boxes, polygons and points are fractions of the image: all in [0, 1]."""
    is_whole = True
    for annotation in annotations:
        mask = annotation.get("segmentation")
        polygons = mask if isinstance(mask, list) else []
        box = annotation.get("bbox") or ()
        for numbers in (box, *polygons, *coordinates(annotation)):
            if not all(abs(number) <= 1 + ROUNDING for number in numbers):
                return False
            is_whole = is_whole and all(number in (-1, 0, 1) for number in numbers)
    return not is_whole


def area_of(annotation: Record, size: tuple[int, int]) -> float:
    """Return the area of an annotation's mask in an image of (height, width), else of its box."""
    if annotation.get("segmentation"):
        return int(rle.area(run_length(annotation["segmentation"], size)))
    return float(annotation["bbox"][2] * annotation["bbox"][3])


def _complete_points(annotation: Record, size: tuple[int, int], place: str) -> None:
    """Leave an annotation's points as checked `points`, if it has any."""
    if annotation.keys().isdisjoint(KEYS):
        return
    found = points_of(annotation)
    for key in KEYS:
        annotation.pop(key, None)
    if not found:
        return
    annotation["points"] = checked_points(found, size, place)
    if "bbox" not in annotation and not any(label for _, _, label in annotation["points"]):
        raise InputError(
            f"{place}: all its points are outside of the object; add one in the object, or a box"
        )


def _clipped(box: list[float], size: tuple[int, int]) -> list[float]:
    """Return a box, cut at the image's edges if single precision would distort it."""
    if min(box) > -FAR and max(box) < FAR:
        return box
    x, y, w, h = box
    left, top = max(x, 0.0), max(y, 0.0)
    return [left, top, min(x + w, size[1]) - left, min(y + h, size[0]) - top]
