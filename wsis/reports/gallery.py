"""The gallery's pictures: small JPEGs, outlines of masks on a grid of bytes, and how far methods disagree on each image."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as rle_masks
from tqdm import tqdm

from wsis.errors import InputError
from wsis.images.read import read_image
from wsis.metrics.states import packed
from wsis.proposals.file import ProposalFile
from wsis.types import RLE, Index, Prediction, Record, Truth

__all__ = [
    "Objects",
    "Source",
    "agreement",
    "make_gallery",
    "objects_of_prediction",
    "objects_of_truth",
    "outline",
]

Array = NDArray[Any]
SIDE = 320
"""Most pixels of a picture's longer side: 500 of them are 5 to 8 MB."""
GRID = 255
"""Outlines have coordinates from 0 to this along the longer side, a byte each."""
FEW, MOST = 6, 25
"""So many objects of a method are kept of an image; more, and how many at most, where it is sure of them."""
PROPOSALS = 12
ROUGH = 1.0
"""Most distance of an outline from the mask's edge, in cells of the grid."""
FIXED = 4
"""Numbers of an object before those of its rings."""
BYTES = 16_000
"""Most bytes of a picture; a busier one is compressed more."""


class Objects(NamedTuple):
    """What one source says of one image; n objects."""

    labels: list[int]
    """Class, -1 for none."""
    scores: list[float]
    kinds: list[int]
    """Position in KINDS of `wsis.metrics.errors`, -1 where that is not known."""
    sure: int
    """So many, the first, are shown when only sure ones are."""
    masks: list[RLE]
    boxes: list[list[float]]
    """xyxy, drawn where there are no masks."""


class Source(NamedTuple):
    """A panel: truth, proposals, pseudo-labels or a method."""

    name: str
    role: str
    row: int
    """Row of the table that it belongs to, -1 for none."""
    objects: list[Objects]
    """Of each image."""


def objects_of_truth(truth: Truth) -> Objects:
    """Give what is there; crowds are drawn, too."""
    count = len(truth.labels)
    blank = [-1] * count
    return Objects(
        truth.labels.tolist(), [1.0] * count, blank, count, truth.masks, truth.boxes.tolist()
    )


def objects_of_prediction(prediction: Prediction, kinds: Array | None, sure: float) -> Objects:
    """Give the surest detections of an image; those of score `sure` or more are shown first."""
    shown = min(MOST, int((prediction.scores >= sure).sum()))
    count = max(shown, min(FEW, len(prediction.scores)))
    known = [-1] * count if kinds is None else kinds[:count].tolist()
    labels, scores, boxes = (
        column[:count].tolist()
        for column in (prediction.labels, prediction.scores, prediction.boxes)
    )
    return Objects(labels, scores, known, shown, prediction.masks[:count], boxes)


def objects_of_proposals(file: ProposalFile, image: Record) -> Objects:
    """Give the best proposals of an image; none where the file has none of it."""
    size = image["height"], image["width"]
    try:
        boxes, scores, labels, members = file.read(image["file_name"], size, True, PROPOSALS)
    except InputError:
        try:
            boxes, scores, labels, members = file.read(image["file_name"], size, False, PROPOSALS)
        except InputError:
            return Objects([], [], [], 0, [], [])
    count, masks = len(boxes), []
    if labels is not None and members is not None and count:
        lookup = np.concatenate(
            [members.numpy(), np.zeros((count, 1), bool)], 1
        )  # label -1 reads the last column
        masks = rle_masks.encode(
            np.asfortranarray(lookup[:, labels.numpy()].transpose(1, 2, 0), np.uint8)
        )
    return Objects([-1] * count, scores.tolist(), [-1] * count, count, masks, boxes.tolist())


def make_gallery(index: Index, sources: Sequence[Source], most: int) -> dict[str, Any]:
    """Give the gallery as json has it: the images on which methods disagree most, and the outlines of all objects.

    Args:
        index: the images.
        sources: what is shown of each, truth first.
        most: so many images; 0 has no gallery.

    Raises:
        InputError: an image cannot be read.
    """
    if not most:
        return {"images": [], "points": "", "grid": GRID}
    apart = np.array(
        [disagreement([s.objects[i] for s in sources], sources) for i in range(len(index.images))]
    )
    chosen = np.argsort(-apart.reshape(-1, 2)[:, 0], kind="stable")[:most]
    points: list[bytes] = []
    images, at = [], 0
    for i in tqdm(chosen, "pictures", unit="image", disable=None):
        record = index.images[i]
        found = [
            _encode(source.objects[i], (record["height"], record["width"]), points)
            for source in sources
        ]
        picture, width, height = _picture(index, record)
        images.append(
            {
                "name": record["file_name"],
                "width": width,
                "height": height,
                "jpeg": picture,
                "at": at,
                "objects": found,
            }
            | {
                "apart": round(float(apart[i, 0]), 4),
                "wrong": round(float(apart[i, 1]), 4),
                "order": int(i),
            }
        )
        at += sum(sum(thing[FIXED:]) for things in found for thing in things)
    return {"images": images, "points": base64.b64encode(b"".join(points)).decode(), "grid": GRID}


def _encode(objects: Objects, size: tuple[int, int], points: list[bytes]) -> list[list[int]]:
    """Give each object as [class, score in percent, kind, whether sure, points of each ring], its rings going to `points`."""
    rings = outlines(objects, size)
    found = []
    for k, (label, score, kind) in enumerate(
        zip(objects.labels, objects.scores, objects.kinds, strict=True)
    ):
        found.append([label, round(100 * score), kind, int(k < objects.sure), *map(len, rings[k])])
        points += [ring.tobytes() for ring in rings[k]]
    return found


def outlines(objects: Objects, size: tuple[int, int]) -> list[list[Array]]:
    """Give the rings (n,2) uint8 of each object, on the grid; of boxes where there are no masks."""
    scale = GRID / max(size)
    if not objects.masks:
        corners = [[(x1, y1), (x2, y1), (x2, y2), (x1, y2)] for x1, y1, x2, y2 in objects.boxes]
        return [[(np.array(c) * scale).clip(0, GRID).round().astype(np.uint8)] for c in corners]
    return [outline(mask, scale) for mask in objects.masks]


def outline(mask: RLE, scale: float) -> list[Array]:
    """Give a mask's outer and inner edges as rings (n,2) uint8 of x, y; none of an empty mask.

    Args:
        mask: of an image.
        scale: cells of the grid per pixel.
    """
    turned = rle_masks.decode([packed(mask)])[
        ..., 0
    ].T  # (W,H): rows in memory are columns of the image
    x, y, width, height = (int(v) for v in rle_masks.toBbox(packed(mask)))
    step = max(1, int(0.5 / scale))  # half a cell is fine enough
    window = np.ascontiguousarray(turned[x : x + width : step, y : y + height : step])
    if not window.size:
        return []
    found, _ = cv2.findContours(window, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    rings: list[Array] = []
    for ring in sorted(found, key=len, reverse=True):
        simple = cv2.approxPolyDP(ring, ROUGH / scale / step, True)[:, 0, ::-1]
        if len(simple) > 2 or not rings:
            at = (simple * step + (x + (step - 1) / 2, y + (step - 1) / 2) + 0.5) * scale
            rings.append(at.clip(0, GRID).round().astype(np.uint8))
    return rings


def disagreement(objects: Sequence[Objects], sources: Sequence[Source]) -> tuple[float, float]:
    """Give how far methods are from one another on an image, and on average from the truth; 0 to 1, of what is sure."""
    compared = [k for k, source in enumerate(sources) if source.role in ("truth", "method")]
    alike = agreement([objects[k] for k in compared])
    truth = [i for i, k in enumerate(compared) if sources[k].role == "truth"]
    methods = [i for i, k in enumerate(compared) if sources[k].role == "method"]
    among = alike[np.ix_(methods, methods)][np.triu_indices(len(methods), 1)]
    wrong = float(1 - alike[np.ix_(methods, truth)].mean()) if truth and methods else 0.0
    return (float(1 - among.mean()) if len(among) else wrong), wrong


def agreement(objects: Sequence[Objects]) -> Array:
    """Give how alike sources are in what they are sure of (S,S): each object's greatest IoU with one of its class, on average.

    Two sources that say nothing are alike.
    """
    counts = np.array([thing.sure for thing in objects])
    masks = [packed(mask) for thing in objects for mask in thing.masks[: thing.sure]]
    labels = np.array([label for thing in objects for label in thing.labels[: thing.sure]])
    total = counts[:, None] + counts
    if not len(labels) or len(masks) < len(labels):
        return np.where(total, np.eye(len(objects)), 1.0)
    iou = np.asarray(rle_masks.iou(masks, masks, np.zeros(len(masks), np.uint8))) * (
        labels[:, None] == labels
    )
    some = np.flatnonzero(counts)
    starts = np.cumsum(counts[some]) - counts[some]
    nearest = np.add.reduceat(np.maximum.reduceat(iou, starts, axis=1), starts, axis=0)
    sums = np.zeros((len(objects), len(objects)))
    sums[np.ix_(some, some)] = nearest
    return np.where(total, (sums + sums.T) / np.maximum(total, 1), 1.0)


def _picture(index: Index, record: Record) -> tuple[str, int, int]:
    """Give an image as base64 JPEG of at most SIDE pixels and about BYTES bytes, and its width and height."""
    pixels = (
        read_image(index.root / record["file_name"], (record["height"], record["width"]))
        .permute(1, 2, 0)
        .numpy()
    )
    scale = min(1.0, SIDE / max(pixels.shape[:2]))
    size = max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale))
    small = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA) if scale < 1 else pixels
    for quality in (75, 55, 35):
        data = cv2.imencode(".jpg", small[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])[
            1
        ].tobytes()
        if len(data) <= BYTES:
            break
    return base64.b64encode(data).decode(), *size
