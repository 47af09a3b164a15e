"""Boxes or segments: what masks the boxes of a run would have with other segments of the same boxes.

python benchmarks/chosen_segments.py RUN CAM_RUN [--overlap 0.7] [--best 5]

RUN was tested (`wsis.test`), CAM_RUN is one of `--model cam` on the same data. For the best detections of each validation
image, the mask is replaced by a segment whose box overlaps the detection's: the one that fits CAM's map of the class best, or
the one that fits a true object best, which is the limit of these boxes. One table of mask AP in percent.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools import mask as rle
from torchvision.ops import box_iou

import wsis
from wsis.metrics import InstanceAP
from wsis.metrics.results import read_results
from wsis.models.cam import CAM, overlaps
from wsis.nn.masks import segment_masks
from wsis.reports.table import percent, print_table
from wsis.types import RLE, Prediction, Proposals, Sample

FIGURES = ("AP25", "AP50", "AP75")
Floats = NDArray[np.float64]
Worth = Callable[[int], Floats]
"""The worth (P,) of segments as masks of a class."""


@torch.no_grad()
def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("run", type=Path)
    arguments.add_argument("cam", type=Path)
    arguments.add_argument("--overlap", type=float, default=0.7, help="least IoU of the boxes")
    arguments.add_argument("--best", type=int, default=5, help="detections of an image")
    asked = arguments.parse_args()
    cam, data, *_ = wsis.load(asked.cam)
    samples, index = data.samples("val", train=False, segments=True), data.index("val")
    results = asked.run / "test-val" / "predictions.json"
    predictions = {p.image_id: p for p in read_results(results, index.images, index.categories)}
    metrics = {name: InstanceAP(len(index.categories)) for name in ("own", "of CAM's map", "limit")}
    for place in range(len(samples)):
        (sample,) = samples[[(place, 0)]]
        found = predictions[sample["image_id"]]
        found = found.rows(found.scores.argsort(descending=True)[: asked.best])
        masks = [found.masks]
        for worth in (by_map(cam, sample), by_truth(sample)):
            masks.append(best_segments(found, sample["proposals"], worth, asked.overlap))
        for metric, each in zip(metrics.values(), masks, strict=True):
            metric.update([found._replace(masks=each)], [sample["truth"]])
    lines = [["masks", *FIGURES]]
    for name, metric in metrics.items():
        figures = metric.compute()
        lines.append([name, *(percent(float(figures[key])) for key in FIGURES)])
    print_table(lines)


def best_segments(
    found: Prediction, proposals: Proposals, worth: Worth, overlap: float
) -> list[RLE]:
    """Return the segment of the most worth among those whose boxes overlap each detection's."""
    chosen, near = [], box_iou(found.boxes, proposals.boxes).numpy()
    for row, label in zip(near, found.labels.tolist(), strict=True):
        candidates = row >= min(overlap, row.max())
        chosen.append(int(np.where(candidates, worth(label), -1).argmax()))
    return segment_masks(proposals, torch.tensor(chosen, dtype=torch.int64))


def by_map(cam: CAM, sample: Sample) -> Worth:
    """Return the IoU of segments with the region of CAM's map of a class above its threshold."""
    maps = cam.maps(sample)[1].numpy()

    @cache
    def worth(label: int) -> Floats:
        region = maps[label] >= cam.hparams["threshold"] * maps[label].max()
        return overlaps([region], sample["proposals"])[0]

    return worth


def by_truth(sample: Sample) -> Worth:
    """Return the IoU of segments with the best true object of a class."""
    truth, proposals = sample["truth"], sample["proposals"]
    objects = [rle.decode(mask).astype(bool) for mask in truth.masks]

    @cache
    def worth(label: int) -> Floats:
        own = (truth.labels == label).tolist()
        of_class = [region for region, is_own in zip(objects, own, strict=True) if is_own]
        nothing = np.zeros(len(proposals.boxes))
        return np.max([nothing, *overlaps(of_class, proposals)], axis=0)

    return worth


if __name__ == "__main__":
    main()
