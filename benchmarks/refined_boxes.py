"""CCGR's Table 3: what its detector, its refinement and its rounds add.

    python benchmarks/refined_boxes.py runs/refined-boxes [--draws 1 2 3] [--rows ...] [--jobs 2]
    python benchmarks/refined_boxes.py runs/refined-boxes-coco --coco COCO_DIR --weights MOBILENETV2_WEIGHTS --draws 0

On the generated data settings were chosen on draw 0, which is left out; on COCO a draw is a training seed. Rows share
classifier, hints and branches with the first. Runs are ordinary runs: a repeated command continues where it was stopped.
Figures are in percent: mask AP of the validation images; of the boxes of training images that it learns from the mean IoU with
the best object of their class, and of boxes and masks the share above half. Rows of labels train no Mask R-CNN.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
from _runs import CONFIGS, call, on_small_coco
from pycocotools import mask as rle
from torchvision.ops import box_iou

from wsis.datasets.coco import COCO
from wsis.datasets.shapes import Shapes
from wsis.files import read_json
from wsis.machine import cores
from wsis.reports.ablation import read_ablation
from wsis.reports.evaluation import ground_truth
from wsis.reports.table import mean_and_range, print_table

VARIANTS = read_ablation(CONFIGS / "ablation" / "ccgr.yaml").variants


class Row(NamedTuple):
    """A run by its words, and after which of its rounds it is judged."""

    words: Sequence[str] = ()
    round: int = 1
    run: str = "all"


WORKERS = ["--data.loading.workers", "0"]
LABELS = ["--model.rounds", "1", "--stage", "round-1-labels"]
ROWS = {
    "all three": Row(["--model.rounds", "3"]),
    "all three, round 3": Row(round=3),
    "segmentation": Row([*VARIANTS["segmentation"].words], run="segmentation"),
    "and detector": Row([*VARIANTS["detector"].words], run="detector"),
    "external proposals": Row([*VARIANTS["external_proposals"].words], run="external"),
    "labels: whole parts alone": Row(["--model.refinement", "0", *LABELS], run="whole"),
    "labels: refinement alone": Row(["--model.whole", "false", *LABELS], run="refined"),
    "labels: printed form": Row([*VARIANTS["printed"].words, *LABELS], run="printed"),
}
FIGURES = ("AP25", "AP50", "AP75")
LEARNT = ("box IoU", "boxes", "masks")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--coco", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--draws", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--rows", nargs="+", choices=[*ROWS])
    parser.add_argument("--jobs", type=int, default=2)
    asked = parser.parse_args()
    asked.rows = asked.rows or [
        name
        for name in ROWS
        if not asked.coco or (ROWS[name].round == 1 and name != "external proposals")
    ]
    threads = max(1, cores() // asked.jobs)
    with ThreadPoolExecutor(asked.jobs) as pool:
        list(pool.map(lambda draw: fit_all(asked, draw, threads), asked.draws))
    lines = [["", *FIGURES, *LEARNT]]
    for row in asked.rows:
        columns = zip(*(figures(asked, ROWS[row], draw) for draw in asked.draws), strict=True)
        lines.append([row, *map(mean_and_range, columns)])
    print_table(lines)


def given(asked: argparse.Namespace, draw: int) -> list[str]:
    """The data, and what is trained on it by."""
    if asked.coco:
        return [
            *on_small_coco("ccgr", asked.coco, asked.weights),
            "--data.classes",
            "voc",
            "--seed_everything",
            str(draw),
        ]
    return ["--model", "ccgr", "--data.root", str(asked.folder / "data"), "--data.seed", str(draw)]


def fit_all(asked: argparse.Namespace, draw: int, threads: int) -> None:
    for row in (ROWS[name] for name in asked.rows if ROWS[name].words):
        run, extra = (
            asked.folder / f"{row.run}-{draw}",
            ["--model.rounds", "1"] if asked.coco else [],
        )
        if row.run == "external":
            extra = ["--data.proposals", str(external(asked.folder, draw, threads))]
        place = ["--run_dir", str(run), "--reuse", str(asked.folder)]
        call("fit", [*given(asked, draw), *row.words, *extra, *place, *WORKERS], threads)


def external(folder: Path, draw: int, threads: int) -> Path:
    """Boxes of a Mask R-CNN trained on the true masks of other images, those of draw 9, as proposals."""
    teacher, found = folder / "teacher", folder / f"external-{draw}.json"
    if not found.exists():
        others = ["--data.root", str(folder / "data"), "--data.seed", "9"]
        others += [
            "--data.augment.short_sides",
            "[160]",
            "--model.test_side",
            "160",
        ]  # as CCGR's own
        call("fit", ["--model", "mask_rcnn", *others, "--run_dir", str(teacher), *WORKERS], threads)
        results = []
        for split in ("train", "val"):
            out = folder / f"external-{draw}-{split}"
            words = [
                "--run",
                str(teacher),
                "--data.root",
                str(folder / "data"),
                "--data.seed",
                str(draw),
                "--split",
                split,
            ]
            call("test", [*words, "--out", str(out), *WORKERS], threads)
            results += read_json(out / "predictions.json")
        found.write_text(json.dumps(results))
    return found


def figures(asked: argparse.Namespace, row: Row, draw: int) -> list[float | None]:
    """FIGURES of Mask R-CNN, and LEARNT of the labels that it learns from."""
    run = asked.folder / f"{row.run}-{draw}"
    metrics = run / f"round-{row.round}-segmentor/metrics.json"
    final = read_json(metrics) if metrics.exists() else {}
    labels = read_json(run / f"round-{row.round}-labels/labels.json")["annotations"]
    data = (
        COCO(asked.coco, classes="voc")
        if asked.coco
        else Shapes(root=asked.folder / "data", seed=draw)
    )
    overlaps = torch.tensor(best_overlaps(labels, data.index("train")))
    learnt = [overlaps[:, 0].mean(), *(overlaps > 0.5).float().mean(0)]
    known = [final.get(f"val/{name}") for name in FIGURES]
    return [None if value is None else 100 * float(value) for value in (*known, *learnt)]


def best_overlaps(labels: Sequence[Any], index: Any) -> list[tuple[float, float]]:
    """Of each label the highest IoU of its box and of its mask with an object of its class."""
    classes = {category["id"]: label for label, category in enumerate(index.categories)}
    truths = dict(zip((image["id"] for image in index.images), ground_truth(index), strict=True))
    found = []
    for label in labels:
        truth, (x, y, width, height) = truths[label["image_id"]], label["bbox"]
        own = (truth.labels == classes[label["category_id"]]).nonzero().flatten()
        boxes = box_iou(torch.tensor([[x, y, x + width, y + height]]), truth.boxes[own])
        masks = (
            rle.iou([label["segmentation"]], [truth.masks[k] for k in own.tolist()], [0] * len(own))
            if len(own)
            else None
        )
        found.append((float(boxes.max()), float(masks.max())) if masks is not None else (0.0, 0.0))
    return found


if __name__ == "__main__":
    main()
