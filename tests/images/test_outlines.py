"""Outlines, rasterised by pycocotools, are the masks again."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as rle

from wsis.images.outlines import AGREEMENT, outlines, rings, single_ring


def drawn(polygons, shape) -> np.ndarray:
    flat = [points.flatten().tolist() for points in polygons]
    return rle.decode(rle.merge(rle.frPyObjects(flat, *shape))).astype(bool)


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return (a & b).sum() / (a | b).sum()


def ring_mask() -> np.ndarray:
    """A disc with two holes, in one of which lies a square, and a part of its own."""
    y, x = np.ogrid[:200, :260]
    mask = (y - 100) ** 2 + (x - 100) ** 2 < 90**2
    mask &= (y - 80) ** 2 + (x - 80) ** 2 >= 30**2
    mask[130:150, 110:140] = False
    mask[70:90, 70:90] = True
    mask[20:60, 210:250] = True
    return mask


def test_parts_and_holes():
    parts = outlines(ring_mask())
    assert sorted(len(part.holes) for part in parts) == [0, 0, 2]
    assert iou(drawn(rings(parts), (200, 260)), ring_mask()) >= AGREEMENT
    assert iou(drawn([single_ring(parts)], (200, 260)), ring_mask()) >= AGREEMENT
    assert not drawn(rings(parts), (200, 260))[140, 120], "the hole is kept"
    corners = sum(len(part.outer) for part in parts)
    assert corners < 60, "of 700 along the edges of pixels"


@given(arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12))))
def test_any_small_mask(mask):
    parts = outlines(mask)
    if not mask.any():
        assert parts == []
        assert single_ring(parts).shape == (0, 2)
        return
    for polygons in (rings(parts), [single_ring(parts)]):
        assert iou(drawn(polygons, mask.shape), mask) >= AGREEMENT


@given(arrays(bool, st.tuples(st.integers(1, 6), st.integers(1, 6))))
def test_a_mask_of_few_pixels_is_exact(mask):
    """An IoU below 1 is below .98 where a mask has fewer than 49 pixels."""
    if mask.any():
        assert np.array_equal(drawn(rings(outlines(mask)), mask.shape), mask)


@pytest.mark.parametrize("blur", [0.5, 1, 2])
def test_ragged_masks_with_many_holes(blur):
    noise = np.random.default_rng(0).random((150, 200)).astype(np.float32)
    mask = cv2.GaussianBlur(noise, (0, 0), blur) > 0.5
    parts = outlines(mask)
    assert sum(len(part.holes) for part in parts) > 10
    for polygons in (rings(parts), [single_ring(parts)]):
        assert iou(drawn(polygons, mask.shape), mask) >= AGREEMENT
