"""The detection branch of PDSL and JTSM: two MIL streams, refinement heads and their losses.

P proposals, C classes, K foreground proposals, G pseudo-labels, D length of a feature.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from wsis.losses import box_loss, mil_scores, refinement_loss
from wsis.nn.mil import Match, MILHead, Pseudo, RefinementHead, decode, encode, match, mine
from wsis.values import COUNT, check_ranges

__all__ = [
    "Detection",
    "Detector",
    "HeadWidths",
    "MaskSamples",
    "Refined",
    "mask_samples",
    "nearest_seeds",
    "refine",
]


@dataclass(frozen=True)
class HeadWidths:
    """Widths of the heads' layers.

    Args:
        hidden: Width of the first fully connected layer; 4096 for ResNet18-WS, 2048 for the deeper
            ones.
        features: Width of the second fully connected layer.
        mask: Channels of the mask branches.
    """

    hidden: int = 4096
    features: int = 4096
    mask: int = 256

    def __post_init__(self) -> None:
        """Raise InputError for a width below 1."""
        check_ranges("widths", vars(self), {COUNT: ("hidden", "features", "mask")})


class Detection(NamedTuple):
    """Outputs of the detection branch for one image."""

    mil: Tensor
    """S^0 (P,C)."""
    logits: list[Tensor]
    """(P,C+1) of each refinement head."""
    deltas: list[Tensor | None]
    """(P,C,4) of each refinement head, or None."""
    streams: tuple[Tensor, ...] = ()
    """Logits (P,C) of the two streams: of classification and of detection."""

    def scores(self) -> Tensor:
        """Return the heads' mean probabilities (P,C) without background; S^0 without heads."""
        if not self.logits:
            return self.mil
        return torch.stack([logits.softmax(1) for logits in self.logits]).mean(0)[:, :-1]


class Detector(nn.Module):
    """Hidden layers, the two streams and the refinement heads, on pooled features.

    Args:
        trunk: hidden layers, from pooled features to D features.
        features: D.
        classes: classes of the two streams.
        refinements: number of refinement heads.
        regression: True if they regress boxes.
        refined: number of classes of the refinement heads, the first of the streams'; all if None.
    """

    def __init__(
        self,
        trunk: nn.Module,
        features: int,
        classes: int,
        refinements: int,
        regression: bool,
        refined: int | None = None,
    ) -> None:
        super().__init__()
        self.trunk, self.mil = trunk, MILHead(features, classes)
        refined = classes if refined is None else refined
        self.refinements = nn.ModuleList(
            RefinementHead(features, refined, regression) for _ in range(refinements)
        )

    def forward(
        self, pooled: Tensor, proposals: list[Tensor], objectness: Tensor
    ) -> list[Detection]:
        """Classify proposals (P_i,4) of several images by pooled features (P,...).

        The features are multiplied by `objectness` (P,) + 1.
        """
        counts = [len(boxes) for boxes in proposals]
        regions = self.trunk(pooled * (objectness + 1).view(-1, *[1] * (pooled.ndim - 1)))
        refined = [head(regions) for head in self.refinements]
        logits = [logit.split(counts) for logit, _ in refined]
        deltas = [
            [None] * len(counts) if delta is None else delta.split(counts) for _, delta in refined
        ]
        streams = self.mil.streams(regions, counts)
        return [
            Detection(
                mil_scores(*of_image),
                [head[i] for head in logits],
                [head[i] for head in deltas],
                of_image,
            )
            for i, of_image in enumerate(streams)
        ]

    def activations(self, pooled: Tensor, objectness: Tensor, labels: Tensor) -> Tensor:
        """Return where regions speak for their classes: (P,h,w), from 0 to a maximum of 1.

        The positive part of gradient times feature, summed over channels (Grad-CAM within a
        region), of the last refinement head's logit, or of the classification stream's without
        heads; without dropout.

        Args:
            pooled: (P,D,h,w).
            objectness: (P,), as in `forward`.
            labels: (P,) int64, class of each region.
        """
        training = self.trunk.training
        self.trunk.eval()
        with torch.enable_grad():
            pooled = pooled.detach().requires_grad_()
            regions = self.trunk(pooled * (objectness + 1)[:, None, None, None])
            if len(self.refinements):
                logits = self.refinements[-1](regions)[0]
            else:
                logits = self.mil.classification(regions)
            (slope,) = torch.autograd.grad(logits.gather(1, labels[:, None]).sum(), pooled)
        self.trunk.train(training)
        heat = (slope * pooled.detach()).sum(1).relu()
        return heat / heat.amax((1, 2), keepdim=True).clamp(min=1e-12)


class Refined(NamedTuple):
    """Losses of one image's refinement heads, and the pseudo-labels of the last head."""

    refinement: Tensor
    """() classification loss, eq. (3), summed over the heads."""
    box: Tensor
    """() box loss, eq. (3), summed over the heads."""
    scores: Tensor
    """(P,C+1) of the last head; S^0 (P,C) without heads."""
    pseudo: Pseudo
    matched: Match


def refine(
    heads: Detection,
    tags: Tensor,
    proposals: Tensor,
    size: tuple[int, int],
    prior: Tensor | None = None,
    background: float = 1.0,
) -> Refined:
    """Train each refinement head on the best proposals of the previous one.

    OICR; PDSL and JTSM eqs. 3-4.

    Args:
        heads: of one image.
        tags: (C,) 0 or 1.
        proposals: (P,4).
        size: (H, W) of the image, which clips regressed boxes.
        prior: (P,) factor on the scores by which proposals are chosen.
        background: weight of background proposals.
    """
    image_scores, zero = heads.mil.sum(0), heads.mil.sum() * 0
    classes, boxes, scores, boxes_before = zero, zero, heads.mil, proposals
    for logits, deltas in zip(heads.logits, heads.deltas, strict=True):
        pseudo = mine(scores, tags, image_scores, boxes_before, prior)
        matched = match(proposals, pseudo, len(tags))
        weights = matched.weights.where(matched.foreground, background * matched.weights)
        classes = classes + refinement_loss(logits, matched.labels, weights)
        if deltas is not None:
            boxes = boxes + _regression_loss(deltas, proposals, pseudo, matched)
            boxes_before = decode(deltas.detach(), proposals, size)
        scores = logits.softmax(1)
    pseudo = mine(scores, tags, image_scores, boxes_before, prior)
    return Refined(classes, boxes, scores, pseudo, match(proposals, pseudo, len(tags)))


class MaskSamples(NamedTuple):
    """The proposals of one image that train the mask branch."""

    boxes: Tensor
    """(K,4)."""
    proposals: Tensor
    """(K,) int64, their indices."""
    labels: Tensor
    """(K,) int64."""
    scores: Tensor
    """(K,) score of the pseudo-label."""
    pseudo: Tensor
    """(K,) int64, index of the pseudo-label."""
    overlap: Tensor
    """(K,) box IoU with it."""


def mask_samples(
    proposals: Tensor, pseudo: Pseudo, matched: Match, most: int, seeds: int
) -> MaskSamples:
    """Choose foreground proposals: those nearest to the pseudo-labels, and others at random.

    Args:
        proposals: (P,4).
        pseudo: pseudo-labels of the image.
        matched: assignment of the proposals to them.
        most: largest number of proposals, unless there are more seeds.
        seeds: number of proposals nearest to each pseudo-label, all of which are kept.
    """
    index = matched.foreground.nonzero().flatten()
    assigned = matched.pseudo[index]
    found = MaskSamples(
        boxes=proposals[index],
        proposals=index,
        labels=matched.labels[index],
        scores=pseudo.scores[assigned],
        pseudo=assigned,
        overlap=matched.overlap[index],
    )
    nearest = nearest_seeds(found, seeds)
    rank = torch.randperm(len(index), device=index.device)
    rank[nearest] = -1
    kept = rank.argsort(stable=True)[: max(most, len(nearest))]
    return MaskSamples(*(part[kept] for part in found))


def nearest_seeds(found: MaskSamples, seeds: int) -> Tensor:
    """Return the indices (K,) of the `seeds` samples with the highest IoU to each pseudo-label."""
    groups = found.pseudo == torch.unique(found.pseudo)[:, None]  # (G,K)
    overlap = torch.where(groups, found.overlap, -1.0)
    best, index = overlap.topk(min(seeds, overlap.shape[1]), dim=1)
    return index[best >= 0]


def _regression_loss(deltas: Tensor, proposals: Tensor, pseudo: Pseudo, matched: Match) -> Tensor:
    """Return the loss of regressing foreground proposals to their pseudo-labels, eq. (3).

    Args:
        deltas: (P,C,4); those of a proposal's class are used.
        proposals: (P,4).
        pseudo: pseudo-labels of the image.
        matched: assignment of the proposals to them.
    """
    index = matched.foreground.nonzero().flatten()
    target = encode(pseudo.boxes[matched.pseudo[index]], proposals[index])
    predicted = deltas[index, matched.labels[index]]
    return box_loss(predicted, target, matched.weights[index], len(proposals))
