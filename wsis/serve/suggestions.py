"""What a run found in the images, as suggestions beside the label of each."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, TypedDict, cast

import cv2
import numpy as np
from pycocotools import mask as rle

from wsis.coco.masks import run_length
from wsis.errors import InputError
from wsis.files import read_json
from wsis.images.outlines import outlines
from wsis.inference import score_threshold, trained
from wsis.metrics.results import read_results
from wsis.serve.labels import Label, LabelledObject
from wsis.types import RLE, Prediction

__all__ = [
    "Found",
    "Suggestion",
    "deepest",
    "inside_of",
    "iou",
    "predictions_folder",
    "read_found",
    "rings_of",
]
__all__ += ["suggestions"]

LEAST = 0.25
"""Share of the threshold from which on detections are kept, which tell how sure a model is."""
MOST = 30
"""Detections kept of an image."""
SAME = 0.5
"""Least IoU of a suggestion and an object of its class that are the same."""


class Suggestion(TypedDict):
    """An object that a model found."""

    name: str
    score: float
    bbox: list[float]
    segmentation: RLE | None


class Found(NamedTuple):
    """What a run found in the images of a folder."""

    run: Path
    threshold: float
    """Score from which on detections are suggested."""
    objects: dict[str, list[Suggestion]]
    """By file name, best first."""


def predictions_folder(run: Path) -> Path:
    """Return where the predictions of a run for the images to label are."""
    return run / "serve"


def read_found(run: Path, root: Path) -> Found | None:
    """Return what `wsis.predict` wrote into the folder of a run; None if it has not yet.

    Args:
        run: folder of a finished run.
        root: folder of the images, which was predicted under its absolute path.

    Raises:
        InputError: not a finished run, or damaged files.
    """
    stage = list(trained(run))[-1]
    place = predictions_folder(run)
    if not (place / "images.json").is_file():
        return None
    index = read_json(place / "images.json")
    try:
        images, categories = index["images"], index["categories"]
        names = [category["name"] for category in categories]
        files = [os.path.relpath(image["file_name"], os.path.abspath(root)) for image in images]
    except (KeyError, TypeError) as error:
        raise InputError(f"{place / 'images.json'} is damaged; delete {place}") from error
    threshold = score_threshold(run / stage)
    predictions = read_results(place / "predictions.json", images, categories)
    pairs = zip(files, predictions, strict=True)
    return Found(run, threshold, {file: _objects(p, names, threshold) for file, p in pairs})


def _objects(prediction: Prediction, names: Sequence[str], threshold: float) -> list[Suggestion]:
    kept = prediction.above(LEAST * threshold)
    boxes, scores, labels = kept.boxes.tolist(), kept.scores.tolist(), kept.labels.tolist()
    found: list[Suggestion] = []
    for k, (x1, y1, x2, y2) in enumerate(boxes[:MOST]):
        mask = _as_text(kept.masks[k]) if kept.masks else None
        box = [round(value, 1) for value in (x1, y1, x2 - x1, y2 - y1)]
        found.append(
            {
                "name": names[labels[k]],
                "score": round(scores[k], 3),
                "bbox": box,
                "segmentation": mask,
            }
        )
    return found


def _as_text(mask: RLE) -> RLE:
    counts = mask["counts"]
    return {**mask, "counts": counts.decode() if isinstance(counts, bytes) else counts}


def suggestions(found: Found | None, file: str, label: Label) -> list[Suggestion]:
    """Return what is suggested for an image: what is neither labelled nor refused yet.

    Args:
        found: of a run, if there is one.
        file: name of the image.
        label: of the image.
    """
    if found is None:
        return []
    sure = [s for s in found.objects.get(file, ()) if s["score"] >= found.threshold]
    return [suggestion for suggestion in sure if not _is_settled(suggestion, label)]


def _is_settled(suggestion: Suggestion, label: Label) -> bool:
    """Return whether a suggestion was refused, or is an object of the label."""
    name = suggestion["name"]
    refused = [refusal["point"] for refusal in label["refused"] if refusal["name"] == name]
    own = [thing for thing in label["objects"] if thing["name"] == name]
    clicked = [
        point[:2]
        for thing in own
        if not thing.keys() & {"bbox", "segmentation"}
        for point in thing["points"]
        if point[2]
    ]
    return _holds(suggestion, [*refused, *clicked]) or any(
        iou(suggestion, thing) >= SAME for thing in own
    )


def _holds(suggestion: Suggestion, points: Sequence[Sequence[float]]) -> bool:
    """Return whether one of the points (x, y) lies in a suggestion's mask, or in its box."""
    if not points:
        return False
    mask, (x, y, width, height) = suggestion["segmentation"], suggestion["bbox"]
    if mask is None:
        return any(x <= px < x + width and y <= py < y + height for px, py in points)
    pixels = rle.decode(mask)
    return any(pixels[int(py), int(px)] for px, py in points)


def iou(one: Suggestion | LabelledObject, other: Suggestion | LabelledObject) -> float:
    """Return the IoU of two objects: of their masks if both have one, else of their boxes; else 0.

    Masks that are polygons count as boxes.
    """
    masks: list[Any] = [thing.get("segmentation") for thing in (one, other)]
    if all(isinstance(mask, dict) for mask in masks):
        packed = [run_length(mask, tuple(mask["size"])) for mask in masks]
        if packed[0]["size"] == packed[1]["size"]:
            return float(rle.iou([packed[0]], [packed[1]], [0])[0, 0])
    boxes = [thing.get("bbox") for thing in (one, other)]
    if not all(boxes):
        return 0.0
    return float(rle.iou(*(np.array([box], np.float64) for box in boxes), [0])[0, 0])


def rings_of(mask: object, size: tuple[int, int]) -> list[list[float]]:
    """Return the outlines x, y, x, y ... of a mask, which fill it by the even-odd rule.

    Args:
        mask: run lengths or polygons, or None.
        size: (height, width) of the image.
    """
    if isinstance(mask, dict):
        counts = run_length(mask, size)["counts"]
        return _rings(counts if isinstance(counts, bytes) else counts.encode(), *size)
    return cast("list[list[float]]", mask or [])


def inside_of(suggestion: Suggestion) -> list[float]:
    """Return the point [x, y] of a suggestion that is farthest from its edge."""
    mask, (x, y, width, height) = suggestion["segmentation"], suggestion["bbox"]
    if mask is None:
        return [x + width / 2, y + height / 2]
    return deepest(mask, tuple(mask["size"]))


def deepest(mask: Any, size: tuple[int, int]) -> list[float]:
    """Return the point [x, y] that is farthest from the edge of a mask.

    Args:
        mask: a COCO segmentation.
        size: (height, width) of its image.
    """
    counts: str | bytes = run_length(mask, size)["counts"]
    return list(_deepest(counts.encode() if isinstance(counts, str) else counts, *size))


@lru_cache(maxsize=256)
def _rings(counts: bytes, height: int, width: int) -> list[list[float]]:
    pixels = rle.decode({"size": [height, width], "counts": counts}).astype(bool)
    parts = outlines(pixels)
    return [ring.flatten().tolist() for part in parts for ring in (part.outer, *part.holes)]


@lru_cache(maxsize=256)
def _deepest(counts: bytes, height: int, width: int) -> tuple[float, float]:
    pixels = rle.decode({"size": [height, width], "counts": counts})
    depth = cv2.distanceTransform(np.pad(pixels, 1), cv2.DIST_L2, 3)[1:-1, 1:-1]
    y, x = divmod(int(depth.argmax()), width)
    return x + 0.5, y + 0.5
