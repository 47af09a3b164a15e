"""Where a training step of PDSL or JTSM spends its time, and how much memory it takes.

    python benchmarks/step.py [--model jtsm] [--proposals 2000] [--side 480] [--steps 5]

One image of 4:3 with random proposals, ResNet18-WS with the paper's heads, on the CPU; "evidence" with an empty memory and
with a full one (after the first epoch).
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch
from PIL import Image

import wsis.models.jtsm
import wsis.nn.regions
from wsis import registry
from wsis.types import Proposals, View


def sample(proposals: int, side: int, folder: Path) -> dict:
    rng = np.random.default_rng(0)
    width = side * 4 // 3
    pixels = np.kron(
        rng.integers(0, 255, (side // 40, width // 40, 3)), np.ones((40, 40, 1))
    ).astype(np.uint8)
    pixels = pixels + rng.integers(0, 12, pixels.shape).astype(np.uint8)
    path = folder / "image.png"
    Image.fromarray(pixels).save(path)
    size = pixels.shape[:2]
    corner = torch.from_numpy(rng.uniform(0, 0.8, (proposals, 2)) * [size[1], size[0]]).float()
    extent = torch.from_numpy(rng.uniform(24, side / 2, (proposals, 2))).float()
    boxes = torch.cat([corner, corner + extent], 1).clamp(max=torch.tensor([size[1], size[0]] * 2))
    rows, columns = (torch.arange(n) // 20 for n in size)  # superpixels of 20 x 20 pixels
    labels = (rows[:, None] * (size[1] // 20) + columns).int()
    y, x = (20 * torch.arange(n // 20) + 10 for n in size)
    centres = torch.stack([x.repeat(len(y)), y.repeat_interleave(len(x))], 1)
    offset = (2 * centres - (boxes[:, None, :2] + boxes[:, None, 2:])) / (
        boxes[:, None, 2:] - boxes[:, None, :2]
    ).clamp(min=1)
    members = offset.square().sum(2) <= 1  # those within an ellipse
    return {
        "image": torch.from_numpy(pixels).permute(2, 0, 1),
        "image_id": 0,
        "path": path,
        "size": size,
        "view": View((1.0, 1.0), (0.0, 0.0), size[1], False),
        "proposals": Proposals(boxes, torch.rand(proposals), labels, members),
        "target": {"tags": (torch.arange(20) < 2).float(), "stuff_tags": torch.ones(1)},
    }


def calibrate(model: pl.LightningModule, image: torch.Tensor) -> None:
    """Give BatchNorm the statistics of an image, because random weights with none make features of any size."""
    norms = [
        module for module in model.backbone.modules() if isinstance(module, torch.nn.BatchNorm2d)
    ]
    for norm in norms:
        norm.train().momentum = None
    with torch.no_grad():
        model.backbone([image])
    for norm in norms:
        norm.eval()


def timed(model: pl.LightningModule, seconds: dict[str, float]) -> None:
    """Note the time of each part as it is called."""

    def wrap(owner: object, name: str, label: str) -> None:
        inner = getattr(owner, name)

        def outer(*args: object, **kwargs: object) -> object:
            begin = time.perf_counter()
            result = inner(*args, **kwargs)
            seconds[label] += time.perf_counter() - begin
            return result

        setattr(owner, name, outer)

    wrap(model.backbone, "forward", "backbone")
    wrap(model.detector.trunk, "forward", "fully connected layers")
    if hasattr(model, "semantic"):
        wrap(model.masks[0], "forward", "instance head 1")
        wrap(model.masks[1], "forward", "instance head 2")
        if model.semantic is not None:
            wrap(model.semantic, "forward", "semantic head")
        wrap(wsis.models.jtsm, "pool_segments", "MoIPool, with cells")
        wrap(wsis.nn.regions, "segment_cells", "cells")
    else:
        wrap(model.masks, "forward", "mask heads")
        wrap(model, "detection", "detection branch, with pooling and layers")
    wrap(model.pseudo_masks if hasattr(model, "semantic") else model, "evidence", "evidence")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="pdsl", choices=("pdsl", "jtsm"))
    parser.add_argument("--proposals", type=int, default=2000)
    parser.add_argument("--side", type=int, default=480)
    parser.add_argument("--steps", type=int, default=5)
    given = parser.parse_args()
    torch.manual_seed(0)
    model = registry.find("model", given.model)(backbone={"weights": "none"}).train()
    model.log = model.log_dict = lambda *_, **__: None
    optimiser = torch.optim.SGD(
        [p for p in model.parameters() if p.requires_grad], lr=1e-4, momentum=0.9
    )
    seconds: dict[str, float] = defaultdict(float)
    with tempfile.TemporaryDirectory() as folder:
        one = sample(given.proposals, given.side, Path(folder))
        calibrate(model, one["image"])
        timed(model, seconds)
        for step in range(given.steps + 1):
            if step == 1:
                first, seconds["evidence"] = seconds["evidence"], 0.0
                seconds.clear()
                begin = time.perf_counter()
            loss = model.training_step([one], 0)
            back = time.perf_counter()
            optimiser.zero_grad()
            loss.backward()
            seconds["backward"] += time.perf_counter() - back
            back = time.perf_counter()
            optimiser.step()
            seconds["optimiser"] += time.perf_counter() - back
    whole = (time.perf_counter() - begin) / given.steps
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    scene = f"{given.model}, {given.proposals} proposals, short side {given.side}"
    print(f"{scene}: {whole:.2f} s a step, peak {peak:.1f} GiB of the process")
    for label, total in sorted(seconds.items(), key=lambda item: -item[1]):
        print(f"  {label:<44}{total / given.steps:7.3f} s  {total / given.steps / whole:5.1%}")
    print(f"  evidence with an empty memory{'':<15}{first:7.3f} s")


if __name__ == "__main__":
    main()
