"""Mask R-CNN (He et al., ICCV 2017) on a feature pyramid.

The segmentor that several methods train last, on pseudo-labels; with true masks it is their upper
bound. Proposals, sampling and heads are torchvision's. An object with an untrusted mask trains the
box head, but is excluded from the mask loss.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads, fastrcnn_loss, maskrcnn_loss
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import box_area, box_iou

from wsis.method import Method, filled
from wsis.nn.backbone import Backbone, BackboneSettings
from wsis.nn.masks import paste
from wsis.nn.optimisation import Optimisation, optimise
from wsis.nn.pyramid import level_pooler, pyramid
from wsis.nn.views import Inference, image_views
from wsis.types import Batch, Prediction, Sample, Target, size_of
from wsis.values import COUNT, FRACTION, POSITIVE, WHOLE, Range, Ranges

__all__ = ["MaskRCNN", "paste_boxes"]

MaskLosses = Callable[
    [Tensor, list[Tensor], list[dict[str, Tensor]], list[Tensor]], dict[str, Tensor]
]
"""Losses of mask logits (R,C+1,h,w), each with its name.

Given are the logits, the regions of each image (R_i,4) that they are of, the images' targets, and
the object of each region (R_i,).
"""

_RATIOS = (0.5, 1.0, 2.0)
# torchvision samples mask targets with a pixel's centre at its index; masks pasted with this shift
# have an IoU of 0.993 with the masks that they were sampled from, without it 0.960
_HALF = 0.5

_BACKBONE = BackboneSettings("resnet50", output_stride=32, frozen_stages=2)
_OPTIMISATION = Optimisation("sgd", lr=0.02, warmup=0.02, weight_decay=1e-4, decay_at=(0.67, 0.89))


class MaskRCNN(Method):
    """Learn to detect and segment from masks.

    Args:
        num_classes: Number of thing classes; taken from the data.
        backbone: The network that computes features; the pyramid ends with its `feature_level`.
        features: Channels of every map of the pyramid.
        hidden: Width of the two fully connected layers of the box head.
        mask_width: Channels of the mask head.
        anchor_size: Side of a map's anchors in cells; 8 is 32 pixels at stride 4.
        anchors_per_image: RPN anchors sampled per image, up to half of them positive.
        max_proposals: Largest number of proposals per image in training; half as many in
            prediction.
        regions_per_image: Regions sampled per image for the box head, up to a quarter positive;
            those train the mask head.
        ignore_crowds: Exclude background proposals that lie more than half inside a crowd box from
            the loss.
        optimisation: How weights are optimised.
        test_side: Short side in pixels that an image is scaled to for prediction; 0 keeps its size.
        test_max_side: Longest side in pixels; larger images are scaled down for prediction.
        nms: Box IoU above which the lower-scored of two detections of a class is dropped.
        score_threshold: Lowest score of a detection.
        max_detections: Largest number of detections per image, over all classes.
    """

    supervision = frozenset({"tags", "boxes", "masks"})
    needs_proposals = False
    ranges: ClassVar[Ranges] = {
        COUNT: ("features", "hidden", "mask_width", "test_max_side", "max_detections"),
        Range(2, whole=True): ("anchors_per_image", "max_proposals"),
        Range(4, whole=True): ("regions_per_image",),
        POSITIVE: ("anchor_size",),
        WHOLE: ("test_side",),
        FRACTION: ("nms", "score_threshold"),
    }

    def __init__(
        self,
        num_classes: int = 20,
        backbone: BackboneSettings = _BACKBONE,
        features: int = 256,
        hidden: int = 1024,
        mask_width: int = 256,
        anchor_size: float = 8.0,
        anchors_per_image: int = 256,
        max_proposals: int = 2000,
        regions_per_image: int = 512,
        ignore_crowds: bool = False,
        optimisation: Optimisation = _OPTIMISATION,
        test_side: int = 800,
        test_max_side: int = 1333,
        nms: float = 0.5,
        score_threshold: float = 0.05,
        max_detections: int = 100,
    ) -> None:
        super().__init__()
        backbone = filled(_BACKBONE, backbone)
        self.optimisation = optimisation = filled(_OPTIMISATION, optimisation)
        self.save_hyperparameters()
        self.backbone = Backbone(backbone)
        self.pyramid = pyramid(self.backbone, features)
        strides = self.pyramid.strides[:-1]
        sides = tuple((anchor_size * stride,) for stride in self.pyramid.strides)
        self.rpn = Proposer(
            AnchorGenerator(sides, (_RATIOS,) * len(sides)),
            RPNHead(features, len(_RATIOS)),
            fg_iou_thresh=0.7,
            bg_iou_thresh=0.3,
            batch_size_per_image=anchors_per_image,
            positive_fraction=0.5,
            pre_nms_top_n={"training": max_proposals, "testing": max_proposals // 2},
            post_nms_top_n={"training": max_proposals, "testing": max_proposals // 2},
            nms_thresh=0.7,
        )
        self.roi_heads = RoIHeads(
            level_pooler(strides, 7),
            TwoMLPHead(features * 49, hidden),
            FastRCNNPredictor(hidden, num_classes + 1),
            fg_iou_thresh=0.5,
            bg_iou_thresh=0.5,
            batch_size_per_image=regions_per_image,
            positive_fraction=0.25,
            bbox_reg_weights=None,
            score_thresh=score_threshold,
            nms_thresh=nms,
            detections_per_img=max_detections,
            mask_roi_pool=level_pooler(strides, 14),
            mask_head=MaskRCNNHeads(features, [mask_width] * 4, 1),
            mask_predictor=MaskRCNNPredictor(mask_width, mask_width, num_classes + 1),
        )

    def training_step(self, batch: Batch, _: int) -> Tensor:
        """L = L_cls + L_box + L_mask, section 3, plus the losses of the region proposal network."""
        images = [sample["image"] for sample in batch]
        skip = self.hparams["ignore_crowds"]
        losses = self.losses(images, [_learnable(sample["target"], skip) for sample in batch])
        loss = torch.stack(list(losses.values())).sum()
        self.log_losses(losses, loss, len(batch))
        return loss

    def losses(
        self,
        images: list[Tensor],
        targets: list[dict[str, Tensor]],
        mask_losses: MaskLosses | None = None,
    ) -> dict[str, Tensor]:
        """Return the losses of images (3,H,W).

        Args:
            images: of any sizes.
            targets: boxes (M,4), labels (M,) from 1, masks (M,H,W), ignore_mask (M,) bool; and
                `skipped` boxes (N,4), if any, in which background is excluded from the loss.
            mask_losses: how the mask head learns; None learns `masks`.
        """
        features, padded = self._features(images)
        # torchvision rounds boxes to the features' precision
        with torch.autocast(self.device.type, enabled=False):
            proposals, losses = self.rpn(padded, features, targets)
            sizes = padded.image_sizes
            learn = mask_losses or _from_masks
            of_regions = self._region_losses(features, proposals, sizes, targets, learn)
        first = {"objectness": losses["loss_objectness"], "proposal": losses["loss_rpn_box_reg"]}
        return first | of_regions

    def _region_losses(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        sizes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]],
        mask_losses: MaskLosses,
    ) -> dict[str, Tensor]:
        """Return class, box and mask loss as torchvision's RoIHeads, without ignore_mask masks."""
        heads = self.roi_heads
        proposals = [p[~skipped(p, t)] for p, t in zip(proposals, targets, strict=True)]
        regions, matched, labels, deltas = heads.select_training_samples(proposals, targets)
        pooled = heads.box_roi_pool(features, regions, sizes)
        predicted = heads.box_predictor(heads.box_head(pooled))
        class_loss, box_loss = fastrcnn_loss(*predicted, labels, deltas)
        trusted = [
            (label > 0) & _sure(target["ignore_mask"])[objects]
            for label, target, objects in zip(labels, targets, matched, strict=True)
        ]
        boxes = [of_image[kept] for of_image, kept in zip(regions, trusted, strict=True)]
        objects = [of_image[kept] for of_image, kept in zip(matched, trusted, strict=True)]
        logits = heads.mask_predictor(heads.mask_head(heads.mask_roi_pool(features, boxes, sizes)))
        masks = mask_losses(logits, boxes, targets, objects)
        return {"class": class_loss, "box": box_loss, **masks}

    def _features(self, images: Sequence[Tensor]) -> tuple[dict[str, Tensor], ImageList]:
        """Return the pyramid's maps in full precision, and the padded batch with image sizes."""
        padded = self.backbone.normalise(images)
        maps = self.pyramid(self.backbone.network(padded))
        sizes = [size_of(image) for image in images]
        return {name: level.float() for name, level in maps.items()}, ImageList(padded, sizes)

    def predict(self, sample: Sample) -> Prediction:
        """Detect in the scaled image; paste masks at their boxes in the original image."""
        size, side = size_of(sample["image"]), self.hparams["test_side"]
        inference = Inference((side,) if side else (), flip=False)
        (view,) = image_views(sample["image"], inference, self.hparams["test_max_side"])
        features, padded = self._features([view.image])
        with torch.autocast(self.device.type, enabled=False):
            proposals, _ = self.rpn(padded, features)
            ((detected,), _) = self.roi_heads(features, proposals, padded.image_sizes)
        boxes = view.view.to_original(detected["boxes"])
        shifted = view.view.to_original(paste_boxes(detected["boxes"]))
        masks = paste(detected["masks"][:, 0], shifted, size)
        scores, labels = detected["scores"].cpu(), (detected["labels"] - 1).cpu()
        return Prediction(sample["image_id"], size, boxes.cpu(), scores, labels, masks)

    def configure_optimizers(self) -> Any:
        """Return the optimiser and its schedule."""
        return optimise(self, self.optimisation)


class Proposer(RegionProposalNetwork):  # type: ignore[misc]
    """torchvision's region proposal network, without anchors in skipped boxes in the loss."""

    def assign_targets_to_anchors(
        self, anchors: list[Tensor], targets: list[dict[str, Tensor]]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return each image's anchor labels (A,) and the boxes (A,4) that anchors are matched to.

        Labels are 1 for objects, 0 for background and -1 for anchors excluded from the loss.
        """
        labels, boxes = super().assign_targets_to_anchors(anchors, targets)
        for of_image, label, target in zip(anchors, labels, targets, strict=True):
            label[(label == 0) & skipped(of_image, target)] = -1
        return labels, boxes


def paste_boxes(boxes: Tensor) -> Tensor:
    """Return the boxes (N,4) to paste the masks of detections in, in pixels of the scaled image."""
    return boxes + _HALF


def skipped(boxes: Tensor, target: dict[str, Tensor]) -> Tensor:
    """Return which boxes (N,4) match no object and lie more than half inside a skipped box."""
    if not len(target.get("skipped", ())):
        return torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device)
    regions, objects = target["skipped"], target["boxes"]
    low = torch.maximum(boxes[:, None, :2], regions[:, :2])
    high = torch.minimum(boxes[:, None, 2:], regions[:, 2:])
    inside = (high - low).clamp(min=0).prod(2).amax(1) > box_area(boxes) / 2
    return inside & (box_iou(boxes, objects) < 0.5).all(1)


def _from_masks(
    logits: Tensor,
    boxes: list[Tensor],
    targets: list[dict[str, Tensor]],
    objects: list[Tensor],
) -> dict[str, Tensor]:
    """Return the mask loss of Mask R-CNN; see `MaskLosses`."""
    masks, labels = ([target[name] for target in targets] for name in ("masks", "labels"))
    return {"mask": maskrcnn_loss(logits, boxes, masks, labels, objects)}


def _learnable(target: Target, skip_crowds: bool = False) -> dict[str, Tensor]:
    """Return torchvision's target of an image without crowds; background is class 0.

    With `skip_crowds`, background in the crowds' boxes is excluded from the loss.
    """
    kept = ~target["crowd"]
    ignore_mask = target.get("ignore_mask", torch.zeros_like(kept))
    learnable = {
        "boxes": target["boxes"][kept],
        "labels": target["labels"][kept] + 1,
        "masks": target["masks"][kept],
        "ignore_mask": ignore_mask[kept],
    }
    return learnable | ({"skipped": target["boxes"][~kept]} if skip_crowds else {})


def _sure(ignore_mask: Tensor) -> Tensor:
    """Return whether each object's mask is trusted, and a last False.

    The last is for images without objects, whose regions torchvision matches to object 0.
    """
    return torch.cat([~ignore_mask, ignore_mask.new_zeros(1)])
