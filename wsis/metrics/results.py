"""COCO results json, the format in which predictions are stored, read and compared."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pycocotools import mask as rle_masks

from wsis.coco.masks import FAR, checked_run_lengths
from wsis.coco.records import Detections, read_records
from wsis.errors import InputError
from wsis.files import atomic_write
from wsis.metrics.states import packed
from wsis.types import RLE, Prediction

__all__ = ["read_results", "to_annotations", "to_results", "write_results"]

Record = dict[str, Any]
_HIGHEST = float(np.finfo(np.float32).max)


def to_results(prediction: Prediction, category_ids: Sequence[int]) -> list[Record]:
    """Return the detections of an image as COCO results, with boxes xywh.

    Args:
        prediction: of an image.
        category_ids: the data set's id of each class.
    """
    scores, labels = prediction.scores.tolist(), prediction.labels.tolist()
    results = []
    for i, (x1, y1, x2, y2) in enumerate(prediction.boxes.tolist()):
        result = {
            "image_id": prediction.image_id,
            "category_id": category_ids[labels[i]],
            # hundredths of a pixel halve the file
            "bbox": [round(value, 2) for value in (x1, y1, x2 - x1, y2 - y1)],
            "score": scores[i],
        }
        if prediction.masks:
            result["segmentation"] = packed(prediction.masks[i])
        results.append(result)
    return results


def to_annotations(
    prediction: Prediction, categories: Sequence[Record], source: str, score_threshold: float = 0.0
) -> list[Record]:
    """Return the detections of an image as COCO annotations: pseudo-labels with score and source.

    Args:
        prediction: of an image.
        categories: the data set's classes, in order.
        source: description of the model that made the labels.
        score_threshold: labels below it are marked `ignore`, which excludes their masks from the
            loss, and so are labels with an empty mask.
    """
    x1, y1, x2, y2 = prediction.boxes.double().unbind(1)
    boxes = torch.stack([x1, y1, x2 - x1, y2 - y1], 1).tolist()
    scores, labels = prediction.scores.tolist(), prediction.labels.tolist()
    annotations: list[Record] = []
    for i, box in enumerate(boxes):
        annotation = {
            "category_id": categories[labels[i]]["id"],
            "bbox": box,
            "area": box[2] * box[3],
            "score": scores[i],
            "source": source,
            "ignore": int(scores[i] < score_threshold),
            "iscrowd": 0,
        }
        if prediction.masks:
            mask = prediction.masks[i]
            annotation |= {"segmentation": mask, "area": int(rle_masks.area(mask))}
            annotation["ignore"] = int(annotation["ignore"] or not annotation["area"])
        annotations.append(annotation)
    return annotations


def write_results(path: Path, results: Iterable[Record]) -> None:
    """Write a COCO results file atomically.

    Raises:
        InputError: the folder cannot be written or the disk is full.
    """
    with atomic_write(path) as scratch:
        scratch.write_text(json.dumps(list(results), separators=(",", ":")))


def read_results(
    path: Path, images: Sequence[Record], categories: Sequence[Record]
) -> list[Prediction]:
    """Read a COCO results file: one `Prediction`, best first, for each of `images`, maybe empty.

    Args:
        path: the results json.
        images: `id`, `height`, `width` of the data set's images.
        categories: `id` of the data set's classes, in order.

    Raises:
        InputError: no such file, not a results json, a result with a fault, or results of other
            images, classes or image sizes.
    """
    by_image: defaultdict[int, list[Record]] = defaultdict(list)
    label = {category["id"]: c for c, category in enumerate(categories)}
    sizes = {image["id"]: (image["height"], image["width"]) for image in images}
    for number, result in enumerate(read_records(path, Detections), 1):
        by_image[_check(result, number, sizes, label, path)].append(result)
    return [_prediction(image, size, by_image[image], label) for image, size in sizes.items()]


def _check(
    result: Record,
    number: int,
    sizes: dict[int, tuple[int, int]],
    label: dict[int, int],
    path: Path,
) -> int:
    """Return the image id of a result; raise InputError if the result is malformed."""
    place = f"{path}, result {number}"
    image, mask, box = (result.get(key) for key in ("image_id", "segmentation", "bbox"))
    if image not in sizes:
        raise InputError(
            f"{place} is of image {image}, not in this data set ({len(sizes)} images); check "
            "--data and --split"
        )
    if result["category_id"] not in label:
        raise InputError(
            f"{place} has category {result['category_id']}, not in this data set ({len(label)} "
            "classes); check --data"
        )
    if not abs(result["score"]) <= _HIGHEST:
        raise InputError(f"{place} has the score {result['score']}; give one in single precision")
    if (box or mask is None) and not _is_box(box):
        raise InputError(
            f"{place}: bbox must be [x, y, width, height] of at most {FAR}; it may be left out "
            "where there is a segmentation"
        )
    if mask is not None:
        result["segmentation"] = checked_run_lengths(mask, sizes[image], place)
    return int(image)


def _is_box(value: list[float] | None) -> bool:
    return value is not None and len(value) == 4 and all(abs(side) <= FAR for side in value)


def _prediction(
    image: int, size: tuple[int, int], results: list[Record], label: dict[int, int]
) -> Prediction:
    results = sorted(results, key=lambda result: -result["score"])
    masked = all(result.get("segmentation") for result in results)
    masks: list[RLE] = [packed(result["segmentation"]) for result in results] if masked else []
    boxes = [
        result.get("bbox") or rle_masks.toBbox(packed(result["segmentation"])) for result in results
    ]
    xywh = np.asarray(boxes, np.float32).reshape(-1, 4)
    return Prediction(
        image_id=image,
        size=size,
        boxes=torch.from_numpy(np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], 1)),
        scores=torch.tensor([result["score"] for result in results], dtype=torch.float32),
        labels=torch.tensor([label[result["category_id"]] for result in results], dtype=torch.long),
        masks=masks,
    )
