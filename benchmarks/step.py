"""Where a training step of PDSL or JTSM spends its time, and how much memory it takes.

    python benchmarks/step.py [--model jtsm] [--proposals 2000] [--side 480] [--batch 1] [--steps 5]
    python benchmarks/step.py --device cuda --proposals 4000 --side 800 --batch 4 --bf16

Images of 4:3 with random proposals, ResNet18-WS with the paper's heads. Steps are timed first, parts in further steps, on
a GPU with the end of each part waited for. There, it also says how often a step waits for the device.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch
from lightning_fabric.utilities import move_data_to_device
from PIL import Image

import wsis.models.jtsm
import wsis.nn.regions
from wsis import registry
from wsis.types import Proposals, View


def sample(proposals: int, side: int, folder: Path, number: int) -> dict:
    rng = np.random.default_rng(number)
    width = side * 4 // 3
    pixels = np.kron(
        rng.integers(0, 255, (side // 40, width // 40, 3)), np.ones((40, 40, 1))
    ).astype(np.uint8)
    pixels = pixels + rng.integers(0, 12, pixels.shape).astype(np.uint8)
    path = folder / f"{number}.png"
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
        "image_id": number,
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


def timed(model: pl.LightningModule, seconds: dict[str, float], clock: Callable[[], float]) -> None:
    """Note the time of each part as it is called."""

    def wrap(owner: object, name: str, label: str) -> None:
        inner = getattr(owner, name)

        def outer(*args: object, **kwargs: object) -> object:
            begin = clock()
            result = inner(*args, **kwargs)
            seconds[label] += clock() - begin
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
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--bf16", action="store_true", help="bfloat16 where autocast takes it")
    given = parser.parse_args()
    torch.manual_seed(0)
    model = registry.find("model", given.model)(backbone={"weights": "none"})
    model = model.to(given.device).train()
    model.log = model.log_dict = lambda *_, **__: None
    trained = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.SGD(trained, lr=1e-4, momentum=0.9)
    seconds: dict[str, float] = defaultdict(float)

    def clock() -> float:
        if given.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def step(batch: list[dict], clock: Callable[[], float] = time.perf_counter) -> None:
        with torch.autocast(given.device, torch.bfloat16, enabled=given.bf16):
            loss = model.training_step(batch, 0)
        begin = clock()
        optimiser.zero_grad()
        loss.backward()
        middle = clock()
        optimiser.step()
        seconds["backward"] += middle - begin
        seconds["optimiser"] += clock() - middle

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        batch = [sample(given.proposals, given.side, folder, n) for n in range(given.batch)]
        batch = move_data_to_device(batch, torch.device(given.device))
        calibrate(model, batch[0]["image"])
        step(batch)
        begin = clock()
        for _ in range(given.steps):
            step(batch)
        whole = (clock() - begin) / given.steps
        waits = synchronisations(lambda: step(batch)) if given.device == "cuda" else None
        timed(model, seconds, clock)
        seconds.clear()
        for _ in range(given.steps):
            step(batch, clock)
    scene = (
        f"{given.model}, batch {given.batch}, {given.proposals} proposals, short side {given.side}"
    )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{scene}: {1e3 * whole / given.batch:.0f} ms an image, {peak:.1f} GiB of the process")
    if waits is not None:
        memory = torch.cuda.max_memory_allocated() / 2**30
        print(f"{torch.cuda.get_device_name()}: {memory:.1f} GiB, {waits} waits for it in a step")
    for label, total in sorted(seconds.items(), key=lambda item: -item[1]):
        print(f"  {label:<44}{1e3 * total / given.steps:8.1f} ms a step")


def synchronisations(call: Callable[[], None]) -> int:
    """Return how often a call waits for the GPU, as PyTorch's debug mode sees it."""
    torch.cuda.set_sync_debug_mode("warn")
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        call()
    torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in seen)


if __name__ == "__main__":
    main()
