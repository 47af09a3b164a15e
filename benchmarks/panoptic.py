"""JTSM's Tables 1 and 2 on the generated data, or panoptic quality on a small COCO folder beside a floor.

    python benchmarks/panoptic.py runs/panoptic [--draws 1 2 3] [--jobs 2]
    python benchmarks/panoptic.py runs/panoptic --coco COCO_DIR --weights MOBILENETV2_WEIGHTS

Settings were chosen on draw 0 of the generated data, which is left out; a draw's runs share one classifier. The floor fills
each image with the stuff class that is most frequent in training, and finds no thing. Finished runs are not repeated.
"""

from __future__ import annotations

import argparse
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from _runs import call, on_small_coco

from wsis.datasets.coco import COCO
from wsis.metrics import PanopticQuality
from wsis.reports.table import mean_and_range, print_table
from wsis.runs.record import stages
from wsis.types import GroundTruth, Prediction

ROWS = {
    "moi_pool": [],
    "roi_pool": ["pooling", "roi_pool"],
    "roi_align": ["pooling", "roi_align"],
    "interpolated": ["pooling", "moi_pool_interpolated"],
    "none": ["instances", "false", "semantics", "false"],
    "instances": ["semantics", "false", "reestimate", "none"],
    "semantics": ["instances", "false", "reestimate", "none"],
    "both": ["reestimate", "none"],
    "re-estimated from the box": ["reestimate", "box"],
    "window of the region": ["window", "region"],
}
FIGURES = ("PQ", "PQ_things", "PQ_stuff", "SQ", "RQ", "AP50", "CorLoc")


def fit(run: Path, words: list[str]) -> dict[str, float]:
    """Train one run, unless it is there, and give its figures in percent."""
    call("fit", [*words, "--run_dir", str(run)])
    found = stages(run)[-1][1].metrics
    return {figure: 100 * found[f"val/{figure}"] for figure in FIGURES}


def row(folder: Path, name: str, draw: int) -> dict[str, float]:
    settings = ROWS[name]
    words = ["--model", "jtsm"]
    words += [f"--model.{settings[i]}={settings[i + 1]}" for i in range(0, len(settings), 2)]
    words += [
        "--data.seed",
        str(draw),
        "--data.root",
        str(folder / "data"),
        "--trainer.accelerator",
        "cpu",
    ]
    return fit(folder / name.replace(" ", "-") / str(draw), [*words, "--reuse", str(folder)])


def tables(folder: Path, draws: list[int], jobs: int) -> None:
    lines = [["", *FIGURES]]
    for name in ROWS:
        with ThreadPoolExecutor(jobs) as pool:
            found = list(pool.map(lambda draw, name=name: row(folder, name, draw), draws))
        lines.append(
            [name, *(mean_and_range([one[figure] for one in found]) for figure in FIGURES)]
        )
    print_table(lines)


def real(folder: Path, data: Path, weights: Path) -> None:
    found = fit(folder / "coco", [*on_small_coco("jtsm", data, weights), "--data.classes", "voc"])
    coco = COCO(data, classes="voc", panoptic=True, proposals="none")
    index = coco.index("val")
    tags = [tag for found in coco.index("train").stuff_tags.values() for tag in found]
    most, floor = max(set(tags), key=tags.count), PanopticQuality(20, len(index.stuff))
    nothing = GroundTruth(
        torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), [], torch.zeros(0, dtype=torch.bool)
    )
    for image in index.images:
        truth = index.panoptic(image) if index.panoptic else None
        if truth is not None:
            filled = torch.tensor([20 + most, 0], dtype=torch.int32).expand(
                image["height"], image["width"], 2
            )
            guess = Prediction(
                image["id"], filled.shape[:2], *(torch.zeros(0) for _ in range(3)), [], filled
            )
            floor.update([guess], [nothing._replace(panoptic=truth)])
    lowest = floor.compute()
    lines = [["", *FIGURES], ["jtsm", *(f"{found[figure]:.1f}" for figure in FIGURES)]]
    print_table(
        [
            *lines,
            [
                "floor",
                *(f"{100 * lowest[figure]:.1f}" if figure in lowest else "" for figure in FIGURES),
            ],
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--draws", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--coco", type=Path)
    parser.add_argument("--weights", type=Path)
    given = parser.parse_args()
    if given.coco:
        real(given.folder, given.coco, given.weights)
    else:
        tables(given.folder, given.draws, given.jobs)


if __name__ == "__main__":
    main()
