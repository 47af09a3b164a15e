"""A multi-label image classifier whose logits are class activation maps.

Its last layer is a 1 x 1 convolution. It is the first stage of several methods: it trains the
backbone if there are no ImageNet weights, and CAM, CCGR and EM-Paste start from its maps. Zhou et
al., CVPR 2016; log-mean-exp pooling from Pinheiro and Collobert, CVPR 2015.

With `--data imagenet` it makes ImageNet weights of a backbone: a method takes the checkpoint as
`--model.backbone.weights`.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsis.errors import InputError
from wsis.losses import log_mean_exp
from wsis.method import Method, Stages, filled
from wsis.metrics.tags import TagAP
from wsis.nn.backbone import Backbone, BackboneSettings
from wsis.nn.views import resize
from wsis.runs.stage import Stage
from wsis.types import Batch
from wsis.values import NOT_NEGATIVE, POSITIVE, WHOLE, Ranges

__all__ = ["Classifier", "MapPooling", "pool", "pretrain"]

MapPooling = Literal["average", "lse", "max"]

_BACKBONE = BackboneSettings("resnet50", output_stride=16, frozen_stages=1)


class Classifier(Method):
    """Learn to classify images from tags.

    Args:
        num_classes: Number of thing classes; taken from the data.
        backbone: The network that computes features.
        pooling: How a class map becomes one score: mean, log-mean-exp or maximum; small objects
            vanish in a mean.
        sharpness: Sharpness of log-mean-exp pooling, above 0; it tends to the mean towards 0, and
            to the maximum towards infinity.
        loss: "binary", a cross-entropy for each class, or "softmax", over all classes, where each
            image has one.
        optimiser: AdamW, or SGD with momentum 0.9.
        lr: Peak learning rate.
        warmup: Fraction of the steps over which the learning rate rises to its peak; it then falls
            to 0 as a cosine.
        weight_decay: Weight decay of all weights.
        test_side: Short side in pixels that validation images are scaled to; 0 keeps their size.
    """

    needs_proposals = False
    main_metrics = ("mAP", "top1")
    ranges: ClassVar[Ranges] = {
        POSITIVE: ("sharpness", "lr"),
        NOT_NEGATIVE: ("weight_decay",),
        WHOLE: ("test_side",),
    }

    def __init__(
        self,
        num_classes: int = 20,
        backbone: BackboneSettings = _BACKBONE,
        pooling: MapPooling = "average",
        sharpness: float = 4.0,
        loss: Literal["binary", "softmax"] = "binary",
        optimiser: Literal["adamw", "sgd"] = "adamw",
        lr: float = 1e-3,
        warmup: float = 0.2,
        weight_decay: float = 1e-2,
        test_side: int = 0,
    ) -> None:
        super().__init__()
        backbone = filled(_BACKBONE, backbone)
        self.save_hyperparameters()
        if not 0 < warmup < 1:
            raise InputError(f"warmup {warmup}: give a fraction of the steps between 0 and 1")
        self.backbone = Backbone(backbone)
        self.head = nn.Conv2d(self.backbone.channels, num_classes, 1)
        self.precision = TagAP()

    def idle(self) -> dict[str, str]:
        """Return the settings that have no effect beside the others, each with the reason."""
        pooling = self.hparams["pooling"]
        return {} if pooling == "lse" else {"sharpness": f"with pooling {pooling}"}

    def forward(self, images: list[Tensor]) -> Tensor:
        """Images (3,H,W) -> class activation maps, logits (N,C,h,w)."""
        return self.head(self.backbone(images))

    def logits(self, batch: Batch) -> Tensor:
        """Return one logit per image and class (N,C), without the padding of smaller images."""
        return self.pooled(self([sample["image"] for sample in batch]), batch)

    def pooled(self, maps: Tensor, batch: Batch) -> Tensor:
        """Return the logits (N,C) of the batch's maps (N,C,h,w)."""
        pooled = []
        for of_image, sample in zip(maps, batch, strict=True):
            height, width = sample["image"].shape[-2:]
            h, w = math.ceil(height / self.backbone.stride), math.ceil(width / self.backbone.stride)
            visible = of_image[:, :h, :w]
            pooled.append(pool(visible, self.hparams["pooling"], self.hparams["sharpness"]))
        return torch.stack(pooled)

    def loss(self, batch: Batch) -> Tensor:
        """Return the cross-entropy of the tags: mean over images and, if binary, over classes."""
        logits, wanted = self.logits(batch), tags(batch)
        if self.hparams["loss"] == "softmax":
            return F.cross_entropy(logits, wanted.argmax(1))
        return F.binary_cross_entropy_with_logits(logits, wanted)

    def training_step(self, batch: Batch, _: int) -> Tensor:
        """Train on the tags."""
        loss = self.loss(batch)
        self.log_losses({}, loss, len(batch))
        return loss

    def validation_step(self, batch: Batch, batch_idx: int = 0) -> None:
        """Log the average precision of the tags, or with one class an image how many are right."""
        side = self.hparams["test_side"]
        if side:
            batch = [
                {**sample, "image": resize(sample["image"], side, 2 * side)} for sample in batch
            ]
        logits, wanted = self.logits(batch), tags(batch)
        if self.hparams["loss"] == "softmax":
            right = (logits.argmax(1) == wanted.argmax(1)).float().mean()
            self.log("val/top1", right, prog_bar=True, batch_size=len(batch), sync_dist=True)
            return
        self.precision(logits, wanted, [sample["image_id"] for sample in batch])
        self.log("val/mAP", self.precision, prog_bar=True, batch_size=len(batch))

    def configure_optimizers(self) -> Any:
        """Return the optimiser and its schedule over the trainer's steps."""
        return self.optimiser(int(self.trainer.estimated_stepping_batches))

    def optimiser(self, steps: int) -> Any:
        """Return AdamW or SGD with a learning rate that rises, then falls to 0.

        Args:
            steps: number of optimiser steps.
        """
        given, lr = self.hparams, self.hparams["lr"]
        parameters = [p for p in self.parameters() if p.requires_grad]
        settings = {"lr": lr, "weight_decay": given["weight_decay"]}
        is_sgd = given["optimiser"] == "sgd"
        optimiser: torch.optim.Optimizer
        if is_sgd:
            optimiser = torch.optim.SGD(parameters, momentum=0.9, **settings)
        else:
            optimiser = torch.optim.AdamW(parameters, **settings)
        rise = given["warmup"]
        if math.isclose(rise * steps, 1):  # OneCycleLR divides by rise * steps - 1
            rise *= 1.25
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimiser, lr, total_steps=steps, pct_start=rise, cycle_momentum=not is_sgd
        )
        return [optimiser], [{"scheduler": schedule, "interval": "step"}]


def pretrain(
    run: Stages,
    method: Method,
    backbone: BackboneSettings,
    data: Any,
    into: Backbone | None = None,
    with_head: bool = False,
) -> Path:
    """Train a classifier on a method's backbone as the run's first stage; return its checkpoint.

    Args:
        run: the run.
        method: its setting `pretraining` holds `steps` and other settings of the classifier.
        backbone: the method's; `feature_level` and `frozen_stages` are set for the classifier.
        data: the data module, with tags.
        into: the network that will load the classifier's backbone.
        with_head: whether the method's heads begin with the classifier's last layer.

    Raises:
        InputError: the classifier's network will not fit into `into`.
    """
    shared = {
        "num_classes": method.hparams["num_classes"],
        "backbone": backbone.shared("output_stride"),
    }
    stage = Stage.of("pretraining", method.hparams["pretraining"] or {}, Classifier, **shared)
    if into is not None:
        _check_fits(stage.model.backbone, into, with_head)
    return stage.train(run, "1-classifier", data)


def _check_fits(trained: Backbone, into: Backbone, with_head: bool) -> None:
    """Raise InputError if a network cannot begin with the weights of a classifier's."""
    if not trained.holds(into):
        raise InputError(
            f"model.pretraining.backbone is {trained.name} with {len(trained.strides)} feature "
            f"maps, and model.backbone, which begins with its weights, is {into.name} with "
            f"{len(into.strides)}; give both the same name and feature_level"
        )
    if with_head and trained.channels != into.channels:
        raise InputError(
            f"model.pretraining.backbone ends with {trained.channels} channels, and the heads of "
            f"model.context, which begin with the classifier's last layer, read {into.channels}; "
            "give both backbones the same feature_level"
        )


def tags(batch: Batch) -> Tensor:
    """Return the batch's tags (N,C)."""
    return torch.stack([sample["target"]["tags"] for sample in batch])


def pool(maps: Tensor, how: MapPooling, sharpness: float) -> Tensor:
    """Pool maps (...,h,w) to (...,); `sharpness` is that of "lse"."""
    flat = maps.flatten(-2)
    if how == "average":
        return flat.mean(-1)
    if how == "max":
        return flat.amax(-1)
    return log_mean_exp(maps, sharpness)
