"""Proxy masks of BoxCaseg: overlaps are resolved, and masks scored by their boxes (section 3.4)."""

from __future__ import annotations

import numpy as np
import torch
from pycocotools import mask as rle
from torch import Tensor
from torchvision.ops import box_area

from wsis.nn.masks import run_lengths, tight_boxes
from wsis.types import Prediction, Sample

__all__ = ["merge_masks", "merged", "proxy_box_agreement", "without_crowds"]


def merge_masks(masks: Tensor, boxes: Tensor) -> Tensor:
    """Assign every pixel to the smallest object whose mask covers it (section 3.4).

    Args:
        masks: (K,H,W) bool.
        boxes: (K,4) xyxy; an object is smaller if its box is, and of equals the first counts as
            smaller.

    Returns:
        (K,H,W) bool, masks that do not overlap.
    """
    merged, free = torch.empty_like(masks), torch.ones_like(masks[:1])
    for k in box_area(boxes).argsort(stable=True).tolist():
        torch.bitwise_and(masks[k], free[0], out=merged[k])
        free &= ~masks[k]
    return merged


def proxy_box_agreement(masks: Tensor, boxes: Tensor) -> Tensor:
    """Return the IoU of each mask's bounding box with the given box (section 3.4).

    A mask has whole pixels, so its box is compared with the whole pixels that the given box has:
    those whose centres it holds, at least one in each direction. Otherwise a true mask of a small
    object, whose box annotators draw between pixels, would not agree with it.

    Args:
        masks: (K,H,W) bool.
        boxes: (K,4) xyxy.

    Returns:
        (K,), 0 for an empty mask.
    """
    tight = tight_boxes(masks).to(boxes)
    boxes = _whole(boxes)
    low = torch.maximum(tight[:, :2], boxes[:, :2])
    high = torch.minimum(tight[:, 2:], boxes[:, 2:])
    inside = (high - low).clamp(min=0).prod(1)
    return inside / (box_area(tight) + box_area(boxes) - inside).clamp(min=1e-6)


def without_crowds(sample: Sample) -> Sample:
    """Return a sample without its crowd boxes."""
    target = sample["target"]
    single = {name: target[name][~target["crowd"]] for name in ("boxes", "labels", "crowd")}
    return {**sample, "target": {**target, **single}}  # type: ignore[typeddict-item]


def merged(prediction: Prediction, merge: bool = True) -> Prediction:
    """Merge the masks of one image if asked, and score each by its agreement with its box."""
    if not prediction.masks:
        return prediction
    masks = torch.from_numpy(np.stack([rle.decode(mask) for mask in prediction.masks])).bool()
    masks = merge_masks(masks, prediction.boxes) if merge else masks
    encoded = [run_lengths(mask) for mask in masks]
    return prediction._replace(scores=proxy_box_agreement(masks, prediction.boxes), masks=encoded)


def _whole(boxes: Tensor) -> Tensor:
    """Return the pixels whose centres boxes (K,4) hold, as boxes; at least one each way."""
    corners = (boxes - 0.5).ceil()
    low, high = corners[:, :2], corners[:, 2:]
    return torch.cat([low, torch.maximum(high, low + 1)], 1)
