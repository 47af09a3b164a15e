"""Detection from image tags: the two streams of WSDDN, and the refinement heads of OICR.

P proposals, C classes, G pseudo-labels, D length of a feature.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import batched_nms, box_iou

from wsis.losses import mil_scores

__all__ = [
    "MILHead",
    "MLPHead",
    "Match",
    "Pseudo",
    "RefinementHead",
    "decode",
    "detect",
    "encode",
    "match",
    "mine",
]

_DELTA_WEIGHTS = (10.0, 10.0, 5.0, 5.0)
"""Scale of (dx, dy, dw, dh), as in Fast R-CNN."""


class MLPHead(nn.Sequential):
    """Two hidden layers with dropout, from pooled features to proposal features.

    Weights are initialised from N(0, 0.005), biases with 0.1.

    Args:
        inputs: length of a flattened pooled feature, channels x 7 x 7.
        hidden: width of the first layer; the authors take 4096 for ResNet18-WS and 2048 for the
            deeper ones.
        outputs: width of the second layer.
        dropout: probability of dropping a unit.
    """

    def __init__(
        self, inputs: int, hidden: int = 4096, outputs: int = 4096, dropout: float = 0.5
    ) -> None:
        first, second = nn.Linear(inputs, hidden), nn.Linear(hidden, outputs)
        for layer in (first, second):
            nn.init.normal_(layer.weight, std=0.005)
            nn.init.constant_(layer.bias, 0.1)
        super().__init__(
            nn.Flatten(),
            first,
            nn.ReLU(),
            nn.Dropout(dropout),
            second,
            nn.ReLU(),
            nn.Dropout(dropout),
        )


class MILHead(nn.Module):
    """Two streams of logits, for `wsis.losses.mil_scores`.

    Args:
        features: D.
        classes: C, without background.
    """

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.classification = nn.Linear(features, classes)
        self.detection = nn.Linear(features, classes)
        for layer in (self.classification, self.detection):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def start(self, weight: Tensor, bias: Tensor) -> None:
        """Initialise with a linear classifier, weight (C,D) and bias (C,).

        Regions are described by `mean_and_contrast`: the classification stream starts with the
        logits of the mean, the detection stream with those of the contrast.
        """
        self.classification.load_state_dict(
            {"weight": F.pad(weight, (0, weight.shape[1])), "bias": bias}
        )
        self.detection.load_state_dict(
            {"weight": F.pad(weight, (weight.shape[1], 0)), "bias": torch.zeros_like(bias)}
        )

    def streams(self, features: Tensor, counts: list[int]) -> list[tuple[Tensor, Tensor]]:
        """Return the logits (P_i,C) of both streams for each image, classification first."""
        classification = self.classification(features).split(counts)
        return list(zip(classification, self.detection(features).split(counts), strict=True))

    def forward(self, features: Tensor, counts: list[int]) -> list[Tensor]:
        """Return scores (P_i,C) of each image from features (P,D) and `counts` P_i per image."""
        return [mil_scores(*logits) for logits in self.streams(features, counts)]


class RefinementHead(nn.Module):
    """Class logits with background, and class-specific box deltas.

    Args:
        features: D.
        classes: C; background is class C.
        boxes: True if boxes are regressed.
    """

    def __init__(self, features: int, classes: int, boxes: bool = True) -> None:
        super().__init__()
        self.logits = nn.Linear(features, classes + 1)
        nn.init.normal_(self.logits.weight, std=0.01)
        nn.init.zeros_(self.logits.bias)
        self.deltas = nn.Linear(features, 4 * classes) if boxes else None
        if self.deltas is not None:
            nn.init.normal_(self.deltas.weight, std=0.001)
            nn.init.zeros_(self.deltas.bias)

    def start(self, weight: Tensor) -> None:
        """Initialise with a linear classifier (C,D) of the contrast; background has logit 0.

        Regions are described by `mean_and_contrast`.
        """
        self.logits.load_state_dict(
            {"weight": F.pad(weight, (weight.shape[1], 0, 0, 1)), "bias": self.logits.bias}
        )

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor | None]:
        """(P,D) -> logits (P,C+1), deltas (P,C,4) or None."""
        logits = self.logits(features)
        return logits, None if self.deltas is None else self.deltas(features).unflatten(1, (-1, 4))


class Pseudo(NamedTuple):
    """Pseudo-labels of one image: the best proposal of each tagged class."""

    boxes: Tensor
    """(G,4)."""
    labels: Tensor
    """(G,) int64."""
    scores: Tensor
    """(G,) score of the chosen proposal, detached."""
    weights: Tensor
    """(G,) image score of the class, detached, which weighs the loss."""
    proposals: Tensor
    """(G,) int64, index of the chosen proposal."""


def mine(
    scores: Tensor, tags: Tensor, image_scores: Tensor, boxes: Tensor, prior: Tensor | None = None
) -> Pseudo:
    """Return the best-scoring proposal of each tagged class (PDSL section 3.2; OICR).

    Args:
        scores: (P,C) or (P,C+1) of the previous head.
        tags: (C,) 0 or 1.
        image_scores: (C,) summed MIL scores.
        boxes: (P,4) proposals, or (P,C,4) regressed by the previous head.
        prior: (P,) factor on the scores by which a proposal is chosen, not on the score that is
            returned.
    """
    labels = tags.nonzero().flatten() if len(scores) else tags.new_zeros(0, dtype=torch.int64)
    candidates = scores.detach()[:, labels]
    ranked = candidates if prior is None else candidates * prior[:, None]
    # argmax refuses an image without proposals, even if no class is looked for
    index = ranked.argmax(0) if len(labels) else labels.new_zeros(0)
    best = candidates.gather(0, index[None])[0]
    chosen = boxes[index, labels] if boxes.ndim == 3 else boxes[index]
    weights = image_scores.detach()[labels].clamp(1e-6, 1 - 1e-6)
    return Pseudo(chosen.detach(), labels, best, weights, index)


class Match(NamedTuple):
    """The target of each proposal."""

    labels: Tensor
    """(P,) int64; C is background."""
    weights: Tensor
    """(P,) weight of the pseudo-label it overlaps most, for background too."""
    pseudo: Tensor
    """(P,) int64, index of that pseudo-label."""
    overlap: Tensor
    """(P,) box IoU with it."""
    foreground: Tensor
    """(P,) bool."""


def match(proposals: Tensor, pseudo: Pseudo, classes: int, threshold: float = 0.5) -> Match:
    """Assign each proposal (P,4) to the pseudo-label it overlaps most.

    A proposal whose box IoU with it is below `threshold` is background. As in the authors' code, no
    overlaps are ignored and nothing is sampled. Without pseudo-labels all weights are 0.
    """
    count = len(proposals)
    if not len(pseudo.boxes):
        none, zero = proposals.new_zeros(count, dtype=torch.int64), proposals.new_zeros(count)
        return Match(none + classes, zero, none, zero, none.bool())
    overlap, best = box_iou(proposals, pseudo.boxes).max(1)
    positive = overlap >= threshold
    labels = torch.where(positive, pseudo.labels[best], classes)
    return Match(labels, pseudo.weights[best], best, overlap, positive)


def encode(boxes: Tensor, proposals: Tensor) -> Tensor:
    """Return Fast R-CNN's weighted deltas (K,4) from `proposals` (K,4) to `boxes` (K,4)."""
    centre, size = _centre_size(boxes)
    from_centre, from_size = _centre_size(proposals)
    deltas = torch.cat([(centre - from_centre) / from_size, (size / from_size).log()], -1)
    return deltas * deltas.new_tensor(_DELTA_WEIGHTS)


def decode(deltas: Tensor, proposals: Tensor, size: tuple[int, int]) -> Tensor:
    """Apply deltas (P,C,4) to proposals (P,4), the inverse of `encode`; clip to `size` (H, W)."""
    deltas = deltas / deltas.new_tensor(_DELTA_WEIGHTS)
    centre, extent = (part[:, None] for part in _centre_size(proposals))
    centre = centre + deltas[..., :2] * extent
    growth = deltas[..., 2:].clamp(max=math.log(1000 / 16))  # a large delta must not overflow
    extent = extent * growth.exp()
    limit = proposals.new_tensor([size[1], size[0], size[1], size[0]])
    return torch.cat([centre - extent / 2, centre + extent / 2], -1).clamp(min=0).minimum(limit)


def _centre_size(boxes: Tensor) -> tuple[Tensor, Tensor]:
    extent = (boxes[..., 2:] - boxes[..., :2]).clamp(min=1e-3)
    return (boxes[..., :2] + boxes[..., 2:]) / 2, extent


def detect(
    scores: Tensor, boxes: Tensor, nms: float = 0.3, threshold: float = 1e-5, limit: int = 100
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return detections by score and per-class non-maximum suppression.

    Args:
        scores: (P,C).
        boxes: (P,4) or (P,C,4).
        nms: box IoU above which the lower-scored of two boxes of a class is dropped; 0.5 in the
            papers, 0.3 in their code.
        threshold: lowest score, exclusive.
        limit: largest number of detections.

    Returns:
        boxes (N,4), scores (N,), labels (N,) and indices of proposals (N,); best first.
    """
    proposal, label = (scores > threshold).nonzero(as_tuple=True)
    kept = scores[proposal, label]
    at = boxes[proposal, label] if boxes.ndim == 3 else boxes[proposal]
    order = batched_nms(at, kept, label, nms)[:limit]
    return at[order], kept[order], label[order], proposal[order]
