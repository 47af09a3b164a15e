"""Pseudo-labels of CCGR's branches as COCO files.

bags.json holds boxes in bags for the detector, pixels.json one mask per class for the segmentation.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pycocotools import mask as rle
from torch import Tensor

from wsis.data.index import keep_images, write_coco
from wsis.errors import InputError
from wsis.evidence.affinity import AffinityNet, pixel_labels
from wsis.evidence.peaks import Bags, bags, bags_of_boxes, class_peaks
from wsis.files import atomic_write
from wsis.machine import bar
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
    """Write the first round's bags.json, pixels.json and peaks.json.

    Args:
        folder: gets the files.
        net: a classifier with affinities.
        data: the data module, with tags and proposals.
        bag_size: largest number of proposals in a bag.
        penalty: weight of a box's mean background in its rank.
        min_peak: lowest peak, as a fraction of the map's maximum.
        peak_window: side in cells of the window of which a peak is the maximum.
        peak_smoothing: side in cells of the mean filter before peaks are searched; 1 for none.
        walk_steps: steps of the random walk along affinities.
        scales: of the image, over which its maps are averaged.
        background_score: score of background in the pixel labels.

    Raises:
        InputError: no image has a bag.
    """
    index, samples = data.index("train"), data.samples("train", train=False, supervision={"tags"})
    net.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    points, boxes, pixels = {}, {}, {}
    for i in bar(range(len(samples)), desc="peaks and pixel labels", unit="image"):
        sample = samples.sample(i)
        number, size, proposals = sample["image_id"], sample["size"], sample["proposals"]
        image, tags = sample["image"].to(net.device), sample["target"]["tags"].to(net.device)
        maps, cells = net([image])[1], net.backbone.stride
        peaks = class_peaks(maps, tags[None], cells, [size], min_peak, peak_window, peak_smoothing)
        walked = net.refine(image, tags, scales, steps=walk_steps)
        labels, foreground = pixel_labels(walked, tags, net.stride, size, background_score)
        of_image = bags(
            peaks.points.cpu(),
            proposals.boxes,
            proposals.scores,
            foreground.cpu(),
            bag_size,
            penalty,
        )
        points[number] = torch.cat([peaks.labels[:, None], peaks.points], 1).tolist()
        boxes[number] = _bag_records(of_image, peaks.labels.tolist(), proposals.boxes, index)
        present = [label for label in torch.unique(labels).tolist() if label < len(tags)]
        pixels[number] = _pixel_records({label: labels == label for label in present}, index)
    with atomic_write(folder / "peaks.json") as scratch:
        scratch.write_text(json.dumps(points))
    _write(folder, index, boxes, pixels)


def write_next_labels(folder: Path, detections: Path, data: Any, size: int) -> None:
    """Write a later round's bags.json and pixels.json from the detections of the round before.

    Args:
        folder: gets the files.
        detections: COCO json; bags lie around its boxes, and the unions of its masks are the
            pixels of classes.
        data: the data module, with proposals.
        size: largest number of proposals in a bag.

    Raises:
        InputError: no image has a bag.
    """
    labelled = data.variant(detections)
    index = labelled.index("train")
    samples = labelled.samples("train", train=False, supervision={"tags", "boxes", "masks"})
    boxes, pixels = {}, {}
    for i in bar(range(len(samples)), desc="bags and pixel labels", unit="image"):
        sample = samples.sample(i)
        target, proposals = sample["target"], sample["proposals"].boxes
        labels, number = target["labels"].tolist(), sample["image_id"]
        of_image = bags_of_boxes(target["boxes"], proposals, size)
        boxes[number] = _bag_records(of_image, labels, proposals, index)
        unions = {}
        for label in sorted({*labels}):
            unions[label] = target["masks"][target["labels"] == label].any(0)
        pixels[number] = _pixel_records(unions, index)
    _write(folder, index, boxes, pixels)


def _write(
    folder: Path, index: Index, boxes: dict[int, list[Record]], pixels: dict[int, list[Record]]
) -> None:
    """Write bags.json and pixels.json of the images that have a bag."""
    kept = keep_images(index, {image for image, records in boxes.items() if records})
    if not kept.images:
        raise InputError(
            "no image has a peak with a proposal around it: the classifier has learnt nothing; "
            "train it longer"
        )
    write_coco(folder / "bags.json", kept._replace(annotations=boxes))
    write_coco(folder / "pixels.json", kept._replace(annotations=pixels))


def _bag_records(
    found: Bags, labels: Sequence[int], proposals: Tensor, index: Index
) -> list[Record]:
    """Return an annotation for each box of each bag; `bag` is the bag's number."""
    records = []
    rows = zip(found.proposals, found.valid, labels, strict=True)
    for bag, (positions, valid, label) in enumerate(rows):
        category = index.categories[label]["id"]
        for x1, y1, x2, y2 in proposals[positions[valid]].tolist():
            bbox = [x1, y1, x2 - x1, y2 - y1]
            records.append({"bbox": bbox, "category_id": category, "bag": bag})
    return records


def _pixel_records(masks: dict[int, Tensor], index: Index) -> list[Record]:
    """Return an annotation for each class's mask (H,W) that is not empty."""
    encoded = {label: run_lengths(mask) for label, mask in masks.items() if mask.any()}
    return [
        {
            "bbox": rle.toBbox(mask).tolist(),
            "category_id": index.categories[label]["id"],
            "segmentation": mask,
        }
        for label, mask in encoded.items()
    ]
