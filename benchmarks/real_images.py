"""PDSL beside its floor on the 20 VOC classes of a small COCO folder, through the command line; one table.

python benchmarks/real_images.py COCO_DIR MOBILENETV2_WEIGHTS [--seeds 3] [--out runs/real-images]

CorLoc is of the training images, mask AP of the validation images, both in percent. Runs that are finished are not repeated.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from _runs import call, on_small_coco
from torchvision.ops import box_iou

from wsis.datasets.coco import COCO
from wsis.files import read_json
from wsis.metrics import CorLoc
from wsis.reports.table import mean_and_range, print_table
from wsis.runs.record import stages
from wsis.types import GroundTruth, Prediction, Proposals

COLUMNS = (("train", "CorLoc"), ("train", "CorLoc_images"), ("val", "AP25"), ("val", "AP50"))
PROPOSALS = 300
Score = Callable[[Proposals, GroundTruth], torch.Tensor]


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("data", type=Path)
    arguments.add_argument("weights", type=Path)
    arguments.add_argument("--seeds", type=int, default=3)
    arguments.add_argument("--out", type=Path, default=Path("runs/real-images"))
    asked = arguments.parse_args()
    lines = [["", *map(" ".join, COLUMNS), "minutes"]]
    for name, value in baselines(asked.data).items():
        lines.append(
            [
                name,
                *(mean_and_range([100 * value[figure]]) for figure in ("CorLoc", "CorLoc_images")),
                "",
                "",
                "",
            ]
        )
    for model in ("cam", "pdsl"):
        runs = [figures(model, seed, asked) for seed in range(asked.seeds)]
        lines += [
            [f"{model}, seed {seed}", *(mean_and_range([value]) for value in run)]
            for seed, run in enumerate(runs)
        ]
        lines.append([f"{model}, mean (range)", *map(mean_and_range, zip(*runs, strict=True))])
    print_table(lines)


def baselines(folder: Path) -> dict[str, dict[str, float]]:
    """CorLoc of choices that learn nothing, and of the best that any choice of proposals can reach."""
    samples = COCO(folder, classes="voc", max_proposals=PROPOSALS).samples("train", train=False)
    generator = torch.Generator().manual_seed(0)
    choices: dict[str, Score] = {
        "random proposal": lambda p, _: torch.rand(len(p.boxes), 20, generator=generator),
        "most object-like": lambda p, _: p.scores[:, None].expand(-1, 20),
        "best proposal": lambda p, t: _overlap(p.boxes, t),
    }
    found = {name: CorLoc(20) for name in (*choices, "whole image")}
    for i in range(len(samples)):
        sample = samples.sample(i)
        image, size, truth, proposals = (
            sample["image_id"],
            sample["size"],
            sample["truth"],
            sample["proposals"],
        )
        labels = torch.arange(20)
        for name, score in choices.items():
            best, index = score(proposals, truth).max(0)
            found[name].update(
                [Prediction(image, size, proposals.boxes[index], best, labels, [])], [truth]
            )
        whole = torch.tensor([0.0, 0.0, size[1], size[0]]).expand(20, 4)
        found["whole image"].update(
            [Prediction(image, size, whole, torch.ones(20), labels, [])], [truth]
        )
    return {
        name: {key: float(v) for key, v in metric.compute().items() if v.ndim == 0}
        for name, metric in found.items()
    }


def figures(model: str, seed: int, asked: argparse.Namespace) -> list[float]:
    """Train and judge one seed; the figures of COLUMNS in percent, and the minutes of training."""
    run = asked.out / f"{model}-{seed}"
    if not (run / "minutes.json").is_file():
        start = time.perf_counter()
        words = [
            *on_small_coco(model, asked.data, asked.weights),
            "--data.classes",
            "voc",
            "--run_dir",
            str(run),
        ]
        call("fit", [*words, "--seed_everything", str(seed), "--data.loading.seed", str(seed)])
        run.joinpath("minutes.json").write_text(json.dumps((time.perf_counter() - start) / 60))
    if not (run / "test-train" / "metrics.json").is_file():
        call("test", ["--run", str(run), "--split", "train"])
    judged = {
        f"train/{key}": value
        for key, value in read_json(run / "test-train" / "metrics.json")["metrics"].items()
    }
    for _, stage in stages(run):
        judged |= stage.metrics  # a fit ends with the validation images
    return [
        *(100 * judged[f"{split}/{figure}"] for split, figure in COLUMNS),
        read_json(run / "minutes.json"),
    ]


def _overlap(boxes: torch.Tensor, truth: GroundTruth) -> torch.Tensor:
    """Best IoU (P,20) of boxes with a truth of each class."""
    overlap = box_iou(boxes, truth.boxes)
    return torch.stack(
        [
            overlap[:, truth.labels == c].max(1).values
            if (truth.labels == c).any()
            else overlap.new_zeros(len(boxes))
            for c in range(20)
        ],
        1,
    )


if __name__ == "__main__":
    main()
