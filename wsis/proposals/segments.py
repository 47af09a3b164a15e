"""Segment proposals from pixels alone: superpixels, grouped in many ways, ranked without labels.

This is selective search (Uijlings et al., IJCV 2013) on one fine superpixel map (Felzenszwalb and
Huttenlocher, IJCV 2004). Every proposal is a set of these superpixels. Unlike in selective search,
proposals are ranked and have an objectness score.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from skimage.segmentation import felzenszwalb
from torchvision.ops import nms

from wsis.images.scale import resize_long_side
from wsis.proposals.grouping import Floats, Graph, Ints, Merges, group, neighbours
from wsis.proposals.objectness import objectness
from wsis.types import Proposals

__all__ = ["as_proposals", "propose", "rank", "superpixel_map"]

VERSION = 1
"""Raised whenever the proposals of an image change."""
SUPERVISION = "none"

Image = NDArray[np.uint8]
Labels = NDArray[np.int32]

_COLOUR_BINS = 20
_SPACES = (cv2.COLOR_RGB2LAB, cv2.COLOR_RGB2HSV_FULL)
_MIXES = ((1, 1, 1), (1, 1, 0), (1, 0, 1), (0, 1, 1), (1, 0, 0))  # weights of colour, size, fill
# colour space, scale and smallest segment of the starting partitions, at half size
_STARTS = (
    (cv2.COLOR_RGB2LAB, 75, 12),
    (cv2.COLOR_RGB2HSV_FULL, 75, 12),
    (cv2.COLOR_RGB2LAB, 200, 25),
    (cv2.COLOR_RGB2HSV_FULL, 200, 25),
    (cv2.COLOR_RGB2HSV_FULL, 30, 10),
)
_NEWBORN = 0.002  # added to every persistence, so that superpixels are ranked by size
_SIZE_POWER = 0.4
# (IoU, factor) for regions that overlap no better region by more than the IoU
_DOUBLES = ((0.5, 1.0), (0.7, 0.4), (0.85, 0.15), (1.0, 0.03))


class Regions(NamedTuple):
    """Distinct sets of superpixels."""

    members: NDArray[np.uint8]
    """(P,ceil(S/8)) packed bits."""
    boxes: Floats
    """(P,4) xyxy in working pixels."""
    sizes: Floats
    """(P,) area in working pixels."""
    persistence: Floats
    """(P,) log of (regions left at its birth / regions left at its end), mean over groupings."""


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
        limit: Maximum number of proposals.
        superpixels: Maximum number of superpixels.
        work_side: Maximum length in pixels of the long side; larger images are scaled down first.
        min_size: Minimum area of a proposal as a fraction of the image.
        max_size: Maximum area of a proposal as a fraction of the image.

    Returns:
        Proposals in image pixels with distinct masks, ranked so that the first ones cover as many
        objects as possible; the scores are those of `wsis.proposals.objectness`.
    """
    small = resize_long_side(image, work_side, enlarge=None)
    labels = superpixel_map(small, superpixels)
    graph = _graph(labels)
    regions = _regions(group(graph, *_strategies(small, labels), _starts(small, labels)), graph)
    share = regions.sizes / graph.area
    fits = (share >= min_size) & (share <= max_size)
    members, boxes, sizes, persistence = regions
    regions = Regions(members[fits], boxes[fits], sizes[fits], persistence[fits])
    best = _order(regions, share[fits])[:limit]
    chosen = np.unpackbits(regions.members[best], axis=1, count=len(graph.sizes)).astype(bool)
    return as_proposals(chosen, objectness(small, labels, chosen), labels, image.shape[:2])


def superpixel_map(image: Image, limit: int) -> Labels:
    """Return Felzenszwalb's map (H,W) in Lab, merged down to `limit` similar and small regions."""
    labels: Labels = felzenszwalb(
        cv2.cvtColor(image, cv2.COLOR_RGB2LAB), scale=50, sigma=0.8, min_size=25
    ).astype(np.int32)
    count = int(labels.max()) + 1
    if count > limit:
        look = _histograms(labels, _quantised(image, cv2.COLOR_RGB2LAB))
        weight = np.ones(1, np.float32)
        merged = group(
            _graph(labels), look[None], 3 * weight, weight, np.arange(count)[None], until=limit
        )
        labels = np.unique(merged.assignment[0], return_inverse=True)[1].astype(np.int32)[labels]
    return labels


def _graph(labels: Labels) -> Graph:
    count = int(labels.max()) + 1
    sizes = np.bincount(labels.ravel(), minlength=count)
    return Graph(
        neighbours(labels), sizes.astype(np.float32), _extents(labels, count), float(labels.size)
    )


def _extents(labels: Labels, count: int) -> Floats:
    """Return the boxes (S,4) of the superpixels."""
    boxes = np.empty((count, 4), np.float32)
    width = labels.shape[1]
    order = np.argsort(labels.ravel(), kind="stable")
    starts = np.searchsorted(labels.ravel()[order], np.arange(count))
    ys, xs = np.divmod(order, width)
    for column, (values, extreme) in enumerate(
        ((xs, np.minimum), (ys, np.minimum), (xs + 1, np.maximum), (ys + 1, np.maximum))
    ):
        boxes[:, column] = extreme.reduceat(values, starts)
    return boxes


def _quantised(image: Image, conversion: int) -> list[tuple[Ints, int]]:
    """Return the channels of a colour space as bin numbers, each with the number of bins."""
    converted = cv2.cvtColor(image, conversion)
    return [
        (converted[..., c].astype(np.int64) * _COLOUR_BINS // 256, _COLOUR_BINS) for c in range(3)
    ]


def _histograms(labels: Labels, channels: list[tuple[Ints, int]]) -> Floats:
    """Return the concatenated channel histograms (S,D) of each superpixel; rows sum to 1."""
    count = int(labels.max()) + 1
    counts = [
        np.bincount((labels * bins + values).ravel(), minlength=count * bins).reshape(count, bins)
        for values, bins in channels
    ]
    return (
        np.concatenate(counts, 1)
        / np.bincount(labels.ravel(), minlength=count)[:, None]
        / len(channels)
    ).astype(np.float32)


def _strategies(image: Image, labels: Labels) -> tuple[Floats, Floats, Floats]:
    """Return signatures, size weights and fill weights: every mix in every colour space."""
    looks = [_histograms(labels, _quantised(image, space)) for space in _SPACES]
    mixes = np.array(_MIXES, np.float32)
    repeated = np.tile(mixes, (len(looks), 1))
    return (
        np.stack([mix[0] * look for look in looks for mix in mixes]),
        repeated[:, 1],
        repeated[:, 2],
    )


def _starts(image: Image, labels: Labels) -> Ints:
    """Return the starting segments (M,S): the superpixels, then coarser Felzenszwalb maps.

    A superpixel belongs to the coarse segment with which it shares most pixels.
    """
    height, width = labels.shape
    count = int(labels.max()) + 1
    half = cv2.resize(
        image, (max(width // 2, 1), max(height // 2, 1)), interpolation=cv2.INTER_AREA
    )
    rows, columns = (np.minimum(np.arange(n) // 2, max(n // 2, 1) - 1) for n in (height, width))
    partitions = [np.arange(count)]
    for space, scale, min_size in _STARTS:
        coarse = felzenszwalb(cv2.cvtColor(half, space), scale=scale, sigma=0.6, min_size=min_size)[
            rows[:, None], columns
        ]
        segments = int(coarse.max()) + 1
        overlap = np.bincount(
            (labels.astype(np.int64) * segments + coarse).ravel(), minlength=count * segments
        )
        partitions.append(overlap.reshape(count, segments).argmax(1))
    return np.stack([partitions[i % len(partitions)] for i in range(len(_SPACES) * len(_MIXES))])


def _regions(merges: Merges, graph: Graph) -> Regions:
    """Return the superpixels and the distinct regions of all groupings."""
    count = len(graph.sizes)
    total, groupings = merges.names.shape
    lived = np.log((count - np.arange(total)[:, None]) / (count - merges.death + 1.0))
    _, chosen, which = np.unique(merges.names.ravel(), return_index=True, return_inverse=True)
    persistence = np.bincount(which.ravel(), lived.ravel()) / groupings
    return Regions(
        np.concatenate(
            [
                np.packbits(np.eye(count, dtype=bool), axis=1),
                merges.members.reshape(total * groupings, (count + 7) // 8)[chosen],
            ]
        ),
        np.concatenate([graph.boxes, merges.boxes.reshape(-1, 4)[chosen]]),
        np.concatenate([graph.sizes, merges.sizes.ravel()[chosen]]),
        np.concatenate([np.zeros(count), persistence]).astype(np.float32),
    )


def _order(regions: Regions, share: Floats) -> Ints:
    """Rank the regions (P,): persistent before transient, large before small, duplicates last."""
    raw = (regions.persistence + _NEWBORN) * share**_SIZE_POWER
    return rank(regions.boxes, raw)


def rank(boxes: Floats, worth: NDArray[Any]) -> Ints:
    """Return the order of regions (P,) by their worth, best first, of which duplicates lose most.

    Args:
        boxes: (P,4) xyxy.
        worth: (P,) float32, positive.
    """
    factors = np.full(len(worth), _DOUBLES[-1][1], np.float32)
    for overlap, factor in reversed(_DOUBLES[:-1]):
        kept = nms(torch.from_numpy(boxes), torch.from_numpy(worth), overlap)
        factors[kept.numpy()] = factor
    order: Ints = np.argsort(-worth * factors, kind="stable")
    return order


def as_proposals(
    members: NDArray[np.bool_], scores: Floats, labels: Labels, size: tuple[int, int]
) -> Proposals:
    """Return sets of superpixels as proposals in image pixels.

    Args:
        members: (P,S) superpixels of each proposal, which has some.
        scores: (P,) of each, best first.
        labels: (h,w) superpixel of each working pixel.
        size: (height, width) of the image, to which the label map is scaled.
    """
    rows, columns = (np.arange(n) * k // n for n, k in zip(size, labels.shape, strict=True))
    labels = labels[rows[:, None], columns]
    extents = _extents(labels, members.shape[1])
    sides = [np.where(members, extents[:, side], np.inf).min(1) for side in (0, 1)]
    sides += [np.where(members, extents[:, side], 0).max(1) for side in (2, 3)]
    boxes = np.stack(sides, 1).astype(np.float32)
    return Proposals(*(torch.from_numpy(array) for array in (boxes, scores, labels, members)))
