"""What pasting costs: images per second on one core, beside the same on whole canvases.

python benchmarks/paste.py [DATA_ROOT] [--size 512] [--objects 4] [--images 60]

DATA_ROOT holds COCO (annotations/instances_SPLIT.json, SPLIT/*.jpg): its instances are pasted on its images, stretched to
SIZE x SIZE, beside a pool of them on disk. Without it, discs of 100 to 300 pixels are pasted on noise.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional

from wsis.data.index import read_coco
from wsis.data.samples import Samples
from wsis.nn.masks import tight_boxes
from wsis.pasting.compose import compose
from wsis.pasting.pool import Foreground, ForegroundPool, draw_foregrounds, write_pool

Pair = tuple[Tensor, Tensor]


def from_coco(
    root: Path, split: str, size: int, count: int
) -> tuple[list[Tensor], list[Foreground]]:
    """Backgrounds, and instances whose boxes measure at least 700 square pixels."""
    index = read_coco(
        root / f"annotations/instances_{split}.json", root / split, check_images=False
    )
    index = index._replace(
        images=[i for i in index.images if (root / split / i["file_name"]).is_file()][:count]
    )
    samples = Samples(index, "masks", None)
    backgrounds, foregrounds = [], []
    for position in range(len(samples)):
        sample = samples.sample(position)
        backgrounds.append(functional.resize(sample["image"], [size, size], antialias=True))
        for label, mask in zip(sample["target"]["labels"], sample["target"]["masks"], strict=True):
            x1, y1, x2, y2 = tight_boxes(mask[None])[0].tolist()
            if (x2 - x1) * (y2 - y1) >= 700:
                foregrounds.append(
                    Foreground(sample["image"], mask, int(label), sample["path"].name)
                )
    return backgrounds, foregrounds


def generated(size: int, count: int) -> tuple[list[Tensor], list[Foreground]]:
    rng = np.random.default_rng(0)
    backgrounds = [
        torch.from_numpy(rng.integers(0, 256, (3, size, size), np.uint8)) for _ in range(count)
    ]
    foregrounds = []
    for number in range(count):
        side = int(rng.integers(100, 301))
        mask = cv2.circle(np.zeros((side, side), np.uint8), (side // 2,) * 2, side // 2, 1, -1) > 0
        image = torch.from_numpy(rng.integers(0, 256, (3, side, side), np.uint8))
        foregrounds.append(Foreground(image, torch.from_numpy(mask), 0, str(number)))
    return backgrounds, foregrounds


def whole_canvas(
    background: Tensor, images: list[Tensor], masks: list[Tensor], where: str, seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The same with numpy and OpenCV in the plainest way: every object is warped, blurred and blended at the image's size."""
    rng = np.random.default_rng(seed)
    canvas = background.permute(1, 2, 0).numpy().astype(np.float32)
    height, width = canvas.shape[:2]
    found: list[np.ndarray] = []
    for image, mask in zip(images, masks, strict=True):
        centre, radius = cv2.minEnclosingCircle(
            np.argwhere(mask.numpy())[:, ::-1].astype(np.float32)
        )
        angle, scale = rng.uniform(-30, 30), rng.uniform(0.3, 1.0)
        place = rng.uniform(0, (width, height))
        if where == "space":
            free = np.pad(
                ~np.any([*found, np.zeros((height, width), bool)], 0)[1:-1, 1:-1], 1
            ).astype(np.uint8)
            _, room, _, place = cv2.minMaxLoc(
                cv2.distanceTransform(free, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
            )
            scale = room / radius
        matrix = cv2.getRotationMatrix2D(centre, angle, scale)
        matrix[:, 2] += np.subtract(place, centre)
        warped = cv2.warpAffine(
            image.permute(1, 2, 0).numpy().astype(np.float32), matrix, (width, height)
        )
        covered = cv2.warpAffine(mask.numpy().astype(np.float32), matrix, (width, height)) > 0.5
        weight = cv2.GaussianBlur(covered.astype(np.float32), (5, 5), 2)[..., None]
        canvas = weight * warped + (1 - weight) * canvas
        found = [*(other & ~covered for other in found), covered]
    visible = torch.from_numpy(np.stack(found))
    return (
        torch.from_numpy(canvas.round().astype(np.uint8)).permute(2, 0, 1).contiguous(),
        visible,
        tight_boxes(visible),
    )


def rate(paste: Callable[[int], object], count: int) -> float:
    """Images per second of processor time, the median of three rounds."""
    paste(0)
    rates = []
    for _ in range(3):
        start = time.process_time()
        for number in range(count):
            paste(number)
        rates.append(count / (time.process_time() - start))
    return sorted(rates)[1]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("root", type=Path, nargs="?")
    parser.add_argument("--split", default="val2017")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--objects", type=int, default=4)
    parser.add_argument("--images", type=int, default=60)
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    count = arguments.images
    if arguments.root:
        backgrounds, foregrounds = from_coco(arguments.root, arguments.split, arguments.size, count)
    else:
        backgrounds, foregrounds = generated(arguments.size, count)
    with tempfile.TemporaryDirectory() as folder:
        write_pool(
            Path(folder),
            [str(k) for k in range(1 + max(f.label for f in foregrounds))],
            foregrounds,
            {},
        )
        pool, uncached = (
            ForegroundPool(folder, cached=len(foregrounds)),
            ForegroundPool(folder, cached=0),
        )
        area = np.mean([pool.draw(k)[1].numel() for k in range(len(pool))])
        print(
            f"{len(foregrounds)} objects, boxes of {area**0.5:.0f}^2 pixels, on {arguments.size}^2; OpenCV {cv2.__version__}"
        )
        draws = [
            draw_foregrounds(pool.labels, arguments.objects, np.random.default_rng(k))
            for k in range(count)
        ]

        def drawn(number: int, source: ForegroundPool) -> tuple[list[Tensor], list[Tensor]]:
            images, masks = zip(*(source.draw(k) for k in draws[number]), strict=True)
            return list(images), list(masks)

        print(f"{'images per second':28s}{'random':>10s}{'space':>10s}")
        for name, paste in {
            "compose, objects in memory": lambda k, where: compose(
                backgrounds[k], *drawn(k, pool), where, seed=k
            ),
            "compose, pngs read": lambda k, where: compose(
                backgrounds[k], *drawn(k, uncached), where, seed=k
            ),
            "whole canvases, in memory": lambda k, where: whole_canvas(
                backgrounds[k], *drawn(k, pool), where, k
            ),
        }.items():
            rates = [
                rate(lambda k, paste=paste, where=where: paste(k, where), count)
                for where in ("random", "space")
            ]
            print(f"{name:28s}{rates[0]:10.1f}{rates[1]:10.1f}", flush=True)


if __name__ == "__main__":
    main()
