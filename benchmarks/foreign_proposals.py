"""Time of `wsis.propose --from` on a made-up COCO instances file of 640 x 480 images, as CutLER's.

python benchmarks/foreign_proposals.py [--images 1000] [--masks 5] [--polygons]

Seconds are of one core; files are deleted afterwards.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from pycocotools import mask as rle

from wsis.proposals.convert import convert
from wsis.types import Index

HEIGHT, WIDTH = 480, 640


def write(path: Path, images: int, masks: int, polygons: bool) -> Index:
    """Write a file of blobs and return its images."""
    rng, annotations = np.random.default_rng(0), []
    listed: list[dict[str, Any]] = [
        {"id": k, "file_name": f"{k:012d}.jpg", "height": HEIGHT, "width": WIDTH}
        for k in range(1, images + 1)
    ]
    for k in range(images * masks):
        corners = outline(rng)
        segmentation: Any = [corners.ravel().tolist()] if polygons else run_length(corners)
        annotation = {"id": k + 1, "image_id": k // masks + 1, "category_id": 1}
        annotations.append({**annotation, "segmentation": segmentation, "bbox": [0, 0, 1, 1]})
    categories = [{"id": 1, "name": "fg"}]
    content = {"images": listed, "annotations": annotations, "categories": categories}
    path.write_text(json.dumps(content))
    return Index(name="blobs", root=path.parent, images=listed, categories=categories)


def outline(rng: np.random.Generator) -> np.ndarray:
    """Return a rough blob (60,2)."""
    angle = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    radius = rng.uniform(15, 150) * rng.uniform(0.8, 1, 60)
    centre = rng.uniform([0, 0], [WIDTH, HEIGHT])
    points = centre + np.stack([np.cos(angle), np.sin(angle)], 1) * radius[:, None]
    return points.clip(0, [WIDTH, HEIGHT]).round(1)


def run_length(corners: np.ndarray) -> dict[str, Any]:
    mask = cv2.fillPoly(np.zeros((HEIGHT, WIDTH), np.uint8), [corners.astype(np.int32)], 1)
    coded = rle.encode(np.asfortranarray(mask))
    return {**coded, "counts": coded["counts"].decode()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--masks", type=int, default=5)
    parser.add_argument("--polygons", action="store_true")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "segments.json"
        index = write(path, asked.images, asked.masks, asked.polygons)
        size = path.stat().st_size / 1e6
        before, start = time.process_time(), time.perf_counter()
        convert(path, index, Path(folder) / "out.sqlite")
        used, passed = time.process_time() - before, time.perf_counter() - start
    print(f"{asked.images} images, {asked.masks} masks each, {size:.1f} MB of json:")
    print(f"{used:.1f} s of a core, {passed:.1f} s passed")


if __name__ == "__main__":
    main()
