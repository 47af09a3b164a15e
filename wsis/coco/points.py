"""The points of a COCO annotation, read in the forms that are in use and checked."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from wsis.errors import InputError

__all__ = ["KEYS", "checked_points", "coordinates", "points_of"]

KEYS = ("points", "point", "point_coords", "point_labels")
"""Keys of an annotation that `points_of` reads."""

BEYOND = 1.0
"""Pixels outside of the image at which a point is taken for one on the border."""


def points_of(annotation: dict[str, Any]) -> list[Sequence[float]]:
    """Return the points [x, y] or [x, y, label] of an annotation, whichever form it has.

    These are `points`; one `point`; and `point_coords` with `point_labels`, as PointSup (Cheng et
    al., CVPR 2022) has them. Segment Anything's `point_coords`, which have no labels, are prompts.
    `keypoints` are parts of an object.
    """
    points = list(annotation.get("points") or ())
    if annotation.get("point"):
        points.append(annotation["point"])
    labels = annotation.get("point_labels")
    if labels:
        coords = annotation.get("point_coords") or ()
        points += [[*xy[:2], label] for xy, label in zip(coords, labels, strict=False)]
    return points


def coordinates(annotation: dict[str, Any]) -> Iterator[Sequence[float]]:
    """Yield x and y of each point of an annotation, not checked."""
    return (point[:2] for point in points_of(annotation))


def checked_points(
    points: Sequence[Sequence[float]], size: tuple[int, int], place: str
) -> list[list[float]]:
    """Return points as [x, y, label], of label 1 if they have none.

    Points beyond the border by a pixel at most are moved to the last pixel.

    Args:
        points: [x, y] or [x, y, label], in pixels.
        size: (height, width) of their image.
        place: file and record, for errors.

    Raises:
        InputError: a point has not two or three numbers, is outside of the image, or its label is
            neither 1 nor 0.
    """
    height, width = size
    result = []
    for point in points:
        if len(point) not in (2, 3) or not all(map(math.isfinite, point)):
            raise InputError(f"{place}: a point is {[*point][:4]}; give [x, y] or [x, y, label]")
        x, y, label = (*point, 1)[:3]
        if label not in (0, 1):
            raise InputError(
                f"{place}: a point has the label {label:g}; give 1 in the object, 0 outside of it"
            )
        if not (-BEYOND <= x <= width + BEYOND and -BEYOND <= y <= height + BEYOND):
            raise InputError(
                f"{place}: the point {x:g}, {y:g} is outside of its image of {width} x {height} "
                "pixels; mend or remove it"
            )
        result.append([_inside(x, width), _inside(y, height), int(label)])
    return result


def _inside(value: float, side: int) -> float:
    """Return a coordinate that single precision has in [0, side), too."""
    return min(max(value, 0.0), side - 0.5)
