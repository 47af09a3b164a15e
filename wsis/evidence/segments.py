"""Segment proposals from pixels alone: superpixels, grouped in many ways, ranked without any label.

Selective search (Uijlings et al., IJCV 2013) on one fine Felzenszwalb map (IJCV 2004), so that every proposal is a set of the same
superpixels, with an objectness that selective search lacks.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from skimage.segmentation import felzenszwalb

from wsis.evidence.grouping import Floats, Graph, Ints, Merges, group, neighbours
from wsis.types import Proposals

__all__ = ["propose"]

Image = NDArray[np.uint8]
Labels = NDArray[np.int32]

_COLOUR_BINS = 20
_SPACES = {"lab": cv2.COLOR_RGB2LAB, "hsv": cv2.COLOR_RGB2HSV_FULL, "rgb": None}
_MIXES = ((1, 1, 1, 1), (1, 1, 0, 0), (1, 0, 0, 1), (0, 1, 1, 1), (1, 0, 1, 0))  # colour, texture, size, fill
_FLATS = (100, 400)


def propose(
    image: Image,
    limit: int = 2000,
    superpixels: int = 1000,
    work_side: int = 640,
    min_size: float = 0.0003,
    max_size: float = 0.9,
) -> Proposals:
    """Propose regions that may be objects.

    Args:
        image: (H,W,3) uint8 RGB.
        limit: Proposals to keep at most.
        superpixels: Superpixels of the label map at most.
        work_side: Longer side in pixels at which superpixels are found; larger images are made smaller first.
        min_size: Smallest proposal as a part of the image.
        max_size: Largest proposal as a part of the image.

    Returns:
        Proposals in image pixels, best first, no two with the same mask.
    """
    small = _shrink(image, work_side)
    labels = _superpixels(small, superpixels)
    graph = _graph(labels)
    signatures = _signatures(small, labels)
    mixes = np.array(_MIXES, np.float32)
    merges = group(graph, *_strategies(signatures, mixes))
    members, persistence = _regions(merges, graph)
    sizes = members @ graph.sizes / graph.area
    fits = (sizes >= min_size) & (sizes <= max_size)
    members, persistence = members[fits], persistence[fits]
    scores = _objectness(members, persistence, sizes[fits], small, labels, graph)
    best = np.argsort(-scores, kind="stable")[:limit]
    return _proposals(members[best], scores[best], labels, image.shape[:2])


def _shrink(image: Image, side: int) -> Image:
    height, width = image.shape[:2]
    scale = side / max(height, width)
    if scale >= 1:
        return image
    size = (max(round(width * scale), 1), max(round(height * scale), 1))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def _superpixels(image: Image, limit: int) -> Labels:
    """Felzenszwalb's map in Lab; where it has more than `limit` regions, the most alike and smallest are merged."""
    lab = cv2.cvtColor(image, cv2.COLOR_RGB2LAB)
    labels = felzenszwalb(lab, scale=50, sigma=0.8, min_size=20).astype(np.int32)
    if labels.max() + 1 > limit:
        graph = _graph(labels)
        look = _histograms(labels, _quantised(image, cv2.COLOR_RGB2LAB))
        merged = group(graph, look[None], np.ones(1, np.float32) * 20, np.ones(1, np.float32), until=limit)
        labels = np.unique(merged.assignment[0], return_inverse=True)[1].astype(np.int32)[labels]
    return labels


def _graph(labels: Labels) -> Graph:
    count = int(labels.max()) + 1
    sizes = np.bincount(labels.ravel(), minlength=count)
    return Graph(neighbours(labels), sizes.astype(np.float32), _extents(labels, count), float(labels.size))


def _extents(labels: Labels, count: int) -> Floats:
    """Boxes (S,4) of the superpixels."""
    boxes = np.empty((count, 4), np.float32)
    height, width = labels.shape
    xs, ys = np.meshgrid(np.arange(width), np.arange(height))
    order = np.argsort(labels.ravel(), kind="stable")
    starts = np.searchsorted(labels.ravel()[order], np.arange(count))
    for column, (values, extreme) in enumerate(((xs, np.minimum), (ys, np.minimum), (xs + 1, np.maximum), (ys + 1, np.maximum))):
        boxes[:, column] = extreme.reduceat(values.ravel()[order], starts)
    return boxes


def _quantised(image: Image, conversion: int | None) -> list[tuple[Ints, int]]:
    """The three channels of a colour space as bin numbers, with the number of bins."""
    converted = image if conversion is None else cv2.cvtColor(image, conversion)
    return [(converted[..., c].astype(np.int64) * _COLOUR_BINS // 256, _COLOUR_BINS) for c in range(3)]


def _orientations(image: Image) -> tuple[Ints, int]:
    """Gradient direction (8) by strength (3) of each pixel as a bin number."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
    dx, dy = cv2.Sobel(grey, -1, 1, 0), cv2.Sobel(grey, -1, 0, 1)
    direction = ((np.arctan2(dy, dx) + np.pi) * (4 / np.pi)).astype(np.int64) % 8
    return direction * 3 + np.digitize(np.hypot(dx, dy), (20, 80)), 24


def _histograms(labels: Labels, channels: list[tuple[Ints, int]]) -> Floats:
    """(S,D) histograms of the channels in each superpixel, side by side; each row sums to 1."""
    count = int(labels.max()) + 1
    counts = [
        np.bincount((labels * bins + values).ravel(), minlength=count * bins).reshape(count, bins) for values, bins in channels
    ]
    return (np.concatenate(counts, 1) / np.bincount(labels.ravel(), minlength=count)[:, None] / len(channels)).astype(np.float32)


def _signatures(image: Image, labels: Labels) -> list[tuple[Floats, Floats]]:
    texture = _histograms(labels, [_orientations(image)])
    return [(_histograms(labels, _quantised(image, conversion)), texture) for conversion in _SPACES.values()]


def _strategies(signatures: list[tuple[Floats, Floats]], mixes: Floats) -> tuple[Floats, Floats, Floats]:
    looks = [np.concatenate([mix[0] * colour, mix[1] * texture], 1) for colour, texture in signatures for mix in mixes]
    repeated = np.tile(mixes, (len(signatures), 1))
    return np.stack(looks), repeated[:, 2], repeated[:, 3]


def _regions(merges: Merges, graph: Graph) -> tuple[Floats, Floats]:
    """The distinct regions (P,S) of all groupings and how long each lived, summed over the groupings that found it."""
    count = len(graph.sizes)
    total, groupings = merges.names.shape
    birth = np.arange(total)[:, None]
    lived = np.log((count - birth) / (count - merges.death + 1.0))
    names, chosen, which = np.unique(merges.names.ravel(), return_index=True, return_inverse=True)
    persistence = np.bincount(which.ravel(), lived.ravel()) / groupings
    packed = merges.members.reshape(total * groupings, -1)[chosen]
    members = np.unpackbits(packed, axis=1, count=count).astype(np.float32)
    return np.concatenate([np.eye(count, dtype=np.float32), members]), np.concatenate([np.zeros(count), persistence])


def _objectness(members: Floats, persistence: Floats, sizes: Floats, image: Image, labels: Labels, graph: Graph) -> Floats:
    return persistence / (persistence + 0.05)


def _proposals(members: Floats, scores: Floats, labels: Labels, size: tuple[int, int]) -> Proposals:
    """Bring the label map to the image's size and measure the boxes there."""
    height, width = size
    rows, columns = (np.arange(n) * k // n for n, k in zip(size, labels.shape, strict=True))
    labels = labels[rows[:, None], columns]
    count = members.shape[1]
    extents, inside = _extents(labels, count), members.astype(bool)[..., None]
    low = np.where(inside, extents[:, :2], np.inf).min(1)
    high = np.where(inside, extents[:, 2:], -np.inf).max(1)
    return Proposals(
        torch.from_numpy(np.concatenate([low, high], 1).astype(np.float32)),
        torch.from_numpy(scores.astype(np.float32)),
        torch.from_numpy(labels),
        torch.from_numpy(members.astype(bool)),
    )
