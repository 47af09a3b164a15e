"""The two branches of CCGR that make the segmentor's labels: detection and segmentation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal, NamedTuple

import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsis.errors import InputError
from wsis.losses import image_loss
from wsis.method import Method, filled
from wsis.nn.backbone import Backbone, BackboneSettings
from wsis.nn.mil import MILHead, MLPHead
from wsis.nn.optimisation import Optimisation, optimise
from wsis.nn.regions import pool
from wsis.nn.views import Inference, image_views
from wsis.types import Batch, Sample, Target
from wsis.values import COUNT, FRACTION, Ranges

__all__ = ["BagDetector", "Boxes", "Segmentation", "pixels_of", "scaled"]


class Boxes(NamedTuple):
    """Boxes of an image for which masks are made."""

    boxes: Tensor
    """(K,4)."""
    labels: Tensor
    """(K,) int64."""
    scores: Tensor
    """(K,)."""


_BACKBONE = BackboneSettings("resnet50", output_stride=16, frozen_stages=1)
_OPTIMISATION = Optimisation("adamw", lr=1e-4, warmup=0.0, weight_decay=1e-4, decay_at=())


class BagDetector(Method):
    """The MIL branch: select one box of each bag (section "Multiple instance learning branch").

    Args:
        num_classes: Number of thing classes.
        backbone: The network that computes features.
        hidden: Width of the first fully connected layer.
        features: Width of the second fully connected layer.
        dropout: Probability of dropping a unit of these layers.
        optimisation: How weights are optimised.
    """

    supervision = frozenset({"tags", "boxes"})
    needs_proposals = False
    ranges: ClassVar[Ranges] = {COUNT: ("hidden", "features"), FRACTION: ("dropout",)}

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
        """Batch -> scores (R,C) of each bag: softmax over classes times softmax over its boxes."""
        maps = self.backbone([sample["image"] for sample in batch])
        boxes = [sample["target"]["boxes"] for sample in batch]
        regions = pool(maps, boxes, self.backbone.stride, how="roi_align")
        counts = [count for sample in batch for count in _bag_sizes(sample["target"])]
        return self.head(self.trunk(regions), counts)

    def training_step(self, batch: Batch, _: int) -> Tensor:
        """Train each bag on the class of its peak (mean over bags and classes; the paper sums)."""
        scores = self(batch)
        labels = torch.cat([_labels(sample["target"]) for sample in batch])
        wanted = F.one_hot(labels, self.hparams["num_classes"]).float()
        losses = [image_loss(bag, label) for bag, label in zip(scores, wanted, strict=True)]
        loss = torch.stack(losses).mean() if losses else 0 * self.head.detection.bias.sum()
        self.log_losses({}, loss, len(batch))
        return loss

    def choose(self, batch: Batch, side: int = 0) -> list[Boxes]:
        """Return the box of each bag with the highest score for the bag's class.

        Args:
            batch: whole images with bags.
            side: short side in pixels that images are scaled to first; 0 keeps their size.
        """
        scores, chosen = iter(self([scaled(sample, side) for sample in batch])), []
        for sample in batch:
            target = sample["target"]
            labels, start, rows = _labels(target), 0, []
            bags = [next(scores)[:, label] for label in labels.tolist()]
            for bag in bags:
                rows.append(start + int(bag.argmax()))
                start += len(bag)
            best = torch.stack([bag.max() for bag in bags]) if bags else labels.new_zeros(0).float()
            chosen.append(Boxes(target["boxes"][rows], labels, best))
        return chosen

    def configure_optimizers(self) -> Any:
        """Return the optimiser and its schedule."""
        return optimise(self, self.optimisation)


class Segmentation(Method):
    """The SS branch: a network of segmentation_models_pytorch on pixel labels, background last.

    Args:
        num_classes: Number of thing classes.
        backbone: The encoder, a network of timm.
        architecture: Network of segmentation_models_pytorch: PSPNet, DeepLabV3Plus, FPN, Unet, ...
        architecture_args: Further arguments of the network, such as {encoder_depth: 5,
            output_stride: 8, upsampling: 8} of PSPNet.
        norm: Normalisation of the network's own layers, without the encoder: "group" (GroupNorm, Wu
            and He, ECCV 2018), which does not depend on the size of a batch, or "batch".
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
        norm: Literal["group", "batch"] = "group",
        optimisation: Optimisation = _OPTIMISATION,
    ) -> None:
        super().__init__()
        backbone = filled(_BACKBONE, backbone)
        self.optimisation = optimisation = filled(_OPTIMISATION, optimisation)
        self.save_hyperparameters()
        self.network = _network(architecture, backbone.name, num_classes + 1, architecture_args)
        if norm == "group":
            _norm_by_groups(self.network.decoder)
        encoder = self.network.encoder
        level = len(encoder.model.feature_info.channels()) - 1
        stride = max(encoder.output_stride, 8)
        settings = replace(backbone, output_stride=stride, feature_level=level)
        self.backbone = Backbone(settings)  # also the encoder: trained and saved once
        encoder.model = self.backbone.network
        _check_size(self, 2 * self.backbone.divisor)

    def forward(self, images: Sequence[Tensor]) -> Tensor:
        """Images (3,H,W) of any sizes -> logits (N,C+1,H',W'), padded to the right and below."""
        return self.network(self.backbone.normalise(images))

    def training_step(self, batch: Batch, _: int) -> Tensor:
        """Train by cross-entropy over all pixels of the images."""
        logits = self([sample["image"] for sample in batch])
        labels = torch.full_like(logits[:, 0], -1, dtype=torch.int64)
        for of_image, sample in zip(labels, batch, strict=True):
            height, width = sample["image"].shape[-2:]
            of_image[:height, :width] = pixels_of(sample, self.hparams["num_classes"])
        loss = F.cross_entropy(logits, labels, ignore_index=-1)
        self.log_losses({}, loss, len(batch))
        return loss

    def configure_optimizers(self) -> Any:
        """Return the optimiser and its schedule."""
        return optimise(self, self.optimisation)


def _network(name: str, encoder: str, classes: int, given: dict[str, Any] | None) -> Any:
    """Return a network of segmentation_models_pytorch; InputError if it cannot be built."""
    try:
        return smp.create_model(
            name, f"tu-{encoder}", encoder_weights=None, classes=classes, **(given or {})
        )
    except (KeyError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"architecture {name} cannot be built with architecture_args {given or {}} ({reason}); "
            "give others"
        ) from error


@torch.no_grad()
def _check_size(model: Segmentation, side: int) -> None:
    """Raise InputError for a network whose maps have another size than its images."""
    model.eval()
    found = model.network(torch.zeros(1, 3, side, side)).shape[-1]
    model.train()
    if found != side:
        raise InputError(
            f"architecture_args make maps of side {found} of images of side {side}; give another "
            "upsampling"
        )


def pixels_of(sample: Sample, background: int) -> Tensor:
    """Return the classes (H,W) int64 of an image's pixels, from one mask per class."""
    target = sample["target"]
    pixels = torch.full(target["masks"].shape[1:], background, device=target["masks"].device)
    for mask, label in zip(target["masks"], target["labels"], strict=True):
        pixels[mask] = label
    return pixels


def scaled(sample: Sample, side: int) -> Sample:
    """Return a sample with image and boxes at a short side in pixels; 0 keeps their size."""
    if not side:
        return sample
    (seen,) = image_views(sample["image"], Inference((side,), flip=False))
    target = sample["target"]
    if "boxes" in target:
        target = {**target, "boxes": seen.view.to_input(target["boxes"])}
    return {**sample, "image": seen.image, "target": target}


def _norm_by_groups(module: nn.Module, width: int = 16) -> None:
    """Replace BatchNorm layers by GroupNorm in groups of about so many channels."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            channels = child.num_features
            groups = math.gcd(channels, max(channels // width, 1))
            setattr(module, name, nn.GroupNorm(groups, channels))
        else:
            _norm_by_groups(child, width)


def _bag_sizes(target: Target) -> list[int]:
    """Return the number of boxes in each bag."""
    return torch.unique_consecutive(target["bag"], return_counts=True)[1].tolist()


def _labels(target: Target) -> Tensor:
    """Return the class of each bag."""
    counts = torch.tensor(_bag_sizes(target), device=target["labels"].device, dtype=torch.int64)
    return target["labels"][counts.cumsum(0) - counts]
