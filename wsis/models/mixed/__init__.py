"""Mixed labels: each object teaches by what is known of it.

People have masks of a few objects, boxes of many, points or tags of the rest. As in PointWSSIS (Kim
et al., CVPR 2023), one network first finds masks for the objects that have neither mask nor box,
and a second one learns from all of them.

    known     finds masks                        teaches the segmentor
    mask                                         boxes and masks, as in Mask R-CNN (He et al., 2017)
    box                                          boxes; masks by BoxInst's eqs. (3) and (7) (Tian et
                                                 al., CVPR 2021)
    points    teach the labeller, and get its    boxes and masks, as in Mask R-CNN
              best mask of the class that holds
              them
    tag       teach the labeller, and get its    boxes and masks, as in Mask R-CNN
              detections of the class

With labels of one kind, this is that method: Mask R-CNN, BoxInst, or the labeller alone, which then
is the model of the run.

The loss of masks is the mean over all regions, of which each has the loss of its kind. In an image
of which some class is not complete, unlabelled regions are excluded from the loss: they may be
objects.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

import pytorch_lightning as pl
import torch
from torch import Tensor
from torchvision.models.detection.roi_heads import maskrcnn_loss

from wsis.coco.objects import kind_of
from wsis.errors import InputError
from wsis.method import Method, Stages, filled
from wsis.models.mixed.labels import write_labels
from wsis.nn.backbone import BackboneSettings
from wsis.nn.box_masks import losses_of_boxes
from wsis.nn.optimisation import Optimisation, optimise
from wsis.parts.mask_rcnn import MaskRCNN
from wsis.runs.stage import Stage
from wsis.types import Batch, Index, Prediction, Sample, Target, size_of
from wsis.values import COUNT, FRACTION, NOT_NEGATIVE, Ranges, check_arguments

__all__ = ["Mixed"]

_BACKBONE = BackboneSettings("resnet50", output_stride=32, frozen_stages=2)
_OPTIMISATION = Optimisation("sgd", lr=0.01, warmup=0.011, weight_decay=1e-4, decay_at=(0.67, 0.89))
_PLACED = frozenset({"mask", "box"})


class Mixed(Method):
    """Learn to detect and segment from masks, boxes, points and tags side by side.

    Args:
        num_classes: Number of thing classes; taken from the data.
        backbone: The network that computes features.
        network: Further settings of Mask R-CNN, which detects and segments.
        pairwise_weight: Weight of the pairwise loss of objects with a box alone.
        pairwise_warmup: Fraction of training in which that weight grows linearly from 0.
        threshold: Lowest colour similarity of neighbours that should have one label.
        dilation: Cells from a cell to its neighbours.
        point_labeller: Settings of the method that finds masks where some objects have points
            alone, with its `steps` and, if it is not point_mil, its `model`.
        tag_labeller: The same where there are no points, only tags; if it is not pdsl.
        label_score: Lowest score of a detection that labels a tagged class, if it is not the best
            of its class.
        optimisation: How weights are optimised.
    """

    supervision = frozenset({"tags", "complete", "points", "boxes", "masks"})
    needs_every_field = False
    later_settings = ("point_labeller", "tag_labeller", "label_score")
    ranges: ClassVar[Ranges] = {
        COUNT: ("dilation",),
        NOT_NEGATIVE: ("pairwise_weight",),
        FRACTION: ("pairwise_warmup", "threshold", "label_score"),
    }

    def __init__(
        self,
        num_classes: int = 80,
        backbone: BackboneSettings = _BACKBONE,
        network: dict[str, Any] | None = None,
        pairwise_weight: float = 1.0,
        pairwise_warmup: float = 0.11,
        threshold: float = 0.3,
        dilation: int = 2,
        point_labeller: dict[str, Any] | None = None,
        tag_labeller: dict[str, Any] | None = None,
        label_score: float = 0.5,
        optimisation: Optimisation = _OPTIMISATION,
    ) -> None:
        super().__init__()
        backbone = filled(_BACKBONE, backbone)
        self.optimisation = optimisation = filled(_OPTIMISATION, optimisation)
        self.save_hyperparameters()
        own = ("num_classes", "backbone", "optimisation")  # settings of Mixed itself
        check_arguments(MaskRCNN, "model.network", network or {}, without=own)
        self.network = MaskRCNN(num_classes, backbone, **(network or {}))
        self.needs_proposals = False  # only the labellers do
        self.kinds = _PLACED
        self.warmup_steps = 0.0

    @classmethod
    def check_data(cls, data: Any, settings: Mapping[str, Any]) -> None:
        """Raise InputError if nothing is known of any object."""
        index = data.index("train")
        if not kinds(index):
            raise InputError(
                f"{index.name} has no label to train with in {data.relabelled or index.root}; add "
                "masks, boxes, points or tags"
            )

    def stages(self, run: Stages, data: Any) -> None:
        """Find masks of objects that have neither mask nor box; learn from all objects.

        Without a mask or a box, the method that finds masks is the last stage.
        """
        known = kinds(data.index("train"))
        if known <= _PLACED:
            run.fit("train", self, data)
            return
        pl.seed_everything(run.seed, verbose=False)  # first weights as in a run of that method
        labeller = self._labeller(known)
        labeller.check(data)
        labeller.work(run, data)
        if known.isdisjoint(_PLACED):
            return
        done = len(labeller.model.stage_names())
        found = run.label(f"{done + 1}-found", labeller.model, data, self.hparams["label_score"])
        complete = partial(write_labels, own=data.index("train"), found=found)
        labels = run.make(f"{done + 2}-labels", complete)
        run.fit(f"{done + 3}-mixed", self, data.variant(labels / "labels.json"))

    def _labeller(self, known: set[str]) -> Stage:
        """Build the method that finds masks where no mask and no box is known."""
        setting, default = "tag_labeller", "pdsl"
        if "point" in known:
            setting, default = "point_labeller", "point_mil"
        classes = self.hparams["num_classes"]
        return Stage.of(setting, self.hparams[setting] or {}, default, num_classes=classes)

    def setup(self, stage: str) -> None:
        """Look which losses of masks the training labels call for."""
        super().setup(stage)
        if stage == "fit":
            index = self.trainer.datamodule.index("train")  # type: ignore[attr-defined]
            self.kinds = _PLACED & kinds(index)

    def training_step(self, batch: Batch, _: int) -> Tensor:
        """Sum the detector's losses and those of masks."""
        images = [sample["image"] for sample in batch]
        targets = [learnable(sample) for sample in batch]
        losses = self.network.losses(images, targets, partial(self.mask_losses, images))
        weights = {"pairwise": self.hparams["pairwise_weight"] * self.warmth()}
        loss = torch.stack([weights.get(name, 1.0) * value for name, value in losses.items()]).sum()
        self.log_losses(losses, loss, len(batch))
        return loss

    def mask_losses(
        self,
        images: list[Tensor],
        logits: Tensor,
        regions: list[Tensor],
        targets: list[dict[str, Tensor]],
        objects: list[Tensor],
    ) -> dict[str, Tensor]:
        """Return the losses of mask logits (R,C+1,h,w); see `wsis.parts.mask_rcnn.MaskLosses`.

        Means over regions of one kind are weighted by its share of all regions.
        """
        has_mask = [t["has_mask"][index] for t, index in zip(targets, objects, strict=True)]
        known = torch.cat(has_mask)
        share = known.float().mean().nan_to_num()
        losses: dict[str, Tensor] = {}
        if "mask" in self.kinds:
            masks, labels = ([target[name] for target in targets] for name in ("masks", "labels"))
            of_masks, matched = chosen(regions, has_mask), chosen(objects, has_mask)
            loss = maskrcnn_loss(logits[known], of_masks, masks, labels, matched)
            losses["mask"] = share * loss if "box" in self.kinds else loss
        if "box" in self.kinds:
            box_alone = [~kept for kept in has_mask]
            of_boxes, matched = chosen(regions, box_alone), chosen(objects, box_alone)
            settings = {name: self.hparams[name] for name in ("threshold", "dilation")}
            found = losses_of_boxes(images, logits[~known], of_boxes, targets, matched, **settings)
            weight = 1 - share if "mask" in self.kinds else 1.0
            losses |= {name: weight * loss for name, loss in found.items()}
        return losses

    def warmth(self) -> float:
        """Return the factor on the pairwise loss at this step, from 0 to 1."""
        return min(self.global_step / self.warmup_steps, 1.0) if self.warmup_steps else 1.0

    def predict(self, sample: Sample) -> Prediction:
        """Detect and segment as Mask R-CNN does."""
        return self.network.predict(sample)

    def configure_optimizers(self) -> Any:
        """Optimise as `optimisation` says."""
        steps = int(self.trainer.estimated_stepping_batches)
        self.warmup_steps = self.hparams["pairwise_warmup"] * steps
        return optimise(self, self.optimisation)


def chosen(rows: list[Tensor], kept: list[Tensor]) -> list[Tensor]:
    """Return the rows of each image that are `kept` (R_i,) bool."""
    return [of_image[mask] for of_image, mask in zip(rows, kept, strict=True)]


def kinds(index: Index) -> set[str]:
    """Return in which ways objects are known: "mask", "box", "point", "tag".

    A class of an image of which no object has a place is known by a tag.
    """
    found: set[str] = set()
    for image in index.images:
        annotations = index.annotations.get(image["id"], ())
        found |= {kind_of(annotation) for annotation in annotations}
        if len(index.tags.get(image["id"]) or ()) > len({a["category_id"] for a in annotations}):
            found.add("tag")
    return found


def learnable(sample: Sample) -> dict[str, Tensor]:
    """Return Mask R-CNN's target of an image: objects with a box, and which have a mask.

    Crowds are `skipped`, and so is the whole image if one of its classes is not complete.
    """
    target: Target = sample["target"]
    kept = ~target["crowd"] & ~target["boxes"].isnan().any(1)
    height, width = size_of(sample["image"])
    whole = target["boxes"].new_tensor([[0.0, 0.0, width, height]])
    incomplete = ~target["complete"].all() | target["boxes"].isnan().any()
    return {
        "boxes": target["boxes"][kept],
        "labels": target["labels"][kept] + 1,
        "masks": target["masks"][kept],
        "has_mask": ~target["ignore_mask"][kept],
        "ignore_mask": torch.zeros_like(kept[kept]),
        "skipped": torch.cat([target["boxes"][target["crowd"]], whole[incomplete[None]]]),
    }
