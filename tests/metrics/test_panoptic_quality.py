"""Panoptic quality against a hand-worked case, a pixel-by-pixel count of the paper's definition, and torchmetrics."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics import detection

from wsis.metrics import PanopticQuality
from wsis.types import GroundTruth, Prediction

THINGS, STUFF = 3, 2


def pair(image: int, predicted, true) -> tuple[Prediction, GroundTruth]:
    none = torch.zeros(0)
    maps = [None if m is None else torch.as_tensor(np.asarray(m)).int() for m in (predicted, true)]
    prediction = Prediction(image, (4, 4), none.view(0, 4), none, none.long(), [], maps[0])
    return prediction, GroundTruth(none.view(0, 4), none.long(), [], none.bool(), maps[1])


def quality(pairs) -> dict[str, float | list[float]]:
    metric = PanopticQuality(THINGS, STUFF)
    for prediction, truth in pairs:
        metric.update([prediction], [truth])
    return {name: value.tolist() for name, value in metric.compute().items()}


def segments(panoptic) -> dict[tuple[int, int], set[tuple[int, int]]]:
    """Pixels of each segment; stuff has no instances, void is no segment."""
    found: dict[tuple[int, int], set[tuple[int, int]]] = {}
    for y, row in enumerate(np.asarray(panoptic).tolist()):
        for x, (label, instance) in enumerate(row):
            if label >= 0:
                found.setdefault((label, instance if label < THINGS else 0), set()).add((y, x))
    return found


def brute_force(pairs) -> dict[str, float | list[float]]:
    """Kirillov et al. 2019, sections 4.1 and 4.2, with sets of pixels."""
    sums = np.zeros((THINGS + STUFF, 4))  # IoU, matches, wrong, missed
    for prediction, truth in pairs:
        found, true = segments(prediction.panoptic), segments(truth.panoptic)
        void = {
            (y, x) for y, x in np.ndindex(truth.panoptic.shape[:2]) if truth.panoptic[y, x, 0] < 0
        }
        left = set(true)
        for (label, _), pixels in found.items():
            for key in sorted(left):
                iou = len(pixels & true[key]) / len((pixels - void) | true[key])
                if key[0] == label and iou > 0.5:
                    sums[label] += (iou, 1, 0, 0)
                    left.remove(key)
                    break
            else:
                if len(pixels & void) <= 0.5 * len(pixels):
                    sums[label, 2] += 1
        for label, _ in left:
            sums[label, 3] += 1
    figures: dict[str, float | list[float]] = {}
    each = {name: [math.nan] * (THINGS + STUFF) for name in ("PQ", "SQ", "RQ")}
    for label, (iou, hits, wrong, missed) in enumerate(sums):
        if hits + wrong + missed:
            each["PQ"][label] = iou / (hits + wrong / 2 + missed / 2)
            each["SQ"][label] = iou / hits if hits else 0.0
            each["RQ"][label] = hits / (hits + wrong / 2 + missed / 2)
    for name, values in each.items():
        figures[f"per_class/{name}"] = values
        for end, part in (("", values), ("_things", values[:THINGS]), ("_stuff", values[THINGS:])):
            known = [value for value in part if not math.isnan(value)]
            figures[name + end] = sum(known) / len(known) if known else math.nan
    return figures


def same(got, expected) -> None:
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(got[name], value, atol=1e-6, equal_nan=True)


def random_map(rng: np.random.Generator, void: float) -> np.ndarray:
    """Blocks of random segments, so that some match."""
    label = np.kron(rng.integers(0, THINGS + STUFF, (2, 3)), np.ones((4, 4), int))
    instance = np.kron(rng.integers(0, 3, (2, 3)), np.ones((4, 4), int))
    panoptic = np.stack([label, instance], -1)
    panoptic[rng.random(label.shape) < void] = (-1, 0)
    return panoptic


def alike(rng: np.random.Generator, panoptic: np.ndarray, void: float) -> np.ndarray:
    """The same with some pixels of another random map."""
    other = random_map(rng, void)
    return np.where(
        rng.random(panoptic.shape[:2])[..., None] < rng.uniform(0, 0.5), other, panoptic
    )


def random_pairs(seed: int, predicted_void: float = 0.2) -> list[tuple[Prediction, GroundTruth]]:
    rng = np.random.default_rng(seed)
    pairs = []
    for image in range(3):
        base = random_map(rng, 0)
        pairs.append(pair(image, alike(rng, base, predicted_void), alike(rng, base, 0.4)))
    return pairs


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_against_brute_force(seed):
    pairs = random_pairs(seed)
    same(quality(pairs), brute_force(pairs))


def test_random_cases_have_matches_and_mistakes():
    figures = [brute_force(random_pairs(seed))["PQ"] for seed in range(20)]
    assert 0.1 < np.mean(figures) < 0.9


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=15, deadline=None)
def test_against_torchmetrics_where_predictions_have_no_void(seed):
    """It treats void of predictions in a way of its own."""
    pairs = random_pairs(seed, predicted_void=0)
    metric = detection.PanopticQuality(
        set(range(THINGS)),
        set(range(THINGS, THINGS + STUFF)),
        return_sq_and_rq=True,
        return_per_class=True,
    )
    for prediction, truth in pairs:
        metric.update(prediction.panoptic[None], truth.panoptic[None])
    got = quality(pairs)
    for k, name in enumerate(("PQ", "SQ", "RQ")):
        np.testing.assert_allclose(
            np.nan_to_num(got[f"per_class/{name}"]), metric.compute()[:, k].numpy(), atol=1e-6
        )
    averages = detection.PanopticQuality(metric.things, metric.stuffs, return_sq_and_rq=True)
    for prediction, truth in pairs:
        averages.update(prediction.panoptic[None], truth.panoptic[None])
    np.testing.assert_allclose(
        [got["PQ"], got["SQ"], got["RQ"]], averages.compute().numpy(), atol=1e-6
    )


A, B, S, _ = [0, 1], [0, 2], [3, 0], [-1, 0]


def test_by_hand():
    true = [[A, A, A, A, S, S, S, S], [B, B, B, B, _, _, _, _]]
    found = [[A, A, A, S, S, S, S, [1, 1]], [B, B, S, S, S, [2, 9], [2, 9], [2, 9]]]
    # A: 3 of 4 -> 0.75; B: 2 of 4 is not above 0.5 -> one missed, one wrong; S: 3 of 6 (one of its 6 pixels is void: 5 + 4 - 3)
    # is not above 0.5 -> one missed, one wrong; class 1: one wrong; class 2: all of it void, no mistake
    got = quality([pair(1, found, true)])
    assert got["per_class/PQ"] == pytest.approx([0.75 / 2, 0, math.nan, 0, math.nan], nan_ok=True)
    assert got["per_class/SQ"] == pytest.approx([0.75, 0, math.nan, 0, math.nan], nan_ok=True)
    assert got["per_class/RQ"] == pytest.approx([0.5, 0, math.nan, 0, math.nan], nan_ok=True)
    assert got["PQ"] == pytest.approx(0.375 / 3)
    assert got["PQ_things"] == pytest.approx(0.375 / 2)
    assert got["PQ_stuff"] == 0


def test_a_perfect_map_under_other_instance_numbers():
    true = np.array([[A, B, S], [A, B, S]])
    found = true.copy()
    found[..., 1] = 70_000 - 7 * found[..., 1]  # of stuff too, where numbers mean nothing
    got = quality([pair(1, found, true)])
    assert (got["PQ"], got["SQ"], got["RQ"]) == (1, 1, 1)


def test_what_a_prediction_leaves_void_is_missed():
    got = quality([pair(1, [[_, _, A, A]], [[S, S, A, A]])])
    assert got["PQ_stuff"] == 0
    assert got["PQ_things"] == 1


def test_images_without_a_map_are_left_out():
    whole = pair(1, [[A, S]], [[A, S]])
    same(quality([whole, pair(2, None, [[A, S]]), pair(3, [[S, S]], None)]), quality([whole]))
    nothing = quality([pair(2, None, None)])
    assert all(math.isnan(nothing[name]) for name in ("PQ", "SQ_things", "RQ_stuff"))


def test_an_image_that_two_ranks_saw_counts_once():
    pairs = random_pairs(5)
    same(quality([*pairs, pairs[0]]), quality(pairs))


def test_wrong_maps_are_refused():
    with pytest.raises(ValueError, match="image 4 is predicted as"):
        quality([pair(4, [[A, A]], [[A]])])
    with pytest.raises(ValueError, match="class 5"):
        quality([pair(4, [[[5, 0]]], [[A]])])
