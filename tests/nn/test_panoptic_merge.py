"""Merging of instances and stuff: by hand, and what must hold of any merge."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as rle

from wsis.nn.panoptic import merge
from wsis.types import Prediction


def predicted(masks, scores, labels) -> Prediction:
    masks = np.asarray(masks, np.uint8)
    lengths = [rle.encode(np.asfortranarray(mask)) for mask in masks]
    boxes = torch.zeros(len(scores), 4)
    return Prediction(
        1,
        masks.shape[1:],
        boxes,
        torch.tensor(scores).float(),
        torch.tensor(labels).long(),
        lengths,
    )


def test_by_hand():
    masks = [
        [[1, 1, 1, 0, 0, 0], [0] * 6],  # second by score: 1 of 3 is taken, keeps two
        [[0, 0, 1, 1, 1, 0], [0] * 6],  # best
        [[0, 0, 0, 0, 1, 1], [0] * 6],  # 1 of 2 is taken, which is not more than half
        [[0, 0, 1, 1, 0, 0], [1, 0, 0, 0, 0, 0]],  # 2 of 3 are taken: left out
        [[0] * 6, [0, 0, 0, 0, 0, 1]],  # just below the score
        [[0] * 6, [0] * 6],  # empty
    ]
    prediction = predicted(masks, [0.8, 0.9, 0.5, 0.7, 0.499, 0.95], [0, 1, 0, 1, 1, 0])
    semantic = torch.tensor([[1, 1, 1, 1, 1, 1], [0, 0, 0, 1, 255, 0]])
    got = merge(prediction, semantic, 2, stuff_area=4)
    assert got.dtype == torch.int32
    assert got[..., 0].tolist() == [[0, 0, 1, 1, 1, 0], [2, 2, 2, -1, -1, 2]]
    assert got[..., 1].tolist() == [[2, 2, 1, 1, 1, 3], [0] * 6]
    assert merge(prediction, semantic, 2, stuff_area=5)[1, :, 0].tolist() == [-1] * 6
    strict = merge(prediction, semantic, 2, overlap_threshold=0.3, stuff_area=4)
    assert strict[..., 1].tolist() == [[0, 0, 1, 1, 1, 0], [0] * 6]


def test_no_instances_and_no_stuff():
    nothing = Prediction(1, (3, 4), torch.zeros(0, 4), torch.zeros(0), torch.zeros(0).long(), [])
    assert merge(nothing, torch.full((3, 4), 255), 5).unique().tolist() == [-1, 0]
    assert (merge(nothing, torch.zeros(3, 4).long(), 5, stuff_area=12)[..., 0] == 5).all()
    with pytest.raises(ValueError, match="stuff map"):
        merge(nothing, torch.zeros(4, 3).long(), 5)


@st.composite
def cases(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    count = draw(st.integers(0, 6))
    masks = np.zeros((count, 9, 12), np.uint8)
    for mask, (y, x) in zip(masks, rng.integers(0, 8, (count, 2)), strict=True):
        mask[y : y + rng.integers(0, 6), x : x + rng.integers(0, 6)] = 1
    prediction = predicted(masks, rng.permutation(20)[:count] / 20, rng.integers(0, 3, count))
    semantic = torch.from_numpy(rng.choice([0, 1, 255], (9, 12)))
    return (
        prediction,
        semantic,
        draw(st.sampled_from([0.0, 0.3, 0.5, 1.0])),
        draw(st.integers(1, 30)),
        rng,
    )


@given(cases())
@settings(max_examples=80, deadline=None)
def test_what_holds_of_every_merge(case):
    prediction, semantic, overlap, area, rng = case
    if not prediction.masks:
        prediction = prediction._replace(size=(9, 12))
    got = merge(prediction, semantic, 3, 0.3, overlap, area)
    classes, instances = got.unbind(-1)
    assert ((instances > 0) == ((classes >= 0) & (classes < 3))).all()
    free = classes >= 3
    assert (classes[free] - 3 == semantic[free]).all()
    for label in (0, 1):
        left = (semantic == label) & (instances == 0)
        assert int((classes == 3 + label).sum()) == (int(left.sum()) if left.sum() >= area else 0)
    order = [i for i in np.argsort(-prediction.scores.numpy()) if prediction.scores[i] >= 0.3]
    masks = [torch.from_numpy(rle.decode(prediction.masks[i])).bool() for i in order]
    shown = [instances == k for k in range(1, int(instances.max()) + 1)]
    taken, k = torch.zeros(9, 12).bool(), 0
    for i, mask in zip(order, masks, strict=True):
        visible = (
            k < len(shown)
            and bool((shown[k] & mask).any())
            and bool((shown[k] == (mask & ~taken)).all())
        )
        gone, all_of_it = (
            int((mask & taken).sum()),
            int(mask.sum()),
        )  # whole numbers: a share of 3 in 10 is exactly 0.3
        if gone <= overlap * all_of_it and gone < all_of_it:
            assert visible
            assert classes[shown[k]].unique().tolist() == [int(prediction.labels[i])]
            taken, k = taken | mask, k + 1
    assert k == len(shown)
    mixed = rng.permutation(len(prediction.scores))
    again = prediction._replace(
        scores=prediction.scores[mixed],
        labels=prediction.labels[mixed],
        masks=[prediction.masks[i] for i in mixed],
    )
    assert torch.equal(merge(again, semantic, 3, 0.3, overlap, area), got)
