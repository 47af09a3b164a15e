"""What a model's predictions are as labels."""

from __future__ import annotations

import pytest
import torch

from wsis.method import Method
from wsis.runs.labels import Labeller
from wsis.types import Prediction

FOUND = Prediction(
    1,
    (4, 5),
    torch.ones(2, 4),
    torch.tensor([0.9, 0.8]),
    torch.tensor([0, 1]),
    [],
    torch.zeros(4, 5, 2, dtype=torch.int32),
)
BATCH = [{"target": {"tags": torch.tensor([0.0, 1.0])}}]


class Detector(Method):
    def predict_step(self, batch, batch_idx=0):
        return [FOUND for _ in batch]


class Ready(Detector):
    def label(self, batch, score_threshold=0.5):
        return [FOUND for _ in batch]


@pytest.mark.parametrize(
    ("model", "labels"), [(Detector(), [1]), (Ready(), [0, 1])], ids=["detections", "its own"]
)
def test_panoptic_maps_are_no_labels(model, labels):
    """They would be written as a png for each image."""
    (found,) = Labeller(model).predict_step(BATCH, 0)
    assert found.panoptic is None
    assert found.labels.tolist() == labels
