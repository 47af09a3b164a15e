"""What CCGR's branches learn from, as COCO files: boxes in bags (bags.json), a mask for each class (pixels.json)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pycocotools import mask as rle
from torch import Tensor
from tqdm import tqdm

from wsis.data.index import keep_images, write_coco
from wsis.errors import InputError
from wsis.evidence.affinity import AffinityNet, pixel_labels
from wsis.evidence.peaks import Bags, bags, bags_of_boxes, class_peaks
from wsis.files import whole
from wsis.nn.masks import run_lengths
from wsis.types import Index, Record

__all__ = ["write_first_labels", "write_next_labels"]


@torch.no_grad()
def write_first_labels(
    folder: Path,
    net: AffinityNet,
    data: Any,
    bag_size: int,
    penalty: float,
    min_peak: float,
    peak_window: int,
    peak_smoothing: int,
    walk_steps: int,
    scales: tuple[float, ...],
    background_score: float,
) -> None:
    """Write the first round's bags.json, pixels.json and peaks.json, from a classifier with affinities."""
    index, samples = data.index("train"), data.samples("train", train=False, supervision={"tags"})
    net.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    peaks, boxes, pixels = {}, {}, {}
    for i in tqdm(range(len(samples)), desc="peaks and pixel labels", unit="image"):
        sample = samples.sample(i)
        image, tags, number = (
            sample["image"].to(net.device),
            sample["target"]["tags"].to(net.device),
            sample["image_id"],
        )
        maps, cells = net([image])[1], net.backbone.stride
        found = class_peaks(
            maps, tags[None], cells, [sample["size"]], min_peak, peak_window, peak_smoothing
        )
        carried = net.refine(image, tags, scales, steps=walk_steps)
        labels, foreground = pixel_labels(
            carried, tags, net.stride, sample["size"], background_score
        )
        proposals = sample["proposals"]
        own = bags(
            found.points.cpu(),
            proposals.boxes,
            proposals.scores,
            foreground.cpu(),
            bag_size,
            penalty,
        )
        peaks[number] = torch.cat([found.labels[:, None], found.points], 1).tolist()
        boxes[number] = _bag_records(own, found.labels.tolist(), proposals.boxes, index)
        shown = [label for label in torch.unique(labels).tolist() if label < len(tags)]
        pixels[number] = _pixel_records({label: labels == label for label in shown}, index)
    with whole(folder / "peaks.json") as scratch:
        scratch.write_text(json.dumps(peaks))
    _write(folder, index, boxes, pixels)


def write_next_labels(folder: Path, detections: Path, data: Any, size: int) -> None:
    """Write bags.json around detections in a COCO json, and pixels.json of the unions of their masks."""
    labelled = data.variant(detections)
    index, samples = (
        labelled.index("train"),
        labelled.samples("train", train=False, supervision={"tags", "boxes", "masks"}),
    )
    boxes, pixels = {}, {}
    for i in tqdm(range(len(samples)), desc="bags and pixel labels", unit="image"):
        sample = samples.sample(i)
        target, proposals = sample["target"], sample["proposals"]
        labels = target["labels"].tolist()
        boxes[sample["image_id"]] = _bag_records(
            bags_of_boxes(target["boxes"], proposals.boxes, size), labels, proposals.boxes, index
        )
        unions = {
            label: target["masks"][target["labels"] == label].any(0) for label in sorted({*labels})
        }
        pixels[sample["image_id"]] = _pixel_records(unions, index)
    _write(folder, index, boxes, pixels)


def _write(
    folder: Path, index: Index, boxes: dict[int, list[Record]], pixels: dict[int, list[Record]]
) -> None:
    """Write bags.json and pixels.json, of the images that have a bag."""
    kept = keep_images(index, {image for image, own in boxes.items() if own})
    if not kept.images:
        raise InputError(
            "no image has a peak with a proposal around it: the classifier has learnt nothing; train it longer"
        )
    for name, found in (("bags", boxes), ("pixels", pixels)):
        write_coco(folder / f"{name}.json", kept._replace(annotations=found))


def _bag_records(
    found: Bags, labels: Sequence[int], proposals: Tensor, index: Index
) -> list[Record]:
    """An annotation for each box of each bag that has any; `bag` is the bag's number."""
    numbers = [category["id"] for category in index.categories]
    records = []
    for bag, (row, valid, label) in enumerate(
        zip(found.proposals, found.valid, labels, strict=True)
    ):
        for x1, y1, x2, y2 in proposals[row[valid]].tolist():
            records.append(
                {"bbox": [x1, y1, x2 - x1, y2 - y1], "category_id": numbers[label], "bag": bag}
            )
    return records


def _pixel_records(masks: dict[int, Tensor], index: Index) -> list[Record]:
    """An annotation for each class's mask (H,W) that is not empty."""
    encoded = {label: run_lengths(mask) for label, mask in masks.items() if mask.any()}
    return [
        {
            "bbox": rle.toBbox(mask).tolist(),
            "category_id": index.categories[label]["id"],
            "segmentation": mask,
        }
        for label, mask in encoded.items()
    ]
