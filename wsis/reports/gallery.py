"""The gallery of a page: small JPEGs, outlines of masks on a byte grid, disagreement of methods."""

from __future__ import annotations

import base64
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools import mask as rle_masks
from torch import Tensor

from wsis.files import atomic_write
from wsis.images.draw import grid, jpeg, overlay
from wsis.images.read import read_image
from wsis.images.scale import resize_long_side
from wsis.machine import bar
from wsis.metrics.states import packed
from wsis.types import RLE, GroundTruth, Index, Record

__all__ = [
    "NO_PICTURES",
    "Objects",
    "Source",
    "agreement",
    "make_gallery",
    "outline",
    "outlines",
    "rank_images",
    "write_picture",
]

Array = NDArray[Any]
SIDE = 320
"""Longer side of one of many pictures, in pixels: 500 are 5 to 8 MB."""
LARGE_SIDE, FEW = 640, 100
"""Longer side of one of at most so many pictures."""
GRID = 255
"""Outlines have coordinates from 0 to this along the longer side, a byte each."""
TOLERANCE = 1.0
"""Maximum distance of an outline from the mask's edge, in cells of the grid."""
FIXED = 4
"""Numbers of an object before those of its rings."""
MAX_BYTES = 16_000
"""A picture with more bytes is compressed more; a large one may have four times as many."""


NO_PICTURES: dict[str, Any] = {
    **{"images": [], "points": "", "grid": GRID},
    **{"sources": [], "orders": []},
}
"""A gallery of nothing."""


class Objects(NamedTuple):
    """Objects of one source in one image; n of them."""

    labels: list[int]
    """Class, -1 for none."""
    scores: list[float]
    kinds: list[int]
    """Position in KINDS of `wsis.metrics.errors`, -1 if unknown."""
    sure: int
    """Number of objects, the first, that are shown when only confident ones are."""
    masks: list[RLE]
    boxes: list[list[float]]
    """xyxy, drawn if there are no masks."""


class Source(NamedTuple):
    """A panel beside each image."""

    name: str
    role: str
    """truth, method, proposals, labels or panoptic."""
    row: int
    """Row of the table that it belongs to, -1 for none."""
    objects: Sequence[Objects] | Mapping[int, Objects]
    """By position of the image."""


def rank_images(
    sources: Sequence[Source],
    images: int,
    max_images: int,
    tags: Sequence[Collection[int]] | None = None,
) -> dict[int, tuple[float, float]]:
    """Choose the images on which methods disagree most, with disagreement and error of each.

    Args:
        sources: truth and methods; others are not compared.
        images: how many there are.
        max_images: how many to choose.
        tags: classes of each image, to compare with where there is no truth.

    Returns:
        Position of the image -> values of `disagreement`, in descending order.
    """
    if not max_images:
        return {}
    compared = [source for source in sources if source.role in ("truth", "method")]
    speaking = [k for k, source in enumerate(compared) if _speaks(source)]
    known: Sequence[Collection[int] | None] = tags or [None] * images
    values = [disagreement(compared, speaking, i, known[i]) for i in range(images)]
    order = sorted(range(images), key=lambda i: values[i], reverse=True)
    return {i: values[i] for i in order[:max_images]}


def make_gallery(
    index: Index, sources: Sequence[Source], ranked: Mapping[int, tuple[float, float]]
) -> dict[str, Any]:
    """Encode images and the outlines of all objects for the page's script.

    Args:
        index: the images.
        sources: the panels beside each image, truth first.
        ranked: the images to show, from `rank_images`.

    Raises:
        InputError: an image cannot be read.
    """
    points: list[bytes] = []
    images, offset = [], 0
    side = LARGE_SIDE if len(ranked) <= FEW else SIDE
    by_tags = all(source.role != "truth" for source in sources)
    names = [category["name"] for category in index.categories]
    shown = {"unit": "image", "disable": len(ranked) < 20 or None}
    for i, (apart, wrong) in bar(ranked.items(), "pictures", **shown):
        record = index.images[i]
        size = record["height"], record["width"]
        objects = [_encode(source.objects[i], size, points) for source in sources]
        image = {"name": record["file_name"], "at": offset, "objects": objects, "order": i}
        image |= {"apart": round(apart, 4), "wrong": round(wrong, 4)}
        tags = index.tags.get(record["id"], []) if by_tags else []
        image["tags"] = [names[label] for label in tags]
        images.append(image | _picture(index, record, side))
        offset += sum(sum(thing[FIXED:]) for things in objects for thing in things)
    return {
        "images": images,
        "points": base64.b64encode(b"".join(points)).decode(),
        "grid": GRID,
        "sources": [{"name": s.name, "role": s.role, "row": s.row} for s in sources],
        "orders": _orders(sources, by_tags),
    }


def _orders(sources: Sequence[Source], by_tags: bool) -> list[tuple[str, str, str]]:
    """Return the orders of images: key, name, and what is said of an image's value."""
    methods = sum(source.role == "method" for source in sources)
    apart = [("apart", "methods disagree most", "apart")] if methods > 1 else []
    far, near = "furthest from the truth", "nearest to the truth"
    said = "from the truth"
    if by_tags:
        far, near, said = "tags told worst", "tags told best", "of tags wrong"
    others = [
        ("score", "surest first", ""),
        ("name", "by name", ""),
        ("order", "as in the data", ""),
    ]
    return [*apart, ("wrong", far, said), ("right", near, said), *others]


def _encode(objects: Objects, size: tuple[int, int], points: list[bytes]) -> list[list[int]]:
    """Return objects as [class, score in %, kind, sure, points of each ring]; append the rings."""
    encoded = []
    for k, rings in enumerate(outlines(objects, size)):
        score, sure = round(100 * objects.scores[k]), int(k < objects.sure)
        encoded.append([objects.labels[k], score, objects.kinds[k], sure, *map(len, rings)])
        points += [ring.tobytes() for ring in rings]
    return encoded


def outlines(objects: Objects, size: tuple[int, int]) -> list[list[Array]]:
    """Return the rings (n,2) uint8 of each object on the grid, of boxes if there are no masks."""
    scale = GRID / max(size)
    if not objects.masks:
        corners = [[(x1, y1), (x2, y1), (x2, y2), (x1, y2)] for x1, y1, x2, y2 in objects.boxes]
        return [[(np.array(c) * scale).clip(0, GRID).round().astype(np.uint8)] for c in corners]
    return [outline(mask, scale) for mask in objects.masks]


def outline(mask: RLE, scale: float) -> list[Array]:
    """Return a mask's outer and inner edges as rings (n,2) uint8 of x, y; [] for an empty mask.

    Args:
        mask: of an image.
        scale: cells of the grid per pixel.
    """
    turned = rle_masks.decode([packed(mask)])[..., 0].T  # (W,H): contiguous in memory
    x, y, width, height = (int(v) for v in rle_masks.toBbox(packed(mask)))
    step = max(1, int(0.5 / scale))  # half a cell is fine enough
    window = np.ascontiguousarray(turned[x : x + width : step, y : y + height : step])
    if not window.size:
        return []
    edges, _ = cv2.findContours(window, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    rings: list[Array] = []
    for ring in sorted(edges, key=len, reverse=True):
        simple = cv2.approxPolyDP(ring, TOLERANCE / scale / step, True)[:, 0, ::-1]
        if len(simple) > 2 or not rings:
            at = (simple * step + (x + (step - 1) / 2, y + (step - 1) / 2) + 0.5) * scale
            rings.append(at.clip(0, GRID).round().astype(np.uint8))
    return rings


def disagreement(
    sources: Sequence[Source], speaking: Sequence[int], image: int, tags: Collection[int] | None
) -> tuple[float, float]:
    """Return how far methods differ from one another on an image, and on average from the truth.

    Both are from 0 to 1, of confident objects; of one method, both are its distance from the truth.

    Args:
        sources: truth and methods.
        speaking: positions of the methods that differ from one another in more than that one finds
            nothing in any image, which would be as far from the others on all images.
        image: position of the image.
        tags: classes of the image, in place of the truth; None if there is truth.
    """
    alike = agreement([source.objects[image] for source in sources])
    truth = [k for k, source in enumerate(sources) if source.role == "truth"]
    methods = [k for k, source in enumerate(sources) if source.role == "method"]
    among = alike[np.ix_(speaking, speaking)][np.triu_indices(len(speaking), 1)]
    wrong = float(1 - alike[np.ix_(methods, truth)].mean()) if truth and methods else 0.0
    if tags is not None:
        wrong = float(np.mean([tag_error(sources[k].objects[image], tags) for k in methods]))
    return (float(1 - among.mean()) if len(among) else wrong), wrong


def _speaks(source: Source) -> bool:
    """Return whether a method is sure of an object in any image."""
    found = source.objects.values() if isinstance(source.objects, Mapping) else source.objects
    return source.role == "method" and any(objects.sure for objects in found)


def tag_error(objects: Objects, tags: Collection[int]) -> float:
    """Return one minus the IoU of the classes of confident objects and the classes of tags."""
    told, known = {*objects.labels[: objects.sure]}, {*tags}
    return 1 - len(told & known) / len(told | known) if told | known else 0.0


def agreement(objects: Sequence[Objects]) -> Array:
    """Return how far sources agree (S,S): mean over objects of the greatest IoU within the class.

    Only confident objects are compared; two sources without any agree.
    """
    counts = np.array([thing.sure for thing in objects])
    masks = [packed(mask) for thing in objects for mask in thing.masks[: thing.sure]]
    labels = np.array([label for thing in objects for label in thing.labels[: thing.sure]])
    total = counts[:, None] + counts
    if not len(labels) or len(masks) < len(labels):
        return np.where(total, np.eye(len(objects)), 1.0)
    iou = np.asarray(rle_masks.iou(masks, masks, np.zeros(len(masks), np.uint8)))
    iou = iou * (labels[:, None] == labels)
    some = np.flatnonzero(counts)
    starts = np.cumsum(counts[some]) - counts[some]
    nearest = np.add.reduceat(np.maximum.reduceat(iou, starts, axis=1), starts, axis=0)
    sums = np.zeros((len(objects), len(objects)))
    sums[np.ix_(some, some)] = nearest
    return np.where(total, (sums + sums.T) / np.maximum(total, 1), 1.0)


def _picture(index: Index, record: Record, side: int) -> dict[str, Any]:
    """Return an image as base64 JPEG of at most `side` pixels, and its size."""
    pixels = resize_long_side(_pixels(index, record).permute(1, 2, 0).numpy(), side, enlarge=None)
    for quality in (75, 55, 35):
        settings = [cv2.IMWRITE_JPEG_QUALITY, quality]
        data = cv2.imencode(".jpg", pixels[..., ::-1], settings)[1].tobytes()
        if len(data) <= MAX_BYTES * (side / SIDE) ** 2:
            break
    height, width = pixels.shape[:2]
    return {"jpeg": base64.b64encode(data).decode(), "width": width, "height": height}


def _pixels(index: Index, record: Record) -> Tensor:
    return read_image(index.root / record["file_name"], (record["height"], record["width"]))


def write_picture(path: Path, index: Index, sources: Sequence[Source]) -> None:
    """Write one JPEG of truth and methods side by side, for a README.

    Confident objects are drawn on four images that lie evenly apart in the data, so that nobody has
    chosen them.

    Args:
        path: of the JPEG: a row for each image, a column for each source.
        index: the images.
        sources: truth, methods, and others that are not drawn.
    """
    shown = [source for source in sources if source.role in ("truth", "method")]
    count = min(4, len(index.images))
    chosen = np.linspace(0, len(index.images) - 1, count).round().astype(int)
    names = [category["name"] for category in index.categories]
    pictures = []
    for i in chosen.tolist():
        image = _pixels(index, index.images[i])
        drawn = [_confident(source.objects[i]) for source in shown]
        pictures += [overlay(image, objects, names, long_side=240) for objects in drawn]
    captions = [source.name for source in shown] * len(chosen)
    with atomic_write(path) as scratch:
        scratch.write_bytes(jpeg(grid(pictures, len(shown), captions), 80))


def _confident(objects: Objects) -> GroundTruth:
    """Return the confident objects of a source, as `overlay` takes them."""
    count = objects.sure
    boxes = torch.tensor(objects.boxes[:count], dtype=torch.float32).reshape(-1, 4)
    labels = torch.tensor(objects.labels[:count], dtype=torch.int64)
    crowd = torch.zeros(len(labels), dtype=torch.bool)
    return GroundTruth(boxes, labels, list(objects.masks[:count]), crowd)
