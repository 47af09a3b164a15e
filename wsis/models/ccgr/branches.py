"""The two branches of CCGR that Mask R-CNN's labels come from: a detector that chooses among proposals, a segmentation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from torch import Tensor

from wsis.losses import image_loss
from wsis.method import Method, filled
from wsis.nn.backbone import Backbone, BackboneSettings
from wsis.nn.mil import MILHead, MLPHead
from wsis.nn.optimisation import Optimisation, optimise
from wsis.nn.regions import pool
from wsis.types import Batch, Sample, Target

__all__ = ["BagDetector", "Boxes", "Segmentation", "pixels_of"]


class Boxes(NamedTuple):
    """Boxes of an image that are to have masks."""

    boxes: Tensor
    """(K,4)."""
    labels: Tensor
    """(K,) int64."""
    scores: Tensor
    """(K,)."""


_BACKBONE = BackboneSettings("resnet50", output_stride=16, frozen_stages=1)
_OPTIMISATION = Optimisation("adamw", lr=1e-4, warmup=0.0, weight_decay=1e-4, decay_at=())


class BagDetector(Method):
    """The MIL branch: choose one box of each bag (section "Multiple instance learning branch").

    Args:
        num_classes: Number of thing classes.
        backbone: The network that makes the features.
        hidden: Width of the first fully connected layer.
        features: Width of the second.
        dropout: Probability of dropping a unit of either.
        optimisation: How weights are optimised.
    """

    supervision = frozenset({"tags", "boxes"})
    needs_proposals = False

    def __init__(
        self,
        num_classes: int = 20,
        backbone: BackboneSettings = _BACKBONE,
        hidden: int = 1024,
        features: int = 1024,
        dropout: float = 0.5,
        optimisation: Optimisation = _OPTIMISATION,
    ) -> None:
        super().__init__()
        backbone = filled(_BACKBONE, backbone)
        self.optimisation = optimisation = filled(_OPTIMISATION, optimisation)
        self.save_hyperparameters()
        self.backbone = Backbone(backbone)
        self.trunk = MLPHead(self.backbone.channels * 7 * 7, hidden, features, dropout)
        self.head = MILHead(features, num_classes)

    def forward(self, batch: Batch) -> list[Tensor]:
        """Scores (R,C) of each bag of the batch: softmax over classes times softmax over the bag's boxes."""
        maps = self.backbone([sample["image"] for sample in batch])
        regions = pool(
            maps,
            [sample["target"]["boxes"] for sample in batch],
            self.backbone.stride,
            how="roi_align",
        )
        counts = [count for sample in batch for count in _bags(sample["target"])]
        return self.head(self.trunk(regions), counts)

    def training_step(self, batch: Batch, _: int) -> Tensor:
        """The class of a bag is that of its peak (mean over bags and classes; the paper sums)."""
        scores = self(batch)
        labels = torch.cat([_labels(sample["target"]) for sample in batch])
        wanted = F.one_hot(labels, self.hparams["num_classes"]).float()
        losses = [image_loss(bag, label) for bag, label in zip(scores, wanted, strict=True)]
        loss = torch.stack(losses).mean() if losses else 0 * self.head.detection.bias.sum()
        self.log_losses({}, loss, len(batch))
        return loss

    def choose(self, batch: Batch) -> list[Boxes]:
        """The box of each bag that scores best for the bag's class."""
        scores, chosen = iter(self(batch)), []
        for sample in batch:
            target = sample["target"]
            labels, start, rows = _labels(target), 0, []
            best = [next(scores)[:, label] for label in labels.tolist()]
            for own in best:
                rows.append(start + int(own.argmax()))
                start += len(own)
            top = torch.stack([own.max() for own in best]) if best else labels.new_zeros(0).float()
            chosen.append(Boxes(target["boxes"][rows], labels, top))
        return chosen

    def configure_optimizers(self) -> Any:
        """As the other detectors."""
        return optimise(self, self.optimisation)


class Segmentation(Method):
    """The SS branch: a network of segmentation_models_pytorch on pixel labels, background last.

    Args:
        num_classes: Number of thing classes.
        backbone: The encoder, a network of timm.
        architecture: Network of segmentation_models_pytorch: PSPNet, DeepLabV3Plus, FPN, Unet, ...
        architecture_args: Further arguments of it, such as {encoder_depth: 5, output_stride: 8,
            upsampling: 8} of PSPNet.
        optimisation: How weights are optimised.
    """

    supervision = frozenset({"tags", "boxes", "masks"})
    needs_proposals = False

    def __init__(
        self,
        num_classes: int = 20,
        backbone: BackboneSettings = _BACKBONE,
        architecture: str = "PSPNet",
        architecture_args: dict[str, Any] | None = None,
        optimisation: Optimisation = _OPTIMISATION,
    ) -> None:
        super().__init__()
        backbone = filled(_BACKBONE, backbone)
        self.optimisation = optimisation = filled(_OPTIMISATION, optimisation)
        self.save_hyperparameters()
        self.network = smp.create_model(
            architecture,
            encoder_name=f"tu-{backbone.name}",
            encoder_weights=None,
            classes=num_classes + 1,
            **(architecture_args or {}),
        )
        encoder = self.network.encoder
        level = len(encoder.model.feature_info.channels()) - 1
        stride = max(encoder.output_stride, 8)
        settings = replace(backbone, output_stride=stride, feature_level=level)
        self.backbone = Backbone(settings)  # also the encoder: trained and saved once
        encoder.model = self.backbone.network

    def forward(self, images: Sequence[Tensor]) -> Tensor:
        """Images (3,H,W) of any sizes -> logits (N,C+1,H',W'), padding to the right and below included."""
        return self.network(self.backbone.normalise(images))

    def training_step(self, batch: Batch, _: int) -> Tensor:
        """Cross-entropy over all pixels of the images."""
        logits = self([sample["image"] for sample in batch])
        labels = torch.full_like(logits[:, 0], -1, dtype=torch.int64)
        for own, sample in zip(labels, batch, strict=True):
            own[: sample["image"].shape[-2], : sample["image"].shape[-1]] = pixels_of(
                sample, self.hparams["num_classes"]
            )
        loss = F.cross_entropy(logits, labels, ignore_index=-1)
        self.log_losses({}, loss, len(batch))
        return loss

    def configure_optimizers(self) -> Any:
        """As the other parts."""
        return optimise(self, self.optimisation)


def pixels_of(sample: Sample, background: int) -> Tensor:
    """The classes of an image's pixels (H,W) int64, from one mask per class."""
    target = sample["target"]
    pixels = torch.full(target["masks"].shape[1:], background, device=target["masks"].device)
    for mask, label in zip(target["masks"], target["labels"], strict=True):
        pixels[mask] = label
    return pixels


def _bags(target: Target) -> list[int]:
    """How many boxes each bag has."""
    return torch.unique_consecutive(target["bag"], return_counts=True)[1].tolist()


def _labels(target: Target) -> Tensor:
    """The class of each bag."""
    counts = torch.tensor(_bags(target), device=target["labels"].device, dtype=torch.int64)
    return target["labels"][counts.cumsum(0) - counts]
