"""Loss functions of the papers: pure functions from tensors to a scalar.

P proposals, C classes, K regions, h x w pixels of a mask. The loss of an empty set is zero (a
constant for `image_loss`) and stays connected to the graph.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "NO_STUFF",
    "CorrelationGradient",
    "bag_loss",
    "bag_scores",
    "box_loss",
    "correlation_loss",
    "dice_loss",
    "image_loss",
    "instance_activation",
    "log_mean_exp",
    "mask_loss",
    "mean_losses",
    "mil_scores",
    "negative_loss",
    "neighbour_smoothness",
    "pairwise_loss",
    "projection_loss",
    "refinement_loss",
    "semantic_loss",
    "tightness_loss",
]

NO_STUFF = 255
"""Label of pixels that have no stuff class."""
CorrelationGradient = Literal["masks", "both"]


def mil_scores(classification: Tensor, detection: Tensor) -> Tensor:
    """Return the score of every proposal for every class from the two streams of WSDDN.

    Bilen and Vedaldi, CVPR 2016; PDSL section 3.2.

    Args:
        classification: (P,C) logits, normalised over the classes of a proposal.
        detection: (P,C) logits, normalised over the proposals of the image.

    Returns:
        (P,C); each column sums to at most 1.
    """
    return classification.softmax(dim=1) * detection.softmax(dim=0)


def image_loss(scores: Tensor, tags: Tensor) -> Tensor:
    """Return the binary cross-entropy of the image's summed scores: PDSL eq. (2), JTSM eq. (2).

    The papers sum over classes. Their code takes the mean and clamps scores to [1e-6, 1 - 1e-6], as
    is done here.

    Args:
        scores: (P,C) in [0, 1], from `mil_scores`.
        tags: (C,) 0 or 1.
    """
    score = scores.sum(0).clamp(1e-6, 1 - 1e-6)
    # not F.binary_cross_entropy, which raises an error under CUDA's autocast
    return -(tags * score.log() + (1 - tags) * (-score).log1p()).mean()


def bag_scores(classification: Tensor, detection: Tensor, bags: Tensor) -> Tensor:
    """Return the score of every proposal in every object's bag, for every class.

    P2BNet (Chen et al., ECCV 2022) normalises the detection stream over the bag of one object,
    where WSDDN does over all proposals of the image. As in its second stage, the classification
    stream is a sigmoid: a softmax over a single class would be 1 whatever is seen.

    Args:
        classification: (P,C) logits.
        detection: (P,C) logits.
        bags: (M,P) bool, none of them empty.

    Returns:
        (M,P,C), 0 outside of the bag; the sum over the proposals is at most 1.
    """
    inside = detection.where(bags[..., None], -math.inf).softmax(1)
    return inside * classification.sigmoid()


def bag_loss(scores: Tensor, labels: Tensor) -> Tensor:
    """Return the binary cross-entropy of the objects' summed scores with their classes.

    P2BNet's loss of the bags of its first stage: summed over classes, the mean over objects.

    Args:
        scores: (M,P,C) in [0, 1], from `bag_scores`.
        labels: (M,) int64.
    """
    total = scores.sum(1).clamp(1e-6, 1 - 1e-6)
    wanted = F.one_hot(labels, total.shape[1])
    each = wanted * total.log() + (1 - wanted) * (-total).log1p()
    return -each.sum() / max(len(labels), 1)


def negative_loss(logits: Tensor, negative: Tensor) -> Tensor:
    """Return the focal loss of proposals that are no objects of some classes.

    P2BNet's loss of negative proposals: -S^2 log(1 - S) with S the sigmoid of the logit, summed
    over classes, the mean over the proposals that are negative for any class.

    Args:
        logits: (P,C) of the classification stream.
        negative: (P,C) bool.
    """
    each = logits.sigmoid().square() * F.softplus(logits)
    return (each * negative).sum() / negative.any(1).sum().clamp(min=1)


def refinement_loss(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted cross-entropy of a refinement head: PDSL eq. (3), first term.

    The sum is divided by the number of proposals whose weight is not 0.

    Args:
        logits: (P,C+1), background last.
        labels: (P,) int64.
        weights: (P,) in [0, 1], image score of the pseudo-label that each proposal is matched to.
    """
    each = F.cross_entropy(logits, labels, reduction="none")
    return (weights * each).sum() / (weights > 1e-12).sum().clamp(min=1)


def box_loss(deltas: Tensor, targets: Tensor, weights: Tensor, proposals: int) -> Tensor:
    """Return the weighted L1 loss of foreground box deltas: PDSL eq. (3), second term.

    Args:
        deltas: (K,4) predicted for the matched class.
        targets: (K,4).
        weights: (K,).
        proposals: number of all proposals, foreground and background; divides the sum.
    """
    return (weights[:, None] * (deltas - targets).abs()).sum() / max(proposals, 1)


def mask_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the binary cross-entropy, a mean over regions and pixels: PDSL eq. (5).

    The sign of eq. (5) is corrected; the mean is unweighted, as in the authors' code.

    Args:
        logits: (K,h,w).
        targets: (K,h,w) in [0, 1].
    """
    total = F.binary_cross_entropy_with_logits(logits, targets, reduction="sum")
    return total / max(logits.numel(), 1)


def dice_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean over masks of 1 - (2 p t + 1) / (p + t + 1), sums over points.

    Milletari et al., 3DV 2016, as Mask2Former has it, with one point more on either side.

    Args:
        logits: (K,P) at points of each mask.
        targets: (K,P) in [0, 1].
    """
    filled = logits.sigmoid()
    alike = (2 * (filled * targets).sum(1) + 1) / (filled.sum(1) + targets.sum(1) + 1)
    return (1 - alike).sum() / max(len(logits), 1)


def instance_activation(probabilities: Tensor, tau: float = 5.0) -> Tensor:
    """Return the smooth maximum of each mask, PDSL eq. (7): the log-mean-exp at sharpness `tau`.

    It lies between the mean and the maximum of the mask, and grows with the share of the box that
    the mask fills: a mask that is sure has log(1 + s (e^tau - 1)) / tau at a share s, which is .86
    for half of the box and 1 for all of it.

    Args:
        probabilities: (K,h,w) in [0, 1]; unbounded logits would not be comparable to a score.
        tau: above 0; the mean near 0, approaching the maximum as it grows. The paper uses 5.

    Returns:
        (K,).
    """
    return log_mean_exp(probabilities, tau)


def log_mean_exp(maps: Tensor, sharpness: float) -> Tensor:
    """Return the smooth maximum (...,) of maps (...,h,w), Pinheiro and Collobert, CVPR 2015.

    It lies between the mean and the maximum of each map.
    """
    flat = maps.flatten(-2)
    return (torch.logsumexp(sharpness * flat, -1) - math.log(flat.shape[-1])) / sharpness


def correlation_loss(
    activation: Tensor, score: Tensor, gradient: CorrelationGradient = "masks"
) -> Tensor:
    """Return the mean distance between mask activation and detection score: PDSL eq. (8).

    It is zero for a right mask only if the score equals the activation of that mask, which depends
    on the object's shape (see `instance_activation`). A score below it asks for a smaller or less
    certain mask, whether or not the mask is right.

    Args:
        activation: (K,), from `instance_activation`.
        score: (K,) in [0, 1].
        gradient: "masks" takes the score as a target without gradient, as in the authors' code;
            "both" moves the score towards the activation, too, as in the text.
    """
    target = score if gradient == "both" else score.detach()
    return (activation - target).abs().sum() / max(len(activation), 1)


def semantic_loss(logits: Tensor, canvas: Tensor) -> Tensor:
    """Return the cross-entropy over stuff classes, a mean over labelled cells: JTSM eq. (10).

    Args:
        logits: (N,S,H,W).
        canvas: (N,H,W) int64 stuff class, `NO_STUFF` where a cell is excluded from the loss.
    """
    total = F.cross_entropy(logits, canvas, ignore_index=NO_STUFF, reduction="sum")
    return total / (canvas != NO_STUFF).sum().clamp(min=1)


def tightness_loss(logits: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return the loss of masks whose lines disagree with a tight box: BoxCaseg eq. (1), unary term.

    Every row and column that crosses a tight box holds the object, and no other line does. A line's
    score is its largest logit; the binary cross-entropy is a mean over all lines, where the text
    has a sum.

    Args:
        logits: (N,H,W).
        rows: (N,H) bool, rows that cross the object.
        columns: (N,W) bool, columns that cross it.
    """
    lines = torch.cat([logits.amax(2), logits.amax(1)], 1)
    crossed = torch.cat([rows, columns], 1).to(logits.dtype)
    total = F.binary_cross_entropy_with_logits(lines, crossed, reduction="sum")
    return total / max(lines.numel(), 1)


def neighbour_smoothness(probabilities: Tensor) -> Tensor:
    """Return the mean squared difference over all pairs of 8-neighbours in a map: BoxCaseg eq. (2).

    The authors' code pads the map with zeros and includes those pairs, which pushes objects away
    from the border of tight crops.

    Args:
        probabilities: (N,H,W).
    """
    p = probabilities
    pairs = [(p[:, 1:], p[:, :-1]), (p[..., 1:], p[..., :-1])]
    pairs += [(p[:, 1:, 1:], p[:, :-1, :-1]), (p[:, 1:, :-1], p[:, :-1, 1:])]
    total = torch.stack([(a - b).square().sum() for a, b in pairs]).sum()
    return total / max(sum(a.numel() for a, _ in pairs), 1)


def projection_loss(probabilities: Tensor, inside: Tensor) -> Tensor:
    """Return the Dice loss between the projections of masks and of their boxes: BoxInst eq. (3).

    Tian et al., CVPR 2021. A mask's projection onto an axis is its maximum along the other.

    Args:
        probabilities: (N,h,w) in [0, 1].
        inside: (N,h,w) 0 or 1, cells inside the box.

    Returns:
        The mean over masks of the sum over both axes.
    """
    loss = probabilities.new_zeros(len(probabilities))
    for axis in (1, 2):
        found, box = probabilities.amax(axis), inside.to(probabilities.dtype).amax(axis)
        both = found.square().sum(1) + box.square().sum(1)
        loss = loss + 1 - 2 * (found * box).sum(1) / both.clamp(min=1e-5)
    return loss.sum() / max(len(loss), 1)


def pairwise_loss(
    logits: Tensor, colours: Tensor, inside: Tensor, threshold: float, dilation: int = 2
) -> Tensor:
    """Return the loss of neighbours of similar colour in different segments: BoxInst eqs. (4)-(7).

    An edge joins two of 8 neighbours at distance `dilation`. Its colour similarity is S_e =
    exp(-||c_i - c_j|| / 2). Edges with S_e of at least `threshold` should join two cells of the
    object, or two of the background; about others nothing is known.

    Args:
        logits: (N,h,w).
        colours: (N,3,h,w) in CIE L*a*b*.
        inside: (N,h,w) bool, cells inside the box.
        threshold: lowest similarity of cells that should agree, tau.
        dilation: cells from a cell to its neighbours.

    Returns:
        The mean of -log P(y_e = 1) over similar edges with a cell inside the box, as in the
        authors' code; the text divides by all edges with a cell inside the box.
    """
    loss, count = logits.new_zeros(()), logits.new_zeros(())
    for one, other in _edges(logits.shape[-2:], dilation):
        a, b = logits[:, *one], logits[:, *other]
        both = F.logsigmoid(a) + F.logsigmoid(b)
        neither = F.logsigmoid(-a) + F.logsigmoid(-b)
        same = torch.logaddexp(both, neither)  # log P(y_e = 1), eq. (4)
        distance = (colours[:, :, *one] - colours[:, :, *other]).norm(dim=1)
        similar = torch.exp(-distance / 2) >= threshold  # eq. (6), theta = 2
        wanted = similar & (inside[:, *one] | inside[:, *other])
        loss, count = loss - same[wanted].sum(), count + wanted.sum()
    return loss / count.clamp(min=1)  # eq. (7)


def _edges(size: Sequence[int], step: int) -> list[tuple[tuple[slice, slice], tuple[slice, slice]]]:
    """Return slices of both ends of the edges to the right, below, and to both below corners."""
    height, width = size
    top, bottom = slice(0, max(height - step, 0)), slice(step, None)
    left, right = slice(0, max(width - step, 0)), slice(step, None)
    rows, columns = slice(None), slice(None)
    return [
        ((rows, left), (rows, right)),
        ((top, columns), (bottom, columns)),
        ((top, left), (bottom, right)),
        ((top, right), (bottom, left)),
    ]


def mean_losses(losses: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return the mean of each part of a loss over the images of a batch."""
    return {name: torch.stack([of_image[name] for of_image in losses]).mean() for name in losses[0]}
