"""What refining boxes by the centre-context gap costs, against one box at a time, and what it does to boxes of known objects.

python benchmarks/box_refinement.py [--boxes 1000] [--plain 6] [--objects 100]

Time: 200 steps on 512 x 512 maps, shared by an image's boxes or one for each. The plain way is a loop over boxes by autograd,
each on its map cropped to twice the box, by torch's Adam; a few boxes are timed and scaled up. Quality: mean IoU with the
tight box of one object in a 256 x 256 map, from boxes with jittered edges (normal, 0.15 of the side).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import box_iou

from wsis.evidence.boxes import refine_boxes, refinement

SHAPES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {  # of x and y in [-1, 1]
    "rectangle": lambda x, y: (torch.maximum(x.abs(), y.abs()) < 1).float(),
    "ellipse": lambda x, y: (x**2 + y**2 < 1).float(),
    "1 - r^4": lambda x, y: (1 - (x**2 + y**2) ** 2).clamp(min=0),
    "1 - r^2": lambda x, y: (1 - x**2 - y**2).clamp(min=0),
    "cross": lambda x, y: (
        (torch.maximum(x.abs(), y.abs()) < 1) & (torch.minimum(x.abs(), y.abs()) < 0.3)
    ).float(),
}
MAPS: dict[str, Callable[[Tensor], Tensor]] = {
    "as it is": lambda s: s,
    "odds^4": lambda s: torch.sigmoid(4 * s.logit(1e-4)),
    "> 0.5": lambda s: (s > 0.5).float(),
    "> 0.25": lambda s: (s > 0.25).float(),
}


def objects(count: int, shape: str, noise: float, size: int = 256) -> tuple[Tensor, Tensor]:
    """Tight boxes (N,4) and maps (N,size,size), one object each; noise is the ground's mean score and its smooth change."""
    draw = torch.Generator().manual_seed(0)
    sides = 40 + 110 * torch.rand(count, 2, generator=draw)
    low = torch.rand(count, 2, generator=draw) * (size - sides)
    tight = torch.cat([low, low + sides], 1).round()
    pixels = torch.arange(size) + 0.5
    x, y = (
        (2 * pixels - tight[:, i, None] - tight[:, i + 2, None])
        / (tight[:, i + 2] - tight[:, i])[:, None]
        for i in (0, 1)
    )
    maps = SHAPES[shape](x[:, None, :], y[:, :, None])
    change = F.interpolate(
        torch.randn(count, 1, 16, 16, generator=draw), size=size, mode="bilinear"
    )[:, 0]
    return tight, (noise + (1 - noise) * maps + noise * change).clamp(0, 1)


def jittered(tight: Tensor, size: int = 256) -> Tensor:
    sides = (tight[:, 2:] - tight[:, :2]).repeat(1, 2)
    boxes = (
        tight + 0.15 * sides * torch.randn(tight.shape, generator=torch.Generator().manual_seed(1))
    ).clamp(0, size)
    return torch.cat([boxes[:, :2], torch.maximum(boxes[:, 2:], boxes[:, :2] + 8)], 1)


def plain(box: Tensor, scores: Tensor, steps: int) -> Tensor:
    """One box by the share of each pixel that it covers."""
    sides = box[2:] - box[:2]
    left, top = (box[:2] - sides / 2).floor().clamp(min=0).long().tolist()
    right, bottom = (box[2:] + sides / 2).ceil().long().tolist()
    crop = scores[top:bottom, left:right]
    x, y = torch.arange(crop.shape[1]) + left, torch.arange(crop.shape[0]) + top
    edges = (box / sides.repeat(2)).requires_grad_()
    adam = torch.optim.Adam([edges], lr=0.02)

    def total_and_area(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        across, down = (
            (torch.minimum(high[i], p + 1) - torch.maximum(low[i], p)).clamp(min=0)
            for i, p in ((0, x), (1, y))
        )
        return down @ crop @ across, down.sum() * across.sum()

    for _ in range(steps):
        low, high = edges[:2] * sides, edges[2:] * sides
        grow = (high - low) / 4
        (inside, area), (whole, wide) = (
            total_and_area(low, high),
            total_and_area(low - grow, high + grow),
        )
        loss = (whole - inside) / (wide - area).clamp(min=1e-2) - inside / area.clamp(min=1e-2)
        adam.zero_grad()
        loss.backward()
        adam.step()
    return (edges * sides.repeat(2)).detach()


def seconds(work: Callable[[], object]) -> float:
    """Of the processor: others may be at work on the machine."""
    start = time.process_time()
    work()
    return time.process_time() - start


def speed(count: int, timed: int, steps: int = 200, size: int = 512) -> None:
    draw = torch.Generator().manual_seed(0)
    sides = 40 + 160 * torch.rand(count, 2, generator=draw)
    low = torch.rand(count, 2, generator=draw) * (size - sides)
    boxes = torch.cat([low, low + sides], 1)
    coarse = torch.rand(count, 1, 32, 32, generator=draw)
    maps = F.interpolate(coarse, size=size, mode="bilinear")[:, 0]
    shared = max(count // 20, 1)
    images = torch.arange(count) * shared // count
    refine_boxes(boxes[:2], maps[:2], 2)
    half = timed // 2
    before = seconds(lambda: [plain(boxes[i], maps[images[i]], steps) for i in range(half)])
    ours = seconds(lambda: refine_boxes(boxes, maps[:shared], steps, index=images))
    separate = seconds(lambda: refine_boxes(boxes, maps, steps))
    after = seconds(lambda: [plain(boxes[i], maps[images[i]], steps) for i in range(half, timed)])
    loop = (before + after) / timed * count
    print(f"{count} boxes, {steps} steps, {size} x {size} maps, processor seconds on one core")
    print(f"  one box at a time    {loop:8.1f} s ({timed} boxes timed)")
    print(f"  refine_boxes, {shared:4d} maps {ours:7.2f} s, {loop / ours:6.0f} times as fast")
    print(
        f"  refine_boxes, {count:4d} maps {separate:7.2f} s, {loop / separate:6.0f} times as fast"
    )


def quality(count: int, every: int = 40, steps: int = 200) -> None:
    marks = range(0, steps + 1, every)
    for noise in (0.0, 0.2):
        print(f"\nnoise {noise}: mean IoU of {count} boxes with the tight box after steps")
        print(f"{'shape':10s} {'form':8s} {'map':9s}" + "".join(f"{m:7d}" for m in marks))
        for shape in SHAPES:
            tight, maps = objects(count, shape, noise)
            for form, (name, sharpen) in [
                (f, m) for f in ("ring", "printed") for m in MAPS.items()
            ]:
                passed = list(refinement(jittered(tight), sharpen(maps), steps, form=form))
                ious = [box_iou(passed[m], tight).diag().mean().item() for m in marks]
                print(
                    f"{shape:10s} {form:8s} {name:9s}" + "".join(f"{iou:7.3f}" for iou in ious),
                    flush=True,
                )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--boxes", type=int, default=1000)
    parser.add_argument("--plain", type=int, default=6, help="boxes that the plain way is timed on")
    parser.add_argument("--objects", type=int, default=100)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    speed(arguments.boxes, arguments.plain)
    quality(arguments.objects)


if __name__ == "__main__":
    main()
