"""Masks in given boxes on a small COCO folder, BoxCaseg beside what needs no training, through the command line; one table.

python benchmarks/given_boxes.py COCO_DIR SALIENT_DIR MOBILENETV2_WEIGHTS [--seeds 3] [--out runs/given-boxes]

All figures are in percent, of the validation objects that are no crowds. Runs that are finished are not repeated.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from _runs import CONFIGS, call, on_small_coco

from wsis.datasets.coco import COCO
from wsis.files import read_json
from wsis.metrics import MaskIoU
from wsis.nn.masks import run_lengths
from wsis.reports.ablation import read_ablation
from wsis.reports.table import mean_and_range, print_table
from wsis.types import Prediction

COLUMNS = ("mIoU", "IoU50", "IoU75")
VARIANTS = read_ablation(CONFIGS / "ablation" / "boxcaseg.yaml").variants
ROWS = {
    "weak": "heads_weak",
    "salient": "heads_salient",
    "weak + salient": "heads_weak_salient",
    "all three": "heads_all",
    "all, 100 salient images": "salient_100",
    "all, 500 salient images": "salient_500",
}
Pixels = np.ndarray[tuple[int, int], np.dtype[np.uint8]]


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("data", type=Path)
    arguments.add_argument("salient", type=Path)
    arguments.add_argument("weights", type=Path)
    arguments.add_argument("--seeds", type=int, default=3)
    arguments.add_argument(
        "--rows", nargs="*", default=["baselines", *ROWS], choices=["baselines", *ROWS]
    )
    arguments.add_argument("--out", type=Path, default=Path("runs/given-boxes"))
    asked = arguments.parse_args()
    lines = [["", *COLUMNS, "minutes"]]
    for row in asked.rows:
        if row == "baselines":
            lines += [
                [name, *(mean_and_range([value]) for value in values)]
                for name, values in baselines(asked.data).items()
            ]
            continue
        runs = [figures(row, seed, asked) for seed in range(asked.seeds)]
        lines.append([f"{row}, mean (range)", *map(mean_and_range, zip(*runs, strict=True))])
    print_table(lines)
    print(
        f"most memory of a run: {resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20:.1f} GiB"
    )


def baselines(folder: Path) -> dict[str, list[float]]:
    """Figures of masks that are made from each box alone, and the minutes they take."""
    samples = COCO(folder, proposals="none").samples(
        "val", train=False, supervision={"tags", "boxes"}
    )
    makers: dict[str, Callable[[Pixels, np.ndarray], Pixels]] = {
        "box": _box,
        "ellipse": _ellipse,
        "GrabCut in the box": _grabcut,
    }
    metrics, seconds = {name: MaskIoU(80) for name in makers}, dict.fromkeys(makers, 0.0)
    for i in range(len(samples)):
        sample = samples.sample(i)
        truth, image = (
            sample["truth"],
            np.ascontiguousarray(sample["image"].permute(1, 2, 0).numpy()[..., ::-1]),
        )
        for name, make in makers.items():
            start = time.perf_counter()
            masks = [run_lengths(make(image, box)) for box in truth.boxes.numpy()]
            seconds[name] += time.perf_counter() - start
            found = Prediction(
                sample["image_id"],
                sample["size"],
                truth.boxes,
                truth.labels.float(),
                truth.labels,
                masks,
            )
            metrics[name].update([found], [truth])
    judged = {name: metric.compute() for name, metric in metrics.items()}
    return {
        name: [*(100 * float(found[c]) for c in COLUMNS), seconds[name] / 60]
        for name, found in judged.items()
    }


def figures(row: str, seed: int, asked: argparse.Namespace) -> list[float]:
    """Train and judge one seed; the figures of COLUMNS in percent, and the minutes it took."""
    run = asked.out / f"{row.replace(' ', '-').replace(',', '')}-{seed}"
    if not (run / "minutes.json").is_file():
        start = time.perf_counter()
        words = [
            *on_small_coco("boxcaseg", asked.data, asked.weights),
            "--model.salient",
            str(asked.salient),
        ]
        words += VARIANTS[ROWS[row]].words
        words += [
            "--run_dir",
            str(run),
            "--seed_everything",
            str(seed),
            "--data.loading.seed",
            str(seed),
            "--stage",
            "1-joint",
        ]
        call("fit", words)
        run.joinpath("minutes.json").write_text(json.dumps((time.perf_counter() - start) / 60))
    judged = read_json(run / "1-joint/metrics.json")
    return [*(100 * judged[f"val/{c}"] for c in COLUMNS), read_json(run / "minutes.json")]


def _box(image: Pixels, box: np.ndarray) -> Pixels:
    mask = np.zeros(image.shape[:2], np.uint8)
    x1, y1, x2, y2 = _corners(box)
    mask[y1:y2, x1:x2] = 1
    return mask


def _ellipse(image: Pixels, box: np.ndarray) -> Pixels:
    y, x = np.ogrid[: image.shape[0], : image.shape[1]]
    centre, half = (box[:2] + box[2:]) / 2, np.maximum((box[2:] - box[:2]) / 2, 0.5)
    inside = ((x + 0.5 - centre[0]) / half[0]) ** 2 + ((y + 0.5 - centre[1]) / half[1]) ** 2 <= 1
    return inside.astype(np.uint8)


def _grabcut(image: Pixels, box: np.ndarray) -> Pixels:
    """OpenCV's, five rounds; the box itself where it finds nothing or has no background to learn from."""
    x1, y1, x2, y2 = _corners(box)
    mask, whole = np.zeros(image.shape[:2], np.uint8), _box(image, box)
    if whole.all():
        return whole
    cv2.setRNGSeed(0)
    try:
        cv2.grabCut(
            image,
            mask,
            (x1, y1, x2 - x1, y2 - y1),
            np.zeros((1, 65)),
            np.zeros((1, 65)),
            5,
            cv2.GC_INIT_WITH_RECT,
        )
    except cv2.error:  # fewer pixels than its colour models have parts
        return whole
    found = ((mask == cv2.GC_FGD) | (mask == cv2.GC_PR_FGD)).astype(np.uint8)
    return found if found.any() else whole


def _corners(box: np.ndarray) -> tuple[int, int, int, int]:
    """Whole pixels whose centres are in the box, one at least."""
    x1, y1 = (int(v) for v in np.floor(box[:2] + 0.5))
    x2, y2 = (int(v) for v in np.ceil(box[2:] - 0.5))
    return x1, y1, max(x2, x1 + 1), max(y2, y1 + 1)


if __name__ == "__main__":
    main()
