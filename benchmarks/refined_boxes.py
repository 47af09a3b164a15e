"""CCGR's Table 3 on the generated data: what its detector, its refinement and its rounds add.

    python benchmarks/refined_boxes.py runs/refined-boxes [--draws 1 2 3] [--rows ...] [--jobs 2]

Settings were chosen on draw 0 of the data, which is left out. Rows share classifier, hints and branches with the first.
Runs are ordinary runs: a repeated command continues where it was stopped. Figures are in percent: mask AP of the validation
images; of the boxes and masks of training images that it learns from, the share that overlaps an object of their class by more
than half. Rows of labels train no Mask R-CNN.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from math import nan
from pathlib import Path
from typing import Any, NamedTuple

from pycocotools import mask as rle

from wsis.data.shapes import Shapes

OVERLAYS = Path(__file__).parents[1] / "configs" / "ablation"


class Row(NamedTuple):
    """A run by its words, and after which of its rounds it is judged."""

    words: Sequence[str] = ()
    round: int = 1
    run: str = "all"


LABELS = ["--model.rounds", "1", "--stage", "round-1-labels"]
ROWS = {
    "all three": Row(["--model.rounds", "3"]),
    "all three, round 3": Row(round=3),
    "segmentation": Row(["--config", str(OVERLAYS / "ccgr_segmentation.yaml")], run="segmentation"),
    "and detector": Row(["--config", str(OVERLAYS / "ccgr_detector.yaml")], run="detector"),
    "external proposals": Row(["--config", str(OVERLAYS / "ccgr_external_proposals.yaml")], run="external"),
    "labels: whole parts alone": Row(["--model.refinement", "0", *LABELS], run="whole"),
    "labels: refinement alone": Row(["--model.whole", "false", *LABELS], run="refined"),
    "labels: printed form": Row(["--config", str(OVERLAYS / "ccgr_printed.yaml"), *LABELS], run="printed"),
}
SHARED = ("1-classifier", "2-affinity", "3-evidence", "round-1-detector", "round-1-segmentation")
FIGURES = ("AP25", "AP50", "AP75")
LEARNT = ("bbox", "segmentation")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--draws", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--rows", nargs="+", default=[*ROWS], choices=[*ROWS])
    parser.add_argument("--jobs", type=int, default=2)
    asked = parser.parse_args()
    threads = max(1, (os.cpu_count() or 1) // asked.jobs)
    with ThreadPoolExecutor(asked.jobs) as pool:
        list(pool.map(lambda draw: fit_all(asked.folder, asked.rows, draw, threads), asked.draws))
    print("  ".join(["".ljust(24), *(name.rjust(20) for name in (*FIGURES, "boxes", "masks"))]))
    for row in asked.rows:
        columns = zip(*(figures(asked.folder, ROWS[row], draw) for draw in asked.draws), strict=True)
        print("  ".join([row.ljust(24), *(spread(column).rjust(20) for column in columns)]), flush=True)


def fit_all(folder: Path, rows: Sequence[str], draw: int, threads: int) -> None:
    given = ["--data.root", str(folder / "data"), "--data.seed", str(draw)]
    for row in (ROWS[name] for name in rows if ROWS[name].words):
        run, extra = folder / f"{row.run}-{draw}", []
        if row.run == "external":
            extra = ["--data.proposals", str(external(folder, draw, given, threads))]
        elif row.run != "all" and not run.exists():
            for stage in SHARED:
                shutil.copytree(folder / f"all-{draw}" / stage, run / stage)
        call("fit", ["--model", "ccgr", *given, *row.words, *extra, "--run_dir", str(run)], threads)


def external(folder: Path, draw: int, given: Sequence[str], threads: int) -> Path:
    """Boxes of a Mask R-CNN trained on the true masks of other images, those of draw 9, as proposals."""
    teacher, found = folder / "teacher", folder / f"external-{draw}.json"
    if not found.exists():
        others = ["--data.root", str(folder / "data"), "--data.seed", "9"]
        call("fit", ["--model", "mask_rcnn", *others, "--run_dir", str(teacher)], threads)
        results = []
        for split in ("train", "val"):
            out = folder / f"external-{draw}-{split}"
            call("test", [str(teacher), *given, "--split", split, "--out", str(out)], threads)
            results += read(out / "predictions.json")
        found.write_text(json.dumps(results))
    return found


def call(verb: str, words: Sequence[str], threads: int) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    workers = ["--data.loading.workers", "0"]
    command = [sys.executable, "-m", f"wsis.{verb}", *words, *workers]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        sys.exit(done.stdout)


def figures(folder: Path, row: Row, draw: int) -> list[float]:
    """FIGURES of Mask R-CNN, and how many of the boxes and masks it learns from are right."""
    run = folder / f"{row.run}-{draw}"
    metrics = run / f"round-{row.round}-mask-rcnn/metrics.json"
    final = read(metrics) if metrics.exists() else {}
    labels = read(run / f"round-{row.round}-labels/labels.json")["annotations"]
    truth = Shapes(root=folder / "data", seed=draw).index("train").annotations
    shares = [sum(right(label, truth[label["image_id"]], what) for label in labels) / len(labels) for what in LEARNT]
    return [100 * value for value in (*(final.get(f"val/{name}", nan) for name in FIGURES), *shares)]


def right(label: Any, truth: Sequence[Any], what: str) -> bool:
    own = [annotation[what] for annotation in truth if annotation["category_id"] == label["category_id"]]
    return bool(own) and rle.iou([label[what]], own, [0] * len(own)).max() > 0.5


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def spread(values: tuple[float, ...]) -> str:
    return f"{sum(values) / len(values):.1f}" + (f" ({min(values):.1f}-{max(values):.1f})" if len(values) > 1 else "")


if __name__ == "__main__":
    main()
