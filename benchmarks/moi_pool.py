"""MoIPool against torchvision's pooling on the same boxes, and what regions cost as cells of a feature map.

    python benchmarks/moi_pool.py [--device cuda] [--rounds 9]

Ratios are of medians of alternating rounds in one run; regions are ellipses in random boxes, which all poolings are given.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torchvision.ops import roi_align, roi_pool

from wsis.ops import backend, moi_pool, segment_cells
from wsis.ops.moi_pool import moi_pool_reference, windows_of

STRIDE = 8


def regions(
    count: int, height: int, width: int, device: str, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Boxes (K,5) of a tenth to all of the map's sides, in pixels, and their ellipses as cells (K,H,W)."""
    generator = torch.Generator().manual_seed(seed)
    limit = torch.tensor([width, height]) * STRIDE
    sides = limit * (0.1 + 0.9 * torch.rand(count, 2, generator=generator) ** 2)
    corner = (limit - sides) * torch.rand(count, 2, generator=generator)
    boxes = torch.cat([torch.zeros(count, 1), corner, corner + sides], 1)
    x, y = (torch.arange(n) + 0.5 for n in (width, height))
    centre, half = (corner + sides / 2) / STRIDE, sides / 2 / STRIDE + 0.5
    dx, dy = (x - centre[:, :1]) / half[:, :1], (y - centre[:, 1:]) / half[:, 1:]
    return boxes.to(device), (dx[:, None].square() + dy[:, :, None].square() <= 1).to(device)


def compare(calls: dict[str, Callable[[], object]], rounds: int, device: str) -> dict[str, float]:
    """Median seconds of each call, all in turn in every round."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for round_ in range(rounds + 1):
        for name, call in calls.items():
            _wait(device)
            start = time.perf_counter()
            call()
            _wait(device)
            if round_:  # the first one warms up
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def pooling(
    device: str,
    rounds: int,
    dtype: torch.dtype,
    count: int = 1000,
    channels: int = 512,
    side: int = 40,
) -> None:
    """Print seconds and ratios of the forward pass alone and with the backward pass."""
    features = torch.randn(1, channels, side, side, device=device, dtype=dtype)
    boxes, cells = regions(count, side, side, device)
    same = boxes.to(dtype)
    forms: dict[str, Callable[[Tensor], Tensor]] = {
        "moi_pool": lambda f: moi_pool(f, boxes, cells, 7, 1 / STRIDE),
        "roi_pool": lambda f: roi_pool(f, same, 7, 1 / STRIDE),
        "roi_align": lambda f: roi_align(f, same, 7, 1 / STRIDE, sampling_ratio=2, aligned=True),
        "reference": lambda f: moi_pool_reference(f, windows_of(boxes, 1 / STRIDE), cells, 7, 1),
    }
    learning = features.clone().requires_grad_()
    grad = torch.randn(count, channels, 7, 7, device=device, dtype=dtype)

    def both(form: Callable[[Tensor], Tensor]) -> object:
        return torch.autograd.grad(form(learning), learning, grad)

    print(
        f"\n{count} regions, {channels} channels, {side} x {side} map, {dtype}, backend {backend()}"
    )
    print(f"{'':<20}{'forward':>12}{'ratio':>8}{'+ backward':>14}{'ratio':>8}")
    forward = compare(
        {name: lambda form=form: form(features) for name, form in forms.items()}, rounds, device
    )
    with_backward = {
        name: lambda form=form: both(form) for name, form in forms.items() if name != "reference"
    }
    backward = compare(with_backward, rounds, device)
    for name in forms:
        line = (
            f"{name:<20}{1e3 * forward[name]:>9.2f} ms{forward[name] / forward['moi_pool']:>8.2f}"
        )
        print(
            line
            + (
                f"{1e3 * backward[name]:>11.2f} ms{backward[name] / backward['moi_pool']:>8.2f}"
                if name in backward
                else ""
            )
        )
    moved = features.element_size() * count * channels * 49 + cells.numel()
    print(
        f"bytes that must move in the forward pass: {moved / 1e6:.0f} MB, {moved / forward['moi_pool'] / 1e9:.1f} GB/s"
    )


def masks(
    device: str,
    rounds: int,
    count: int = 4000,
    height: int = 152,
    width: int = 203,
    superpixels: int = 600,
) -> None:
    """Print time and memory of making the cells of many regions of a large image."""
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(superpixels, 2, generator=generator) * torch.tensor(
        [height * STRIDE, width * STRIDE]
    )
    y, x = (torch.arange(n * STRIDE).float() for n in (height, width))
    labels = torch.empty(height * STRIDE, width * STRIDE, dtype=torch.int32)
    for row in range(len(y)):  # Voronoi cells
        labels[row] = (
            (points[:, 0] - y[row]).square()[:, None] + (points[:, 1:] - x).square()
        ).argmin(0)
    centres = torch.rand(count, 2, generator=generator) * torch.tensor(
        [height * STRIDE, width * STRIDE]
    )
    radius = torch.rand(count, 1, generator=generator).square() * 600
    members = ((points - centres[:, None]).square().sum(2).sqrt() <= radius).to(device)
    labels = labels.to(device)
    seconds = compare(
        {"cells": lambda: segment_cells(labels, members, (height, width))}, rounds, device
    )["cells"]
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        segment_cells(labels, members, (height, width))
        peak = torch.cuda.max_memory_allocated() - before
    else:
        peak = _peak(lambda: segment_cells(labels, members, (height, width)))
    covered = segment_cells(labels, members, (height, width)).float().mean()
    print(
        f"\n{count} regions on {height} x {width} cells, {superpixels} superpixels, {100 * covered:.0f} % of cells covered:"
    )
    print(
        f"segment_cells {seconds:.2f} s, peak {peak / 1e6:.0f} MB of which the result is {count * height * width / 1e6:.0f} MB"
    )


def _peak(call: Callable[[], object]) -> int:
    """Bytes that `call` adds to what torch holds at once, by its own allocator's records."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        call()
    held = highest = 0
    for event in sorted(
        profile.profiler.kineto_results.events(), key=lambda event: event.start_ns()
    ):
        if event.name() == "[memory]":
            held += event.nbytes()
            highest = max(highest, held)
    return highest


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    for dtype in (
        (torch.float32, torch.float16, torch.bfloat16)
        if asked.device == "cuda"
        else (torch.float32,)
    ):
        pooling(asked.device, asked.rounds, dtype)
    masks(asked.device, asked.rounds)
    print(
        f"\npeak memory of the process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.1f} GB"
    )


if __name__ == "__main__":
    main()
