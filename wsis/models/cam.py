"""The floor of every comparison: class activation maps and the proposals that fit them best, learnt from tags.

A classifier's map of each class is cut at a fraction of its maximum; each connected piece is
answered by the proposal whose mask overlaps it most. Zhou et al., CVPR 2016, with proposals as in
the "CAM + MCG" rows of the papers' tables.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import torch
from pycocotools import mask as rle
from torch import Tensor

from wsis.method import Method, filled
from wsis.nn.backbone import BackboneSettings
from wsis.nn.masks import run_lengths, segment_masks
from wsis.nn.mil import detect
from wsis.nn.regions import enlarge
from wsis.parts.classifier import Classifier, Pooling
from wsis.types import RLE, Batch, Prediction, Proposals, Sample, size_of

__all__ = ["CAM"]


_BACKBONE = BackboneSettings("resnet50", output_stride=16, frozen_stages=1)


class CAM(Method):
    """Classify, then answer each peak region of a class's map with the best-fitting proposal.

    Args:
        num_classes: Number of thing classes; taken from the data.
        backbone: The network that makes the features.
        pooling: How a class map becomes one score: mean, log-mean-exp or maximum; small objects
            vanish in a mean.
        lr: Peak learning rate of AdamW, reached after a fifth of the steps.
        threshold: Fraction of its maximum at which a class map is cut.
        nms: Box IoU above which the lower-scored of two answers of a class is dropped.
    """

    needs_segments = True

    def __init__(
        self,
        num_classes: int = 20,
        backbone: BackboneSettings = _BACKBONE,
        pooling: Pooling = "average",
        lr: float = 1e-3,
        threshold: float = 0.3,
        nms: float = 0.3,
    ) -> None:
        super().__init__()
        backbone = filled(_BACKBONE, backbone)
        self.save_hyperparameters()
        self.classifier = Classifier(num_classes, backbone, pooling, lr=lr)

    def training_step(self, batch: Batch, _: int) -> Tensor:
        """Train the classifier."""
        loss = self.classifier.loss(batch)
        self.log_losses({}, loss, len(batch))
        return loss

    def configure_optimizers(self) -> Any:
        """The classifier's."""
        return self.classifier.optimiser(int(self.trainer.estimated_stepping_batches))

    def predict(self, sample: Sample) -> Prediction:
        """Answer each piece of each class's map; a piece's score is the class probability times its share of the maximum."""
        size = size_of(sample["image"])
        maps = self.classifier([sample["image"]])
        probability = self.classifier.pooled(maps, [sample])[0].sigmoid()
        maps = enlarge(maps.relu(), self.classifier.backbone.stride, size)[0].float().cpu().numpy()
        pieces, labels, scores = [], [], []
        for number, map_ in enumerate(maps):
            for piece, share in cut(map_, self.hparams["threshold"]):
                pieces += [piece]
                labels += [number]
                scores += [float(probability[number]) * share]
        boxes, masks = answer(pieces, sample["proposals"], size)
        kept, best = torch.tensor(scores), torch.tensor(labels, dtype=torch.int64)
        table = torch.zeros(len(kept), len(probability)).scatter_(1, best[:, None], kept[:, None])
        at, score, label, index = detect(table, boxes, self.hparams["nms"])
        return Prediction(
            sample["image_id"], size, at, score, label, [masks[i] for i in index.tolist()]
        )


def cut(map_: np.ndarray, threshold: float) -> list[tuple[np.ndarray, float]]:
    """The connected pieces (H,W) bool of a map above `threshold` of its maximum, each with its peak over that maximum."""
    peak = float(map_.max())
    if peak <= 0:
        return []
    count, pieces = cv2.connectedComponents((map_ >= threshold * peak).astype(np.uint8))
    return [
        (piece, float(map_[piece].max()) / peak) for piece in (pieces == i for i in range(1, count))
    ]


def answer(
    pieces: list[np.ndarray], proposals: Proposals, size: tuple[int, int]
) -> tuple[Tensor, list[RLE]]:
    """For each piece (H,W) the proposal of greatest mask IoU: boxes (N,4) and masks; the piece itself where there are none."""
    if proposals.members is None or proposals.labels is None or not len(proposals.boxes):
        masks = [run_lengths(piece) for piece in pieces]
        boxes = np.array([rle.toBbox(mask) for mask in masks]).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        return torch.from_numpy(boxes).float(), masks
    labels, members = proposals.labels.cpu().numpy(), proposals.members.cpu().float().numpy()
    inside, segments = labels >= 0, members.shape[1]
    area = np.bincount(labels[inside], minlength=segments)
    best = []
    for piece in pieces:
        shared = members @ np.bincount(labels[inside & piece], minlength=segments)
        best += [int((shared / (members @ area + piece.sum() - shared).clip(1)).argmax())]
    return proposals.boxes.cpu()[best], segment_masks(
        proposals, torch.tensor(best, dtype=torch.int64)
    )
