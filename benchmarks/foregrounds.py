"""EM-Paste's foregrounds: how well the chosen segments fit a true object.

    python benchmarks/foregrounds.py COCO_DIR MOBILENETV2_WEIGHTS [--seeds 1] [--out runs/foregrounds]
    python benchmarks/foregrounds.py --runs runs/pasting/runs/objects_4/*

On the 20 VOC classes of a small COCO folder, or of runs of EM-Paste on any data that have their second stage. Each tagged
class of each training image is one choice; its IoU is that with the best-matching true object of the class. Mean IoU and the
share above 0.5 are in percent. Runs that are finished are not repeated.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from _runs import call, on_small_coco
from numpy.typing import NDArray

from wsis.inference import make_data, read_run
from wsis.models.em_paste.foregrounds import choose
from wsis.models.em_paste.segments import Segments
from wsis.reports.table import mean_and_range, print_table

PROPOSALS = 300
ROUNDS = 3
WAYS: dict[str, dict[str, Any]] = {
    "cosine": {"distance": "cosine"},
    "not centred": {"distance": "cosine", "centre": False},
    "as the code": {"distance": "cosine", "centre": False, "every_segment": True},
    "Mahalanobis": {"distance": "mahalanobis"},
}
Choice = NDArray[np.int64]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("weights", type=Path, nargs="?")
    parser.add_argument("--runs", type=Path, nargs="+", help="Runs to judge, in place of COCO.")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("runs/foregrounds"))
    asked = parser.parse_args()
    if not (asked.runs or asked.weights):
        parser.error("give COCO_DIR and WEIGHTS, or --runs")
    folders = asked.runs or [describe(asked, seed) for seed in range(asked.seeds)]
    runs = [
        judged(Segments.read(run / "2-segments"), make_data(read_run(run)["data"]))
        for run in folders
    ]
    rows = [
        [row, *map(mean_and_range, zip(*(run[row] for run in runs), strict=True))]
        for row in runs[0]
    ]
    print_table([["", "mean IoU", "share above 0.5", "choices"], *rows])


def describe(asked: argparse.Namespace, seed: int) -> Path:
    """Train the classifier and have it describe all segments; returns the run."""
    run = asked.out / f"seed-{seed}"
    words = [
        *on_small_coco("em_paste", asked.data, asked.weights),
        "--data.classes",
        "voc",
        "--run_dir",
        str(run),
    ]
    words += [
        "--seed_everything",
        str(seed),
        "--data.loading.seed",
        str(seed),
        "--data.max_proposals",
        str(PROPOSALS),
    ]
    for stage in ("1-classifier", "2-segments"):
        call("fit", [*words, "--stage", stage])
    return run


def judged(segments: Segments, data: Any) -> dict[str, tuple[float, float, float]]:
    """Mean IoU, the share above 0.5, and the number of choices, of every way to choose."""
    overlaps = fit_of_segments(segments, data)
    eligible = [segments.eligible[segments.of(pair)] for pair in range(len(overlaps))]
    known = np.array([found is not None for found in overlaps])
    table = {
        "random eligible segment": figures(
            [np.mean(o[e]) if e.any() else 0 for o, e in usable(overlaps, eligible)],
            [np.mean(o[e] > 0.5) if e.any() else 0 for o, e in usable(overlaps, eligible)],
        ),
        "step 1": of_choice(segments.first, overlaps, known),
    }
    for name, how in WAYS.items():
        for rounds in range(1, ROUNDS + 1):
            table[f"{name}, round {rounds}"] = of_choice(
                choose(segments, rounds, 0.5, **how), overlaps, known
            )
    chosen = choose(segments, 2, 0.5, "cosine")
    sure = np.array(
        [c >= 0 and p[c] >= 0.1 for c, p in zip(chosen, segments.probabilities, strict=True)]
    )
    table["round 2, surer than 0.1"] = of_choice(chosen, overlaps, known & sure)
    best = [o.max(initial=0) for o, _ in usable(overlaps, eligible)]
    table["best segment there is"] = figures(best, [b > 0.5 for b in best])
    return table


def fit_of_segments(segments: Segments, data: Any) -> list[NDArray[np.float64] | None]:
    """Of each pair the IoU (m,) of its image's segments with the best true object, None without any."""
    samples = data.samples("train", train=False, supervision={"tags", "boxes", "masks"})
    samples.segments = True
    overlaps: list[NDArray[np.float64] | None] = []
    for i in range(len(samples)):
        sample = samples.sample(i)
        proposals, target = sample["proposals"], sample["target"]
        labels, members = proposals.labels.numpy().ravel(), proposals.members.float().numpy()
        area = members @ np.bincount(labels, minlength=members.shape[1])
        for label in segments.label[segments.image == i]:
            own = [
                m.numpy().ravel()
                for m in target["masks"][(target["labels"] == label) & ~target["crowd"]]
            ]
            shared = [members @ np.bincount(labels[m], minlength=members.shape[1]) for m in own]
            fits = [
                inside / (area + m.sum() - inside) for inside, m in zip(shared, own, strict=True)
            ]
            overlaps.append(np.max(fits, 0) if fits else None)
    return overlaps


def usable(
    overlaps: list[NDArray[np.float64] | None], eligible: list[NDArray[np.bool_]]
) -> Iterator[tuple[NDArray[np.float64], NDArray[np.bool_]]]:
    return ((o, e) for o, e in zip(overlaps, eligible, strict=True) if o is not None)


def of_choice(
    chosen: Choice, overlaps: list[NDArray[np.float64] | None], which: NDArray[np.bool_]
) -> tuple[float, float, float]:
    found = [
        float(o[c]) if c >= 0 else 0.0
        for c, o, w in zip(chosen, overlaps, which, strict=True)
        if w and o is not None
    ]
    return figures(found, [value > 0.5 for value in found])


def figures(overlaps: list[float], above: list[float]) -> tuple[float, float, float]:
    return 100 * float(np.mean(overlaps)), 100 * float(np.mean(above)), float(len(overlaps))


if __name__ == "__main__":
    main()
