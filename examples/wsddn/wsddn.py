"""WSDDN (Bilen and Vedaldi, CVPR 2016) with segments as masks: a method in one file."""

from __future__ import annotations

import torch
from torch import Tensor

from wsis.losses import image_loss
from wsis.method import Method, filled
from wsis.nn.backbone import Backbone, BackboneSettings
from wsis.nn.masks import segment_masks
from wsis.nn.mil import MILHead, detect
from wsis.nn.regions import pool
from wsis.types import Batch, Prediction, Sample

BACKBONE = BackboneSettings("resnet18", output_stride=32, feature_level=2, frozen_stages=0)


class WSDDN(Method):
    """Score proposals for each class by what they show and by how they compare; the sums are tags.

    Args:
        num_classes: Number of thing classes; taken from the data.
        backbone: The network that computes features.
        lr: Learning rate of AdamW.
    """

    needs_segments = True  # proposals come with their pixels

    def __init__(
        self, num_classes: int = 20, backbone: BackboneSettings = BACKBONE, lr: float = 1e-3
    ) -> None:
        super().__init__()
        backbone = filled(BACKBONE, backbone)  # a dictionary may say only what differs
        self.save_hyperparameters()
        self.backbone = Backbone(backbone)
        self.head = MILHead(self.backbone.channels * 3 * 3, num_classes)

    def forward(self, batch: Batch) -> list[Tensor]:
        """Score the proposals of each image, (P,C)."""
        maps = self.backbone([sample["image"] for sample in batch])
        boxes = [sample["proposals"].boxes for sample in batch]
        pooled = pool(maps, boxes, self.backbone.stride, size=3, how="roi_align")
        return self.head(pooled.flatten(1), [len(of_image) for of_image in boxes])

    def training_step(self, batch: Batch, _: int) -> Tensor:
        """Compare the sum of each class's scores in an image with its tag."""
        tags = [sample["target"]["tags"] for sample in batch]
        loss = torch.stack([*map(image_loss, self(batch), tags)]).mean()
        self.log_losses({}, loss, len(batch))
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Optimise all that is not frozen."""
        return torch.optim.AdamW(self.parameters(), lr=self.hparams["lr"])

    def predict(self, sample: Sample) -> Prediction:
        """Keep the proposals of high scores, with their segments as masks."""
        (scores,), proposals = self([sample]), sample["proposals"]
        boxes, best, labels, which = detect(scores, proposals.boxes)
        masks = segment_masks(proposals, which)
        return Prediction(sample["image_id"], sample["size"], boxes, best, labels, masks)
