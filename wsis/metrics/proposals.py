"""Recall and average best overlap of proposals (Uijlings et al., IJCV 2013, section 5)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools import mask as rle
from torch import Tensor
from torchmetrics import Metric
from torchvision.ops import box_iou

from wsis.metrics.states import array, first_of_each, mean
from wsis.types import Proposals, Truth

__all__ = ["ProposalRecall", "mask_overlaps"]


class ProposalRecall(Metric):
    """Fraction of objects that a proposal of their image covers, and average best overlap (ABO).

    `compute()` returns `box_recall@IOU/COUNT`, `box_abo/COUNT` and, if proposals have segments and
    the ground truth has masks, the same for masks. Crowds are left out. Overlaps in an image
    without proposals are 0.

    Args:
        counts: numbers of proposals per image, best first, that are evaluated.
        thresholds: lowest IoU at which an object counts as covered.
    """

    full_state_update = False

    overlaps: list[Tensor]
    """(M, 2 + 2 counts) float64 per image: image id, object, and its best box IoU and best mask IoU
    at each count; NaN without masks."""

    def __init__(
        self,
        counts: Sequence[int] = (500, 1000, 2000),
        thresholds: Sequence[float] = (0.5, 0.7, 0.9),
        **metric: Any,
    ) -> None:
        super().__init__(**metric)
        self.counts, self.thresholds = list(counts), list(thresholds)
        self.add_state("overlaps", [], dist_reduce_fx="cat")

    def update(
        self,
        proposals: Sequence[Proposals],
        truths: Sequence[Truth],
        image_ids: Sequence[int] | None = None,
    ) -> None:
        """Add images.

        Args:
            proposals: of each image, in original pixels, best first.
            truths: of each image.
            image_ids: of each image; one that occurs twice, as with distributed samplers, counts
                once. If None, all count.
        """
        start = len(self.overlaps) if image_ids is None else 0
        for position, (of_image, truth) in enumerate(zip(proposals, truths, strict=True)):
            image = -1 - start - position if image_ids is None else image_ids[position]
            best = np.concatenate([self._boxes(of_image, truth), self._masks(of_image, truth)], 1)
            keys = [np.full((len(best), 1), image), np.arange(len(best))[:, None]]
            rows = np.concatenate([*keys, best], 1)
            self.overlaps.append(torch.from_numpy(rows).to(self.device))

    def compute(self) -> dict[str, Tensor]:
        """Return all metrics over the objects so far; nan if there are none."""
        rows = array(self.overlaps).reshape(-1, 2 + 2 * len(self.counts)).astype(np.float64)
        rows = rows[first_of_each(rows[:, :2])] if (rows[:, 0] >= 0).all() else rows
        best = rows[:, 2:].reshape(-1, 2, len(self.counts))
        metrics: dict[str, Tensor] = {}
        for kind, name in enumerate(("box", "mask")):
            overlaps = best[:, kind][~np.isnan(best[:, kind]).any(1)]
            for count, iou in zip(self.counts, overlaps.T, strict=True):
                for threshold in self.thresholds:
                    metrics[f"{name}_recall@{threshold:g}/{count}"] = mean(iou >= threshold)
                metrics[f"{name}_abo/{count}"] = mean(iou)
        return metrics

    def _boxes(self, proposals: Proposals, truth: Truth) -> NDArray[np.float64]:
        iou = box_iou(truth.boxes.double().cpu(), proposals.boxes.double().cpu())
        return self._best(iou[~truth.crowd.cpu()].numpy())

    def _masks(self, proposals: Proposals, truth: Truth) -> NDArray[np.float64]:
        kept = (~truth.crowd.cpu()).nonzero()[:, 0].tolist()
        if proposals.labels is None or len(truth.masks) != len(truth.crowd):
            return np.full((len(kept), len(self.counts)), np.nan)
        masks = [truth.masks[i] for i in kept]
        return self._best(mask_overlaps(proposals, masks))

    def _best(self, iou: NDArray[Any]) -> NDArray[np.float64]:
        """Return the highest IoU (M, counts) among the first proposals of (M,P)."""
        best = [iou[:, :count].max(1, initial=0.0) for count in self.counts]
        return np.stack(best, 1).astype(np.float64)


def mask_overlaps(proposals: Proposals, masks: Sequence[Any]) -> NDArray[np.float64]:
    """Return the IoU (M,P) of M run-length masks with proposals that are sets of superpixels.

    It is computed from pixel counts per superpixel.

    Raises:
        ValueError: the proposals have no segments.
    """
    if proposals.labels is None or proposals.members is None:
        raise ValueError("proposals without labels and members have no masks")
    members = proposals.members.cpu().numpy().astype(np.float64)
    flat = proposals.labels.cpu().numpy().ravel() + 1  # -1, no superpixel, becomes 0
    count = members.shape[1]
    sizes = np.bincount(flat, minlength=count + 1)[1:]
    inside, areas = np.zeros((len(masks), count)), np.zeros((len(masks), 1))
    for row, mask in enumerate(masks):
        pixels = np.asarray(rle.decode(mask)).ravel() != 0
        inside[row] = np.bincount(flat[pixels], minlength=count + 1)[1:]
        areas[row] = pixels.sum()
    shared = inside @ members.T
    overlaps: NDArray[np.float64] = shared / np.maximum(members @ sizes + areas - shared, 1)
    return overlaps
