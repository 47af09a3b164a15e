"""The score from which on detections are shown."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from wsis.metrics.instances import InstanceAP
from wsis.metrics.tags import DetectionTags
from wsis.metrics.threshold import best_threshold
from wsis.types import GroundTruth, Prediction


def f1(scores, correct, total, threshold):
    shown = scores >= threshold
    return 2 * correct[shown].sum() / (shown.sum() + total)


def test_no_other_score_has_a_better_f1():
    rng = np.random.default_rng(0)
    for _ in range(200):
        count = int(rng.integers(1, 12))
        scores = rng.integers(0, 6, count) / 5
        correct = rng.random(count) < 0.5
        total = int(correct.sum() + rng.integers(0, 4))
        best = best_threshold(scores, correct, total)
        if not correct.any():
            assert best == math.inf
        else:
            others = [f1(scores, correct, total, score) for score in np.unique(scores)]
            assert f1(scores, correct, total, best) == max(others)


def boxes(*corners: float) -> torch.Tensor:
    """Squares of side 10 from their left edges."""
    return torch.tensor([[x, 0, x + 10, 10] for x in corners], dtype=torch.float32).view(-1, 4)


def test_of_boxes_and_of_tags():
    """Two objects are found at .9 and .4; .6 and .2 are wrong: F1 is 2/3, 1/2, 4/5, 2/3."""
    truth = GroundTruth(boxes(0, 20), torch.tensor([0, 1]), [], torch.zeros(2, dtype=torch.bool))
    scores, labels = torch.tensor([0.9, 0.6, 0.4, 0.2]), torch.tensor([0, 2, 1, 2])
    prediction = Prediction(1, (10, 100), boxes(0, 40, 20, 60), scores, labels, [])
    metric = InstanceAP(3)
    metric.update([prediction], [truth])
    assert metric.compute()["F1_threshold"] == pytest.approx(0.4)
    tags = DetectionTags()
    tags.update([prediction], [torch.tensor([1.0, 1.0, 0.0])])
    figures = tags.compute()
    assert figures["F1_threshold"] == pytest.approx(0.4)
    assert figures["tag_mAP"] == 1


def test_crowds_count_neither_way():
    crowd = torch.tensor([False, True])
    truth = GroundTruth(boxes(0, 20), torch.tensor([0, 0]), [], crowd)
    scores, labels = torch.tensor([0.9, 0.5]), torch.tensor([0, 0])
    prediction = Prediction(1, (10, 100), boxes(20, 0), scores, labels, [])
    metric = InstanceAP(1)
    metric.update([prediction], [truth])
    assert metric.compute()["F1_threshold"] == 0.5


def test_nothing_correct_has_no_threshold():
    truth = GroundTruth(boxes(50), torch.tensor([0]), [], torch.zeros(1, dtype=torch.bool))
    prediction = Prediction(1, (10, 100), boxes(0), torch.tensor([0.9]), torch.tensor([0]), [])
    metric = InstanceAP(1)
    metric.update([prediction], [truth])
    assert metric.compute()["F1_threshold"].isnan()
    assert DetectionTags().compute() == {}
