"""Average precision of tags."""

from __future__ import annotations

import pytest
import torch

from wsis.metrics.tags import TagAP, scores_of
from wsis.types import Prediction


@pytest.mark.parametrize("classes", [1, 3])
def test_agrees_with_scikit_learn(classes):
    g = torch.Generator().manual_seed(0)
    scores = torch.randn(40, classes, generator=g).round(decimals=1)  # with ties
    tags = (torch.rand(40, classes, generator=g) < 0.3).long()
    metric = TagAP()
    for start in range(0, 40, 7):
        part = slice(start, start + 7)
        metric.update(scores[part], tags[part], list(range(40))[part])
    metrics = pytest.importorskip("sklearn.metrics")
    expected = metrics.average_precision_score(tags.numpy(), scores.numpy(), average="macro")
    assert metric.compute() == pytest.approx(expected, abs=1e-6)


def test_classes_without_an_image_do_not_count():
    metric = TagAP()
    metric.update(torch.tensor([[0.9, 0.2], [0.1, 0.8]]), torch.tensor([[1, 0], [0, 0]]), [1, 2])
    assert metric.compute() == 1
    metric.reset()
    metric.update(torch.rand(2, 2), torch.zeros(2, 2), [1, 2])
    assert metric.compute().isnan()


def test_a_repeated_image_counts_once():
    metric = TagAP()
    scores, tags = torch.tensor([[0.1], [0.5], [0.9]]), torch.tensor([[1], [0], [1]])
    metric.update(scores, tags, [4, 5, 6])
    once = metric.compute()
    metric.update(scores[:1], tags[:1], [4])
    assert metric.compute() == once


def test_an_image_has_the_score_of_its_best_detection():
    labels, scores = torch.tensor([2, 0, 2]), torch.tensor([0.3, 0.6, 0.7])
    prediction = Prediction(1, (4, 4), torch.zeros(3, 4), scores, labels, [])
    assert scores_of(prediction, 4).tolist() == pytest.approx([0.6, 0, 0.7, 0])
    nothing = Prediction(1, (4, 4), torch.zeros(0, 4), scores[:0], labels[:0], [])
    assert scores_of(nothing, 2).tolist() == [0, 0]
