"""BoxCaseg: box-supervised class-agnostic segmentation with salient images as a memory (Wang et al., CVPR 2021).

Boxes alone say where objects are tight, salient images with masks say what an object's outline looks like. One network learns
both in the same mini-batches; its masks inside the training boxes then train Mask R-CNN.

    symbol      name            shape
    S_w, S_s    weak            (N,S,S)     logits of the weak head on crops of objects and on salient images
    S_a         salient         (N,S,S)     logits of the salient head
    S_t         transferred     (N,S,S)     logits of the head whose weights an MLP makes from the weak head's
    B+, B-      rows, columns   (N,S)       lines that cross the object, and the others
    M           masks           (N,S,S)     of salient images
    alpha       alpha                       share of the salient head in the fused map

Where we follow the released code instead of the text, and why:

    eq. (1)     mean over all rows and columns; the printed sum grows with the crop
    eq. (2)     over all pixels, not those of bags alone
    eq. (3)     logits are mixed, not probabilities, which keeps the loss a plain cross-entropy
    jitter      the centre moves by up to a quarter of half the side, the side scales by 0.5 to 1.5; the listing moves a corner

Where we differ from both: pairs of neighbours end at the border of a crop (the code compares with zeros around it); both kinds
of images are normalised alike (the code has two ways); lines are labelled after a jittered box was cut off by the image. For
few images salient objects can be cropped as boxes are (`salient_crop`): whole images teach little of what fills its box. A
box is drawn from a random image, not from all boxes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from pycocotools import mask as rle
from pytorch_lightning.callbacks import Callback
from torch import Tensor, nn
from torchvision.ops import box_area, box_iou, roi_align

from wsis.data.module import DataModule
from wsis.data.salient import BringsSalient, Salient
from wsis.errors import InputError
from wsis.losses import mask_loss, neighbour_smoothness, tightness_loss
from wsis.method import Method, Stages, filled
from wsis.metrics import Evaluation, MaskIoU
from wsis.nn.backbone import Backbone, BackboneSettings
from wsis.nn.masks import paste, pointwise, run_lengths, tight_boxes
from wsis.runs.checkpoints import load_weights
from wsis.runs.stage import Stage
from wsis.types import Batch, Prediction, Sample, size_of

__all__ = ["BoxCaseg", "merge_masks", "proxy_box_agreement"]

_CHUNK = 32  # crops that are segmented at a time


_BACKBONE = BackboneSettings("hrnet_w48", output_stride=32, frozen_stages=0)


class BoxCaseg(Method):
    """Segment what a box holds, from boxes and salient images.

    Args:
        num_classes: Number of thing classes; taken from the data, for the segmentor.
        backbone: The network that makes the features; all its maps from stride 4 on are used. hrnet_w48 in the paper.
        heads: Heads of the network: "weak" learns from boxes, "salient" from masks, "transferred" too, with weights made from
            the weak head's.
        width: Hidden channels of a head; null has as many as the features.
        alpha: Weight of the salient head in the fused map; 0.7 on VOC, 0.6 in the code for COCO.
        smoothness: Weight of the differences between neighbours, eq. (2).
        salient: Folder of salient images and masks, such as DUTS-TR or ECSSD; empty takes those that `--data shapes` makes.
        salient_limit: Number of salient images to use, the same each time; 0 uses all.
        salient_fraction: Fraction of salient images in a batch; the paper's best is 7 of 16.
        salient_crop: Crop of a salient image: "image", nine tenths of it as in the paper, or "object", its object in a box
            that is jittered as a training box is.
        upside_down: Probability of turning a salient crop upside down.
        crop: Side in pixels of the crops that train the network.
        proxy_crop: Side in pixels of the crops that proxy masks are made from.
        shift: Largest shift of a training box, as a fraction of half its side.
        scale: A training box's side is multiplied by a factor in [1 - scale, 1 + scale].
        crowded: Probability of dropping a box that overlaps another by more than half; 0.75 in the code for COCO.
        merge: Whether the smaller of two overlapping objects takes the pixels that both cover.
        min_agreement: Proxy masks whose bounding box has a lower IoU with the given box are ignored by the mask loss.
        segmentor: Settings of the segmentor that is trained on proxy masks, with its `steps`; null trains none. `model` names
            another than mask_rcnn; its backbone starts as this one does, unless it names another.
        optimiser: SGD with momentum 0.9, or AdamW.
        lr: Learning rate, which falls to 0 by a power of 0.9.
        weight_decay: Weight decay of all weights.
    """

    supervision = frozenset({"tags", "boxes"})
    needs_proposals = False
    needs_boxes = True
    label_settings = ("merge", "min_agreement")
    later_settings = ("segmentor",)
    data_settings = ("salient", "salient_limit")

    def __init__(
        self,
        num_classes: int = 20,
        backbone: BackboneSettings = _BACKBONE,
        heads: tuple[Literal["weak", "salient", "transferred"], ...] = (
            "weak",
            "salient",
            "transferred",
        ),
        width: int | None = None,
        alpha: float = 0.7,
        smoothness: float = 0.05,
        salient: str = "",
        salient_limit: int = 0,
        salient_fraction: float = 0.4375,
        salient_crop: Literal["image", "object"] = "image",
        upside_down: float = 0.5,
        crop: int = 288,
        proxy_crop: int = 320,
        shift: float = 0.25,
        scale: float = 0.5,
        crowded: float = 0.0,
        merge: bool = True,
        min_agreement: float = 0.0,
        segmentor: dict[str, Any] | None = None,
        optimiser: Literal["sgd", "adamw"] = "sgd",
        lr: float = 0.004,
        weight_decay: float = 1e-4,
    ) -> None:
        super().__init__()
        backbone = filled(_BACKBONE, backbone)
        self.save_hyperparameters()
        self.min_mask_score = min_agreement
        self.backbone = Backbone(backbone)
        if any(side % self.backbone.divisor for side in (crop, proxy_crop)):
            raise InputError(
                f"crop {crop}, proxy_crop {proxy_crop}: give multiples of {self.backbone.divisor} for {backbone.name}"
            )
        self.levels = [level for level, stride in enumerate(self.backbone.strides) if stride >= 4]
        channels = sum(self.backbone.widths[level] for level in self.levels)
        if not salient_fraction and {"salient", "transferred"} & {*heads}:
            raise InputError(
                f"BoxCaseg with heads {heads} learns from salient images: give salient_fraction above 0, or heads [weak]"
            )
        if not heads or ("transferred" in heads and "weak" not in heads):
            raise InputError(
                f"BoxCaseg with heads {heads}: give at least one, and a weak head to transfer from"
            )
        self.weak, self.salient = (
            PixelHead(channels, width or channels) if n in heads else None
            for n in ("weak", "salient")
        )
        self.transferred = (
            TransferredHead(channels, width or channels) if "transferred" in heads else None
        )

    def configure_callbacks(self) -> list[Callback]:
        """Evaluate masks given their boxes."""
        return [Evaluation([MaskIoU(self.hparams["num_classes"])])]

    def training_data(self, data: DataModule) -> DataModule:
        """Return the data with a batch of salient images beside each of the images with boxes."""
        fraction, size = self.hparams["salient_fraction"], data.loading.batch_size
        if not fraction:
            return data
        folder = self.hparams["salient"]
        if not folder and isinstance(data, BringsSalient):
            folder = data.salient_folder()
        if not folder:
            raise InputError(
                "BoxCaseg learns from salient images too: give --model.salient DIR, a folder such as DUTS-TR"
            )
        count = max(1, round(fraction * size))
        loading = replace(data.loading, batch_size=count)
        limit = self.hparams["salient_limit"]
        salient = Salient(folder, limit, augment=data.augment, loading=loading)
        return data.variant(batch_size=max(1, size - count)).with_loaders(salient=salient)

    def on_fit_start(self) -> None:
        """Raise InputError if there should be salient images and are none."""
        data = getattr(self.trainer, "datamodule", None)
        if self.hparams["salient_fraction"] and data is not None and "salient" not in data.others:
            raise InputError(
                "BoxCaseg learns from salient images too: train it on model.training_data(data), not on data"
            )

    def stages(self, run: Stages, data: DataModule) -> None:
        """Train the joint network, give every training box a proxy mask, and train Mask R-CNN on those."""
        settings = self.hparams["segmentor"]
        shared = {
            "num_classes": self.hparams["num_classes"],
            "backbone": self.backbone.settings.shared(),
        }
        segmentor = Stage.of("segmentor", settings, "mask_rcnn", **shared) if settings else None
        joint = run.fit("1-joint", self, self.training_data(data))
        if segmentor is not None:
            load_weights(self, joint)
            segmentor.train(run, "3-segmentor", data, run.label("2-proxy-masks", self, data))

    def training_step(self, batch: Batch | dict[str, Batch], _: int) -> Tensor:
        """L = L_MIL, on both kinds of images, + L_pix on salient ones, eq. (4)."""
        if isinstance(batch, dict):
            batch = batch["images"] + batch["salient"]
        crops = [self.draw(sample) for sample in batch]
        features = self.features([crop.image for crop in crops])
        total = {}
        if self.weak is not None:
            logits = self.weak(features)
            rows, columns = (
                torch.stack([crop.rows for crop in crops]),
                torch.stack([crop.columns for crop in crops]),
            )
            total["tightness"] = tightness_loss(logits, rows, columns)  # eq. (1)
            total["smoothness"] = self.hparams["smoothness"] * neighbour_smoothness(
                logits.sigmoid()
            )  # eq. (2)
        if self.salient is not None or self.transferred is not None:
            known, masks = (
                [crop.mask is not None for crop in crops],
                [crop.mask for crop in crops if crop.mask is not None],
            )
            total["pixel"] = 0 * features[0].sum()
            if masks:
                total["pixel"] = mask_loss(
                    self.fuse([m[torch.tensor(known)] for m in features]), torch.stack(masks)
                )  # eq. (3)
        loss = torch.stack(list(total.values())).sum()
        self.log_losses(total, loss, len(batch))
        return loss

    def features(self, images: Sequence[Tensor] | Tensor) -> list[Tensor]:
        """The backbone's maps of images (N,3,S,S), the finest (N,D,S/4,S/4) first."""
        pixels = self.backbone.normalise(images).contiguous(
            memory_format=torch.channels_last
        )  # twice as fast to enlarge
        maps = self.backbone.network(pixels)
        return [maps[level] for level in self.levels]

    def fuse(self, features: Sequence[Tensor]) -> Tensor:
        """Logits (N,S,S) of the masks: alpha S_a + (1 - alpha) S_t, the one of them there is, or S_w."""
        transferred = None if self.transferred is None else self.transferred(features, self.weak)
        salient = None if self.salient is None else self.salient(features)
        if salient is None or transferred is None:
            alone = transferred if salient is None else salient
            return self.weak(features) if alone is None else alone  # type: ignore[misc]
        alpha = self.hparams["alpha"]
        return alpha * salient + (1 - alpha) * transferred

    def draw(self, sample: Sample) -> Crop:
        """A training crop: most of a salient image, or a random object in its jittered box."""
        image, target, side = sample["image"], sample["target"], self.hparams["crop"]
        size = image.shape[-2:]
        whole = torch.tensor([0.0, 0.0, size[1], size[0]], device=image.device)
        if "masks" in target:
            window = whole * 0.9  # 288 of 320 pixels, at a random place
            window = window + torch.rand(2, device=image.device).repeat(2) * (whole - window)[
                2:
            ].repeat(2)
            if self.hparams["salient_crop"] == "object" and len(target["boxes"]):
                window = jitter(
                    target["boxes"][0], self.hparams["shift"], self.hparams["scale"], whole
                )
            mask = look(target["masks"].any(0)[None].float(), window[None], side)[0, 0] >= 0.5
            upside_down = bool(torch.rand(()) < self.hparams["upside_down"])
            seen, mask = (
                t.flip(-2) if upside_down else t for t in (look(image, window[None], side)[0], mask)
            )
            return Crop(seen, mask.any(1), mask.any(0), mask.float())
        single = target["boxes"][~target["crowd"]]
        boxes = single[uncrowded(single, self.hparams["crowded"])]
        boxes = (
            boxes if len(boxes) else single
        )  # all left out: an image of objects is no background
        box = boxes[int(torch.randint(len(boxes), ()))] if len(boxes) else whole * 0
        window = (
            jitter(box, self.hparams["shift"], self.hparams["scale"], whole)
            if len(boxes)
            else whole
        )
        return Crop(look(image, window[None], side)[0], *lines(box, window, side), None)

    def predict(self, sample: Sample) -> Prediction:
        """A mask for each given box, in the order of the boxes."""
        if "boxes" not in sample["target"]:
            raise InputError(
                f"BoxCaseg segments what given boxes hold, but image {sample['image_id']} has none; give boxes"
            )
        boxes, size = (
            sample["target"]["boxes"],
            size_of(sample["image"]),
        )
        crops = [
            self.segment(sample["image"], boxes[i : i + _CHUNK])
            for i in range(0, len(boxes), _CHUNK)
        ]
        masks = paste(torch.cat(crops), boxes, size) if crops else []
        scores, labels = torch.ones(len(boxes)), sample["target"]["labels"].cpu()
        return Prediction(sample["image_id"], size, boxes.cpu(), scores, labels, masks)

    def segment(self, image: Tensor, boxes: Tensor) -> Tensor:
        """Probabilities (K,s,s) over boxes (K,4) of an image (3,H,W), each stretched to [0, 1] as the code does."""
        logits = self.fuse(self.features(look(image, boxes, self.hparams["proxy_crop"])))
        probabilities = logits.sigmoid()
        low, high = (
            probabilities.amin((1, 2), keepdim=True),
            probabilities.amax((1, 2), keepdim=True),
        )
        return (probabilities - low) / (high - low).clamp(min=1e-6)

    def label(self, batch: Batch, score_threshold: float = 0.0) -> list[Prediction]:
        """Proxy masks of each image's boxes but crowds, merged; the score is the agreement of mask and box."""
        return [
            merged(self.predict(without_crowds(sample)), self.hparams["merge"]) for sample in batch
        ]

    def configure_optimizers(self) -> Any:
        """SGD or AdamW, the rate falling to 0 by a power of 0.9."""
        parameters = [p for p in self.parameters() if p.requires_grad]
        how = {"lr": self.hparams["lr"], "weight_decay": self.hparams["weight_decay"]}
        adamw, steps = (
            self.hparams["optimiser"] == "adamw",
            int(self.trainer.estimated_stepping_batches),
        )
        optimiser = (
            torch.optim.AdamW(parameters, **how)
            if adamw
            else torch.optim.SGD(parameters, momentum=0.9, **how)
        )
        schedule = torch.optim.lr_scheduler.PolynomialLR(optimiser, max(steps, 1), power=0.9)
        return [optimiser], [{"scheduler": schedule, "interval": "step"}]


class Crop(NamedTuple):
    """What the network sees of one image in training, and what is known of it."""

    image: Tensor
    """(3,S,S) float, 0 to 255."""
    rows: Tensor
    """(S,) bool, whether a row crosses the object."""
    columns: Tensor
    """(S,) bool."""
    mask: Tensor | None
    """(S,S) float, of salient images."""


class PixelHead(nn.Module):
    """Two 1 x 1 convolutions with normalisation between them; logits at four times the features' size.

    Args:
        channels: of the features.
        width: hidden channels.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(channels, width, 1), nn.BatchNorm2d(width, momentum=0.01)
        self.last = nn.Conv2d(width, 1, 1)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Maps, the finest (N,D,h,w) first -> (N,4h,4w)."""
        return _enlarge(
            self.last(self.norm(pointwise(features, self.first.weight, self.first.bias)).relu())
        )


class TransferredHead(nn.Module):
    """A head like the weak one, with weights that an MLP makes from the weak head's, which learns nothing (section 3.3.2).

    Args:
        channels: of the features.
        width: hidden channels.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.first, self.last = WeightTransfer(channels), WeightTransfer(width)
        self.norm = nn.BatchNorm2d(width, momentum=0.01)

    def forward(self, features: Sequence[Tensor], weak: PixelHead) -> Tensor:
        """Maps, the finest (N,D,h,w) first -> (N,4h,4w)."""
        hidden = pointwise(features, *self.first(weak.first))
        return _enlarge(F.conv2d(self.norm(hidden).relu(), *self.last(weak.last)))


class WeightTransfer(nn.Module):
    """Weights of a 1 x 1 convolution from another's, a row at a time; a linear function for the bias.

    Args:
        width: length of a row.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        layers = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        for layer in layers:
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)
        self.rows = nn.Sequential(layers[0], nn.LeakyReLU(0.1), layers[1])
        self.slope, self.shift = nn.Parameter(torch.ones(())), nn.Parameter(torch.zeros(()))

    def forward(self, source: nn.Conv2d) -> tuple[Tensor, Tensor]:
        """Weight (O,I,1,1) and bias (O,), detached from the source's."""
        weight = self.rows(source.weight.detach().flatten(1))
        bias = source.bias if source.bias is not None else weight.new_zeros(len(weight))
        return weight[..., None, None], self.slope * bias.detach() + self.shift


def _enlarge(logits: Tensor) -> Tensor:
    return F.interpolate(logits, scale_factor=4, mode="bilinear")[:, 0]


def look(image: Tensor, boxes: Tensor, side: int) -> Tensor:
    """Scale boxes (K,4) of an image (C,H,W) to (K,C,side,side), averaging where that makes them smaller."""
    if not len(boxes):
        return boxes.new_zeros(0, len(image), side, side)
    return roi_align(image[None].float(), [boxes.float()], side, 1.0, -1, True)


def jitter(box: Tensor, shift: float, scale: float, whole: Tensor) -> Tensor:
    """Move and scale a box (4,) at random, cut off by the image's own box `whole` (4,); at least a pixel wide."""
    extent, centre = box[2:] - box[:2], (box[:2] + box[2:]) / 2
    move, grow = (2 * torch.rand(2, device=box.device) - 1 for _ in range(2))
    centre, half = centre + shift * move * extent / 2, (1 + scale * grow) * extent / 2
    low = torch.minimum((centre - half).clamp(min=0), whole[2:] - 1)
    return torch.cat([low, torch.maximum(torch.minimum(centre + half, whole[2:]), low + 1)])


def uncrowded(boxes: Tensor, probability: float) -> Tensor:
    """Which of boxes (K,4) to learn from: those that overlap another by more than half drop out by chance."""
    overlap: Tensor = box_iou(boxes, boxes).fill_diagonal_(0)
    return (overlap <= 0.5).all(1) | (torch.rand(len(boxes), device=boxes.device) >= probability)


def lines(box: Tensor, window: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Which of `side` rows and columns of a window (4,) cross a box (4,), by their centres."""
    steps = (torch.arange(side, device=box.device) + 0.5) / side
    x, y = (window[i] + steps * (window[i + 2] - window[i]) for i in (0, 1))
    return (y >= box[1]) & (y < box[3]), (x >= box[0]) & (x < box[2])


def merge_masks(masks: Tensor, boxes: Tensor) -> Tensor:
    """Give every pixel to the smallest object that claims it (section 3.4).

    Args:
        masks: (K,H,W) bool.
        boxes: (K,4) xyxy, whose areas say which object is smaller; of equals the first wins.

    Returns:
        (K,H,W) bool, no two of which overlap.
    """
    merged, free = torch.empty_like(masks), torch.ones_like(masks[:1])
    for k in box_area(boxes).argsort(stable=True).tolist():
        torch.bitwise_and(masks[k], free[0], out=merged[k])
        free &= ~masks[k]
    return merged


def proxy_box_agreement(masks: Tensor, boxes: Tensor) -> Tensor:
    """IoU of each mask's own box with the given one; 0 for an empty mask (section 3.4).

    Args:
        masks: (K,H,W) bool.
        boxes: (K,4) xyxy.

    Returns:
        (K,).
    """
    own = tight_boxes(masks).to(boxes)
    inside = (
        (torch.minimum(own[:, 2:], boxes[:, 2:]) - torch.maximum(own[:, :2], boxes[:, :2]))
        .clamp(min=0)
        .prod(1)
    )
    return inside / (box_area(own) + box_area(boxes) - inside).clamp(min=1e-6)


def without_crowds(sample: Sample) -> Sample:
    """The sample with the boxes of single objects alone."""
    target = sample["target"]
    single = {name: target[name][~target["crowd"]] for name in ("boxes", "labels", "crowd")}
    return {**sample, "target": {**target, **single}}  # type: ignore[typeddict-item]


def merged(prediction: Prediction, merge: bool = True) -> Prediction:
    """Let masks of one image give way to smaller ones, and score each by its agreement with its box."""
    if not prediction.masks:
        return prediction
    masks = torch.from_numpy(np.stack([rle.decode(mask) for mask in prediction.masks])).bool()
    masks = merge_masks(masks, prediction.boxes) if merge else masks
    encoded = [run_lengths(mask) for mask in masks]
    return prediction._replace(scores=proxy_box_agreement(masks, prediction.boxes), masks=encoded)
