"""Labels for CCGR's segmentor: the detector's boxes, refined, and what is segmented inside them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from pycocotools import mask as rle
from torch import Tensor
from torchvision.ops import masks_to_boxes

from wsis.evidence.boxes import Form, merge_boxes, refinement, surround_part
from wsis.files import read_json
from wsis.method import Method
from wsis.models.ccgr.branches import BagDetector, Boxes, Segmentation, scaled
from wsis.types import Batch, Prediction, Sample, size_of

__all__ = ["Refinement", "around_parts", "cut_out", "segmented"]


class Refinement(Method):
    """Label images by boxes of a trained detector, refined on maps of a trained segmentation.

    Args:
        detector: chooses a box of each bag.
        segmentation: makes the score maps.
        peaks: file of the images' peaks.
        sides: short sides in pixels at which detector and segmentation see images; 0 keeps an
            image's size.
        boxes: "detector", or "segmentation" for one box around all pixels of a class.
        refinement: steps of gradient descent.
        context: side of the surrounding box, in sides of the box.
        form: of the gap.
        merge: whether boxes that are better as one are merged.
        whole: whether boxes are finally drawn around connected parts.
    """

    supervision = frozenset({"tags", "boxes"})
    needs_proposals = False

    def __init__(
        self,
        detector: BagDetector,
        segmentation: Segmentation,
        peaks: Path,
        sides: tuple[int, int] = (0, 0),
        boxes: str = "detector",
        refinement: int = 200,
        context: float = 1.5,
        form: Form = "ring",
        merge: bool = False,
        whole: bool = False,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(
            "sides", "boxes", "refinement", "context", "form", "merge", "whole"
        )
        self.hparams["peaks"] = peaks.parent.name  # the stage that found them
        self.detector, self.segmentation = detector, segmentation
        self.peaks = {
            int(image): torch.tensor(found).view(-1, 3) for image, found in read_json(peaks).items()
        }

    def label(self, batch: Batch, score_threshold: float = 0.0) -> list[Prediction]:
        """Return masks of refined boxes: the pixels in a box that are segmented as its class."""
        maps = [self.maps(sample) for sample in batch]
        *_, refined = self.steps(batch, maps)
        if self.hparams["merge"]:
            refined = [self.merged(*pair) for pair in zip(maps, refined, strict=True)]
        if self.hparams["whole"]:
            context, pairs = self.hparams["context"], zip(maps, refined, strict=True)
            refined = [around_parts(m, boxes, context) for m, boxes in pairs]
        return [cut_out(s, m, b) for s, m, b in zip(batch, maps, refined, strict=True)]

    def maps(self, sample: Sample) -> Tensor:
        """Return probabilities (C+1,H,W) of tagged classes and background, 0 for other classes."""
        seen = scaled(sample, self.hparams["sides"][1])["image"]
        height, width = size_of(seen)
        logits = self.segmentation([seen])[..., :height, :width]
        if (height, width) != sample["size"]:
            logits = F.interpolate(logits, sample["size"], mode="bilinear")
        absent = F.pad(sample["target"]["tags"] == 0, (0, 1), value=False)
        return logits[0].masked_fill(absent[:, None, None], -torch.inf).softmax(0)

    def steps(self, batch: Batch, maps: list[Tensor]) -> Iterator[list[Boxes]]:
        """Yield the images' boxes before the first step of refinement and after each step.

        All boxes are refined at once, each on its class's map (C+1,H,W) up to a second peak.
        """
        chosen = self.chosen(batch, maps)
        pairs = torch.cat([F.pad(b.labels[:, None], (1, 0), value=n) for n, b in enumerate(chosen)])
        used, index = torch.unique(pairs, dim=0, return_inverse=True)
        needed = [maps[n][label] for n, label in used.tolist()]
        height, width = (max([m.shape[d] for m in needed], default=1) for d in (0, 1))
        padded = [F.pad(m, (0, width - m.shape[1], 0, height - m.shape[0])) for m in needed]
        table = torch.stack(padded) if padded else maps[0][:0]
        sizes = torch.tensor([m.shape for m in needed], device=table.device).view(-1, 2)
        peaks = [
            own
            for sample, b in zip(batch, chosen, strict=True)
            for own in self.peaks_of(sample["image_id"], b.labels)
        ]
        steps, context, form = (self.hparams[name] for name in ("refinement", "context", "form"))
        boxes = torch.cat([b.boxes for b in chosen])
        for moved in refinement(boxes, table, steps, context, form, peaks, index, sizes):
            parts = torch.split(moved, [len(b.boxes) for b in chosen])
            yield [b._replace(boxes=part) for b, part in zip(chosen, parts, strict=True)]

    def chosen(self, batch: Batch, maps: list[Tensor]) -> list[Boxes]:
        """Return the boxes to refine."""
        if self.hparams["boxes"] == "detector":
            return self.detector.choose(batch, self.hparams["sides"][0])
        return [segmented(of_image) for of_image in maps]

    def peaks_of(self, image: int, labels: Tensor) -> list[Tensor]:
        """For each box the peaks (n,2) of its class."""
        found = self.peaks[image]
        return [found[found[:, 0] == label, 1:].to(self.device) for label in labels.tolist()]

    def merged(self, maps: Tensor, boxes: Boxes) -> Boxes:
        """Merge an image's boxes that are better as one on their class's map (C+1,H,W)."""
        used, index = torch.unique(boxes.labels, return_inverse=True)
        context, form = self.hparams["context"], self.hparams["form"]
        joined, group = merge_boxes(boxes.boxes, maps[used], context, form, index)
        labels = boxes.labels.new_zeros(len(joined)).scatter(0, group, boxes.labels)
        scores = boxes.scores.new_zeros(len(joined)).scatter_reduce(0, group, boxes.scores, "amax")
        return Boxes(joined, labels, scores)


def segmented(maps: Tensor) -> Boxes:
    """A box around all that is segmented (C+1,H,W) as each class; none where nothing is."""
    best = maps.argmax(0)
    labels = [label for label in torch.unique(best).tolist() if label < len(maps) - 1]
    masks = (
        torch.stack([best == label for label in labels])
        if labels
        else best.new_zeros(0, *best.shape).bool()
    )
    boxes = masks_to_boxes(masks) + masks.new_tensor([0, 0, 1, 1], dtype=torch.float32)
    scores = [maps[label][mask].mean() for label, mask in zip(labels, masks, strict=True)]
    return Boxes(
        boxes,
        torch.tensor(labels, device=maps.device, dtype=torch.int64),
        torch.tensor(scores, device=maps.device),
    )


def around_parts(maps: Tensor, boxes: Boxes, context: float) -> Boxes:
    """Draw boxes around the connected parts of what is segmented (C+1,H,W) as their classes."""
    masks = maps.argmax(0) == boxes.labels[:, None, None]
    return boxes._replace(boxes=surround_part(boxes.boxes, masks, context))


def cut_out(sample: Sample, maps: Tensor, chosen: Boxes) -> Prediction:
    """Return the pixels (C+1,H,W) in each box segmented as its class, without empty boxes."""
    best, masks, kept = maps.argmax(0).cpu().numpy(), [], []
    for k, ((x1, y1, x2, y2), label) in enumerate(
        zip(chosen.boxes.round().int().tolist(), chosen.labels.tolist(), strict=True)
    ):
        mask = np.zeros(best.shape, np.uint8, order="F")
        mask[y1:y2, x1:x2] = best[y1:y2, x1:x2] == label
        if mask.any():
            masks.append(rle.encode(mask))
            kept.append(k)
    left = Boxes(*(column[kept].cpu() for column in chosen))
    return Prediction(
        sample["image_id"], sample["size"], left.boxes, left.scores, left.labels, masks
    )
