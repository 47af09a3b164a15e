"""A detector that looks at the truth, so that figures are known; without one it finds the middle of the image."""

from __future__ import annotations

import numpy as np
import torch
from pycocotools import mask as rle_masks

from wsis.method import Method
from wsis.metrics import Evaluation
from wsis.types import Prediction

__all__ = ["Peeper", "Tired"]


class Peeper(Method):
    """Says what is there.

    Args:
        num_classes: Number of classes.
        blind: Whether it finds nothing.
    """

    needs_proposals = False

    def __init__(self, num_classes: int, blind: bool = False) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def configure_callbacks(self):
        return [Evaluation()]

    def training_step(self, batch, batch_idx):
        loss = (self.weight - 1) ** 2
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch, batch_idx=0):
        return [self.look(sample) for sample in batch]

    test_step = predict_step = validation_step

    def look(self, sample) -> Prediction:
        """Every second object, half of it, and one too many of a class that is not there."""
        height, width = sample["size"]
        middle = np.zeros((height, width), np.uint8, order="F")
        middle[height // 4 : -height // 4, width // 4 : -width // 4] = 1
        masks, labels = [rle_masks.encode(middle)], [0]
        if len(sample["truth"].masks):
            truth = sample["truth"]
            chosen = range(0, len(truth.labels), 2)
            masks = [truth.masks[i] for i in chosen] + masks
            labels = [int(truth.labels[i]) for i in chosen] + [
                (int(truth.labels.max()) + 1) % self.hparams.num_classes
            ]
        if self.hparams.blind:
            masks, labels = [], []
        xywh = rle_masks.toBbox(masks).reshape(-1, 4) if masks else np.zeros((0, 4))
        boxes = torch.from_numpy(
            np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], 1)
        ).float()
        scores = torch.linspace(0.95, 0.6, len(masks))
        return Prediction(
            sample["image_id"], sample["size"], boxes, scores, torch.tensor(labels).long(), masks
        )

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class Tired(Peeper):
    """Finds nothing after its second step."""

    def look(self, sample) -> Prediction:
        self.hparams.blind = self.trainer.global_step > 2
        return super().look(sample)
