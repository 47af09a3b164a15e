"""COCO's precision at the thresholds and sizes that the papers report.

It is computed by pycocotools, or by faster-coco-eval if that is installed: 13 seconds in place of
32 for masks and boxes of 38,000 detections on 5,000 images (`benchmarks/evaluation.py`).
"""

from __future__ import annotations

import contextlib
import math
import os
from collections import Counter
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from pycocotools import mask as rle_masks
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor

try:
    import faster_coco_eval as faster
except ImportError:
    faster = None

from wsis.metrics.states import Array, mean
from wsis.metrics.threshold import best_threshold

__all__ = ["AREAS", "THRESHOLDS", "box_name", "coco_precision", "summary"]

STEPS = np.linspace(0.5, 0.95, 10)
THRESHOLDS = np.array([0.25, *STEPS])
"""COCO's IoU thresholds, and 0.25, as PDSL and BoxCaseg report AP25."""
AREAS = {"all": (0, 1e10), "s": (0, 32**2), "m": (32**2, 96**2), "l": (96**2, 1e10)}
"""Smallest and largest area in square pixels, both included."""
MOST = 100
"""Detections that count, of a class in an image."""
Annotations = list[dict[str, Any]]
Dataset = dict[str, Annotations]


def coco_precision(
    records: list[dict[str, Any]], classes: int, kind: Literal["segm", "bbox"]
) -> tuple[Array, float]:
    """Compare detections with the ground truth as COCO does.

    Returns:
        precision (T,101,C,areas,1), -1 for classes without ground truth, and the score threshold of
        the best F1 at an IoU of 0.5 over all classes together, infinite if nothing is correct.
    """
    truths = _coco(records, classes, "true", kind)
    predictions = _coco(records, classes, "predicted", kind)
    # both libraries print their progress
    with open(os.devnull, "w") as silence, contextlib.redirect_stdout(silence):
        return (_with_pycocotools if faster is None else _with_faster)(truths, predictions, kind)


def _with_pycocotools(truths: Dataset, predictions: Dataset, kind: str) -> tuple[Array, float]:
    evaluation = COCOeval(_indexed(COCO, truths), _indexed(COCO, predictions), kind)
    _run(evaluation, THRESHOLDS, AREAS)
    half, everything = int(np.argmin(np.abs(THRESHOLDS - 0.5))), list(AREAS["all"])
    matched = [e for e in evaluation.evalImgs if e is not None and e["aRng"] == everything]
    precision: Array = evaluation.eval["precision"]
    if not matched:
        return precision, float("inf")
    counted = [~e["dtIgnore"][half].astype(bool) for e in matched]
    pairs = list(zip(matched, counted, strict=True))
    scores = np.concatenate([np.asarray(e["dtScores"])[c] for e, c in pairs])
    correct = np.concatenate([e["dtMatches"][half][c] > 0 for e, c in pairs])
    total = sum(int((e["gtIgnore"] == 0).sum()) for e in matched)
    return precision, best_threshold(scores, correct, total)


def _with_faster(truths: Dataset, predictions: Dataset, kind: str) -> tuple[Array, float]:
    pair = _indexed(faster.COCO, truths), _indexed(faster.COCO, predictions)
    evaluation = faster.COCOeval_faster(*pair, kind)
    _run(evaluation, THRESHOLDS, AREAS)
    precision = np.asarray(evaluation.eval["precision"])
    overlaps = evaluation.ious
    evaluation.computeIoU = lambda *pair: overlaps[pair]
    _run(evaluation, THRESHOLDS[1:2], {"all": AREAS["all"]})  # `matched` is of the last run
    matches = dict(key.split("_") for key in evaluation.eval["matched"])
    crowds = {str(a["id"]) for a in truths["annotations"] if a["iscrowd"]}
    found = _first_per_class(predictions["annotations"])
    counted = [a for a in found if matches.get(str(a["id"])) not in crowds]
    scores = np.array([a["score"] for a in counted])
    correct = np.array([str(a["id"]) in matches for a in counted], bool)
    return precision, best_threshold(scores, correct, len(truths["annotations"]) - len(crowds))


def _run(evaluation: Any, thresholds: Array, areas: Mapping[str, tuple[float, float]]) -> None:
    evaluation.params.iouThrs = thresholds
    evaluation.params.areaRng = [list(span) for span in areas.values()]
    evaluation.params.areaRngLbl = list(areas)
    evaluation.params.maxDets = [MOST]
    evaluation.evaluate()
    evaluation.accumulate()


def _first_per_class(annotations: Annotations) -> Annotations:
    """Return the detections that COCO looks at, the first `MOST` of each class of an image."""
    seen: Counter[tuple[int, int]] = Counter()
    kept = []
    for annotation in sorted(annotations, key=lambda a: -a["score"]):
        place = annotation["image_id"], annotation["category_id"]
        seen[place] += 1
        if seen[place] <= MOST:
            kept.append(annotation)
    return kept


def _indexed(library: type, dataset: Dataset) -> Any:
    """Return a data set as a library has it."""
    coco = library()
    coco.dataset = dataset
    coco.createIndex()
    return coco


def _coco(records: list[dict[str, Any]], classes: int, side: str, kind: str) -> Dataset:
    """Return the ground truth ("true") or the detections ("predicted") as in a COCO file."""
    annotations: Annotations = []
    for record in records:
        columns = record[side]
        by_mask = columns["masks"] and (kind == "segm" or side == "true")
        for i, (x1, y1, x2, y2) in enumerate(columns["boxes"]):
            mask = columns["masks"][i] if by_mask or kind == "segm" else None
            area = columns["areas"][i] if side == "true" else math.nan
            if math.isnan(area):
                area = float(rle_masks.area(mask)) if by_mask else (x2 - x1) * (y2 - y1)
            annotation = {
                "id": len(annotations) + 1,  # pycocotools takes a match with id 0 for none
                "image_id": record["image_id"],
                "category_id": columns["labels"][i],
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": area,
            }
            if side == "predicted":
                annotation |= {"score": columns["scores"][i], "iscrowd": 0}
            else:
                annotation["iscrowd"] = int(columns["crowd"][i])
            if kind == "segm":
                annotation["segmentation"] = mask
            annotations.append(annotation)
    images = [{"id": r["image_id"], "height": r["size"][0], "width": r["size"][1]} for r in records]
    categories = [{"id": c, "name": str(c)} for c in range(classes)]
    return {"images": images, "annotations": annotations, "categories": categories}


def summary(precision: Array) -> dict[str, Tensor]:
    """Return named means of precision (T,101,C,areas,1): scalars, and (C,) per class."""
    steps = precision[1:]
    picks = {"AP": steps[..., 0, 0]}
    for percent in (25, 50, 70, 75):
        threshold = int(np.abs(THRESHOLDS - percent / 100).argmin())
        picks[f"AP{percent}"] = precision[[threshold], ..., 0, 0]
    sizes = {f"AP{size}": steps[..., i, 0] for i, size in enumerate(AREAS) if size != "all"}
    figures = {name: mean(_known(values)) for name, values in {**picks, **sizes}.items()}
    by_class = {
        f"per_class/{name}": torch.from_numpy(_known(values).mean((0, 1)))
        for name, values in picks.items()
    }
    return figures | by_class


def _known(precision: Array) -> Array:
    return np.where(precision < 0, np.nan, precision)


def box_name(name: str) -> str:
    """Return the name of a metric of boxes: "per_class/AP" -> "per_class/box_AP"."""
    before, slash, figure = name.rpartition("/")
    return f"{before}{slash}box_{figure}"
