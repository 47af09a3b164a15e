"""JTSM's poolings on stored features of the generated data: the mining branch alone, in one table.

    python benchmarks/poolings.py runs/poolings [--draws 1 2 3 4 5] [--seeds 5] [--steps 300]

Rows are pooling, and for MoIPool the window of its bins and the compensation psi. A draw's
classifier trains once and is kept; features have no augmentation and are pooled once for a row.
Figures in percent are those of boxes, CorLoc over images and classes, and the IoU of each stuff
class with the best proposal by S^MIL, on validation images: mean and range over draws and seeds.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from _runs import call
from torch import Tensor

import wsis
from wsis.files import read_json
from wsis.metrics import CorLoc, InstanceAP
from wsis.nn.mil import detect
from wsis.nn.optimisation import rate
from wsis.reports.table import mean_and_range, print_table
from wsis.types import Prediction, Sample

FIGURES = ("box_AP50", "CorLoc_images", "stuff_IoU")
ROWS: dict[str, dict[str, Any]] = {
    "roi_pool": {"pooling": "roi_pool"},
    "roi_align": {"pooling": "roi_align"},
    "moi_pool_interpolated": {"pooling": "moi_pool_interpolated"},
}
for _window in ("box", "region"):
    for _psi in ("bins", "released", None):
        ROWS[f"moi_pool {_window} {_psi}"] = {"window": _window, "compensation": _psi}


class Image(NamedTuple):
    """One image with its pooled proposals."""

    sample: Sample
    pooled: Tensor
    """(P,D,7,7)."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--draws", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--classifier_steps", type=int, default=900)
    parser.add_argument("--images", type=int, nargs=2, default=[300, 100], help="train and val")
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    asked = parser.parse_args()
    found: dict[str, list[list[float]]] = {row: [] for row in asked.rows}
    for draw in asked.draws:
        classifier = train_classifier(draw, asked)
        for row in asked.rows:
            found[row] += of_row(row, draw, classifier, asked)
    lines = [["mean (range)", *FIGURES, "minutes of a run"]]
    for row, runs in found.items():
        lines.append([row, *map(mean_and_range, zip(*runs, strict=True))])
    print_table(lines)


def train_classifier(draw: int, asked: argparse.Namespace) -> Path:
    """Train the backbone on a draw, unless that is done; return its checkpoint."""
    run = asked.folder / f"draw-{draw}"
    checkpoint = run / "1-classifier" / "checkpoints" / "last.ckpt"
    if not checkpoint.is_file():
        words = ["--model", "jtsm", "--data.root", str(asked.folder / "data")]
        train, val = map(str, asked.images)
        words += ["--data.seed", str(draw), "--data.train", train, "--data.val", val]
        words += ["--model.pretraining.steps", str(asked.classifier_steps)]
        call("fit", [*words, "--run_dir", str(run), "--stage", "1-classifier"])
    return checkpoint


def of_row(row: str, draw: int, classifier: Path, asked: argparse.Namespace) -> list[list[float]]:
    """Return the figures of each seed of a row on one draw; what is known is not repeated."""
    names = [f"{row.replace(' ', '-')}-{asked.steps}-{seed}" for seed in range(asked.seeds)]
    places = [asked.folder / f"draw-{draw}" / f"{name}.json" for name in names]
    if all(place.is_file() for place in places):
        return [read_json(place) for place in places]
    train_images, val_images = asked.images
    data = {"root": asked.folder / "data", "seed": draw, "train": train_images, "val": val_images}
    model, module, _ = wsis.build("jtsm", "shapes", model=ROWS[row], data=data)
    module.prepare_data()
    model.backbone.load(classifier)
    images = {split: list(pooled(model.eval(), module, split)) for split in ("train", "val")}
    for seed, place in enumerate(places):
        if place.is_file():
            continue
        begin = time.perf_counter()
        model, *_ = wsis.build("jtsm", "shapes", model=ROWS[row], data=data, seed_everything=seed)
        train(model, images["train"], asked.steps)
        figures = judge(model.eval(), images["val"])
        place.write_text(json.dumps([*figures, (time.perf_counter() - begin) / 60]))
    return [read_json(place) for place in places]


@torch.no_grad()
def pooled(model: wsis.JTSM, data: wsis.Shapes, split: str) -> Iterable[Image]:
    """Yield the images of a split with their pooled proposals."""
    kept: list[Tensor] = []
    hook = model.detector.register_forward_pre_hook(lambda _, given: kept.append(given[0]))
    fields, index = {"tags", "stuff_tags"}, data.index(split)
    samples = data.samples(split, train=False, supervision=fields, segments=True)
    for number, image in enumerate(index.images):
        sample = samples.sample(number)
        panoptic = index.panoptic(image) if index.panoptic else None
        sample["truth"] = sample["truth"]._replace(panoptic=panoptic)
        model.mining(model.backbone([sample["image"]]), [sample["proposals"]])
        yield Image(sample, kept.pop())
    hook.remove()


def train(model: wsis.JTSM, images: list[Image], steps: int, batch: int = 8) -> None:
    """Train the mining branch with AdamW and the recipe's rate."""
    settings = model.optimisation
    optimiser = torch.optim.AdamW(
        model.detector.parameters(), settings.lr, weight_decay=settings.weight_decay
    )
    model.train()
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = settings.lr * rate(
            step, steps, settings.warmup, settings.decay_at
        )
        chosen = [images[i] for i in torch.randint(len(images), (batch,)).tolist()]
        boxes = [image.sample["proposals"].boxes for image in chosen]
        objectness = torch.cat([image.sample["proposals"].scores for image in chosen])
        heads = model.detector(torch.cat([image.pooled for image in chosen]), boxes, objectness)
        losses = [
            torch.stack([*model.mining_losses(head, image.sample)[0].values()]).sum()
            for head, image in zip(heads, chosen, strict=True)
        ]
        optimiser.zero_grad()
        torch.stack(losses).mean().backward()
        optimiser.step()


@torch.no_grad()
def judge(model: wsis.JTSM, images: list[Image]) -> list[float]:
    """Return the figures of FIGURES in percent."""
    classes, power = model.hparams["num_classes"], model.hparams["objectness_power"]
    metrics = InstanceAP(classes), CorLoc(classes)
    overlaps: list[Tensor] = []
    for sample, region in images:
        proposals = sample["proposals"]
        (heads,) = model.detector(region, [proposals.boxes], proposals.scores)
        scores = heads.scores()[:, :classes] * proposals.scores[:, None] ** power
        boxes, scores, labels, _ = detect(scores, proposals.boxes, model.inference.nms)
        found = Prediction(sample["image_id"], sample["size"], boxes, scores, labels, [])
        for metric in metrics:
            metric.update([found], [sample["truth"]])
        overlaps += stuff_overlaps(heads.mil[:, classes:], sample, classes)
    figures = metrics[0].compute() | metrics[1].compute()
    figures["stuff_IoU"] = torch.stack(overlaps).mean()
    return [100 * float(figures[name]) for name in FIGURES]


def stuff_overlaps(scores: Tensor, sample: Sample, classes: int) -> list[Tensor]:
    """Return the IoU of each stuff class of an image with its best proposal."""
    proposals, panoptic = sample["proposals"], sample["truth"].panoptic
    assert proposals.members is not None
    assert proposals.labels is not None
    assert panoptic is not None
    found = []
    for label in sample["target"]["stuff_tags"].nonzero().flatten().tolist():
        best = proposals.members[scores[:, label].argmax()][proposals.labels.long()]
        true = panoptic[..., 0] == classes + label
        found.append((best & true).sum() / (best | true).sum())
    return found


if __name__ == "__main__":
    main()
