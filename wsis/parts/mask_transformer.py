"""A mask transformer on the maps of a backbone, frozen or trained, convolutional or plain.

A segmentor of the kind of EoMT (Kerssies et al., Your ViT is Secretly an Image Segmentation Model,
CVPR 2025) and PMT (Cavagnero et al., Plain Mask Transformer, CVPR 2026 workshops), with the losses
of Mask2Former (Cheng et al., Masked-attention Mask Transformer, CVPR 2022). It learns from masks,
predicts each object once and needs neither anchors nor suppression.

| paper | here | what |
|---|---|---|
| Q, EoMT fig. 2 | `MaskDecoder.queries` | learned queries, joined with the tokens |
| L_2, EoMT fig. 2 | `blocks` | blocks that queries and tokens pass together |
| M_{l-1}, Mask2Former eqs. (2)-(3) | `_attended` | masked attention |
| P_mask, EoMT section 3.3 | `mask_share` | probability of it, annealed to 0 block by block |
| K, Mask2Former section 3.3 | `points` | points of each mask in matching and losses |
| lambda_ce, lambda_dice, Mask2Former section 4.1 | `WEIGHTS` | 5 and 5, and 2 for the class |
| lambda_cls of "no object", section 4.1 | `no_object` | 0.1 |

Different from the papers: queries start at fixed points of the image, with the token there added to
what is learned; the map of pixels is enlarged once, with the backbone's finer maps where it has
them, and what blocks make of the tokens is added to masks at the tokens' resolution. An object
without a trusted mask is matched by its filled box and trains the class alone. Losses are divided
by the number of masks of a process, not of all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pycocotools import mask as rle
from torch import Tensor

from wsis.losses import dice_loss, mask_loss
from wsis.method import Method, filled
from wsis.nn.backbone import Backbone, BackboneSettings
from wsis.nn.mask_decoder import Found, MaskDecoder
from wsis.nn.masks import paste
from wsis.nn.matching import WEIGHTS, match, random_points, sample, uncertain_points
from wsis.nn.optimisation import Optimisation, optimise
from wsis.nn.views import Inference, image_views
from wsis.types import Batch, Prediction, Sample, Target, size_of
from wsis.values import COUNT, FRACTION, NOT_NEGATIVE, WHOLE, Ranges

__all__ = ["MaskTransformer", "certainty"]

_SKIPPED = -100

_BACKBONE = BackboneSettings("resnet50", output_stride=32, frozen_stages=2)
_OPTIMISATION = Optimisation("adamw", lr=2e-4, warmup=0.02, weight_decay=0.05, decay_at=(0.9, 0.95))


class MaskTransformer(Method):
    """Learn to segment objects from masks, with queries in plain attention.

    Args:
        num_classes: Number of thing classes; taken from the data.
        backbone: The network that computes features; tokens are cells of its `feature_level`.
        features: Channels of tokens, queries and pixels.
        queries: Number of queries, the largest number of objects in an image.
        blocks: Number of transformer blocks after the backbone.
        heads: Number of attention heads; divides `features`.
        points: Points at which a mask is compared with a true one.
        no_object: Weight of queries without an object in the loss of classes; that of others is 1.
        ignore_crowds: Exclude queries without an object whose mask lies more than half inside
            crowd boxes from the loss.
        optimisation: How weights are optimised.
        test_side: Short side in pixels that an image is scaled to for prediction; 0 keeps its size.
        test_max_side: Longest side in pixels; larger images are scaled down for prediction.
        score_threshold: Lowest score of a detection.
        max_detections: Largest number of detections per image, over all classes.
    """

    supervision = frozenset({"tags", "boxes", "masks"})
    needs_proposals = False
    ranges: ClassVar[Ranges] = {
        COUNT: (
            "features",
            "queries",
            "blocks",
            "heads",
            "points",
            "test_max_side",
            "max_detections",
        ),
        NOT_NEGATIVE: ("no_object",),
        WHOLE: ("test_side",),
        FRACTION: ("score_threshold",),
    }

    def __init__(
        self,
        num_classes: int = 20,
        backbone: BackboneSettings = _BACKBONE,
        features: int = 256,
        queries: int = 200,
        blocks: int = 4,
        heads: int = 8,
        points: int = 12544,
        no_object: float = 0.1,
        ignore_crowds: bool = False,
        optimisation: Optimisation = _OPTIMISATION,
        test_side: int = 800,
        test_max_side: int = 1333,
        score_threshold: float = 0.05,
        max_detections: int = 100,
    ) -> None:
        super().__init__()
        backbone = filled(_BACKBONE, backbone)
        self.optimisation = optimisation = filled(_OPTIMISATION, optimisation)
        self.save_hyperparameters()
        self.backbone = Backbone(backbone)
        self.decoder = MaskDecoder(self.backbone, num_classes, features, queries, blocks, heads)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Tell the decoder how much of the training is over."""
        steps = self.trainer.estimated_stepping_batches
        self.decoder.progress.fill_(self.global_step / steps)

    def training_step(self, batch: Batch, _: int) -> Tensor:
        """L = sum over blocks of 2 L_cls + 5 L_ce + 5 L_dice: Mask2Former, section 4.1."""
        images = [sample["image"] for sample in batch]
        losses = self.losses(images, [_objects(sample["target"]) for sample in batch])
        loss = torch.stack(list(losses.values())).sum()
        self.log_losses(losses, loss, len(batch))
        return loss

    def losses(self, images: list[Tensor], targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Return the weighted losses of images (3,H,W), sums over blocks.

        Args:
            images: of any sizes.
            targets: labels (M,), masks (M,H,W), ignore_mask (M,) bool, and boxes of crowds (N,4).
        """
        sizes = [size_of(image) for image in images]
        found = self._found(images)
        with torch.autocast(self.device.type, enabled=False):
            each = [self._losses_of(step, sizes, targets) for step in found]
        return {
            name: weight * torch.stack([losses[name] for losses in each]).sum()
            for name, weight in WEIGHTS.items()
        }

    def _losses_of(
        self, found: Found, sizes: list[tuple[int, int]], targets: list[dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """Return the losses of what is found after one block."""
        classes, number = found.classes.float(), found.classes.shape[2]
        labels = torch.full(classes.shape[:2], number - 1, device=self.device)
        logits, truth = [], []
        for i, (size, target) in enumerate(zip(sizes, targets, strict=True)):
            masks = self._without_padding(found.masks[i], size)
            queries, objects, skipped = self._matched(classes[i], masks, size, target)
            labels[i, skipped] = _SKIPPED
            labels[i, queries] = target["labels"][objects]
            trusted = ~target["ignore_mask"][objects]
            masks = masks[queries[trusted]]
            at = uncertain_points(masks, self.hparams["points"], self._cells(size))
            logits.append(sample(masks, at))
            known = target["masks"][objects[trusted]].float()
            truth.append(sample(known, at * self.decoder.upscale.stride))
        weights = torch.ones(number, device=self.device)
        weights[-1] = self.hparams["no_object"]
        total = F.cross_entropy(classes.flatten(0, 1), labels.flatten(), weights, reduction="sum")
        counted = weights[labels[labels != _SKIPPED]].sum().clamp(min=1e-6)
        points = torch.cat(logits), torch.cat(truth)
        return {"class": total / counted, "mask": mask_loss(*points), "dice": dice_loss(*points)}

    def _matched(
        self, classes: Tensor, masks: Tensor, size: tuple[int, int], target: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries (K,), the objects (K,) that they answer, and which queries are skipped."""
        at = random_points(self.hparams["points"], self._cells(size))
        pixels = at * self.decoder.upscale.stride
        logits = sample(masks.detach(), at)
        truth = sample(target["masks"].float(), pixels)
        queries, objects = match(classes, logits, target["labels"], truth)
        if not self.hparams["ignore_crowds"]:
            return queries, objects, torch.zeros(len(masks), dtype=torch.bool)
        within = _in_boxes(pixels, target["crowds"])
        area = (logits > 0).sum(1)
        return queries, objects, ((logits > 0) & within).sum(1) > area / 2

    def _found(self, images: Sequence[Tensor]) -> list[Found]:
        maps = self.backbone.network(self.backbone.normalise(images))
        return self.decoder(maps, [size_of(image) for image in images])

    def _cells(self, size: tuple[int, int]) -> Tensor:
        """Return the width and height (2,) of an image (H, W) in cells of a mask."""
        return torch.tensor([size[1], size[0]], device=self.device) / self.decoder.upscale.stride

    def _without_padding(self, masks: Tensor, size: tuple[int, int]) -> Tensor:
        """Return the part of masks (Q,h,w) that lies in an image (H, W)."""
        width, height = self._cells(size).ceil().int().tolist()
        return masks[:, :height, :width].float()

    def predict(self, sample: Sample) -> Prediction:
        """Score each query's classes by probability times mean mask probability; keep the best."""
        size, side = size_of(sample["image"]), self.hparams["test_side"]
        inference = Inference((side,) if side else (), flip=False)
        (view,) = image_views(sample["image"], inference, self.hparams["test_max_side"])
        (found,) = self._found([view.image])
        logits = self._without_padding(found.masks[0], size_of(view.image))
        scores = found.classes[0].float().softmax(1)[:, :-1] * certainty(logits)[:, None]
        best, index = scores.flatten().topk(min(self.hparams["max_detections"], scores.numel()))
        best, index = (x[best > self.hparams["score_threshold"]].cpu() for x in (best, index))
        queries, labels = index // scores.shape[1], index % scores.shape[1]
        # a rim of one cell, so that nothing beyond the map is read
        rim = F.pad(logits.cpu()[queries][:, None], (1, 1, 1, 1), mode="replicate")[:, 0]
        height, width = size_of(rim)
        frame = torch.tensor([[-1.0, -1.0, width - 1, height - 1]]) * self.decoder.upscale.stride
        masks = paste(rim, view.view.to_original(frame).expand(len(rim), 4), size, threshold=0.0)
        return _prediction(sample["image_id"], size, best, labels, masks)

    def configure_optimizers(self) -> Any:
        """Return the optimiser and its schedule."""
        return optimise(self, self.optimisation)


def _prediction(
    image_id: int, size: tuple[int, int], scores: Tensor, labels: Tensor, masks: list[Any]
) -> Prediction:
    """Return detections with tight boxes, without those whose mask is empty."""
    kept = [i for i, mask in enumerate(masks) if rle.area(mask)]
    masks = [masks[i] for i in kept]
    corners = [rle.toBbox(mask).tolist() for mask in masks]
    boxes = torch.tensor(corners, dtype=torch.float32).view(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return Prediction(image_id, size, boxes, scores[kept], labels[kept], masks)


def certainty(logits: Tensor) -> Tensor:
    """Return the mean probability of the pixels of each mask (Q,h,w), 0 of empty masks."""
    covered = logits > 0
    return (logits.sigmoid() * covered).sum((1, 2)) / covered.sum((1, 2)).clamp(min=1)


def _objects(target: Target) -> dict[str, Tensor]:
    """Return what is learnt of an image: its objects, without crowds, and the crowds' boxes.

    An object without a trusted mask has its filled box.
    """
    kept, masks, boxes = ~target["crowd"], target["masks"], target["boxes"]
    ignore_mask = target.get("ignore_mask", torch.zeros_like(kept))
    y, x = (torch.arange(side, device=masks.device) + 0.5 for side in masks.shape[1:])
    pixels = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)
    rectangles = [_in_boxes(pixels, box[None]) for box in boxes[ignore_mask]]
    if rectangles:
        masks = masks.clone()
        masks[ignore_mask] = torch.stack(rectangles)
    objects = {"labels": target["labels"], "masks": masks, "ignore_mask": ignore_mask}
    return {name: rows[kept] for name, rows in objects.items()} | {"crowds": boxes[~kept]}


def _in_boxes(points: Tensor, boxes: Tensor) -> Tensor:
    """Return which points (...,2) lie in any of the boxes (N,4), (...) bool."""
    after = (points[..., None, :] >= boxes[:, :2]).all(-1)
    return (after & (points[..., None, :] < boxes[:, 2:]).all(-1)).any(-1)
