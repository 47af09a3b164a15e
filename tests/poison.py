"""Noise in a COCO folder where a method may not look, field by field."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as rle

__all__ = ["poison"]


def poison(folder: Path, fields: Iterable[str]) -> None:
    """Put noise into all that `fields` ("stuff_tags", "points", "boxes", "masks") are read from, for the training images.

    What an object is not known by stays unknown. Stuff classes have category ids above 100, as in `shapes`.
    """
    rng, fields = np.random.default_rng(5), set(fields)

    def spoil(annotation: dict[str, Any]) -> None:
        noise = rle.encode(np.asfortranarray(rng.random((256, 256)) < 0.5, np.uint8))
        lies: dict[str, tuple[str, Any]] = {
            "points": ("points", [[*rng.integers(0, 256, 2), 1], [*rng.integers(0, 256, 2), 0]]),
            "boxes": ("bbox", [*rng.integers(1, 99, 4)]),
            "masks": ("segmentation", {"size": [256, 256], "counts": noise["counts"].decode()}),
        }
        annotation["area"] = int(rng.integers(1, 999))
        for field in lies.keys() & fields:
            key, lie = lies[field]
            if key in annotation:
                annotation[key] = lie

    def spoil_stuff(annotation: dict[str, Any]) -> None:
        for segment in annotation["segments_info"]:
            if segment["category_id"] > 100:
                segment["category_id"] = int(rng.integers(101, 104))

    _change(folder / "annotations/instances_train2017.json", spoil)
    if "stuff_tags" in fields:
        _change(folder / "annotations/panoptic_train2017.json", spoil_stuff)


def _change(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads(path.read_text())
    for annotation in content["annotations"]:
        change(annotation)
    path.write_text(json.dumps(content, default=int))
