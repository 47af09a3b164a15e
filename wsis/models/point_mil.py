"""Point MIL: instance segmentation from one or more points in each object.

Among the segments around its points, an object is the one that its class is recognised by. An
object's bag is the segments that contain its points and no others; two streams choose in each bag
(P2BNet, Chen et al., ECCV 2022, which has boxes sampled around a point; SAPNet, Wei et al., CVPR
2024, which has masks of Segment Anything). Refinement heads then learn from the choices of the head
before (OICR, PDSL), and a mask head from what the segments of each bag agree on.

    symbol      name             shape
    o           object           M of an image
    B_o         members          (M,P)       the proposals of each object's bag
    c_o         labels           (M,)        class of each object
    S^cls       classification   (P,C)       logits; their sigmoid is the score of a class
    S^ins       detection        (P,C)       logits, normalised over each bag
    S_o         scores           (M,P,C)     S^ins S^cls of the proposals in a bag
    N           negatives        (P,C)       proposals that hold no point of a complete class
    S^r         logits           (P,C+1)     refinement head r; background is class C
    V_o         shares           (M,S)       how much of a bag agrees on each superpixel

What is theirs:

    L_bag       binary cross-entropy of each bag's summed scores with the object's class; as in
                the first stage of P2BNet
    L_neg       focal loss of proposals that are no objects; as in P2BNet
    L_ref       every object is one seed, its best proposal by the head before; proposals that
                overlap it are positive; OICR, as PDSL has it in eqs. (3) and (4)
    L_mask      cross-entropy with soft masks, as in PDSL eq. (5); that several segments of a bag
                supervise together is from SAPNet

What is ours:

    bags        are chosen by all points of the image: of the segments that contain a point of the
                object, those with the most of its own points less its negative points and points
                of other objects. SAPNet weighs segments down by other points, which is softer. If
                a segment with two objects is all there is, both have it. If none contains a point,
                the bag is the proposals whose boxes are nearest to the points
    S^cls       is a sigmoid from the start; P2BNet begins with a softmax, which learns nothing of a
                single class
    L_neg       where a class is not complete, all of its proposals are left out
    L_ref       a proposal that overlaps a seed is positive only in the bag of its object. One with
                several objects is background; others are left out. Where not all classes are
                complete, so are proposals without any point
    V_o         the segments of a bag vote by the fourth power of their scores
    objectness  helps to choose a seed in its bag, as parts of objects score as well as whole ones,
                and has no part in the scores of detections: with it, mask AP50 on the generated
                data (data seed 0) is 75 in place of 89
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from wsis.losses import (
    bag_loss,
    bag_scores,
    mask_loss,
    mean_losses,
    negative_loss,
    refinement_loss,
)
from wsis.method import Method, filled, tagged
from wsis.nn.backbone import Backbone, BackboneSettings
from wsis.nn.bags import Bags, bags_of
from wsis.nn.detection import Detection, Detector, HeadWidths, MaskSamples, mask_samples
from wsis.nn.masks import MaskHeads, paste, segments_of
from wsis.nn.mil import Match, MLPHead, Pseudo, detect, match
from wsis.nn.optimisation import Optimisation, optimise
from wsis.nn.regions import Pooling, pool
from wsis.nn.views import ImageView, Inference, average, mean_masks, over_views
from wsis.ops import superpixel_windows
from wsis.types import Batch, Prediction, Proposals, Sample, size_of
from wsis.values import COUNT, NOT_NEGATIVE, WHOLE, Ranges

__all__ = ["PointMIL"]

_SIDE = 28
_VOTES = 4
"""Power of the scores by which the segments of a bag vote for a mask."""

Viewed = tuple[list[Tensor], list[ImageView]]
"""Features (1,D,H,W) of each view of an image, and the views."""

_WIDTHS = HeadWidths()
_INFERENCE = Inference()
_BACKBONE = BackboneSettings("resnet18_ws", output_stride=8, frozen_stages=5)
_OPTIMISATION = Optimisation("sgd", lr=0.01, warmup=0.0, weight_decay=5e-4, decay_at=(0.7,))


class PointMIL(Method):
    """Detect and segment from points.

    Args:
        num_classes: Number of thing classes, C; taken from the data.
        backbone: The network that computes features.
        refinements: Number of refinement heads.
        objectness_power: Power of objectness in the scores by which seeds are chosen; 0 leaves it
            out.
        background_weight: Weight of background proposals in the refinement loss.
        pooling: How regions are pooled for detection.
        roi_samples: Samples of RoIAlign per side of a bin; 0 takes one for each cell that the side
            covers.
        widths: Widths of the heads.
        max_mask_samples: Largest number of proposals of an image that train masks, if it has no
            more objects.
        optimisation: How weights are optimised.
        inference: How images are predicted.
    """

    supervision = frozenset({"tags", "points", "complete"})
    needs_segments = True
    ranges: ClassVar[Ranges] = {
        COUNT: ("refinements", "max_mask_samples"),
        WHOLE: ("roi_samples",),
        NOT_NEGATIVE: ("objectness_power", "background_weight"),
    }

    def __init__(
        self,
        num_classes: int = 20,
        backbone: BackboneSettings = _BACKBONE,
        refinements: int = 3,
        objectness_power: float = 1.0,
        background_weight: float = 0.3,
        pooling: Pooling = "roi_align",
        roi_samples: int = 2,
        widths: HeadWidths = _WIDTHS,
        max_mask_samples: int = 128,
        optimisation: Optimisation = _OPTIMISATION,
        inference: Inference = _INFERENCE,
    ) -> None:
        super().__init__()
        backbone = filled(_BACKBONE, backbone)
        self.optimisation = optimisation = filled(_OPTIMISATION, optimisation)
        self.inference = inference = filled(_INFERENCE, inference)
        widths = filled(_WIDTHS, widths)
        self.save_hyperparameters()
        self.backbone = Backbone(backbone)
        channels = self.backbone.channels
        trunk = MLPHead(channels * 49, widths.hidden, widths.features)
        self.detector = Detector(trunk, widths.features, num_classes, refinements, False)
        self.masks = MaskHeads(channels, [1], widths.mask)

    def training_step(self, batch: Batch, _: int) -> Tensor:
        """L = L_bag + L_neg + L_ref + L_mask."""
        features = self.backbone([sample["image"] for sample in batch])
        heads = self.detection(features, [sample["proposals"] for sample in batch])
        learnt = [self.detection_losses(h, s) for h, s in zip(heads, batch, strict=True)]
        losses, samples, targets = zip(*learnt, strict=True)
        total = mean_losses(losses)
        boxes, count = [sample.boxes for sample in samples], self.hparams["roi_samples"]
        regions = pool(features, boxes, self.backbone.stride, 14, "roi_align", count)
        total["mask"] = mask_loss(self.mask_logits(regions), torch.cat(targets))  # L_mask
        loss = torch.stack([*total.values()]).sum()
        self.log_losses(total, loss, len(batch))
        return loss

    def detection(self, features: Tensor, proposals: list[Proposals]) -> list[Detection]:
        """Score proposals from features (N,D,H,W) of their images."""
        boxes = [p.boxes for p in proposals]
        how, samples = self.hparams["pooling"], self.hparams["roi_samples"]
        pooled = pool(features, boxes, self.backbone.stride, how=how, samples=samples)
        return self.detector(pooled, boxes, torch.cat([p.scores for p in proposals]))

    def detection_losses(
        self, heads: Detection, sample: Sample
    ) -> tuple[dict[str, Tensor], MaskSamples, Tensor]:
        """Return the losses of an image, the proposals that train masks, and their targets."""
        proposals, target = sample["proposals"], sample["target"]
        bags = bags_of(proposals, target)
        classification, detection = heads.streams
        scores = bag_scores(classification, detection, bags.members)
        prior = proposals.scores ** self.hparams["objectness_power"]
        learnt = refine_objects(
            heads, scores, bags, proposals.boxes, prior, self.hparams["background_weight"]
        )
        losses = {
            "bag": bag_loss(scores, bags.labels),  # L_bag
            "negative": negative_loss(classification, bags.negatives),  # L_neg
            "refinement": learnt.loss,  # L_ref
        }
        most = self.hparams["max_mask_samples"]
        samples = mask_samples(proposals.boxes, learnt.seeds, learnt.matched, most, 1)
        votes = voted_shares(proposals, bags.members, learnt.scores * prior)
        return losses, samples, masks_in(proposals, votes, samples)

    def predict(self, sample: Sample) -> Prediction:
        """Average scores over views of the image, suppress, then average masks."""
        viewed, scores = self.scored(sample)
        boxes, scores, labels, _ = detect(scores, sample["proposals"].boxes, self.inference.nms)
        return self.segmented(sample, viewed, boxes, scores, labels)

    def label(self, batch: Batch, score_threshold: float = 0.5) -> list[Prediction]:
        """Label each object by the best proposal of its bag, and classes without points as usual.

        Those are labelled with detections, as `wsis.method.tagged` selects them.
        """
        return [self._label(sample, score_threshold) for sample in batch]

    def _label(self, sample: Sample, score_threshold: float) -> Prediction:
        proposals, tags = sample["proposals"], sample["target"]["tags"].clone()
        viewed, scores = self.scored(sample)
        bags = bags_of(proposals, sample["target"])
        own = scores.T[bags.labels]
        prior = proposals.scores ** self.hparams["objectness_power"]
        best = choose(own * prior, own, own.sum(1), bags, proposals.boxes)
        tags[bags.labels] = 0
        found = detect(scores * tags, proposals.boxes, self.inference.nms)[:3]
        objects = self.segmented(sample, viewed, best.boxes, best.scores, best.labels)
        others = tagged(self.segmented(sample, viewed, *found), tags, score_threshold)
        return joined(objects, others)

    def scored(self, sample: Sample) -> tuple[Viewed, Tensor]:
        """Return an image's views with their features, and mean scores (P,C) of its proposals."""
        size = size_of(sample["image"])
        views, features, heads = over_views(sample, self.inference, self.backbone, self.detection)
        return (features, views), average(heads, views, sample["proposals"].boxes, size)[0]

    def segmented(
        self, sample: Sample, viewed: Viewed, boxes: Tensor, scores: Tensor, labels: Tensor
    ) -> Prediction:
        """Return objects (N) with their masks, averaged over views."""
        size, count = size_of(sample["image"]), self.hparams["roi_samples"]
        masks = mean_masks(*viewed, boxes, self.backbone.stride, self.mask_logits, count)
        found = boxes.cpu(), scores.cpu(), labels.cpu(), paste(masks, boxes, size)
        return Prediction(sample["image_id"], size, *found)

    def mask_logits(self, regions: Tensor) -> Tensor:
        """Return masks (N,28,28) of regions (N,D,14,14)."""
        return self.masks(regions)[0][:, 0]

    def configure_optimizers(self) -> Any:
        """Optimise as `optimisation` says."""
        return optimise(self, self.optimisation)


def joined(one: Prediction, other: Prediction) -> Prediction:
    """Return the objects of two predictions of one image, best first."""
    parts = zip((one.boxes, one.scores, one.labels), other[2:5], strict=True)
    boxes, scores, labels = (torch.cat(pair) for pair in parts)
    masks = [*one.masks, *other.masks]
    both = Prediction(one.image_id, one.size, boxes, scores, labels, masks)
    return both.rows(scores.argsort(descending=True))


class Learnt(NamedTuple):
    """Loss of an image's refinement heads, and what the last one chose."""

    loss: Tensor
    """() summed over the heads."""
    seeds: Pseudo
    """The best proposal of each object's bag."""
    matched: Match
    scores: Tensor
    """(M,P) score of each proposal for the class of each object."""


def refine_objects(
    heads: Detection, scores: Tensor, bags: Bags, boxes: Tensor, prior: Tensor, background: float
) -> Learnt:
    """Train each refinement head on the proposals that the one before chose in each bag.

    Args:
        heads: of one image.
        scores: (M,P,C) of the two streams, from `bag_scores`.
        bags: of the image.
        boxes: (P,4).
        prior: (P,) factor on the scores by which proposals are chosen.
        background: weight of background proposals.
    """
    index, classes = torch.arange(len(bags.labels), device=boxes.device), scores.shape[2]
    own = scores.detach()[index, :, bags.labels]  # (M,P)
    weights = own.sum(1).clamp(1e-6, 1 - 1e-6)
    loss = scores.sum() * 0
    for logits in heads.logits:
        matched = assign(boxes, choose(own, prior, weights, bags, boxes), bags, classes)
        is_background = matched.labels == classes
        weighed = torch.where(is_background, background * matched.weights, matched.weights)
        loss = loss + refinement_loss(logits, matched.labels, weighed)
        own = logits.detach().softmax(1).T[bags.labels]
    seeds = choose(own, prior, weights, bags, boxes)
    return Learnt(loss, seeds, assign(boxes, seeds, bags, classes), own)


def choose(scores: Tensor, prior: Tensor, weights: Tensor, bags: Bags, boxes: Tensor) -> Pseudo:
    """Return the best proposal of each object's bag, and its score.

    Args:
        scores: (M,P), 0 or more.
        prior: (P,) factor on the scores by which proposals are chosen.
        weights: (M,) of the objects in the loss.
        bags: of the image.
        boxes: (P,4).
    """
    # argmax refuses an image without proposals, which has no bags
    inside = (scores * prior).masked_fill(~bags.members, -1)
    index = inside.argmax(1) if len(scores) else bags.labels
    best = scores.gather(1, index[:, None])[:, 0]
    return Pseudo(boxes[index], bags.labels, best, weights, index)


def assign(boxes: Tensor, seeds: Pseudo, bags: Bags, classes: int) -> Match:
    """Return the target of each proposal (P,4).

    Those that overlap a seed (box IoU 0.5) are positive if they are in the bag of its object, and
    background if they hold points of several objects. Others that overlap one are left out, with
    weight 0. Background has weight 1, and 0 where an object without a point may be.
    """
    matched = match(boxes, seeds, classes)
    positive = matched.foreground.clone()
    if len(seeds.labels):
        positive &= bags.members.gather(0, matched.pseudo[None])[0]
    certain = (~matched.foreground | (bags.objects > 1)) & (bags.complete | (bags.objects > 0))
    return matched._replace(
        labels=torch.where(positive, matched.labels, classes),
        weights=torch.where(positive, matched.weights, certain.to(matched.weights)),
        foreground=positive,
    )


def voted_shares(proposals: Proposals, members: Tensor, scores: Tensor) -> Tensor:
    """Return how much of each bag agrees that a superpixel is of its object, (M,S) in [0, 1].

    Args:
        proposals: with segments.
        members: (M,P) bool, the bags.
        scores: (M,P), 0 or more.
    """
    belongs = segments_of(proposals)[1].to(scores.dtype)
    if not len(scores):
        return belongs.new_zeros(0, belongs.shape[1])
    inside = scores.clamp(min=1e-12) * members
    votes = (inside / inside.amax(1, keepdim=True)) ** _VOTES
    return votes / votes.sum(1, keepdim=True) @ belongs


def masks_in(proposals: Proposals, shares: Tensor, samples: MaskSamples) -> Tensor:
    """Return the shares (M,S) of each sample's object, on a grid over its box, (K,28,28)."""
    windows = superpixel_windows(segments_of(proposals)[0], samples.boxes, (_SIDE, _SIDE))
    found = shares[samples.pseudo].gather(1, windows.clamp(min=0).flatten(1)).view_as(windows)
    return found * (windows >= 0)
