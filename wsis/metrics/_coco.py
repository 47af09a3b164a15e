"""COCO's precision, computed by pycocotools at the thresholds and sizes that the papers report."""

from __future__ import annotations

import contextlib
import math
import os
from typing import Any, Literal

import numpy as np
import torch
from pycocotools import mask as rle_masks
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor

from wsis.metrics.states import Array, mean
from wsis.metrics.threshold import best_threshold

__all__ = ["AREAS", "THRESHOLDS", "box_name", "coco_precision", "summary"]

STEPS = np.linspace(0.5, 0.95, 10)
THRESHOLDS = np.array([0.25, *STEPS])
"""COCO's IoU thresholds, and 0.25, as PDSL and BoxCaseg report AP25."""
AREAS = {"all": (0, 1e10), "s": (0, 32**2), "m": (32**2, 96**2), "l": (96**2, 1e10)}
"""Smallest and largest area in square pixels, both included."""


def coco_precision(
    records: list[dict[str, Any]], classes: int, kind: Literal["segm", "bbox"]
) -> tuple[Array, float]:
    """Evaluate with pycocotools.

    Returns:
        precision (T,101,C,areas,1), -1 for classes without ground truth, and the score threshold of
        the best F1 at an IoU of 0.5 over all classes together, infinite if nothing is correct.
    """
    # pycocotools prints its progress
    with open(os.devnull, "w") as silence, contextlib.redirect_stdout(silence):
        truths = _coco(records, classes, "true", kind)
        predictions = _coco(records, classes, "predicted", kind)
        evaluation = COCOeval(truths, predictions, kind)
        evaluation.params.iouThrs = THRESHOLDS
        evaluation.params.areaRng = [list(span) for span in AREAS.values()]
        evaluation.params.areaRngLbl = list(AREAS)
        evaluation.params.maxDets = [100]
        evaluation.evaluate()
        evaluation.accumulate()
    precision: Array = evaluation.eval["precision"]
    return precision, _threshold(evaluation)


def _threshold(evaluation: COCOeval) -> float:
    """Return the score threshold of the best F1 at an IoU of 0.5."""
    half, everything = int(np.argmin(np.abs(THRESHOLDS - 0.5))), list(AREAS["all"])
    matched = [e for e in evaluation.evalImgs if e is not None and e["aRng"] == everything]
    if not matched:
        return float("inf")
    counted = [~e["dtIgnore"][half].astype(bool) for e in matched]
    pairs = list(zip(matched, counted, strict=True))
    scores = np.concatenate([np.asarray(e["dtScores"])[c] for e, c in pairs])
    correct = np.concatenate([e["dtMatches"][half][c] > 0 for e, c in pairs])
    return best_threshold(scores, correct, sum(int((e["gtIgnore"] == 0).sum()) for e in matched))


def _coco(records: list[dict[str, Any]], classes: int, side: str, kind: str) -> COCO:
    """Return the ground truth ("true") or the detections ("predicted") as pycocotools has them."""
    coco = COCO()
    annotations: list[dict[str, Any]] = []
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
    coco.dataset = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": c} for c in range(classes)],
    }
    coco.createIndex()
    return coco


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
