"""Masks as sets of superpixels, against what pixels say."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as rle

from wsis.coco.masks import runs_of_masks
from wsis.proposals.regions import Masks, join, measure, order, overlaps, superpixels

STACKS = st.tuples(st.integers(0, 5), st.integers(1, 9), st.integers(1, 9)).flatmap(
    lambda shape: arrays(np.uint8, shape, elements=st.integers(0, 1))
)


def made_of(stack: np.ndarray) -> Masks:
    coded = [rle.encode(np.asfortranarray(mask)) for mask in stack]
    return superpixels(runs_of_masks(coded, stack.shape[1:], [""] * len(stack)))


@given(STACKS)
def test_superpixels_are_where_all_masks_are_constant(stack):
    labels, members = made_of(stack)
    assert labels.dtype == np.int32
    assert (members[:, labels] == stack).all()
    assert members.shape == (len(stack), labels.max() + 1)
    assert len(np.unique(members, axis=1).T) == members.shape[1], "no two hold the same masks"
    assert set(np.unique(labels)) == set(range(members.shape[1])), "none is empty"


def test_masks_beyond_the_bits_of_a_name():
    stack = np.eye(100, dtype=np.uint8).reshape(100, 10, 10)
    assert (made_of(stack).members[:, made_of(stack).labels] == stack).all()


@given(STACKS)
def test_boxes_and_areas(stack):
    masks = made_of(stack)
    boxes, areas = measure(masks)
    for mask, box in zip(stack, boxes.tolist(), strict=True):
        y, x = np.nonzero(mask)
        assert box == ([x.min(), y.min(), x.max() + 1, y.max() + 1] if len(y) else [0] * 4)
    assert areas.tolist() == np.bincount(masks.labels.ravel()).tolist()
    void = Masks(np.where(masks.labels == 0, -1, masks.labels), masks.members)
    assert measure(void)[1].tolist() == [0, *areas[1:]]


@given(STACKS, st.integers(0, 5))
def test_overlaps_are_those_of_pycocotools(stack, first):
    masks = made_of(stack)
    shared, sizes = overlaps(masks.members, measure(masks)[1])
    assert sizes.tolist() == stack.sum((1, 2)).tolist()
    coded = [rle.encode(np.asfortranarray(mask)) for mask in stack]
    iou = shared / np.maximum(sizes[:, None] + sizes - shared, 1)
    assert iou.ravel() == pytest.approx(np.ravel(rle.iou(coded, coded, [0] * len(coded))))


@given(STACKS, STACKS)
def test_joined_maps_hold_the_masks_of_both(one, two):
    two = np.resize(two, (len(two), *one.shape[1:]))
    first, second = made_of(one), made_of(two)
    holes = Masks(np.where(first.labels == 0, -1, first.labels), first.members)
    for a, b in ((first, second), (holes, second), (second, holes)):
        labels, members = join([a, b])
        wanted = [
            np.concatenate([m.members, np.zeros((len(m.members), 1), bool)], 1) for m in (a, b)
        ]
        pixels = np.concatenate([w[:, m.labels] for w, m in zip(wanted, (a, b), strict=True)])
        assert (members[:, labels] == pixels).all()


def brute_order(stack: np.ndarray, worth: np.ndarray) -> list[int]:
    """Wholes, parts and duplicates by their definitions, mask by mask."""
    masks, kept, tiers = stack.astype(bool), [], {}
    sequence = sorted(range(len(masks)), key=lambda k: (-worth[k], k))
    for k in sequence:
        both = [(masks[k] & masks[j]).sum() for j in kept]
        unions = [(masks[k] | masks[j]).sum() for j in kept]
        if any(b >= 0.8 * u for b, u in zip(both, unions, strict=True)):
            tiers[k] = 2
            continue
        larger = [b for b, j in zip(both, kept, strict=True) if masks[j].sum() > masks[k].sum()]
        tiers[k] = int(any(b >= 0.8 * masks[k].sum() for b in larger))
        kept.append(k)
    return sorted(sequence, key=lambda k: tiers[k])


@given(STACKS, st.data())
def test_wholes_parts_duplicates(stack, data):
    worth = np.array(
        data.draw(st.lists(st.integers(0, 3), min_size=len(stack), max_size=len(stack)))
    )
    masks = made_of(stack)
    found = order(masks.members, measure(masks)[1], worth.astype(float))
    assert found.tolist() == brute_order(stack, worth)


def test_a_person_comes_before_the_shirt_and_the_second_person_last():
    person, shirt, dog = np.zeros((3, 20, 20), np.uint8)
    person[2:18, 2:10], shirt[6:12, 3:9], dog[10:18, 12:18] = 1, 1, 1
    again = person.copy()
    again[2, 2] = 0
    stack = np.stack([shirt, again, dog, person])
    masks = made_of(stack)
    areas = measure(masks)[1]
    found = order(masks.members, areas, stack.sum((1, 2)).astype(float))
    assert found.tolist() == [3, 2, 0, 1]
    sure_of_the_shirt = order(masks.members, areas, np.array([0.9, 0.2, 0.5, 0.8]))
    assert sure_of_the_shirt.tolist() == [0, 3, 2, 1], "a whole that is less sure is no better"
