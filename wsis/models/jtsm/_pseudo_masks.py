"""Masks that teach JTSM's segmentation branches: mined segments, re-estimated (section 3.4)."""

from __future__ import annotations

from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torchvision.ops import box_iou

from wsis.evidence.grabcut import SIZE, resample
from wsis.evidence.seed_masks import Evidence, Request
from wsis.images.read import read_image
from wsis.nn.detection import Detection, MaskSamples, Refined, nearest_seeds
from wsis.nn.masks import segments_in
from wsis.nn.mil import Match, Pseudo, match
from wsis.nn.panoptic import paint
from wsis.types import Sample

__all__ = [
    "EvidenceSource",
    "Mined",
    "PseudoMasks",
    "Reestimate",
    "best_of_stuff",
    "first_classes",
    "things_of",
]

Reestimate = Literal["none", "box", "segment"]
EvidenceSource = Literal["fast", "authors", "segments"]

_SIDE = 28
"""Side of an instance mask."""


class Mined(NamedTuple):
    """What the mining branch finds in one image, for the segmentation branches to learn."""

    things: MaskSamples
    best: Tensor
    """(K,) int64, the proposal that is the pseudo-label of each sample."""
    objects: Tensor
    """(T,) int64, the best proposal of each thing class of the image."""
    stuff: Tensor
    """(G,) int64, the stuff classes of the image in ascending order of score."""
    stuff_best: Tensor
    """(G,) int64, the best proposal of each."""


class PseudoMasks:
    """Make the targets of eqs. (9) and (10) from mined segments.

    Args:
        reestimate: what a cut starts from: the box alone, or the segment's pixels as sure
            foreground too; "none" takes the segments as they are.
        evidence: how masks are cut out, see `JTSM`.
        seeds: proposals per thing that are cut out; the others take the mask of the nearest one.
        things_label: class of mined things' pixels on the canvas; None leaves them unknown.
    """

    def __init__(
        self, reestimate: Reestimate, evidence: EvidenceSource, seeds: int, things_label: int | None
    ) -> None:
        self.reestimate, self.seeds, self.things_label = reestimate, seeds, things_label
        self.evidence = None if evidence == "segments" else Evidence(evidence)

    def instances(self, mined: Mined, sample: Sample) -> Tensor:
        """Return M-hat^IS (K,28,28) in 0 and 1: for each sample, the mask of its nearest seed.

        Without re-estimation it is the best segment in each sample's box.
        """
        things, proposals, view = mined.things, sample["proposals"], sample["view"]
        seeds = nearest_seeds(things, self.seeds)
        nearest = box_iou(things.boxes, things.boxes[seeds]).argmax(1) if len(seeds) else seeds
        if self.reestimate == "none" or self.evidence is None:
            as_mined = self.reestimate == "none"
            index = mined.best if as_mined else things.proposals[seeds[nearest]]
            found = segments_in(proposals, index, things.boxes, (_SIDE, _SIDE))
            return found.to(things.boxes.dtype)
        boxes, sure = things.boxes[seeds], None
        if self.reestimate == "segment":
            sure = segments_in(proposals, mined.best[seeds], boxes, (SIZE, SIZE))
        windows, masks = self.cut(self.evidence, sample, boxes, sure)
        original = view.to_original(things.boxes)
        masks = resample(windows, masks, nearest, original, _SIDE).round()
        return masks.flip(-1) if view.flip else masks

    def canvas(self, mined: Mined, sample: Sample, size: tuple[int, int], stride: int) -> Tensor:
        """Return M-hat^SS (H,W) int64: stuff's best segments, re-estimated, best score on top.

        Pixels of mined things are no stuff, but where segments are taken as they are.

        Args:
            mined: of the image.
            sample: with its proposals.
            size: (H, W) of the canvas.
            stride: side of its cells in pixels.
        """
        boxes = sample["proposals"].boxes
        extent = boxes.new_tensor([0, 0, size[1] * stride, size[0] * stride])
        whole = extent.expand(len(mined.stuff), 4)
        if self.reestimate == "none" or self.evidence is None:
            masks = segments_in(sample["proposals"], mined.stuff_best, whole, size)
        else:
            masks = self.cut_stuff(self.evidence, mined, sample, whole, size)
        canvas = paint(masks, mined.stuff)
        if self.things_label is not None:
            things = extent.expand(len(mined.objects), 4)
            covered = segments_in(sample["proposals"], mined.objects, things, size).any(0)
            canvas[covered] = self.things_label
        return canvas

    def cut_stuff(
        self, evidence: Evidence, mined: Mined, sample: Sample, whole: Tensor, size: tuple[int, int]
    ) -> Tensor:
        """Return the masks (G,H,W) of stuff over the image, in which mined things are background.

        Args:
            evidence: what cuts them out.
            mined: of the image.
            sample: with its proposals.
            whole: (G,4), the image's box for each.
            size: (H, W) of the masks.
        """
        proposals, view, grid = sample["proposals"], sample["view"], (SIZE, SIZE)
        boxes, sure = proposals.boxes[mined.stuff_best], None
        things = boxes.new_zeros(len(boxes), *grid, dtype=torch.bool)
        for thing in mined.objects:
            things |= segments_in(proposals, thing.expand(len(boxes)), boxes, grid)
        if self.reestimate == "segment":
            sure = segments_in(proposals, mined.stuff_best, boxes, grid)
        windows, masks = self.cut(evidence, sample, boxes, sure, things, centred=False)
        each = torch.arange(len(boxes), device=boxes.device)
        found = resample(windows, masks, each, view.to_original(whole), size) >= 0.5
        return found.flip(-1) if view.flip else found

    def cut(
        self,
        evidence: Evidence,
        sample: Sample,
        boxes: Tensor,
        sure: Tensor | None,
        background: Tensor | None = None,
        centred: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """Cut foreground out of boxes (B,4), with cells (B,SIZE,SIZE) known of it and of the rest.

        Returns:
            windows (B,4) in the original image, and masks (B,SIZE,SIZE) over them.
        """
        view = sample["view"]
        if view.flip:
            sure, background = (m if m is None else m.flip(-1) for m in (sure, background))
        image = partial(read_image, sample["path"], sample["size"])
        original = view.to_original(boxes)
        request = Request(sample["image_id"], image, original, sure, background, centred)
        ((windows, masks),) = evidence([request])
        return windows.to(boxes.device), masks.to(boxes.device)


def best_of_stuff(scores: Tensor, tags: Tensor) -> tuple[Tensor, Tensor]:
    """Return the tagged stuff classes (G,), in ascending order of best score, and best proposals.

    Args:
        scores: (P,S).
        tags: (S,) 1 where the image holds the class.
    """
    labels = tags.nonzero().flatten() if len(scores) else tags.new_zeros(0).long()
    if not len(labels):
        return labels, labels
    tagged = scores[:, labels]
    order = tagged.amax(0).argsort()
    return labels[order], tagged.argmax(0)[order]


def first_classes(heads: Detection, count: int) -> Detection:
    """Return a detection of the first `count` classes, and background where heads have it."""
    logits = [torch.cat([one[:, :count], one[:, -1:]], 1) for one in heads.logits]
    deltas = [None if one is None else one[:, :count] for one in heads.deltas]
    return Detection(heads.mil[:, :count], logits, deltas)


def things_of(learnt: Refined, proposals: Tensor, things: int) -> tuple[Pseudo, Match]:
    """Return pseudo-labels of things alone, and what proposals (P,4) are matched to among them."""
    is_thing = learnt.pseudo.labels < things
    pseudo = Pseudo(*(column[is_thing] for column in learnt.pseudo))
    return pseudo, match(proposals, pseudo, things)
