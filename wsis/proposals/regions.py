"""Masks as sets of superpixels: made from run lengths, put together, compared and put in order.

Nothing here has an entry for each pixel of each mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from wsis.coco.runs import Runs

__all__ = ["Masks", "join", "measure", "order", "overlaps", "repeated", "superpixels"]

Array = NDArray[Any]
_SAME = 0.8
"""IoU from which a mask is a duplicate of a better one."""
_INSIDE = 0.8
"""Share of a mask inside a larger one from which it is a part of it."""
_EXACT = 2**24  # single precision counts pixels up to here


class Masks(NamedTuple):
    """Masks as sets of superpixels."""

    labels: NDArray[np.int32]
    """(H,W) 0-based superpixel of each pixel, -1 for none."""
    members: NDArray[np.bool_]
    """(P,S) the superpixels of each proposal."""


def superpixels(runs: Runs) -> Masks:
    """Return masks as sets of superpixels, the areas on which all masks are constant."""
    (height, width), total = runs.size, runs.size[0] * runs.size[1]
    count = len(runs.first)
    changes = np.cumsum(runs.lengths)  # counted through all masks, in which each has `total` pixels
    mask = np.repeat(np.arange(count), runs.counts)
    at = changes - mask * total
    inside = at < total
    changes, mask, at = changes[inside], mask[inside], at[inside]
    # each mask has a random number; equal sums of numbers, by exclusive or, mean equal sets
    numbers = np.random.default_rng(0).integers(0, 2**64, count, np.uint64)
    sequence = np.argsort(at, kind="stable")
    names = np.bitwise_xor.accumulate(np.concatenate([[np.uint64(0)], numbers[mask[sequence]]]))
    begins = np.concatenate([[0], at[sequence]])
    last = np.diff(begins, append=total) > 0  # of the changes at one pixel
    begins, names = begins[last], names[last]
    _, first, labels = np.unique(names, return_index=True, return_inverse=True)
    pixels = np.repeat(labels.astype(np.int32), np.diff(begins, append=total))
    sample = np.arange(count)[:, None] * total + begins[first]
    before = (
        np.searchsorted(changes, sample, "right")
        - np.searchsorted(changes, np.arange(count) * total)[:, None]
    )
    return Masks(np.ascontiguousarray(pixels.reshape(width, height).T), before % 2 == 1)


def join(masks: Sequence[Masks]) -> Masks:
    """Return the masks of several label maps of one image on the common map of all."""
    labels: Array = masks[0].labels
    members: Array = masks[0].members
    for other, theirs in masks[1:]:
        both = labels.astype(np.int64) * (theirs.shape[1] + 1) + other  # other may be -1
        names, labels = np.unique(both, return_inverse=True)
        mine, its = np.divmod(names + 1, theirs.shape[1] + 1)
        labels = labels.reshape(other.shape).astype(np.int32)
        members = np.concatenate([_columns(members, mine), _columns(theirs, its - 1)])
    return Masks(labels, members)


def _columns(members: Array, chosen: Array) -> Array:
    """Return columns of `members` (P,S); the column -1 is empty."""
    none = np.zeros((len(members), 1), bool)
    columns: Array = np.concatenate([members, none], axis=1)[:, chosen]
    return columns


def measure(masks: Masks) -> tuple[Array, Array]:
    """Return the tight boxes (P,4) of masks, zeros for an empty one, and superpixels' areas (S,).

    They are those of the runs along rows, which are far fewer than the pixels.
    """
    labels, members = masks
    begins = np.ones(labels.shape, bool)
    begins[:, 1:] = labels[:, 1:] != labels[:, :-1]
    at = np.flatnonzero(begins)
    length = np.diff(at, append=labels.size)
    inside = labels.ravel()[at] >= 0
    at, length = at[inside], length[inside]
    run = labels.ravel()[at]
    y, x = np.divmod(at, labels.shape[1])
    low = np.full((members.shape[1], 2), max(labels.shape))
    high = np.zeros_like(low)
    np.minimum.at(low, run, np.stack([x, y], 1))
    np.maximum.at(high, run, np.stack([x + length, y + 1], 1))
    first = np.where(members[:, :, None], low, max(labels.shape)).min(1, initial=2**31)
    last = np.where(members[:, :, None], high, 0).max(1, initial=0)
    seen = members.any(axis=1, keepdims=True)
    boxes = np.where(seen, np.concatenate([first, last], 1), 0)
    areas = np.bincount(run, length, members.shape[1]).astype(np.int64)
    return boxes.astype(np.float32), areas


def overlaps(members: Array, areas: Array) -> tuple[Array, Array]:
    """Return the pixels (P,P) that two masks share, and the pixels (P,) of each.

    Args:
        members: (P,S) superpixels of each mask.
        areas: (S,) pixels of each superpixel.
    """
    kind = np.float32 if areas.sum() < _EXACT else np.float64
    sets = members.astype(kind)
    weighted = sets * areas.astype(kind)
    return weighted @ sets.T, weighted.sum(1)


def repeated(shared: Array, sizes: Array, sequence: Array) -> NDArray[np.bool_]:
    """Return which masks (P,) are duplicates of one that comes before and is none itself.

    Args:
        shared: (P,P) pixels that two masks share.
        sizes: (P,) pixels of each.
        sequence: (P,) the masks, best first.
    """
    same = shared >= _SAME * (sizes[:, None] + sizes - shared)
    double = np.zeros(len(sizes), bool)
    for k, mask in enumerate(sequence):
        if not double[mask]:
            after = sequence[k + 1 :]
            double[after] |= same[mask, after]
    return double


def order(members: Array, areas: Array, worth: Array) -> Array:
    """Return the order of masks (P,): wholes, their parts, duplicates; each by worth, best first.

    A part lies for the most part in a larger mask of at least its worth.

    Args:
        members: (P,S) superpixels of each mask.
        areas: (S,) pixels of each superpixel.
        worth: (P,) of each mask; of equal masks the first is the better one.
    """
    shared, sizes = overlaps(members, areas)
    sequence: Array = np.argsort(-worth, kind="stable")
    double = repeated(shared, sizes, sequence)
    place = np.empty(len(worth), np.int64)
    place[sequence] = np.arange(len(worth))
    above = (sizes > sizes[:, None]) & (place < place[:, None]) & ~double
    part = (above & (shared >= _INSIDE * sizes[:, None])).any(1)
    ranks: Array = np.lexsort([place, np.where(double, 2, part)])
    return ranks
