"""Pixels are classified, connected components are objects: a segmentor of your own in one file."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor, nn

from wsis.method import Method, filled
from wsis.nn.backbone import Backbone, BackboneSettings
from wsis.nn.masks import run_lengths, tight_boxes
from wsis.nn.regions import enlarge
from wsis.types import Batch, Prediction, Sample, size_of

BACKBONE = BackboneSettings("resnet50", output_stride=16, frozen_stages=1)
UNKNOWN = 255


class Components(Method):
    """Learn the class of every pixel from masks; each connected component of a class is an object.

    Args:
        num_classes: Number of thing classes; taken from the data.
        backbone: The network that computes features.
        lr: Learning rate of AdamW.
        min_area: Fewest pixels of an object.
    """

    supervision = frozenset({"tags", "boxes", "masks"})
    needs_proposals = False

    def __init__(
        self,
        num_classes: int = 20,
        backbone: BackboneSettings = BACKBONE,
        lr: float = 1e-3,
        min_area: int = 64,
    ) -> None:
        super().__init__()
        backbone = filled(BACKBONE, backbone)
        self.save_hyperparameters()
        self.backbone = Backbone(backbone)
        self.head = nn.Conv2d(self.backbone.channels, num_classes + 1, 1)  # background is last

    def forward(self, images: list[Tensor]) -> Tensor:
        """Return logits (N,C+1,h,w) of images (3,H,W)."""
        return self.head(self.backbone(images))

    def training_step(self, batch: Batch, _: int) -> Tensor:
        """Compare each cell with the mask that covers its centre."""
        logits = self([sample["image"] for sample in batch])
        targets = torch.stack([self.canvas(sample, size_of(logits)) for sample in batch])
        loss = F.cross_entropy(logits, targets, ignore_index=UNKNOWN)
        self.log_losses({}, loss, len(batch))
        return loss

    def canvas(self, sample: Sample, size: tuple[int, int]) -> Tensor:
        """Return the class (h,w) of each cell, `UNKNOWN` in padding and in boxes without a mask."""
        target, stride = sample["target"], self.backbone.stride
        height, width = size_of(sample["image"])
        canvas = target["labels"].new_full((height, width), self.hparams["num_classes"])
        for box, ignore_mask in zip(
            target["boxes"].int().tolist(), target["ignore_mask"], strict=True
        ):
            if ignore_mask:
                canvas[box[1] : box[3], box[0] : box[2]] = UNKNOWN
        for mask, label in zip(target["masks"], target["labels"], strict=True):
            canvas[mask] = label
        cells = canvas[stride // 2 :: stride, stride // 2 :: stride]
        padding = 0, size[1] - cells.shape[1], 0, size[0] - cells.shape[0]
        return F.pad(cells, padding, value=UNKNOWN)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Optimise all that is not frozen."""
        trained = [p for p in self.parameters() if p.requires_grad]
        return torch.optim.AdamW(trained, lr=self.hparams["lr"])

    def predict(self, sample: Sample) -> Prediction:
        """Return the connected components of each class, those of the highest probability first."""
        size = size_of(sample["image"])
        maps = enlarge(self([sample["image"]]), self.backbone.stride, size)[0].softmax(0)
        best, masks, labels = maps.argmax(0).cpu().numpy(), [], []
        for label in range(self.hparams["num_classes"]):
            parts, count = ndimage.label(best == label)
            areas = np.bincount(parts.ravel(), minlength=count + 1)
            large = [k for k in range(1, count + 1) if areas[k] >= self.hparams["min_area"]]
            masks += [torch.from_numpy(parts == k) for k in large]
            labels += [label] * len(large)
        means = [maps[label].cpu()[mask].mean() for mask, label in zip(masks, labels, strict=True)]
        scores = torch.tensor(means)
        order = scores.argsort(descending=True).tolist()
        chosen = torch.stack([masks[k] for k in order]) if order else torch.zeros(0, *size).bool()
        classes = torch.tensor([labels[k] for k in order], dtype=torch.int64)
        encoded = [run_lengths(mask) for mask in chosen]
        found = tight_boxes(chosen), scores[order], classes, encoded
        return Prediction(sample["image_id"], sample["size"], *found)
