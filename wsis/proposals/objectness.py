"""Objectness of segments, from pixels alone.

The score is a product of three cues: the segment differs from its surroundings (contrast, as in
Alexe et al., TPAMI 2012), the surroundings resemble the frame of the image (boundary prior, as in
Zhu et al., CVPR 2014), and the segment is not small. A part of an object has contrast but is
surrounded by the object; a piece of background is surrounded by background but has no contrast.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix

__all__ = ["objectness"]

Floats = NDArray[np.float32]

_FULL_SIZE = 0.15
"""Fraction of the image above which a segment does not count as small."""
_LEVELS = 8  # bins per axis of Lab


def objectness(
    image: NDArray[np.uint8], labels: NDArray[Any], members: NDArray[np.bool_]
) -> Floats:
    """Score segments.

    Args:
        image: (H,W,3) uint8 RGB.
        labels: (H,W) int, superpixel of each pixel, 0-based.
        members: (P,S) bool, the superpixels of each segment.

    Returns:
        (P,) float32 scores in [0, 1].
    """
    counts = _colours(image, labels, members.shape[1])
    sizes = counts.sum(1)
    looks = counts / sizes[:, None].clip(1)
    # float64, so that the threads' order of summation does not change the float32 result
    selected = members.astype(np.float64)
    area = selected @ sizes
    inside = selected @ counts / area[:, None].clip(1)
    # (P,S) length of each segment's border with each superpixel, in pixel sides
    touching = (_borders(labels, members.shape[1]) @ selected.T).T * ~members
    length = touching.sum(1).clip(1)
    contrast = 1 - np.minimum(inside, touching @ looks / length[:, None]).sum(1)
    frame = _frame(labels, members.shape[1]) @ looks
    framed = touching @ np.minimum(looks, frame / frame.sum().clip(1)).sum(1) / length
    size = np.sqrt(area / labels.size / _FULL_SIZE).clip(max=1)
    return (contrast * framed * size).astype(np.float32)


def _colours(image: NDArray[np.uint8], labels: NDArray[Any], count: int) -> Floats:
    """Return the number (S,bins) of pixels of each Lab colour in each superpixel."""
    bins = lab_bins(cv2.cvtColor(image, cv2.COLOR_RGB2LAB), _LEVELS)
    keys = labels.astype(np.int64) * _LEVELS**3 + bins
    return (
        np.bincount(keys.ravel(), minlength=count * _LEVELS**3)
        .reshape(count, -1)
        .astype(np.float64)
    )


def lab_bins(lab: NDArray[Any], levels: int) -> NDArray[np.int64]:
    """Return the bin (...,) < levels^3 of each Lab colour (...,3).

    The bins of a and b divide the middle half of their range, where the colours of photographs lie.
    """
    scaled = (lab.astype(np.int64) - [0, 64, 64]) * [levels, 2 * levels, 2 * levels] // 256
    bins: NDArray[np.int64] = np.clip(scaled, 0, levels - 1) @ np.array([levels**2, levels, 1])
    return bins


def _borders(labels: NDArray[Any], count: int) -> Any:
    """Return the sparse symmetric matrix (S,S) of pixel sides that two superpixels share."""
    sides = [(labels[:, 1:], labels[:, :-1]), (labels[1:], labels[:-1])]
    first, second = (np.concatenate([pair[i].ravel() for pair in sides]) for i in (0, 1))
    apart = first != second
    ones = np.ones(int(apart.sum()), np.float32)
    half = coo_matrix((ones, (first[apart], second[apart])), (count, count)).tocsr()
    return half + half.T


def _frame(labels: NDArray[Any], count: int) -> Floats:
    """Return the number (S,) of pixels of each superpixel on the image's frame."""
    frame = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
    return np.bincount(frame, minlength=count).astype(np.float32)
