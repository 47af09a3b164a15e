"""Boxes and outlines of the shapes that label tools draw."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["around", "ellipse", "outline", "turned"]

Point = tuple[float, float]


def outline(points: Iterable[Sequence[float]]) -> list[float]:
    """Return points [[x, y], ...] as a COCO polygon [x, y, x, y, ...]."""
    return [float(value) for x, y in points for value in (x, y)]


def around(polygons: Sequence[Sequence[float]]) -> list[float]:
    """Return the box [x, y, width, height] around COCO polygons."""
    xs = [x for polygon in polygons for x in polygon[::2]]
    ys = [y for polygon in polygons for y in polygon[1::2]]
    return [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]


def turned(box: Sequence[float], degrees: float, centre: Point) -> list[float]:
    """Return the box around a box [x, y, width, height] that is turned clockwise."""
    x, y, width, height = box
    corners = np.array([(x, y), (x + width, y), (x + width, y + height), (x, y + height)])
    return around([(_rotate(corners - centre, degrees) + centre).ravel().tolist()])


def ellipse(centre: Point, radii: Point, degrees: float = 0, corners: int = 64) -> list[float]:
    """Return an ellipse, turned clockwise, as a COCO polygon."""
    angles = np.linspace(0, math.tau, corners, endpoint=False)
    points = np.stack([radii[0] * np.cos(angles), radii[1] * np.sin(angles)], 1)
    polygon: list[float] = (_rotate(points, degrees) + centre).ravel().tolist()
    return polygon


def _rotate(points: NDArray[np.float64], degrees: float) -> NDArray[np.float64]:
    """Turn points (N,2) clockwise, as y points down."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return points @ np.array([[cos, sin], [-sin, cos]])
