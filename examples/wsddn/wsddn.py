"""WSDDN (Bilen and Vedaldi, CVPR 2016), its boxes' segments as masks: a method of your own in one file."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from wsis.losses import image_loss
from wsis.metrics import Evaluation
from wsis.nn.backbone import Backbone
from wsis.nn.masks import segment_masks
from wsis.nn.mil import MILHead, detect
from wsis.nn.regions import pool
from wsis.types import Batch, Prediction, Sample


class WSDDN(pl.LightningModule):
    """Score proposals for each class by what they show and by how they compare; learn that the sums are the tags.

    Args:
        num_classes: number of thing classes; taken from the data.
        backbone: network that makes the features: any timm name.
        weights: where the backbone starts from: "imagenet", "none" (random) or a weights file.
        stage: which feature map of the backbone is used.
        lr: learning rate of AdamW.
    """

    supervision = "tags"  # all that training samples hold
    needs_segments = True  # proposals come with their pixels

    def __init__(
        self,
        num_classes: int = 20,
        backbone: str = "resnet18",
        weights: str = "imagenet",
        stage: int = 2,
        lr: float = 1e-3,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.backbone = Backbone(backbone, weights, output_stride=32, stage=stage, freeze=0)
        self.head = MILHead(self.backbone.channels * 3 * 3, num_classes)

    def forward(self, batch: Batch) -> list[Tensor]:
        maps, boxes = (
            self.backbone([s["image"] for s in batch]),
            [s["proposals"].boxes for s in batch],
        )
        pooled = pool(maps, boxes, self.backbone.stride, size=3, how="roi_align")
        return self.head(pooled.flatten(1), [len(own) for own in boxes])

    def training_step(self, batch: Batch, _: int) -> Tensor:
        losses = [
            image_loss(scores, s["target"]["tags"])
            for scores, s in zip(self(batch), batch, strict=True)
        ]
        loss = torch.stack(losses).mean()
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch))
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=self.hparams["lr"])

    def configure_callbacks(self) -> list[pl.Callback]:
        return [Evaluation()]  # mask AP and CorLoc of whatever is predicted

    def predict_step(self, batch: Batch, _: int) -> list[Prediction]:
        return [
            self.predict(sample, scores) for sample, scores in zip(batch, self(batch), strict=True)
        ]

    validation_step = test_step = predict_step

    def predict(self, sample: Sample, scores: Tensor) -> Prediction:
        proposals = sample["proposals"]
        boxes, best, labels, which = detect(scores, proposals.boxes)
        return Prediction(
            sample["image_id"], sample["size"], boxes, best, labels, segment_masks(proposals, which)
        )
