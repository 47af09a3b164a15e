"""Predictions in forms that other programs read: tables, label images, polygons."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from PIL import Image
from pycocotools import mask as rle

from wsis.files import atomic_write
from wsis.metrics.results import to_annotations
from wsis.types import RLE, Index, Prediction

__all__ = ["Format", "export"]

Format = Literal["csv", "png", "polygons"]


def export(
    folder: Path,
    index: Index,
    names: Sequence[str],
    predictions: Sequence[Prediction],
    threshold: float,
    formats: Sequence[Format],
) -> list[Path]:
    """Write the detections with at least a score, and return the files and folders.

    * `csv`: objects.csv has a row per object with its image, number, class, score, area in pixels
      and box; counts.csv a row per image with the number of objects of each class.
    * `png`: masks/NAME.png has the number of the object at each pixel, 0 for none; where masks
      overlap, the higher score is on top.
    * `polygons`: polygons.json is a COCO file that CVAT, Label Studio and others import.

    Args:
        folder: to write to.
        index: the images and their classes.
        names: of the images' files, without suffix.
        predictions: of each image, best first.
        threshold: lowest score.
        formats: what to write.
    """
    shown = [prediction.above(threshold) for prediction in predictions]
    classes = [category["name"] for category in index.categories]
    files = []
    if "csv" in formats:
        pairs = zip(index.images, shown, strict=True)
        rows = [_rows(image["file_name"], prediction, classes) for image, prediction in pairs]
        files += [folder / "objects.csv", folder / "counts.csv"]
        _write_csv(files[-2], [_HEADING, *chain.from_iterable(rows)])
        _write_csv(files[-1], [["image", *classes], *_counts(index, shown)])
    if "png" in formats:
        for name, prediction in zip(names, shown, strict=True):
            with atomic_write(folder / "masks" / f"{name}.png") as scratch:
                Image.fromarray(_numbers(prediction)).save(scratch, "png")
        files.append(folder / "masks")
    if "polygons" in formats:
        files.append(folder / "polygons.json")
        with atomic_write(files[-1]) as scratch:
            scratch.write_text(json.dumps(_polygons(index, shown)))
    return files


_HEADING = ["image", "number", "class", "score", "area", "x1", "y1", "x2", "y2"]


def _rows(image: str, prediction: Prediction, classes: Sequence[str]) -> list[list[Any]]:
    """Return a row per object; the area is that of the mask, or of the box without one."""
    rows = []
    for k, box in enumerate(prediction.boxes.tolist()):
        x1, y1, x2, y2 = box
        area = rle.area(prediction.masks[k]) if prediction.masks else (x2 - x1) * (y2 - y1)
        name, score = classes[int(prediction.labels[k])], float(prediction.scores[k])
        corners = [f"{value:.1f}" for value in box]
        rows.append([image, k + 1, name, f"{score:.4f}", int(area), *corners])
    return rows


def _counts(index: Index, shown: Sequence[Prediction]) -> list[list[Any]]:
    rows = []
    for image, prediction in zip(index.images, shown, strict=True):
        found = Counter(prediction.labels.tolist())
        rows.append([image["file_name"], *(found[c] for c in range(len(index.categories)))])
    return rows


def _write_csv(path: Path, rows: Sequence[Sequence[Any]]) -> None:
    with atomic_write(path) as scratch, open(scratch, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


def _numbers(prediction: Prediction) -> np.ndarray[Any, np.dtype[np.uint16]]:
    """Return the number of the object at each pixel (H,W), 0 for none."""
    numbers = np.zeros(prediction.size, np.uint16)
    for number in range(len(prediction.masks), 0, -1):
        numbers[rle.decode(prediction.masks[number - 1]).astype(bool)] = number
    return numbers


def _polygons(index: Index, shown: Sequence[Prediction]) -> dict[str, Any]:
    """Return a COCO file; an object whose mask is too thin for a polygon has its box alone."""
    annotations: list[dict[str, Any]] = []
    for image, prediction in zip(index.images, shown, strict=True):
        for found in to_annotations(prediction, index.categories, "prediction"):
            place = {"id": len(annotations) + 1, "image_id": image["id"]}
            outlines = _outlines(found["segmentation"]) if prediction.masks else []
            kept = {key: found[key] for key in ("category_id", "bbox", "area", "iscrowd", "score")}
            annotations.append({**place, **kept, "segmentation": outlines})
    categories = [{"id": c["id"], "name": c["name"]} for c in index.categories]
    return {"images": index.images, "annotations": annotations, "categories": categories}


def _outlines(mask: RLE) -> list[list[float]]:
    """Return the outer polygons of a mask, along the edges of its pixels; holes are filled."""
    # twice as large, so that the contour of pixel centres lies within half a pixel of the edge
    pixels = np.kron(rle.decode(mask), np.ones((2, 2), np.uint8))
    found, _ = cv2.findContours(pixels, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    return [((line[:, 0] + 0.5) / 2).flatten().tolist() for line in found if len(line) >= 3]
