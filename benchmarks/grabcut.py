"""What foreground-from-boxes costs and gives: processor milliseconds per box on one core, and mask IoU given the true box.

python benchmarks/grabcut.py DATA_ROOT [--instances 300] [--split val2017]

DATA_ROOT holds COCO (annotations/instances_SPLIT.json, SPLIT/*.jpg). Instances: larger than 32^2 pixels, no crowd.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from pycocotools import mask as rle

from wsis.evidence.grabcut import crops, foreground, resample


def instances(
    root: Path, split: str, count: int
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(image, box, true mask), drawn with seed 0."""
    data = json.loads((root / f"annotations/instances_{split}.json").read_text())
    images = {image["id"]: image for image in data["images"]}
    chosen = [a for a in data["annotations"] if a["area"] > 32**2 and not a["iscrowd"]]
    chosen = [a for a in chosen if (root / split / images[a["image_id"]]["file_name"]).is_file()]
    random.Random(0).shuffle(chosen)
    result = []
    for annotation in chosen[:count]:
        record, shape = images[annotation["image_id"]], annotation["segmentation"]
        coded = (
            shape
            if isinstance(shape, dict)
            else rle.merge(rle.frPyObjects(shape, record["height"], record["width"]))
        )
        x, y, w, h = annotation["bbox"]
        image = cv2.imread(str(root / split / record["file_name"]))[..., ::-1].copy()
        result.append(
            (image, np.array([x, y, x + w, y + h]), np.asarray(rle.decode(coded)).astype(bool))
        )
    return result


def filled(image: np.ndarray, box: np.ndarray) -> np.ndarray:
    mask = np.zeros(image.shape[:2], dtype=bool)
    x1, y1, x2, y2 = box.round().astype(int)
    mask[y1:y2, x1:x2] = True
    return mask


def plain(side: int) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """cv2.grabCut on an image of at most `side` pixels; the filled box where it finds nothing, which is often."""

    def cut(image: np.ndarray, box: np.ndarray) -> np.ndarray:
        height, width = image.shape[:2]
        scale = min(side / max(height, width), 1)
        small = cv2.resize(
            image, (round(width * scale), round(height * scale)), interpolation=cv2.INTER_AREA
        )
        x1, y1, x2, y2 = np.concatenate(
            [np.floor(box[:2] * scale), np.ceil(box[2:] * scale)]
        ).astype(int)
        x1, y1 = max(x1, 1), max(y1, 1)  # it fails when the rectangle leaves no background
        rectangle = (int(x1), int(y1), int(x2 - x1), int(y2 - y1))
        state = np.zeros(small.shape[:2], np.uint8)
        cv2.setRNGSeed(0)
        cv2.grabCut(
            small, state, rectangle, np.zeros((1, 65)), np.zeros((1, 65)), 5, cv2.GC_INIT_WITH_RECT
        )
        mask = np.isin(state, [cv2.GC_FGD, cv2.GC_PR_FGD]).astype(np.float32)
        return cv2.resize(mask, (width, height)) >= 0.5 if mask.sum() >= 9 else filled(image, box)

    return cut


def authors(image: np.ndarray, box: np.ndarray) -> np.ndarray:
    return foreground(image, box[None], setting="authors")[0]


def ours(image: np.ndarray, box: np.ndarray) -> np.ndarray:
    return foreground(image, box[None])[0]


def milliseconds_per_crop(
    data: list[tuple[np.ndarray, np.ndarray, np.ndarray]], boxes_per_image: int = 15
) -> float:
    """The form used in training: small masks of 15 jittered boxes, resampled at 100 others; nothing of the image's size."""
    rng, spent = np.random.default_rng(0), 0.0
    for image, box, _ in data:
        jitter = rng.normal(0, 0.1, (boxes_per_image, 4)) * (box[2:] - box[:2]).max()
        start = time.process_time()
        windows, masks = crops(image, box + jitter)
        which = torch.arange(100) % boxes_per_image
        resample(
            torch.from_numpy(windows),
            torch.from_numpy(masks),
            which,
            torch.from_numpy(windows)[which],
        )
        spent += time.process_time() - start
    return 1000 * spent / len(data) / boxes_per_image


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("root", type=Path)
    parser.add_argument("--instances", type=int, default=300)
    parser.add_argument("--split", default="val2017")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    data = instances(arguments.root, arguments.split, arguments.instances)
    ways = {
        "filled box": filled,
        "cv2.grabCut, 640 px": plain(640),
        "cv2.grabCut, 320 px": plain(320),
        "authors (400 px, 5 rounds)": authors,
        "ours (foreground)": ours,
    }
    print(f"{len(data)} instances of {arguments.split}, OpenCV {cv2.__version__}")
    print(f"{'':28s}{'ms/box':>8s}{'mean IoU':>10s}{'IoU>0.5':>9s}{'IoU>0.75':>10s}")
    for name, cut in ways.items():
        start = time.process_time()
        masks = [cut(image, box) for image, box, _ in data]
        spent = 1000 * (time.process_time() - start) / len(data)
        ious = np.array(
            [
                (m & t).sum() / max((m | t).sum(), 1)
                for m, (_, _, t) in zip(masks, data, strict=True)
            ]
        )
        print(
            f"{name:28s}{spent:8.1f}{ious.mean():10.3f}{(ious > 0.5).mean():9.3f}{(ious > 0.75).mean():10.3f}",
            flush=True,
        )
    print(f"{'ours (crops, in training)':28s}{milliseconds_per_crop(data[:100]):8.1f}")


if __name__ == "__main__":
    main()
