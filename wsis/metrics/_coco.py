"""COCO's precision by pycocotools, at the thresholds and sizes that the papers report."""

from __future__ import annotations

import contextlib
import os
from typing import Any, Literal

import numpy as np
import torch
from pycocotools import mask as rle_masks
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor

from wsis.metrics.states import Array, mean

__all__ = ["AREAS", "THRESHOLDS", "box_name", "coco_precision", "summary"]

STEPS = np.linspace(0.5, 0.95, 10)
THRESHOLDS = np.array([0.25, *STEPS])
"""PDSL reports AP25, BoxCaseg AP25 and AP70; COCO's own begin at 0.5."""
AREAS = {"all": (0, 1e10), "s": (0, 32**2), "m": (32**2, 96**2), "l": (96**2, 1e10)}
"""Square pixels, ends included."""


def coco_precision(
    records: list[dict[str, Any]], classes: int, kind: Literal["segm", "bbox"]
) -> Array:
    """Precision (T,101,C,areas,1) by pycocotools; -1 where there is no truth."""
    with (
        open(os.devnull, "w") as silence,
        contextlib.redirect_stdout(silence),
    ):  # it prints its progress
        evaluation = COCOeval(
            _coco(records, classes, "true", kind), _coco(records, classes, "predicted", kind), kind
        )
        evaluation.params.iouThrs = THRESHOLDS
        evaluation.params.areaRng = [list(span) for span in AREAS.values()]
        evaluation.params.areaRngLbl = list(AREAS)
        evaluation.params.maxDets = [100]
        evaluation.evaluate()
        evaluation.accumulate()
    precision: Array = evaluation.eval["precision"]
    return precision


def _coco(records: list[dict[str, Any]], classes: int, side: str, kind: str) -> COCO:
    coco = COCO()
    annotations: list[dict[str, Any]] = []
    for record in records:
        columns = record[side]
        by_mask = columns["masks"] and (kind == "segm" or side == "true")
        for i, (x1, y1, x2, y2) in enumerate(columns["boxes"]):
            annotation = {
                "image_id": record["image_id"],
                "category_id": columns["labels"][i],
                "bbox": [x1, y1, x2 - x1, y2 - y1],
            }
            annotation["area"] = (
                float(rle_masks.area(columns["masks"][i])) if by_mask else (x2 - x1) * (y2 - y1)
            )
            annotation["id"] = len(annotations) + 1  # pycocotools takes a match with id 0 for none
            annotation |= (
                {"score": columns["scores"][i], "iscrowd": 0}
                if side == "predicted"
                else {"iscrowd": int(columns["crowd"][i])}
            )
            annotations.append(
                annotation | ({"segmentation": columns["masks"][i]} if kind == "segm" else {})
            )
    images = [{"id": r["image_id"], "height": r["size"][0], "width": r["size"][1]} for r in records]
    coco.dataset = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": c} for c in range(classes)],
    }
    coco.createIndex()
    return coco


def summary(precision: Array) -> dict[str, Tensor]:
    """Name the means of precision (T,101,C,areas,1)."""
    steps = precision[1:]
    picks = {"AP": steps[..., 0, 0]}
    for percent in (25, 50, 70, 75):
        picks[f"AP{percent}"] = precision[
            [int(np.abs(THRESHOLDS - percent / 100).argmin())], ..., 0, 0
        ]
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
    before, slash, figure = name.rpartition("/")
    return f"{before}{slash}box_{figure}"
