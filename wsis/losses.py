"""The papers' loss functions, pure: tensors in, a scalar out.

P proposals, C classes, K regions, h x w a mask. Every loss of an empty set is zero, `image_loss`'s a constant; it stays
connected to the graph.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "NO_STUFF",
    "box_loss",
    "correlation_loss",
    "image_loss",
    "instance_activation",
    "log_mean_exp",
    "mask_loss",
    "mean_losses",
    "mil_scores",
    "neighbour_smoothness",
    "refinement_loss",
    "semantic_loss",
    "tightness_loss",
]

NO_STUFF = 255
"""The stuff class of a pixel without one."""


def mil_scores(classification: Tensor, detection: Tensor) -> Tensor:
    """Score every proposal for every class by the two streams of WSDDN.

    Args:
        classification: (P,C) logits, normalised over the classes of a proposal.
        detection: (P,C) logits, normalised over the proposals of the image.

    Returns:
        (P,C); a column sums to at most 1. Bilen and Vedaldi, CVPR 2016; PDSL section 3.2.
    """
    return classification.softmax(dim=1) * detection.softmax(dim=0)


def image_loss(scores: Tensor, tags: Tensor) -> Tensor:
    """Binary cross-entropy of the image's summed scores (PDSL eq. 2, JTSM eq. 2).

    The papers sum over classes; their code takes the mean and clamps to [1e-6, 1 - 1e-6], and so does this.

    Args:
        scores: (P,C) in [0, 1], from `mil_scores`.
        tags: (C,) 0 or 1.
    """
    score = scores.sum(0).clamp(1e-6, 1 - 1e-6)
    return -(
        tags * score.log() + (1 - tags) * (-score).log1p()
    ).mean()  # F.binary_cross_entropy is refused by CUDA's autocast


def refinement_loss(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Weighted cross-entropy of a refinement head (PDSL eq. 3, first term), over the number of weighted proposals.

    Args:
        logits: (P,C+1), background last.
        labels: (P,) int64.
        weights: (P,) in [0, 1], the image score of the pseudo-label that a proposal was matched with.
    """
    each = F.cross_entropy(logits, labels, reduction="none")
    return (weights * each).sum() / (weights > 1e-12).sum().clamp(min=1)


def box_loss(deltas: Tensor, targets: Tensor, weights: Tensor, proposals: int) -> Tensor:
    """Weighted L1 of the box deltas of foreground proposals (PDSL eq. 3, second term).

    Args:
        deltas: (K,4) predicted for the matched class.
        targets: (K,4).
        weights: (K,).
        proposals: number of all proposals, foreground or not, by which the sum is divided.
    """
    return (weights[:, None] * (deltas - targets).abs()).sum() / max(proposals, 1)


def mask_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Binary cross-entropy, mean over regions and pixels (PDSL eq. 5 with its sign mended; the code's mean, unweighted).

    Args:
        logits: (K,h,w).
        targets: (K,h,w) in [0, 1].
    """
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="sum") / max(
        logits.numel(), 1
    )


def instance_activation(probabilities: Tensor, tau: float = 5.0) -> Tensor:
    """Smooth maximum of each mask (PDSL eq. 7): log-mean-exp at sharpness `tau`, within [mean, max] of the mask.

    Args:
        probabilities: (K,h,w) in [0, 1]; on unbounded logits it could not be compared with a score.
        tau: above 0; near 0 it is the mean, the higher the nearer the maximum. The paper takes 5.

    Returns:
        (K,).
    """
    return log_mean_exp(probabilities, tau)


def log_mean_exp(maps: Tensor, sharpness: float) -> Tensor:
    """Smooth maximum (...,) of maps (...,h,w), within [mean, max] (Pinheiro and Collobert, CVPR 2015)."""
    flat = maps.flatten(-2)
    return (torch.logsumexp(sharpness * flat, -1) - math.log(flat.shape[-1])) / sharpness


def correlation_loss(activation: Tensor, score: Tensor) -> Tensor:
    """Mean distance of mask activation and detection score (PDSL eq. 8); the score is a target and gets no gradient.

    Args:
        activation: (K,), from `instance_activation`.
        score: (K,) in [0, 1].
    """
    return (activation - score.detach()).abs().sum() / max(len(activation), 1)


def semantic_loss(logits: Tensor, canvas: Tensor) -> Tensor:
    """Cross-entropy over stuff classes, mean over the cells that are known (JTSM eq. 10).

    Args:
        logits: (N,S,H,W).
        canvas: (N,H,W) int64, `NO_STUFF` where a cell teaches nothing.
    """
    total = F.cross_entropy(logits, canvas, ignore_index=NO_STUFF, reduction="sum")
    return total / (canvas != NO_STUFF).sum().clamp(min=1)


def tightness_loss(logits: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Learn from a tight box that each of its lines holds the object, and no other line does (BoxCaseg eq. 1, unary term).

    A line's score is its largest logit; the binary cross-entropy is a mean over all lines, where the text has a sum.

    Args:
        logits: (N,H,W).
        rows: (N,H) bool, rows that cross the object.
        columns: (N,W) bool, columns that do.
    """
    lines = torch.cat([logits.amax(2), logits.amax(1)], 1)
    crossed = torch.cat([rows, columns], 1).to(logits.dtype)
    return F.binary_cross_entropy_with_logits(lines, crossed, reduction="sum") / max(
        lines.numel(), 1
    )


def neighbour_smoothness(probabilities: Tensor) -> Tensor:
    """Mean squared difference over all pairs of 8-neighbours inside a map (BoxCaseg eq. 2).

    The code compares border pixels with zeros around the map, which pushes objects off the border of tight crops.

    Args:
        probabilities: (N,H,W).
    """
    p = probabilities
    pairs = [(p[:, 1:], p[:, :-1]), (p[..., 1:], p[..., :-1])]
    pairs += [(p[:, 1:, 1:], p[:, :-1, :-1]), (p[:, 1:, :-1], p[:, :-1, 1:])]
    total = torch.stack([(a - b).square().sum() for a, b in pairs]).sum()
    return total / max(sum(a.numel() for a, _ in pairs), 1)


def mean_losses(losses: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Average each part of a loss over the images of a batch."""
    return {name: torch.stack([of_image[name] for of_image in losses]).mean() for name in losses[0]}
