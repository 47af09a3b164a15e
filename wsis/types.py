"""Types that data, models and metrics exchange.

Boxes are xyxy float32 in pixels, x2/y2 exclusive. P proposals, C classes, M instances, S
superpixels, H x W pixels of an image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as rle_masks
from torch import Tensor

from wsis.errors import InputError
from wsis.images.draw import overlay
from wsis.images.read import as_pixels

__all__ = [
    "RLE",
    "Batch",
    "GroundTruth",
    "Index",
    "Prediction",
    "Proposals",
    "Record",
    "Sample",
    "Target",
    "View",
    "class_of",
    "size_of",
]

RLE = dict[str, Any]
"""A COCO run-length mask: {"size": [H, W], "counts": bytes or str}."""


class Proposals(NamedTuple):
    """Candidate regions of one image, the most useful first; each is a set of superpixels.

    The first few of them are a good choice where not all can be used.
    """

    boxes: Tensor
    """(P,4) float32."""
    scores: Tensor
    """(P,) float32, objectness in [0, 1]."""
    labels: Tensor | None = None
    """(H,W) int32, superpixel of each pixel, -1 for padding; None if only boxes are known."""
    members: Tensor | None = None
    """(P,S) bool, the superpixels that make up each proposal; None if only boxes are known."""


class Target(TypedDict, total=False):
    """Annotations that a method may train on.

    The fields that its `supervision` names, each with its companions.

    `wsis.data.targets.FIELDS` defines how each field is read, cropped and pasted.
    """

    tags: Tensor
    """(C,) float32, 1 if the class is in the image."""
    stuff_tags: Tensor
    """(C_stuff,) float32, likewise; only if the data set has stuff classes."""
    complete: Tensor
    """(C,) bool, whether each object of the class in the image is a row of this label."""
    points: Tensor
    """(M,K,2) float32, x and y of the points of each object; NaN where it has fewer than K."""
    point_labels: Tensor
    """(M,K) int64, 1 in the object, 0 outside of it, -1 for no point; with `points`."""
    boxes: Tensor
    """(M,4) float32; NaN for an object that is known by points alone."""
    labels: Tensor
    """(M,) int64, 0-based class; with `boxes` or `points`."""
    crowd: Tensor
    """(M,) bool, several or difficult objects, excluded from training; with `boxes` or `points`."""
    bag: Tensor
    """(M,) int64, ascending, bag of each box; with `boxes`, if annotations have bags."""
    masks: Tensor
    """(M,H,W) bool."""
    ignore_mask: Tensor
    """(M,) bool, True where the mask is missing or marked `ignore`; with `masks`.

    Box and label are valid all the same.
    """


class View(NamedTuple):
    """The crop, scale and flip that made a network input from its original image."""

    scale: tuple[float, float]
    """(x, y), input pixels per original pixel."""
    offset: tuple[float, float]
    """(x, y) of the crop's top left corner in the original image."""
    width: int
    """Input width in pixels, which a flip needs."""
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

    def points_to_input(self, points: Tensor) -> Tensor:
        """Map points (...,2) from the original image to the network input (not clipped)."""
        return self.to_input(torch.cat([points, points], -1))[..., :2]


class GroundTruth(NamedTuple):
    """Annotations of one image in original pixels, for metrics only; never in training samples."""

    boxes: Tensor
    """(M,4) float32."""
    labels: Tensor
    """(M,) int64."""
    masks: list[RLE]
    """M run-length masks at the original size; an empty mask for an object without one."""
    crowd: Tensor
    """(M,) bool, objects whose matched detections are ignored, as in COCO."""
    panoptic: Tensor | None = None
    """(H,W,2) int32, class and instance number of each pixel.

    Things are 0..C-1, stuff C..C+C_stuff-1, void -1; the instance number of stuff is 0.
    """
    areas: Tensor | None = None
    """(M,) float64, the areas in pixels that the annotations state; nan where they state none.

    COCO tells small, medium and large objects by them.
    """


class Sample(TypedDict, total=False):
    """One image on its way into a network."""

    image: Tensor
    """(3,H,W) uint8 RGB, augmented in training, original in evaluation."""
    image_id: int
    path: Path
    """The original image file."""
    size: tuple[int, int]
    """(H, W) of the original."""
    view: View
    """Transform from the original to `image`."""
    proposals: Proposals
    """In pixels of `image`."""
    target: Target
    truth: GroundTruth
    """Evaluation only."""


Batch = list[Sample]


class Prediction(NamedTuple):
    """N detections of one image in original pixels, best first."""

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
    """N run-length masks at `size`; an empty mask for an object without one.

    A tensor (N,H,W) at full size would not fit into memory.
    """
    panoptic: Tensor | None = None
    """(H,W,2) int32, as in `GroundTruth`; None if the method predicts instances only."""
    class_names: tuple[str, ...] = ()
    """Names of all classes in order, as `wsis.predict` gives them; empty if they are not known."""

    @property
    def names(self) -> list[str]:
        """The class name of each detection; "class 3" where names are not known."""
        known = dict(enumerate(self.class_names))
        return [known.get(label, f"class {label}") for label in self.labels.tolist()]

    def binary_masks(self) -> NDArray[np.bool_]:
        """Return the masks as (N,H,W) bool; empty ones where only boxes were predicted."""
        if not self.masks:
            return np.zeros((len(self.boxes), *self.size), bool)
        return rle_masks.decode(self.masks).transpose(2, 0, 1).astype(bool)

    def above(self, score_threshold: float) -> Prediction:
        """Return the detections with at least this score."""
        return self.rows((self.scores >= score_threshold).nonzero().squeeze(1))

    def plot(self, image: Any, score_threshold: float = 0.0, long_side: int = 800) -> Image.Image:
        """Return the image with masks, or boxes where there are none, class names and scores.

        Args:
            image: the one that was predicted: a file, a PIL image, (H,W,3) uint8 RGB, or a
                (3,H,W) uint8 RGB tensor.
            score_threshold: detections below this score are left out; if none reaches it, the best
                one is drawn with a question mark.
            long_side: pixels of the result's longer side.

        Raises:
            InputError: not an image, or one of another size.
        """
        pixels = as_pixels(image)
        if pixels.shape[:2] != self.size:
            raise InputError(
                f"the image has {pixels.shape[1]} x {pixels.shape[0]} pixels and the prediction is "
                f"of {self.size[1]} x {self.size[0]}; give the image that was predicted"
            )
        drawn = overlay(pixels, self, self.class_names, score_threshold, long_side)
        return Image.fromarray(drawn)

    def to_supervision(self) -> Any:
        """Return the detections as `supervision.Detections`.

        Raises:
            InputError: the package is not installed.
        """
        try:
            import supervision
        except ModuleNotFoundError as error:
            raise InputError("this needs another package: pip install supervision") from error
        return supervision.Detections(
            xyxy=self.boxes.cpu().numpy(),
            mask=self.binary_masks() if self.masks else None,
            confidence=self.scores.cpu().numpy(),
            class_id=self.labels.cpu().numpy(),
            data={"class_name": np.array(self.names, str)},
        )

    def rows(self, kept: Tensor) -> Prediction:
        """Return the detections at the positions `kept` (K,) int64."""
        masks = [self.masks[i] for i in kept.tolist()] if self.masks else []
        kept = kept.to(self.boxes.device)
        boxes, scores, labels = self.boxes[kept], self.scores[kept], self.labels[kept]
        return self._replace(boxes=boxes, scores=scores, labels=labels, masks=masks)


Record = dict[str, Any]


class Index(NamedTuple):
    """Images and annotations of a data set, in memory; a class is a position in `categories`.

    Pass the fields by keyword.
    """

    name: str
    root: Path
    """Folder of the images."""
    images: list[Record]
    """id (int), file_name (relative to `root`), height, width."""
    categories: list[Record]
    """id, name."""
    annotations: Mapping[int, list[Record]] = {}
    """Image id -> COCO annotations: bbox xywh, category_id, iscrowd, segmentation (or none).

    Objects may have `points` [[x, y, 1 in the object or 0 outside of it], ...], and then no bbox.
    """
    tags: Mapping[int, list[int]] = {}
    """Image id -> classes in the image, ascending."""
    complete: Mapping[int, list[int]] = {}
    """Image id -> classes whose objects are all in `annotations`, ascending; all if not there."""
    stuff: Sequence[Record] = ()
    """id, name of stuff classes; empty if the data set has none."""
    stuff_tags: Mapping[int, list[int]] = {}
    """Image id -> positions in `stuff`, ascending."""
    panoptic: Callable[[Record], Tensor | None] | None = None
    """Reads the panoptic map (H,W,2) of an image record, or None for an image without one."""
    notes: Sequence[str] = ()
    """What the user should know of the reading, such as labels that are left out."""
    unreadable: Mapping[str, str] = {}
    """file_name -> why, of images that are left out; a data set for training has none."""


def class_of(categories: Iterable[Record]) -> dict[int, int]:
    """Return the class (0-based position) of each category id."""
    return {category["id"]: position for position, category in enumerate(categories)}


def size_of(image: Tensor) -> tuple[int, int]:
    """Return (H, W) of an image or map (...,H,W)."""
    return image.shape[-2], image.shape[-1]
