"""BoxCaseg: box-supervised segmentation with salient images as a memory (Wang et al., CVPR 2021).

Boxes tell the extent of objects, salient images with masks what their outlines look like. One
class-agnostic network learns from both in the same mini-batches; its masks inside the training
boxes then train Mask R-CNN.

    symbol      name            shape
    S_w, S_s    weak            (N,S,S)     logits of the weak head on crops of objects and on
                                            salient images
    S_a         salient         (N,S,S)     logits of the salient head
    S_t         transferred     (N,S,S)     logits of the head whose weights an MLP makes from the
                                            weak head's
    B+, B-      rows, columns   (N,S)       lines that cross the object, and the others
    M           masks           (N,S,S)     of salient images
    alpha       alpha                       weight of the salient head in the fused map

Where we follow the released code instead of the text, and why:

    eq. (1)     mean over all rows and columns; the printed sum grows with the crop
    eq. (2)     over all pixels, not those of bags alone
    eq. (3)     logits are mixed, not probabilities, which keeps the loss a plain cross-entropy
    jitter      the centre moves by up to a quarter of half the side, the side scales by 0.5 to 1.5;
                the listing moves a corner

Where we differ from both:

    borders     pixels at the border of a crop have no neighbours outside; the code pads with zeros
    pixels      both kinds of images are normalised alike; the code has two normalisations
    agreement   compares the whole pixels of a box and of a mask; the code's boxes end between them
    lines       are labelled after a jittered box is clipped to the image
    boxes       are drawn from a random image, not from all boxes
    salient     for few images, objects can be cropped like boxes (`salient_crop`): in whole images
                few objects fill their box as they do in training boxes
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor

from wsis.data.module import DataModule
from wsis.data.salient import BringsSalient, Salient
from wsis.errors import InputError
from wsis.losses import mask_loss, neighbour_smoothness, tightness_loss
from wsis.method import Method, Stages, filled
from wsis.metrics import Evaluation, MaskIoU
from wsis.models.boxcaseg._settings import RANGES, idle
from wsis.models.boxcaseg.crops import Crop, jitter, lines, look, uncrowded
from wsis.models.boxcaseg.heads import TransferredHead
from wsis.models.boxcaseg.proxies import (
    merge_masks,
    merged,
    proxy_box_agreement,
    without_crowds,
)
from wsis.nn.backbone import Backbone, BackboneSettings
from wsis.nn.masks import PixelHead, paste
from wsis.nn.optimisation import falling
from wsis.runs.checkpoints import load_weights
from wsis.runs.stage import Stage
from wsis.types import Batch, Prediction, Sample, size_of

__all__ = [
    "BoxCaseg",
    "TransferredHead",
    "jitter",
    "lines",
    "look",
    "merge_masks",
    "proxy_box_agreement",
]

_CHUNK = 32  # crops segmented at once
_NO_SALIENT = (
    "BoxCaseg learns from salient images too: give --model.salient DIR, a folder such as DUTS-TR"
)
_BACKBONE = BackboneSettings("hrnet_w48", output_stride=32, frozen_stages=0)


class BoxCaseg(Method):
    """Learn to segment the object in a box, from boxes and salient images.

    Args:
        num_classes: Number of thing classes; taken from the data, for the segmentor.
        backbone: The network that makes the features, hrnet_w48 in the paper; all its maps from
            stride 4 on are used.
        heads: Heads of the network: "weak" learns from boxes, "salient" from masks, and
            "transferred" from masks by weights made from the weak head's.
        width: Hidden channels of a head; null uses as many as the features have.
        alpha: Weight of the salient head in the fused map; 0.7 on VOC, 0.6 in the code for COCO.
        smoothness: Weight of the differences between neighbours, eq. (2).
        salient: Folder of salient images and masks, such as DUTS-TR or ECSSD; empty uses those that
            `--data shapes` makes.
        salient_limit: Number of salient images to use, the same each time; 0 uses all.
        salient_fraction: Fraction of salient images in a batch; the paper's best is 7 of 16.
        salient_crop: Crop of a salient image: "image", nine tenths of each side as in the paper, or
            "object", the object in a box jittered like a training box.
        upside_down: Probability of turning a salient crop upside down.
        crop: Side in pixels of the crops that train the network.
        proxy_crop: Side in pixels of the crops that proxy masks are made from.
        shift: Largest shift of a training box, as a fraction of half its side.
        scale: A training box's side is multiplied by a factor in [1 - scale, 1 + scale].
        crowded: Probability of dropping a box whose IoU with another is above 0.5; 0.75 in the code
            for COCO.
        merge: Whether pixels of two overlapping masks go to the smaller object.
        min_agreement: Proxy masks whose bounding box has a lower IoU with the given box are ignored
            by the mask loss; 0.95 is the paper's best on COCO, and it does not say that on VOC.
        segmentor: Settings of the segmentor that is trained on proxy masks, with its `steps` and,
            if not mask_rcnn, its `model`; null trains none.
        optimiser: SGD with momentum 0.9, or AdamW.
        lr: Learning rate of the heads; it decays to 0 with a power of 0.9.
        backbone_lr: Factor on `lr` for the backbone; below 1 keeps trained features under AdamW,
            whose first steps are as long as its later ones.
        warmup: Fraction of the steps over which the learning rate rises from 0.
        weight_decay: Weight decay of all weights.
    """

    supervision = frozenset({"tags", "boxes"})
    needs_proposals = False
    needs_boxes = True
    label_settings = ("merge", "min_agreement")
    later_settings = ("segmentor",)
    data_settings = ("salient", "salient_limit")
    ranges = RANGES

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
        min_agreement: float = 0.95,
        segmentor: dict[str, Any] | None = None,
        optimiser: Literal["sgd", "adamw"] = "sgd",
        lr: float = 0.004,
        backbone_lr: float = 1.0,
        warmup: float = 0.0,
        weight_decay: float = 1e-4,
    ) -> None:
        super().__init__()
        backbone = filled(_BACKBONE, backbone)
        self.save_hyperparameters()
        self.min_mask_score = min_agreement
        self.backbone = Backbone(backbone)
        if any(side % self.backbone.divisor for side in (crop, proxy_crop)):
            raise InputError(
                f"crop {crop}, proxy_crop {proxy_crop}: give multiples of {self.backbone.divisor} "
                f"for {backbone.name}"
            )
        self.levels = [level for level, stride in enumerate(self.backbone.strides) if stride >= 4]
        channels = sum(self.backbone.widths[level] for level in self.levels)
        if not salient_fraction and {"salient", "transferred"} & {*heads}:
            raise InputError(
                f"BoxCaseg with heads {heads} learns from salient images: give salient_fraction "
                "above 0, or heads [weak]"
            )
        if not heads or ("transferred" in heads and "weak" not in heads):
            raise InputError(
                f"BoxCaseg with heads {heads}: give at least one, and a weak head to transfer from"
            )
        width = width or channels
        self.weak = PixelHead(channels, width) if "weak" in heads else None
        self.salient = PixelHead(channels, width) if "salient" in heads else None
        self.transferred = TransferredHead(channels, width) if "transferred" in heads else None

    def idle(self) -> dict[str, str]:
        """Return the settings that have no effect beside the others, each with the reason."""
        return idle(self.hparams)

    @classmethod
    def check_data(cls, data: Any, settings: Mapping[str, Any]) -> None:
        """Raise InputError if there are no salient images."""
        wanted, folder = settings["salient_fraction"], settings["salient"]
        if wanted and not (Path(folder).is_dir() if folder else isinstance(data, BringsSalient)):
            missing = f"there is no folder {folder}; " if folder else ""
            raise InputError(f"{missing}{_NO_SALIENT}")

    def configure_callbacks(self) -> list[Callback]:
        """Evaluate masks given their boxes."""
        return [Evaluation([MaskIoU(self.hparams["num_classes"])])]

    def training_data(self, data: DataModule) -> DataModule:
        """Return the data with a batch of salient images beside each batch of images with boxes.

        Args:
            data: images with boxes; its batch size becomes that of both kinds together.

        Raises:
            InputError: there are no salient images.
        """
        fraction, size = self.hparams["salient_fraction"], data.loading.batch_size
        if not fraction:
            return data
        folder = self.hparams["salient"]
        if not folder and isinstance(data, BringsSalient):
            folder = data.salient_folder()
        if not folder:
            raise InputError(_NO_SALIENT)
        count = max(1, round(fraction * size))
        loading = replace(data.loading, batch_size=count)
        limit = self.hparams["salient_limit"]
        salient = Salient(folder, limit, augment=data.augment, loading=loading)
        return data.variant(batch_size=max(1, size - count)).with_loaders(salient=salient)

    def on_fit_start(self) -> None:
        """Raise InputError if the data should have salient images but has none."""
        super().on_fit_start()
        data = getattr(self.trainer, "datamodule", None)
        if self.hparams["salient_fraction"] and data is not None and "salient" not in data.others:
            raise InputError(
                "BoxCaseg learns from salient images too: train it on model.training_data(data), "
                "not on data"
            )

    def stages(self, run: Stages, data: DataModule) -> None:
        """Train the joint network, make a proxy mask for every box, and train the segmentor."""
        settings = self.hparams["segmentor"]
        shared = {
            "num_classes": self.hparams["num_classes"],
            "backbone": self.backbone.settings.shared(),
        }
        segmentor = Stage.of("segmentor", settings, "mask_rcnn", **shared) if settings else None
        if segmentor is not None:
            segmentor.check(data)
        joint = run.fit("1-joint", self, self.training_data(data))
        if segmentor is not None:
            load_weights(self, joint)
            segmentor.train(run, "3-segmentor", data, run.label("2-proxy-masks", self, data))

    def stage_names(self) -> list[str]:
        """Return the names of the stages."""
        after = ["2-proxy-masks", "3-segmentor"] if self.hparams["segmentor"] else []
        return ["1-joint", *after]

    def training_step(self, batch: Batch | dict[str, Batch], _: int) -> Tensor:
        """L = L_MIL on both kinds of images + L_pix on salient images, eq. (4)."""
        if isinstance(batch, dict):
            batch = batch["images"] + batch["salient"]
        crops = [self.draw(sample) for sample in batch]
        features = self.features([crop.image for crop in crops])
        total = {}
        if self.weak is not None:
            logits = self.weak(features)[:, 0]
            rows = torch.stack([crop.rows for crop in crops])
            columns = torch.stack([crop.columns for crop in crops])
            total["tightness"] = tightness_loss(logits, rows, columns)  # eq. (1)
            smoothness = neighbour_smoothness(logits.sigmoid())  # eq. (2)
            total["smoothness"] = self.hparams["smoothness"] * smoothness
        if self.salient is not None or self.transferred is not None:
            total["pixel"] = 0 * features[0].sum()
            masks = [crop.mask for crop in crops if crop.mask is not None]
            if masks:
                salient = torch.tensor([crop.mask is not None for crop in crops])
                logits = self.fuse([level[salient] for level in features])
                total["pixel"] = mask_loss(logits, torch.stack(masks))  # eq. (3)
        loss = torch.stack(list(total.values())).sum()
        self.log_losses(total, loss, len(batch))
        return loss

    def features(self, images: Sequence[Tensor] | Tensor) -> list[Tensor]:
        """Return the backbone's maps of images (N,3,S,S), the finest (N,D,S/4,S/4) first."""
        maps = self.backbone.network(self.backbone.normalise(images))
        return [maps[level] for level in self.levels]

    def fuse(self, features: Sequence[Tensor]) -> Tensor:
        """Return logits (N,S,S) of masks: alpha S_a + (1 - alpha) S_t.

        With one of these heads it alone makes the logits, without both the weak head.
        """
        transferred = None if self.transferred is None else self.transferred(features, self.weak)
        salient = None if self.salient is None else self.salient(features)[:, 0]
        if salient is None or transferred is None:
            alone = transferred if salient is None else salient
            return self.weak(features)[:, 0] if alone is None else alone  # type: ignore[misc]
        alpha = self.hparams["alpha"]
        return alpha * salient + (1 - alpha) * transferred

    def draw(self, sample: Sample) -> Crop:
        """Return a random training crop of a salient image, or of an object in its jittered box."""
        height, width = sample["image"].shape[-2:]
        whole = torch.tensor([0.0, 0.0, width, height], device=sample["image"].device)
        if "masks" in sample["target"]:
            return self._draw_salient(sample, whole)
        return self._draw_object(sample, whole)

    def _draw_salient(self, sample: Sample, whole: Tensor) -> Crop:
        image, target, side = sample["image"], sample["target"], self.hparams["crop"]
        window = whole * 0.9  # 288 of 320 pixels, at a random place
        margin = (whole - window)[2:].repeat(2)
        window = window + torch.rand(2, device=image.device).repeat(2) * margin
        if self.hparams["salient_crop"] == "object" and len(target["boxes"]):
            box = target["boxes"][0]
            window = jitter(box, self.hparams["shift"], self.hparams["scale"], whole)
        mask = look(target["masks"].any(0)[None].float(), window[None], side)[0, 0] >= 0.5
        pixels = look(image, window[None], side)[0]
        if torch.rand(()) < self.hparams["upside_down"]:
            pixels, mask = pixels.flip(-2), mask.flip(-2)
        return Crop(pixels, mask.any(1), mask.any(0), mask.float())

    def _draw_object(self, sample: Sample, whole: Tensor) -> Crop:
        image, target, side = sample["image"], sample["target"], self.hparams["crop"]
        single = target["boxes"][~target["crowd"]]
        boxes = single[uncrowded(single, self.hparams["crowded"])]
        if not len(boxes):
            boxes = single  # if all are dropped: the image is not background
        box, window = whole * 0, whole
        if len(boxes):
            box = boxes[int(torch.randint(len(boxes), ()))]
            window = jitter(box, self.hparams["shift"], self.hparams["scale"], whole)
        return Crop(look(image, window[None], side)[0], *lines(box, window, side), None)

    def predict(self, sample: Sample) -> Prediction:
        """Return a mask for each given box, in the order of the boxes.

        Raises:
            InputError: the image has no boxes.
        """
        if "boxes" not in sample["target"]:
            raise InputError(
                f"BoxCaseg segments what given boxes hold, but image {sample['image_id']} has "
                "none; give boxes"
            )
        boxes, size = sample["target"]["boxes"], size_of(sample["image"])
        chunks = [boxes[i : i + _CHUNK] for i in range(0, len(boxes), _CHUNK)]
        crops = [self.segment(sample["image"], chunk) for chunk in chunks]
        masks = paste(torch.cat(crops), boxes, size) if crops else []
        scores, labels = torch.ones(len(boxes)), sample["target"]["labels"].cpu()
        return Prediction(sample["image_id"], size, boxes.cpu(), scores, labels, masks)

    def segment(self, image: Tensor, boxes: Tensor) -> Tensor:
        """Return probabilities (K,s,s) over boxes (K,4) of an image (3,H,W).

        Those of a box are stretched to [0, 1], as in the code.
        """
        logits = self.fuse(self.features(look(image, boxes, self.hparams["proxy_crop"])))
        probabilities = logits.sigmoid()
        low = probabilities.amin((1, 2), keepdim=True)
        high = probabilities.amax((1, 2), keepdim=True)
        return (probabilities - low) / (high - low).clamp(min=1e-6)

    def label(self, batch: Batch, score_threshold: float = 0.0) -> list[Prediction]:
        """Return merged proxy masks of each image's boxes except crowds.

        The score of a mask is its agreement with its box.
        """
        predictions = [self.predict(without_crowds(sample)) for sample in batch]
        return [merged(prediction, self.hparams["merge"]) for prediction in predictions]

    def configure_optimizers(self) -> Any:
        """Return SGD or AdamW with a learning rate that rises, then decays with a power of 0.9."""
        given, lr = self.hparams, self.hparams["lr"]
        of_backbone = set(self.backbone.parameters())
        heads = [p for p in self.parameters() if p.requires_grad and p not in of_backbone]
        trained = [p for p in self.backbone.parameters() if p.requires_grad]
        groups = [{"params": heads}, {"params": trained, "lr": given["backbone_lr"] * lr}]
        settings = {"lr": lr, "weight_decay": given["weight_decay"]}
        optimiser: torch.optim.Optimizer
        if given["optimiser"] == "adamw":
            optimiser = torch.optim.AdamW(groups, **settings)
        else:
            optimiser = torch.optim.SGD(groups, momentum=0.9, **settings)
        steps = max(int(self.trainer.estimated_stepping_batches), 1)
        factor = partial(falling, steps=steps, warmup=given["warmup"])
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, factor)
        return [optimiser], [{"scheduler": schedule, "interval": "step"}]
