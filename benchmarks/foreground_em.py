"""What F-EM costs for one class: segment distances and EM rounds, against the same image by image and segment by segment.

python benchmarks/foreground_em.py [--images 1000] [--segments 200] [--features 512] [--slow-images 20] [--distance cosine]

Invented images of 299 x 299 pixels (the authors' size), 300 superpixels, and features of which one of each image's segments
comes from the class. The plain way to segment distances is timed on the first `--slow-images` and scaled to all; everything
else is timed whole. Feature extraction, which both ways share, is left out. One core. Last, how many images are right after two
rounds where a share of the first choices is wrong, for classes that stand out less.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from wsis.evidence.em import (
    Distance,
    foreground_em,
    nearest_segments,
    segment_statistics,
    shrunk_covariance,
)
from wsis.runs.cost import peak_memory

SIDE, SUPERPIXELS = 299, 300
RECOVERED = 500
"""Images of a class in the last table."""
DISTANCES: tuple[Distance, ...] = ("cosine", "mahalanobis")
STRENGTHS = (0.1, 0.2)


def images(count: int, segments: int) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """(labels, members, point): Voronoi cells and the cells in random discs; ten label maps serve all."""
    g = torch.Generator().manual_seed(0)
    y, x = torch.meshgrid(torch.arange(SIDE) + 0.5, torch.arange(SIDE) + 0.5, indexing="ij")
    seeds = torch.rand(10, SUPERPIXELS, 2, generator=g) * SIDE
    maps = [
        torch.cdist(torch.stack([x, y], -1).view(-1, 2), s).argmin(1).view(SIDE, SIDE).int()
        for s in seeds
    ]
    result = []
    for i in range(count):
        centres, radii = (
            torch.rand(segments, 2, generator=g) * SIDE,
            20 + 100 * torch.rand(segments, 1, generator=g),
        )
        members = torch.cdist(centres, seeds[i % 10]) < radii
        result.append((maps[i % 10], members, torch.rand(1, 2, generator=g) * SIDE))
    return result


def planted(
    count: int, segments: int, dimensions: int, wrong: float = 0.4, strength: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Features (count,segments,dimensions), the segment of the class, and a first choice, a share of which is wrong.

    Features are normal noise; those of the class have a common vector of `strength` times the noise in each dimension, too.
    """
    g = torch.Generator().manual_seed(1)
    features = torch.randn(count, segments, dimensions, generator=g)
    truth = torch.randint(segments, (count,), generator=g)
    features[torch.arange(count), truth] += strength * torch.randn(dimensions, generator=g)
    lucky = torch.rand(count, generator=g) >= wrong
    return (
        features,
        truth,
        torch.where(lucky, truth, torch.randint(segments, (count,), generator=g)),
    )


def plain_nearest(labels: np.ndarray, members: np.ndarray, point: np.ndarray) -> list[int]:
    distances = []
    for row in members:
        y, x = np.nonzero(row[labels])
        distances.append(
            np.hypot(x + 0.5 - point[0], y + 0.5 - point[1]).mean() if len(x) else math.inf
        )
    return np.argsort(distances, kind="stable")[:3].tolist()


def plain_em(features: np.ndarray, start: list[int], distance: str) -> list[int]:
    def fit(chosen: list[np.ndarray]) -> Callable[[np.ndarray], float]:
        if distance == "cosine":
            mean = np.mean([h / np.linalg.norm(h) for h in chosen], 0)
            length = np.linalg.norm(mean)
            return lambda h: 1 - h @ mean / (np.linalg.norm(h) * length)
        mean = np.mean(chosen, 0)
        inverse = np.linalg.inv(
            shrunk_covariance(torch.from_numpy(np.stack(chosen))).numpy()
        ).astype(np.float32)
        return lambda h: (h - mean) @ inverse @ (h - mean)

    chosen = list(start)
    for _ in range(2):
        rows = [features[i, c] for i, c in enumerate(chosen)]
        rows = sorted(rows, key=fit(rows))[: math.ceil(len(rows) / 2)]
        measure = fit(rows)
        chosen = [
            min(range(len(of_image)), key=lambda j, h=of_image: measure(h[j]))
            for of_image in features
        ]
    return chosen


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--segments", type=int, default=200)
    parser.add_argument("--features", type=int, default=512)
    parser.add_argument("--slow-images", type=int, default=20)
    parser.add_argument("--distance", choices=["cosine", "mahalanobis"], default="cosine")
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    data = images(arguments.images, arguments.segments)
    every = torch.ones(arguments.segments, dtype=torch.bool)
    fast_places, fast_nearest = timed(
        lambda: [nearest_segments(segment_statistics(*image).distances, every)[0] for image in data]
    )
    some = [
        (labels.numpy(), members.numpy(), point[0].numpy())
        for labels, members, point in data[: arguments.slow_images]
    ]
    slow_places, slow_nearest = timed(lambda: [plain_nearest(*image) for image in some])
    slow_places *= len(data) / max(len(some), 1)
    same_nearest = np.mean(
        [a.tolist() == b for a, b in zip(fast_nearest, slow_nearest, strict=False)]
    )

    features, truth, start = planted(arguments.images, arguments.segments, arguments.features)
    before = peak_memory()
    fast_em, chosen = timed(
        lambda: foreground_em(list(features), start, distance=arguments.distance)
    )
    memory = peak_memory() - before
    slow_em, expected = timed(
        lambda: plain_em(features.numpy(), start.tolist(), arguments.distance)
    )
    same = (chosen == torch.tensor(expected)).float().mean()

    print(
        f"{arguments.images} images x {arguments.segments} segments, {arguments.features} features, {arguments.distance}"
    )
    print(
        f"right: first choice {(start == truth).float().mean():.1%}, after two rounds {(chosen == truth).float().mean():.1%}"
    )
    print(
        f"same answers: nearest segments {same_nearest:.1%} of {len(some)} images, foregrounds {same:.1%}"
    )
    print(f"{'processor seconds':24s}{'plain':>9s}{'ours':>9s}{'ratio':>9s}")
    stages = {"segment distances": (slow_places, fast_places), "EM rounds": (slow_em, fast_em)}
    stages["both"] = (slow_places + slow_em, fast_places + fast_em)
    for name, (slow, fast) in stages.items():
        print(f"{name:24s}{slow:9.2f}{fast:9.2f}{slow / fast:9.1f}")
    print(
        f"EM rounds need {memory / 2**30:.1f} GiB beside features of {features.nbytes / 2**30:.1f} GiB"
    )
    print(
        f"right after two rounds{'':10s}"
        + "".join(f"{f'{d}, {s:g}':>18s}" for s in STRENGTHS for d in DISTANCES)
    )
    for wrong in (0, 0.2, 0.4, 0.6):
        right = []
        for strength in STRENGTHS:
            features, truth, start = planted(
                RECOVERED, arguments.segments, arguments.features, wrong, strength
            )
            right += [
                (foreground_em(list(features), start, distance=d) == truth).float().mean()
                for d in DISTANCES
            ]
        print(
            f"{f'first choices wrong {wrong:.0%}':32s}"
            + "".join(f"{share:18.1%}" for share in right)
        )


if __name__ == "__main__":
    main()
