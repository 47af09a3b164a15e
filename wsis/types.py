"""The words this library speaks: what passes between data, models and metrics.

Boxes are xyxy float32 in pixels, x2/y2 exclusive. P proposals, C classes, M instances, S superpixels, H x W an image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import torch
from torch import Tensor

__all__ = [
    "RLE",
    "Batch",
    "Index",
    "Prediction",
    "Proposals",
    "Record",
    "Sample",
    "Target",
    "Truth",
    "View",
    "class_of",
    "size_of",
]

RLE = dict[str, Any]
"""A COCO run-length mask: {"size": [H, W], "counts": bytes or str}."""


class Proposals(NamedTuple):
    """Candidate regions of one image, the most useful first, so that a few are a good choice; each is a set of superpixels."""

    boxes: Tensor
    """(P,4) float32."""
    scores: Tensor
    """(P,) float32, objectness in [0, 1]."""
    labels: Tensor | None = None
    """(H,W) int32, superpixel of each pixel, 0-based, -1 = none (padding); None where only boxes are known."""
    members: Tensor | None = None
    """(P,S) bool, the superpixels that make up each proposal; None where only boxes are known."""


class Target(TypedDict, total=False):
    """What a method may learn from: the fields that its `supervision` names, each with its companions.

    `wsis.data.targets.FIELDS` has how each field is read, cut and pasted.
    """

    tags: Tensor
    """(C,) float32, 1 where the image holds the class."""
    stuff_tags: Tensor
    """(C_stuff,) float32, where the data set knows stuff classes."""
    boxes: Tensor
    """(M,4) float32."""
    labels: Tensor
    """(M,) int64, 0-based class; with `boxes`."""
    crowd: Tensor
    """(M,) bool, boxes of several objects or hard ones, to be left out of training; with `boxes`."""
    bag: Tensor
    """(M,) int64, ascending, the bag that each box belongs to; with `boxes`, of annotations that name one."""
    masks: Tensor
    """(M,H,W) bool."""
    unsure: Tensor
    """(M,) bool, 1 where box and label hold but the mask is missing or marked `ignore`; with `masks`."""


class View(NamedTuple):
    """How a network input was cut from its original image: crop, scale, flip."""

    scale: tuple[float, float]
    """Input pixels per original pixel, (x, y)."""
    offset: tuple[float, float]
    """Original (x, y) of the crop's corner."""
    width: int
    """Input width in pixels, the mirror of a flip."""
    flip: bool

    def to_original(self, boxes: Tensor) -> Tensor:
        """Map boxes (...,4) from the network input to the original image."""
        x1, y1, x2, y2 = boxes.unbind(-1)
        if self.flip:
            x1, x2 = self.width - x2, self.width - x1
        (sx, sy), (ox, oy) = self.scale, self.offset
        return torch.stack([x1 / sx + ox, y1 / sy + oy, x2 / sx + ox, y2 / sy + oy], -1)

    def to_input(self, boxes: Tensor) -> Tensor:
        """Map boxes (...,4) from the original image to the network input (not clipped)."""
        (sx, sy), (ox, oy) = self.scale, self.offset
        x1, y1, x2, y2 = boxes.unbind(-1)
        x1, y1, x2, y2 = (x1 - ox) * sx, (y1 - oy) * sy, (x2 - ox) * sx, (y2 - oy) * sy
        if self.flip:
            x1, x2 = self.width - x2, self.width - x1
        return torch.stack([x1, y1, x2, y2], -1)


class Truth(NamedTuple):
    """The annotations of one image in original pixels. For metrics alone: training samples never carry it."""

    boxes: Tensor
    """(M,4) float32."""
    labels: Tensor
    """(M,) int64."""
    masks: list[RLE]
    """M run-length masks at the original size; empty where an object has none."""
    crowd: Tensor
    """(M,) bool: matched detections of these are ignored, as COCO does."""
    panoptic: Tensor | None = None
    """(H,W,2) int32: each pixel's class (things 0..C-1, stuff C..C+C_stuff-1, -1 = void) and instance number (0 for stuff)."""


class Sample(TypedDict, total=False):
    """One image on its way into a network."""

    image: Tensor
    """(3,H,W) uint8 RGB; augmented in training, the original in evaluation."""
    image_id: int
    path: Path
    """The original image file."""
    size: tuple[int, int]
    """(H, W) of the original."""
    view: View
    """From the original to `image`."""
    proposals: Proposals
    """In pixels of `image`."""
    target: Target
    truth: Truth
    """Evaluation only."""


Batch = list[Sample]


class Prediction(NamedTuple):
    """Detections of one image in original pixels, best first; N of them."""

    image_id: int
    size: tuple[int, int]
    """(H, W)."""
    boxes: Tensor
    """(N,4) float32."""
    scores: Tensor
    """(N,) float32."""
    labels: Tensor
    """(N,) int64, 0-based class."""
    masks: list[RLE]
    """N run-length masks at `size`, empty where an object has none; a list, because (N,H,W) would not fit at full size."""
    panoptic: Tensor | None = None
    """(H,W,2) int32, as in `Truth`; None from a method that gives instances alone."""


Record = dict[str, Any]


class Index(NamedTuple):
    """A data set's images and annotations in memory, built with keywords. Classes are positions in `categories`."""

    name: str
    root: Path
    """Folder of the images."""
    images: list[Record]
    """id (int), file_name (relative to `root`), height, width."""
    categories: list[Record]
    """id, name."""
    annotations: Mapping[int, list[Record]] = {}
    """Image id -> COCO annotations: bbox xywh, category_id, iscrowd, segmentation (polygons or RLE) or none."""
    tags: Mapping[int, list[int]] = {}
    """Image id -> classes in the image, ascending."""
    stuff: Sequence[Record] = ()
    """id, name of stuff classes; empty where the data set knows none."""
    stuff_tags: Mapping[int, list[int]] = {}
    """Image id -> positions in `stuff`, ascending."""
    panoptic: Callable[[Record], Tensor | None] | None = None
    """Reads the panoptic map (H,W,2) of an image record, None of an image that has none; None where no image has."""


def class_of(categories: Iterable[Record]) -> dict[int, int]:
    """Give the class (0-based position) of each category id."""
    return {category["id"]: position for position, category in enumerate(categories)}


def size_of(image: Tensor) -> tuple[int, int]:
    """Return (H, W) of an image or map (...,H,W)."""
    return image.shape[-2], image.shape[-1]
