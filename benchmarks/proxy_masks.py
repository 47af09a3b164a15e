"""Proxy masks in batches against one crop at a time, in one run; and what merging and agreement cost.

python benchmarks/proxy_masks.py COCO_DIR [--backbone mobilenetv2_100] [--side 320] [--images 20] [--device cpu]

The single way is the batched one with a batch of one crop, as the released code has it.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from wsis.datasets.coco import COCO
from wsis.models.boxcaseg import BoxCaseg, merge_masks, proxy_box_agreement

SIZE = (480, 640)


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("data", type=Path)
    arguments.add_argument("--backbone", default="mobilenetv2_100")
    arguments.add_argument("--side", type=int, default=320)
    arguments.add_argument("--width", type=int, default=128)
    arguments.add_argument("--images", type=int, default=20)
    arguments.add_argument("--device", default="cpu")
    asked = arguments.parse_args()
    batches(asked)
    merging()


def batches(asked: argparse.Namespace) -> None:
    """Masks per second of both ways, over the same images, the ways in turn."""
    backbone = {"name": asked.backbone, "weights": "none"}
    model = BoxCaseg(80, backbone, width=asked.width, proxy_crop=asked.side)
    model.eval().to(asked.device)
    samples = COCO(asked.data, proposals="none").samples(
        "val", train=False, supervision={"tags", "boxes"}
    )
    seconds, masks = {"batches": 0.0, "one at a time": 0.0}, 0
    with torch.inference_mode():
        for i in range(asked.images + 1):
            sample: Any = samples.sample(i)
            image, boxes, labels = (
                t.to(asked.device)
                for t in (sample["image"], *(sample["target"][n] for n in ("boxes", "labels")))
            )
            sample["image"] = image
            whole = {
                "batches": [slice(None)],
                "one at a time": [slice(k, k + 1) for k in range(len(boxes))],
            }
            for name, parts in whole.items():
                start = time.perf_counter()
                for part in parts:
                    model.predict(
                        {**sample, "target": {"boxes": boxes[part], "labels": labels[part]}}
                    )
                if i:  # the first image warms up
                    seconds[name] += time.perf_counter() - start
            masks += len(boxes) if i else 0
    for name, total in seconds.items():
        print(f"{name:14} {masks / total:8.1f} masks/s")
    print(
        f"ratio {seconds['one at a time'] / seconds['batches']:.2f}, {masks} masks of {asked.side} px on {asked.device}"
    )


def merging(count: int = 100, repeats: int = 15) -> None:
    """Milliseconds of merging `count` ellipses in an image, and of their agreement with their boxes."""
    generator = torch.Generator().manual_seed(0)
    centre = torch.rand(count, 2, generator=generator) * torch.tensor([SIZE[1], SIZE[0]])
    half = 5 + 75 * torch.rand(count, 2, generator=generator)
    boxes = torch.cat([centre - half, centre + half], 1)
    y, x = torch.meshgrid(torch.arange(SIZE[0]) + 0.5, torch.arange(SIZE[1]) + 0.5, indexing="ij")
    across, down = (
        (grid - centre[:, i, None, None]) / half[:, i, None, None] for i, grid in ((0, x), (1, y))
    )
    masks = across.square() + down.square() <= 1
    for name, work in (
        ("merge", lambda: merge_masks(masks, boxes)),
        ("agreement", lambda: proxy_box_agreement(masks, boxes)),
    ):
        print(
            f"{name} of {count} masks, {SIZE[1]} x {SIZE[0]}: {1e3 * _median(work, repeats):.1f} ms"
        )


def _median(work: Callable[[], object], repeats: int) -> float:
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return sorted(seconds)[repeats // 2]


if __name__ == "__main__":
    main()
