"""CAM, the baseline of every comparison: class activation maps and the proposals that fit them.

A classifier is trained on tags. Its map of each class is thresholded at a fraction of the maximum,
and each connected component selects the proposal with the highest mask IoU. Zhou et al., CVPR 2016,
with proposals as in the "CAM + MCG" rows of the papers' tables.
"""

from __future__ import annotations

from typing import Any, ClassVar

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from pycocotools import mask as rle
from torch import Tensor

from wsis.method import Method, filled
from wsis.nn.backbone import BackboneSettings
from wsis.nn.masks import run_lengths, segment_masks, segments_of
from wsis.nn.mil import detect
from wsis.nn.regions import enlarge
from wsis.nn.views import Inference, image_views
from wsis.parts.classifier import Classifier, MapPooling
from wsis.types import RLE, Batch, Prediction, Proposals, Sample, size_of
from wsis.values import COUNT, FRACTION, PART, POSITIVE, WHOLE, Ranges

__all__ = ["CAM"]

_BACKBONE = BackboneSettings("resnet50", output_stride=16, frozen_stages=1)


class CAM(Method):
    """Classify images, and select the best-fitting proposal for each component of a class's map.

    Args:
        num_classes: Number of thing classes; taken from the data.
        backbone: The network that computes features.
        pooling: How a class map becomes one score: mean, log-mean-exp or maximum; small objects
            vanish in a mean.
        lr: Peak learning rate of AdamW, reached after a fifth of the steps.
        threshold: Fraction of its maximum at which a class map is thresholded.
        nms: Box IoU above which the lower-scored of two detections of a class is dropped.
        test_side: Short side in pixels that an image is scaled to for prediction; 0 keeps its size.
        test_max_side: Longest side in pixels; larger images are scaled down for prediction.
    """

    needs_segments = True
    ranges: ClassVar[Ranges] = {
        POSITIVE: ("lr",),
        PART: ("threshold",),
        FRACTION: ("nms",),
        WHOLE: ("test_side",),
        COUNT: ("test_max_side",),
    }

    def __init__(
        self,
        num_classes: int = 20,
        backbone: BackboneSettings = _BACKBONE,
        pooling: MapPooling = "average",
        lr: float = 1e-3,
        threshold: float = 0.3,
        nms: float = 0.3,
        test_side: int = 0,
        test_max_side: int = 1333,
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
        """Return the classifier's optimiser and schedule."""
        return self.classifier.optimiser(int(self.trainer.estimated_stepping_batches))

    def predict(self, sample: Sample) -> Prediction:
        """Detect an object for each component of each class's map.

        Its score is the class probability times the component's peak, relative to the map's.
        """
        probability, maps = self.maps(sample)
        components, labels, scores = [], [], []
        for number, activation in enumerate(maps.float().cpu().numpy()):
            for component, peak in cut(activation, self.hparams["threshold"]):
                components.append(component)
                labels.append(number)
                scores.append(float(probability[number]) * peak)
        size = size_of(sample["image"])
        boxes, masks = answer(components, sample["proposals"], size)
        values, column = torch.tensor(scores), torch.tensor(labels, dtype=torch.int64)
        table = torch.zeros(len(values), len(probability))
        table.scatter_(1, column[:, None], values[:, None])
        kept, score, label, index = detect(table, boxes, self.hparams["nms"])
        chosen = [masks[i] for i in index.tolist()]
        return Prediction(sample["image_id"], size, kept, score, label, chosen)

    def maps(self, sample: Sample) -> tuple[Tensor, Tensor]:
        """Return the probability (C,) and the map (C,H,W), at least 0, of each class."""
        size, side = size_of(sample["image"]), self.hparams["test_side"]
        inference = Inference((side,) if side else (), flip=False)
        (view,) = image_views(sample["image"], inference, self.hparams["test_max_side"])
        logits = self.classifier([view.image])
        pooled = self.classifier.pooled(logits, [{"image": view.image}])
        maps = enlarge(logits.relu(), self.classifier.backbone.stride, size_of(view.image))
        if size_of(view.image) != size:
            maps = F.interpolate(maps, size=size, mode="bilinear")
        return pooled[0].sigmoid(), maps[0]


def cut(map_: np.ndarray, threshold: float) -> list[tuple[np.ndarray, float]]:
    """Return the components (H,W) bool of a map (H,W) above `threshold` of its maximum.

    Each comes with its peak relative to the maximum.
    """
    peak = float(map_.max())
    if peak <= 0:
        return []
    count, numbers = cv2.connectedComponents((map_ >= threshold * peak).astype(np.uint8))
    pieces = [numbers == i for i in range(1, count)]
    return [(piece, float(map_[piece].max()) / peak) for piece in pieces]


def answer(
    pieces: list[np.ndarray], proposals: Proposals, size: tuple[int, int]
) -> tuple[Tensor, list[RLE]]:
    """Return boxes (N,4) and masks of the proposal with the highest mask IoU with each piece (H,W).

    Without segments the pieces themselves are returned.
    """
    if proposals.members is None or proposals.labels is None or not len(proposals.boxes):
        masks = [run_lengths(piece) for piece in pieces]
        boxes = np.array([rle.toBbox(mask) for mask in masks]).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        return torch.from_numpy(boxes).float(), masks
    places = [int(iou.argmax()) for iou in overlaps(pieces, proposals)]
    best = torch.tensor(places, dtype=torch.int64)
    return proposals.boxes.cpu()[best], segment_masks(proposals, best)


def overlaps(pieces: list[np.ndarray], proposals: Proposals) -> list[np.ndarray]:
    """Return the mask IoU (P,) of proposals with each piece (H,W) bool, by their superpixels."""
    label_map, chosen = segments_of(proposals)
    labels, members = label_map.cpu().numpy(), chosen.cpu().float().numpy()
    inside, segments = labels >= 0, members.shape[1]
    area = np.bincount(labels[inside], minlength=segments)
    found = []
    for piece in pieces:
        shared = members @ np.bincount(labels[inside & piece], minlength=segments)
        union = members @ area + piece.sum() - shared
        found.append(shared / union.clip(1))
    return found
