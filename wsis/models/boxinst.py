"""BoxInst: instance segmentation from boxes alone.

Tian et al., CVPR 2021. A detector learns boxes as always. Its mask head learns two things: the
projections of a mask onto both axes are those of its box, and neighbours of similar colour belong
together. No salient images, no pseudo-masks.

    symbol     name             shape
    m          probabilities    (R,h,w)     masks of regions that match an object
    b          inside           (R,h,w)     cells inside the object's box
    c          colours          (R,3,h,w)   CIE L*a*b* of the cells
    S_e        similarity       of an edge between two cells, eq. (6)
    y_e                         1 where both cells of an edge have one label, eq. (4)
    tau        threshold        lowest S_e of an edge that is known to have y_e = 1

Where we follow the released code instead of the text, and why:

    tau        0.3; the text has 0.1
    eq. (7)    mean over similar edges with a cell inside the box; the text divides by all edges
               with a cell inside, which makes textured objects count less
    warm-up    the pairwise loss grows linearly over the first ninth of training, 10,000 of 90,000
               steps; before boxes are learnt, one label for all is the best that it knows

Where we differ from both:

    masks      are those of Mask R-CNN, 28 x 28 in a region; the paper has CondInst's, of the whole
               image at a quarter of its size. So edges are as long as the object is large, and
               cells outside the region do not take part
"""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from wsis.method import Method, filled
from wsis.nn.backbone import BackboneSettings
from wsis.nn.box_masks import losses_of_boxes
from wsis.nn.optimisation import Optimisation, optimise
from wsis.parts.mask_rcnn import MaskRCNN
from wsis.types import Batch, Prediction, Sample, Target
from wsis.values import COUNT, FRACTION, NOT_NEGATIVE, Ranges, check_arguments

__all__ = ["BoxInst"]

_BACKBONE = BackboneSettings("resnet50", output_stride=32, frozen_stages=2)
_OPTIMISATION = Optimisation("sgd", lr=0.01, warmup=0.011, weight_decay=1e-4, decay_at=(0.67, 0.89))


class BoxInst(Method):
    """Learn to detect and segment from boxes.

    Args:
        num_classes: Number of thing classes; taken from the data.
        backbone: The network that computes features.
        network: Further settings of Mask R-CNN, which detects and segments.
        pairwise_weight: Weight of the pairwise loss.
        pairwise_warmup: Fraction of training in which that weight grows linearly from 0.
        threshold: Lowest colour similarity of neighbours that should have one label, tau.
        dilation: Cells from a cell to its neighbours.
        optimisation: How weights are optimised.
    """

    supervision = frozenset({"tags", "boxes"})
    needs_proposals = False
    ranges: ClassVar[Ranges] = {
        COUNT: ("dilation",),
        NOT_NEGATIVE: ("pairwise_weight",),
        FRACTION: ("pairwise_warmup", "threshold"),
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
        optimisation: Optimisation = _OPTIMISATION,
    ) -> None:
        super().__init__()
        backbone = filled(_BACKBONE, backbone)
        self.optimisation = optimisation = filled(_OPTIMISATION, optimisation)
        self.save_hyperparameters()
        own = ("num_classes", "backbone", "optimisation")  # settings of BoxInst itself
        check_arguments(MaskRCNN, "model.network", network or {}, without=own)
        self.network = MaskRCNN(num_classes, backbone, **(network or {}))
        self.warmup_steps = 0.0

    def idle(self) -> dict[str, str]:
        """Return the settings that have no effect beside the others, each with the reason."""
        names = () if self.hparams["pairwise_weight"] else ("threshold", "dilation")
        return dict.fromkeys(names, "with pairwise_weight 0")

    def training_step(self, batch: Batch, _: int) -> Tensor:
        """L = L_detector + L_proj + L_pairwise, eq. (2)."""
        images = [sample["image"] for sample in batch]
        targets = [boxes_alone(sample["target"]) for sample in batch]
        settings = {name: self.hparams[name] for name in ("threshold", "dilation")}
        of_masks = partial(losses_of_boxes, images, **settings)  # eqs. (3), (7)
        losses = self.network.losses(images, targets, of_masks)
        weights = {"pairwise": self.hparams["pairwise_weight"] * self.warmth()}
        loss = torch.stack([weights.get(name, 1.0) * value for name, value in losses.items()]).sum()
        self.log_losses(losses, loss, len(batch))
        return loss

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


def boxes_alone(target: Target) -> dict[str, Tensor]:
    """Return Mask R-CNN's target of an image without crowds, whose boxes are `skipped`."""
    kept = ~target["crowd"]
    boxes = target["boxes"][kept]
    return {
        "boxes": boxes,
        "labels": target["labels"][kept] + 1,
        "masks": boxes.new_zeros(len(boxes), 0, 0),  # torchvision asks for the key
        "ignore_mask": torch.zeros_like(kept[kept]),
        "skipped": target["boxes"][~kept],
    }
