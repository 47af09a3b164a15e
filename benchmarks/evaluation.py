"""COCO-size results judged: pycocotools beside faster-coco-eval, in CPU seconds of one run.

python benchmarks/evaluation.py [--images 5000]

Seven objects of 80 classes on each image of 480 x 640, found four times in five, and two false alarms.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
from pycocotools import mask as rle

from wsis.metrics import _coco
from wsis.metrics.instances import detection_metrics
from wsis.types import GroundTruth, Prediction

SIZE, CLASSES, OBJECTS = (480, 640), 80, 7
ANGLES = np.linspace(0, 2 * np.pi, 24, endpoint=False)


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--images", type=int, default=5000)
    rng = np.random.default_rng(0)
    pairs = [scene(i, rng) for i in range(arguments.parse_args().images)]
    print(f"{len(pairs)} images, {sum(len(found.scores) for found, _ in pairs)} detections")
    fast = judged(pairs)
    if _coco.faster is None:
        return
    _coco.faster = None
    slow = judged(pairs)
    worst = max((fast[k] - slow[k]).abs().nan_to_num().max().item() for k in slow)
    print(f"largest difference of a figure: {worst:.1e}")


def judged(pairs: list[tuple[Prediction, GroundTruth]]) -> dict[str, torch.Tensor]:
    print("with", "pycocotools" if _coco.faster is None else "faster-coco-eval")
    figures = {}
    for metric in detection_metrics(CLASSES):
        start = time.process_time()
        for found, truth in pairs:
            metric.update([found], [truth])
        middle = time.process_time()
        figures |= metric.compute()
        seconds = middle - start, time.process_time() - middle
        print("  {}: update {:.1f} s, compute {:.1f} s".format(type(metric).__name__, *seconds))
    return figures


def scene(image: int, rng: np.random.Generator) -> tuple[Prediction, GroundTruth]:
    boxes, labels = random_boxes(OBJECTS, rng), rng.integers(0, CLASSES, OBJECTS)
    hit = rng.random(OBJECTS) < 0.8
    near = boxes[hit] + rng.normal(0, 4, (hit.sum(), 4))
    near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 2)
    found = np.concatenate([near, random_boxes(2, rng)])
    classes = np.concatenate([labels[hit], rng.integers(0, CLASSES, 2)])
    scores = torch.from_numpy(rng.random(len(found))).float()
    shapes = torch.from_numpy(found).float(), scores, torch.from_numpy(classes), masks(found, rng)
    true = torch.from_numpy(boxes).float(), torch.from_numpy(labels), masks(boxes, rng)
    crowd = torch.zeros(OBJECTS, dtype=torch.bool)
    return Prediction(image, SIZE, *shapes), GroundTruth(*true, crowd)


def random_boxes(count: int, rng: np.random.Generator) -> np.ndarray:
    corner = rng.uniform(0, 400, (count, 2))
    return np.concatenate([corner, np.minimum(corner + rng.uniform(20, 240, (count, 2)), 480)], 1)


def masks(boxes: np.ndarray, rng: np.random.Generator) -> list[dict]:
    """Return an uneven disc in each box."""
    found = []
    for x1, y1, x2, y2 in boxes:
        radii = rng.uniform(0.7, 1, (2, len(ANGLES)))
        x = (x1 + x2) / 2 + (x2 - x1) / 2 * np.cos(ANGLES) * radii[0]
        y = (y1 + y2) / 2 + (y2 - y1) / 2 * np.sin(ANGLES) * radii[1]
        outline = np.stack([x, y], 1).ravel().tolist()
        found.append(rle.frPyObjects([outline], *SIZE)[0])
    return found


if __name__ == "__main__":
    main()
