"""CCGR's Figure 5: box mAP at an IoU of 0.5 on the training images, along the steps of refinement.

    python benchmarks/refinement_steps.py RUN [--round 1] [--every 10] [--out steps.png]

RUN is a folder of `wsis.fit --model ccgr` in which the round's detector, segmentation and labels are done. Boxes are those that
the detector chose, scored by it, judged by VOC's protocol against all true boxes of the training images; settings are the run's.
The picture, which needs the extra `notebooks`, and the printed figures (percent) show the mean over classes.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch

from wsis.inference import make_data, read_run
from wsis.machine import bar
from wsis.metrics.instances import VOCAP
from wsis.models.ccgr.branches import BagDetector, Boxes, Segmentation
from wsis.models.ccgr.refinement import Refinement
from wsis.nn.checkpoint import load_model
from wsis.reports.evaluation import ground_truth
from wsis.runs.record import read_stage
from wsis.types import Prediction

mpl.use("agg")
import matplotlib.pyplot as plt

NOTHING = Boxes(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--round", type=int, default=1)
    parser.add_argument("--every", type=int, default=10, help="steps from one figure to the next")
    parser.add_argument("--out", type=Path, default=Path("refinement_steps.png"))
    asked = parser.parse_args()
    figures = box_maps(asked.run, asked.round, asked.every)
    print("  step   mAP")
    for step, value in figures.items():
        print(f"{step:6d} {100 * value:5.1f}")
    draw(figures, f"{asked.run.name}, round {asked.round}", asked.out)
    print(f"wrote {asked.out}")


@torch.no_grad()
def box_maps(run: Path, number: int, every: int) -> dict[int, float]:
    """Of every so many steps the box mAP."""
    labelled = read_stage(run / f"round-{number}-labels")
    if labelled is None or not labelled.finished:
        raise SystemExit(f"{run} has no finished stage round-{number}-labels")
    settings: dict[str, Any] = dict(labelled.settings["hparams"])
    peaks = run / settings.pop("peaks") / "peaks.json"
    last = "checkpoints/last.ckpt"
    detector = load_model(BagDetector, run / f"round-{number}-detector" / last)
    segmentation = load_model(Segmentation, run / f"round-{number}-segmentation" / last)
    labeller = Refinement(detector, segmentation, peaks, **settings).eval()
    data = make_data(read_run(run)["data"])
    index, steps = data.index("train"), range(0, settings["refinement"] + 1, every)
    evidence = run / ("3-evidence" if number == 1 else f"round-{number - 1}-evidence")
    bags = data.variant(evidence / "bags.json")
    samples = bags.samples("train", train=False, supervision={"tags", "boxes"})
    position = {image["id"]: i for i, image in enumerate(bags.index("train").images)}
    metrics = {step: VOCAP(kind="box", num_classes=data.num_classes) for step in steps}
    for image, truth in zip(bar(index.images, desc="images"), ground_truth(index), strict=True):
        found = {}
        if image["id"] in position:  # else it has no bag, and nothing is found in it
            sample = samples.sample(position[image["id"]])
            found = dict(enumerate(labeller.steps([sample], [labeller.maps(sample)])))
        for step, metric in metrics.items():
            metric.update([prediction(image, *found.get(step, ()))], [truth])
    return {step: float(metric.compute()["box_VOC_AP50"]) for step, metric in metrics.items()}


def prediction(image: dict[str, Any], boxes: Boxes = NOTHING) -> Prediction:
    size = image["height"], image["width"]
    return Prediction(image["id"], size, boxes.boxes, boxes.scores, boxes.labels, [])


def draw(figures: dict[int, float], title: str, out: Path) -> None:
    _, axis = plt.subplots(figsize=(5, 3), layout="constrained")
    values = [100 * value for value in figures.values()]
    axis.plot([*figures], values, marker="o", markersize=3)
    axis.set(xlabel="steps of refinement", ylabel="box mAP at IoU 0.5 (%)", title=title)
    axis.grid(alpha=0.3)
    plt.savefig(out, dpi=150)


if __name__ == "__main__":
    main()
