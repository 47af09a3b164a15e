"""Mask R-CNN from an image to its objects: what `MaskRCNN.predict` does, in tensors alone.

torchvision's own steps of inference branch on numbers that depend on the image, which torch.export
does not follow. Layers, anchors and box coders are the model's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import nms, roi_align

from wsis.graphs.pixels import OBJECTS, best, resample, scale
from wsis.parts.mask_rcnn import MaskRCNN, paste_boxes

__all__ = ["MaskRCNNGraph"]

_MIN_SIDE = 1e-2  # torchvision's, of a detection


class MaskRCNNGraph(nn.Module):
    """An image (3,H,W) uint8 -> boxes (N,4), scores (N,), labels (N,) and masks (N,H,W) bool.

    Args:
        model: trained, in evaluation mode.
        score: lowest score of an object.
    """

    outputs: ClassVar = OBJECTS

    def __init__(self, model: MaskRCNN, score: float) -> None:
        super().__init__()
        self.model, self.score = model, score

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Detect in the scaled image, paste masks in the original one."""
        model, settings = self.model, self.model.hparams
        view = scale(image, model.backbone, settings["test_side"], settings["test_max_side"])
        maps = model.pyramid(model.backbone.network(view.batch))
        proposals = self._proposals(maps, view.batch, view.size)
        boxes, scores, labels = self._detections(maps, proposals, view.size)
        heads = model.roi_heads
        pooled = self._pooled(maps, boxes, 14)
        logits = heads.mask_predictor(heads.mask_head(pooled))
        logits = logits[torch.arange(logits.shape[0]), labels + 1]
        places = paste_boxes(boxes) * view.factor
        masks = resample(logits.sigmoid(), places, (image.shape[1], image.shape[2])) >= 0.5
        return boxes * view.factor, scores, labels, masks

    def _proposals(self, maps: Mapping[str, Tensor], batch: Tensor, size: Tensor) -> Tensor:
        """Return the proposals (P,4) of an image of a size (2,), best first."""
        rpn = self.model.rpn
        levels = list(maps.values())
        logits, deltas = rpn.head(levels)
        boxes, scores, groups = [], [], []
        for k, anchors in enumerate(rpn.anchor_generator.cell_anchors):
            places = _anchors(anchors, levels[k], batch)
            # (1,A,h,w) and (1,4A,h,w), the anchors of a cell after each other
            chosen, index = best(logits[k][0].permute(1, 2, 0).flatten(), rpn.pre_nms_top_n())
            moved = deltas[k][0].unflatten(0, (-1, 4)).permute(2, 3, 0, 1).reshape(-1, 4)
            boxes.append(rpn.box_coder.decode_single(moved[index], places[index]))
            scores.append(chosen.sigmoid())
            groups.append(torch.full_like(index, k))
        box, score = _clipped(torch.cat(boxes), size), torch.cat(scores)
        large = _larger(box, rpn.min_size).nonzero()[:, 0]
        box, score, group = box[large], score[large], torch.cat(groups)[large]
        return box[_kept(box, score, group, size, rpn.nms_thresh, rpn.post_nms_top_n())]

    def _detections(
        self, maps: Mapping[str, Tensor], proposals: Tensor, size: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return boxes (N,4), scores (N,) and labels (N,) from 0, best first."""
        heads, settings = self.model.roi_heads, self.model.hparams
        logits, deltas = heads.box_predictor(heads.box_head(self._pooled(maps, proposals, 7)))
        scores = logits.softmax(1)[:, 1:]
        boxes = heads.box_coder.decode_single(deltas, proposals).unflatten(1, (-1, 4))[:, 1:]
        boxes = _clipped(boxes, size)
        wanted = (scores > settings["score_threshold"]) & (scores >= self.score)
        row, labels = (wanted & _larger(boxes, _MIN_SIDE)).nonzero().unbind(1)
        boxes, scores = boxes[row, labels], scores[row, labels]
        most = settings["max_detections"]
        kept = _kept(boxes, scores, labels, size, settings["nms"], most)
        return boxes[kept], scores[kept], labels[kept]

    def _pooled(self, maps: Mapping[str, Tensor], boxes: Tensor, side: int) -> Tensor:
        """Pool boxes (K,4) to (K,D,side,side), each from the map of its size."""
        pooler = self.model.roi_heads.box_roi_pool
        levels = pooler.map_levels([boxes])
        pooled, places = [], []
        for k, (name, ratio) in enumerate(zip(pooler.featmap_names, pooler.scales, strict=True)):
            place = (levels == k).nonzero()[:, 0]
            regions = F.pad(boxes[place], (1, 0))
            pooled.append(roi_align(maps[name], regions, side, ratio, pooler.sampling_ratio))
            places.append(place)
        return torch.cat(pooled)[torch.cat(places).argsort()]


def _anchors(cell: Tensor, level: Tensor, batch: Tensor) -> Tensor:
    """Return the anchors (hwA,4) of a map (1,D,h,w) from those of a cell (A,4)."""
    lines = [
        torch.arange(cells) * (pixels // cells)
        for cells, pixels in zip(level.shape[2:], batch.shape[2:], strict=True)
    ]
    y, x = torch.meshgrid(*lines, indexing="ij")
    return (torch.stack([x, y, x, y], -1)[:, :, None] + cell).flatten(0, 2)


def _clipped(boxes: Tensor, size: Tensor) -> Tensor:
    """Return boxes (...,4) clipped to an image of a height and width (2,)."""
    return boxes.clamp(min=0).minimum(size.flip(0).repeat(2))


def _larger(boxes: Tensor, side: float) -> Tensor:
    """Return whether both sides of boxes (...,4) are at least `side`."""
    return (boxes[..., 2:] - boxes[..., :2] >= side).all(-1)


def _kept(
    boxes: Tensor, scores: Tensor, groups: Tensor, size: Tensor, threshold: float, most: int
) -> Tensor:
    """Return the indices of the best `most` boxes after suppression in each group, best first."""
    apart = boxes + (groups * (size.amax(0) + 1))[:, None]  # boxes of two groups do not meet
    kept = nms(apart, scores, threshold)
    return kept[best(scores[kept], most)[1]]
