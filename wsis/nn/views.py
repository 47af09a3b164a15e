"""Test-time augmentation: means of predictions over several sizes of an image, with flips."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from wsis.images.scale import scaled_size
from wsis.nn.detection import Detection
from wsis.nn.mil import decode
from wsis.nn.regions import pool
from wsis.types import Proposals, Sample, View
from wsis.values import COUNT, FRACTION, check_ranges

__all__ = [
    "ImageView",
    "Inference",
    "average",
    "image_views",
    "mean_masks",
    "over_views",
    "proposals_in",
    "resize",
]


@dataclass(frozen=True)
class Inference:
    """Settings of test-time augmentation and suppression.

    Args:
        short_sides: Short sides in pixels over which predictions are averaged; empty keeps the
            image's size.
        flip: Average predictions with those of the mirror image.
        nms: Box IoU above which the lower-scored of two detections of a class is dropped.
    """

    short_sides: tuple[int, ...] = (480, 576, 672, 768, 864, 960, 1056, 1152)
    flip: bool = True
    nms: float = 0.3

    def __post_init__(self) -> None:
        """Raise InputError for impossible numbers."""
        check_ranges("inference", vars(self), {COUNT: ("short_sides",), FRACTION: ("nms",)})


class ImageView(NamedTuple):
    """One view of an image at test time."""

    image: Tensor
    """(3,h,w) uint8."""
    view: View


def image_views(image: Tensor, inference: Inference, max_side: int = 4000) -> Iterator[ImageView]:
    """Yield an image (3,H,W) at each short side, with its mirror image if `flip` is set."""
    height, width = image.shape[-2:]
    for side in inference.short_sides or (min(height, width),):
        small = resize(image, side, max_side)
        scale = small.shape[-1] / width, small.shape[-2] / height
        for mirrored in (False, True) if inference.flip else (False,):
            pixels = small.flip(-1) if mirrored else small
            yield ImageView(pixels, View(scale, (0.0, 0.0), small.shape[-1], mirrored))


def proposals_in(view: ImageView, proposals: Proposals) -> Proposals:
    """Transform an image's proposals to one view of it; label maps by the nearest pixel."""
    boxes = view.view.to_input(proposals.boxes)
    if proposals.labels is None:
        return proposals._replace(boxes=boxes)
    maps, size = proposals.labels[None, None].double(), view.image.shape[-2:]
    labels = F.interpolate(maps, size=size, mode="nearest-exact")[0, 0].int()
    return proposals._replace(boxes=boxes, labels=labels.flip(-1) if view.view.flip else labels)


def over_views(
    sample: Sample,
    inference: Inference,
    backbone: Callable[[list[Tensor]], Tensor],
    head: Callable[[Tensor, list[Proposals]], list[Detection]],
) -> tuple[list[ImageView], list[Tensor], list[Detection]]:
    """Run a detector on each view of an image.

    Args:
        sample: its image and proposals.
        inference: which views.
        backbone: function from images to features (1,D,H,W).
        head: function from features and proposals to one output per image.

    Returns:
        The views, and the features and the output of each.
    """
    views = list(image_views(sample["image"], inference))
    features = [backbone([view.image]) for view in views]
    outputs = [
        head(feature, [proposals_in(view, sample["proposals"])])[0]
        for feature, view in zip(features, views, strict=True)
    ]
    return views, features, outputs


def average(
    heads: Sequence[Detection],
    views: Sequence[ImageView],
    proposals: Tensor,
    size: tuple[int, int],
) -> tuple[Tensor, Tensor]:
    """Average the scores and boxes of an image's proposals over its views.

    Deltas are averaged and decoded once; the released code of PDSL and JTSM averages boxes.

    Args:
        heads: outputs for each view.
        views: of the image.
        proposals: (P,4) in the image.
        size: (H, W) of the image, which clips regressed boxes.

    Returns:
        scores (P,C), and boxes: (P,C,4) if heads regress them, else the proposals.
    """
    scores = torch.stack([of_view.scores() for of_view in heads]).mean(0)
    deltas = [[delta for delta in of_view.deltas if delta is not None] for of_view in heads]
    if not deltas[0]:
        return scores, proposals
    means = []
    for of_view, view in zip(deltas, views, strict=True):
        mean = torch.stack(of_view).mean(0)
        means.append(mean * mean.new_tensor([-1, 1, 1, 1]) if view.view.flip else mean)
    return scores, decode(torch.stack(means).mean(0), proposals, size)


def mean_masks(
    features: Sequence[Tensor],
    views: Sequence[ImageView],
    boxes: Tensor,
    stride: int,
    logits: Callable[[Tensor], Tensor],
    samples: int = 2,
) -> Tensor:
    """Return the mean mask probabilities (N,h,w) of boxes over the views of an image.

    Args:
        features: (1,D,H,W) of each view.
        views: of the image.
        boxes: (N,4) in the image.
        stride: input pixels per feature cell.
        logits: function from pooled regions (N,D,14,14) to mask logits (N,h,w).
        samples: of RoIAlign, as in `pool`.
    """
    masks = []
    for feature, view in zip(features, views, strict=True):
        regions = pool(feature, [view.view.to_input(boxes)], stride, 14, "roi_align", samples)
        of_view = logits(regions)
        masks.append((of_view.flip(-1) if view.view.flip else of_view).sigmoid())
    return torch.stack(masks).mean(0)


def resize(image: Tensor, side: int, max_side: int) -> Tensor:
    """Resize (3,H,W) uint8 to short side `side`, or less so that no side exceeds `max_side`."""
    height, width = image.shape[-2:]
    scale = min(side / min(height, width), max_side / max(height, width))
    size = scaled_size((height, width), scale)
    if size == (height, width):
        return image
    resized = F.interpolate(image[None].float(), size=size, mode="bilinear", antialias=True)
    return resized[0].round().clamp(0, 255).to(torch.uint8)
