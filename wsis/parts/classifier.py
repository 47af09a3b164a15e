"""A multi-label image classifier whose last layer is a 1 x 1 convolution, so that its class activation maps are its logits.

The first stage of several methods: it gives the backbone its features where no ImageNet weights are at hand, and the maps
that CAM, CCGR and EM-Paste start from. Zhou et al., CVPR 2016; log-mean-exp pooling from Pinheiro and Collobert, CVPR 2015.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.classification import MultilabelAveragePrecision

from wsis.errors import InputError
from wsis.losses import log_mean_exp
from wsis.method import Method, Stages, filled
from wsis.nn.backbone import Backbone, BackboneSettings
from wsis.runs.stage import Stage
from wsis.types import Batch

__all__ = ["Classifier", "pretrain"]

Pooling = Literal["average", "lse", "max"]


_BACKBONE = BackboneSettings("resnet50", output_stride=16, frozen_stages=1)


class Classifier(Method):
    """Learn from tags which classes an image holds.

    Args:
        num_classes: Number of thing classes; taken from the data.
        backbone: The network that makes the features.
        pooling: How a class map becomes one score: mean, log-mean-exp or maximum; small objects vanish in a mean.
        sharpness: Of log-mean-exp pooling, above 0: near 0 it is the mean, and the higher the nearer the maximum.
        lr: Peak learning rate of AdamW, reached after a fifth of the steps.
        weight_decay: Weight decay of AdamW.
    """

    needs_proposals = False

    def __init__(
        self,
        num_classes: int = 20,
        backbone: BackboneSettings = _BACKBONE,
        pooling: Pooling = "average",
        sharpness: float = 4.0,
        lr: float = 1e-3,
        weight_decay: float = 1e-2,
    ) -> None:
        super().__init__()
        backbone = filled(_BACKBONE, backbone)
        self.save_hyperparameters()
        if sharpness <= 0:
            raise InputError(f"sharpness {sharpness}: give a number above 0, or pooling average")
        self.backbone = Backbone(backbone)
        self.head = nn.Conv2d(self.backbone.channels, num_classes, 1)
        self.precision = MultilabelAveragePrecision(num_classes)

    def forward(self, images: list[Tensor]) -> Tensor:
        """Class activation maps of images (3,H,W): logits (N,C,h,w)."""
        return self.head(self.backbone(images))

    def logits(self, batch: Batch) -> Tensor:
        """One logit per image and class (N,C); the padding of smaller images takes no part."""
        return self.pooled(self([sample["image"] for sample in batch]), batch)

    def pooled(self, maps: Tensor, batch: Batch) -> Tensor:
        """The same from the batch's maps (N,C,h,w)."""
        stride = self.backbone.stride
        sizes = [
            (math.ceil(h / stride), math.ceil(w / stride))
            for h, w in (s["image"].shape[-2:] for s in batch)
        ]
        pooled = [
            pool(m[:, :h, :w], self.hparams["pooling"], self.hparams["sharpness"])
            for m, (h, w) in zip(maps, sizes, strict=True)
        ]
        return torch.stack(pooled)

    def loss(self, batch: Batch) -> Tensor:
        """Return the binary cross-entropy of the tags, mean over images and classes."""
        return F.binary_cross_entropy_with_logits(self.logits(batch), tags(batch))

    def training_step(self, batch: Batch, _: int) -> Tensor:
        """Train on the tags."""
        loss = self.loss(batch)
        self.log_losses({}, loss, len(batch))
        return loss

    def validation_step(self, batch: Batch, batch_idx: int = 0) -> None:
        """Log the average precision of the tags, mean over classes."""
        self.precision(self.logits(batch).sigmoid(), tags(batch).long())
        self.log("val/mAP", self.precision, prog_bar=True, batch_size=len(batch))

    def configure_optimizers(self) -> Any:
        """Optimise over the trainer's steps."""
        return self.optimiser(int(self.trainer.estimated_stepping_batches))

    def optimiser(self, steps: int) -> Any:
        """Return AdamW under one cycle: up for a fifth of the steps, then down to zero."""
        parameters = [p for p in self.parameters() if p.requires_grad]
        optimiser = torch.optim.AdamW(
            parameters, lr=self.hparams["lr"], weight_decay=self.hparams["weight_decay"]
        )
        rise = 0.25 if steps == 5 else 0.2  # OneCycleLR divides by 0.2 * 5 - 1 steps
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimiser, self.hparams["lr"], total_steps=steps, pct_start=rise
        )
        return [optimiser], [{"scheduler": schedule, "interval": "step"}]


def pretrain(run: Stages, method: Method, backbone: BackboneSettings, data: Any) -> Path:
    """Train a classifier on a method's backbone as the run's first stage, and return its checkpoint.

    Args:
        run: the run.
        method: its setting `pretraining` holds `steps` and other settings of the classifier.
        backbone: the method's; the classifier has a `feature_level` and `frozen_stages` of its own.
        data: with tags.
    """
    shared = {
        "num_classes": method.hparams["num_classes"],
        "backbone": backbone.shared("output_stride"),
    }
    stage = Stage.of("pretraining", method.hparams["pretraining"] or {}, Classifier, **shared)
    return stage.train(run, "1-classifier", data)


def tags(batch: Batch) -> Tensor:
    """The batch's tags (N,C)."""
    return torch.stack([sample["target"]["tags"] for sample in batch])


def pool(maps: Tensor, how: Pooling, sharpness: float) -> Tensor:
    """Pool maps (...,h,w) to (...,)."""
    flat = maps.flatten(-2)
    if how == "average":
        return flat.mean(-1)
    if how == "max":
        return flat.amax(-1)
    return log_mean_exp(maps, sharpness)
