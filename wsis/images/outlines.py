"""Outlines of masks as polygons, for label tools and training programs that hold no run lengths."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as rle
from scipy.spatial import cKDTree

__all__ = ["AGREEMENT", "Part", "outlines", "rings", "single_ring"]

Points = NDArray[np.float64]

AGREEMENT = 0.98
"""Least IoU of a mask and its polygons."""
_TOLERANCES = (1.0, 0.5, 0.25)
"""Pixels that a simplified outline may stray, the coarsest first."""


class Part(NamedTuple):
    """A connected part of a mask."""

    outer: Points
    """(N,2) corners, x and y in pixels; pixel i covers [i, i+1)."""
    holes: list[Points]
    """(N,2) corners of each hole."""


def outlines(mask: NDArray[np.bool_]) -> list[Part]:
    """Return the parts of a mask (H,W), whose polygons cover it with an IoU of `AGREEMENT` or more.

    Outlines follow the edges of pixels. They are simplified as far as the IoU allows, measured
    by drawing them with pycocotools; what cannot be simplified is exact.
    """
    exact = _edges(mask)
    whole = rle.encode(np.asfortranarray(mask, np.uint8))
    for tolerance in _TOLERANCES:
        parts = [_simplified(part, tolerance) for part in exact]
        polygons = [ring.flatten().tolist() for ring in rings(parts)]
        drawn = rle.merge(rle.frPyObjects(polygons, *mask.shape)) if polygons else whole
        if rle.iou([drawn], [whole], [0])[0, 0] >= AGREEMENT:
            return parts
    return exact


def rings(parts: Sequence[Part]) -> list[Points]:
    """Return a ring (N,2) for each part, cut open from its edge to each of its holes and back.

    COCO fills every polygon and joins them, so that a hole cannot be a polygon of its own. The two
    sides of a cut coincide and cancel, whether areas are filled by the even-odd or the non-zero
    rule.
    """
    return [_joined([part.outer, *part.holes]) for part in parts]


def single_ring(parts: Sequence[Part]) -> Points:
    """Return one ring (N,2) around all parts, joined by lines of no width, as YOLO wants it."""
    longest_first = sorted(rings(parts), key=len, reverse=True)
    return _joined(longest_first) if parts else np.zeros((0, 2))


def _edges(mask: NDArray[np.bool_]) -> list[Part]:
    """Return the outlines of a mask (H,W) along the edges of its pixels, with all their corners."""
    # With pixels doubled, each border pixel of a contour lies at one corner of an original pixel.
    doubled = mask.astype(np.uint8).repeat(2, 0).repeat(2, 1)
    found, tree = cv2.findContours(doubled, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    corners = [_corners((contour[:, 0] + 1) // 2) for contour in found]
    parents = tree[0, :, 3].tolist() if found else []
    parts = {k: Part(corners[k], []) for k, parent in enumerate(parents) if parent < 0}
    for k, parent in enumerate(parents):
        if parent >= 0:
            parts[parent].holes.append(corners[k])
    return list(parts.values())


def _corners(path: NDArray[Any]) -> Points:
    """Return the points (N,2) of a closed path along pixel edges where it turns."""
    path = path[(path != np.roll(path, 1, 0)).any(1)]
    before, after = path - np.roll(path, 1, 0), np.roll(path, -1, 0) - path
    turns = (np.sign(before) != np.sign(after)).any(1)
    return path[turns].astype(np.float64)


def _simplified(part: Part, tolerance: float) -> Part:
    outer, *holes = (_simple(ring, tolerance) for ring in (part.outer, *part.holes))
    return Part(outer, holes)


def _simple(ring: Points, tolerance: float) -> Points:
    fewer = cv2.approxPolyDP(ring.astype(np.float32)[:, None], tolerance, True)[:, 0]
    return fewer.astype(np.float64) if len(fewer) >= 3 else ring


def _joined(loops: Sequence[Points]) -> Points:
    """Return one ring: the first loop, left for each other one at the corner nearest to it."""
    ring, *others = loops
    tree = cKDTree(ring)
    detours: dict[int, list[Points]] = {}
    for loop in others:
        distances, corners = tree.query(loop)
        start = int(distances.argmin())
        corner = int(corners[start])
        around = np.roll(loop, -start, 0)
        detours.setdefault(corner, []).append(
            np.concatenate([around, around[:1], ring[corner][None]])
        )
    pieces = [[ring[k][None], *detours.get(k, [])] for k in range(len(ring))]
    return np.concatenate(list(chain.from_iterable(pieces)))
