"""MoIPool against torchvision's pooling on the same boxes, and what regions cost as cells of a feature map.

    python benchmarks/moi_pool.py [--device cuda] [--rounds 9] [--sizes 1000x512x40x40x1 ...]

Sizes are regions, channels, rows and columns of the map, images. Regions are ellipses in random boxes, which all poolings
are given. Ratios are to `roi_pool` in the same run. On a GPU, the time of the device is that between two events around
calls that were queued while it was busy; that of the clock has each call wait for its end, median of alternating rounds.
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
from wsis.ops.moi_pool import moi_pool_reference

STRIDE = 8
SIZES = ("1000x512x40x40x1", "2000x1024x64x64x2", "4000x512x152x203x1")
Calls = dict[str, Callable[[], object]]


def regions(
    count: int, height: int, width: int, images: int, device: str, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Boxes (K,5) of a tenth to all of the map's sides, in pixels, and their ellipses as cells (K,H,W)."""
    generator = torch.Generator().manual_seed(seed)
    limit = torch.tensor([width, height]) * STRIDE
    sides = limit * (0.1 + 0.9 * torch.rand(count, 2, generator=generator) ** 2)
    corner = (limit - sides) * torch.rand(count, 2, generator=generator)
    image = torch.randint(images, (count, 1), generator=generator)
    boxes = torch.cat([image, corner, corner + sides], 1).to(device)
    corner, sides = corner.to(device), sides.to(device)
    x, y = (torch.arange(n, device=device) + 0.5 for n in (width, height))
    centre, half = (corner + sides / 2) / STRIDE, sides / 2 / STRIDE + 0.5
    dx, dy = (x - centre[:, :1]) / half[:, :1], (y - centre[:, 1:]) / half[:, 1:]
    return boxes, dx[:, None].square() + dy[:, :, None].square() <= 1


def clock(calls: Calls, rounds: int, device: str) -> dict[str, float]:
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


def events(calls: Calls, rounds: int) -> dict[str, float]:
    """Seconds of the GPU for each call: means of `rounds` calls, the least of three."""
    least = dict.fromkeys(calls, float("inf"))
    for _ in range(3):
        for name, call in calls.items():
            call()
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda._sleep(12_000_000)  # all calls are in the queue before the first one runs
            start.record()
            for _ in range(rounds):
                call()
            end.record()
            torch.cuda.synchronize()
            least[name] = min(least[name], start.elapsed_time(end) / rounds / 1e3)
    return least


def pooling(device: str, rounds: int, dtype: torch.dtype, size: str) -> None:
    """Print milliseconds and ratios of the forward pass alone and with the backward pass."""
    count, channels, height, width, images = (int(part) for part in size.split("x"))
    features = torch.randn(images, channels, height, width, device=device, dtype=dtype)
    last = features.contiguous(memory_format=torch.channels_last)
    boxes, cells = regions(count, height, width, images, device)
    same = boxes.to(dtype)
    forms: dict[str, Callable[[Tensor], Tensor]] = {
        "moi_pool": lambda f: moi_pool(f, boxes, cells, 7, 1 / STRIDE),
        "moi_pool, channels last": lambda f: moi_pool(f, boxes, cells, 7, 1 / STRIDE),
    }
    if dtype != torch.bfloat16:  # torchvision has no kernels for it
        forms["roi_pool"] = lambda f: roi_pool(f, same, 7, 1 / STRIDE)
        forms["roi_align"] = lambda f: roi_align(
            f, same, 7, 1 / STRIDE, sampling_ratio=2, aligned=True
        )
    if device == "cpu":
        forms["reference"] = lambda f: moi_pool_reference(
            f, boxes, cells, 7, 7, 1 / STRIDE, 1, False
        )[0]
    grad = torch.randn(count, channels, 7, 7, device=device, dtype=dtype)

    def both(form: Callable[[Tensor], Tensor], leaf: Tensor) -> object:
        return torch.autograd.grad(form(leaf), leaf, grad)

    forward, backward = {}, {}
    for name, form in forms.items():
        given = last if name.endswith("last") else features
        forward[name] = lambda form=form, given=given: form(given)
        if name != "reference":
            leaf = given.detach().clone().requires_grad_()
            backward[name] = lambda form=form, leaf=leaf: both(form, leaf)
    times = [clock(calls, rounds, device) for calls in (forward, backward)]
    if device == "cuda":
        times += [events(calls, rounds) for calls in (forward, backward)]
    print(f"\n{size}, {dtype}, backend {backend()}")
    heads = ["clock", "clock +b", "device", "device +b"][: len(times)]
    print(f"{'':<24}" + "".join(f"{head + ' ms':>14}{'ratio':>8}" for head in heads))
    for name in forms:
        print(f"{name:<24}" + "".join(_cell(seconds, name) for seconds in times))
    moved = features.element_size() * count * channels * 49 + cells.numel()
    print(
        f"bytes that must move in the forward pass: {moved / 1e6:.0f} MB, "
        f"{moved / times[-2]['moi_pool'] / 1e9:.1f} GB/s"
    )


def _cell(seconds: dict[str, float], name: str) -> str:
    """Milliseconds, and how many times as long `roi_pool` takes."""
    if name not in seconds:
        return " " * 22
    ratio = f"{seconds['roi_pool'] / seconds[name]:.2f}" if "roi_pool" in seconds else ""
    return f"{1e3 * seconds[name]:>14.3f}{ratio:>8}"


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
    seconds = clock(
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
    parser.add_argument("--sizes", nargs="+", help="all three on a GPU, the first one on the CPU")
    asked = parser.parse_args()
    cuda = asked.device == "cuda"
    for size in asked.sizes or (SIZES if cuda else SIZES[:1]):
        for dtype in (torch.float32, torch.float16, torch.bfloat16) if cuda else (torch.float32,):
            pooling(asked.device, asked.rounds, dtype, size)
    if asked.sizes:
        return
    masks(asked.device, asked.rounds)
    print(
        f"\npeak memory of the process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.1f} GB"
    )


if __name__ == "__main__":
    main()
