"""Pseudo-labels of CCGR's branches as files.

bags.json holds boxes in bags for the detector, pixels.json one mask per class for the segmentation,
both as COCO annotations; peaks.json holds class, x and y of each image's peaks.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pycocotools import mask as rle
from torch import Tensor

from wsis.data.index import keep_images, write_coco
from wsis.errors import InputError
from wsis.evidence.affinity import AffinityNet, pixel_labels
from wsis.evidence.peaks import Bags, bags, bags_of_boxes, class_peaks
from wsis.files import atomic_write
from wsis.machine import bar
from wsis.nn.masks import run_lengths
from wsis.nn.views import Inference, image_views, proposals_in
from wsis.types import Index, Record, Sample, size_of

__all__ = ["Overlaps", "paint", "write_first_labels", "write_next_labels"]

Overlaps = Literal["score", "class"]


class Evidence(NamedTuple):
    """What a classifier with affinities shows of an image."""

    points: list[list[float]]
    """Class, x and y of each peak."""
    bags: Bags
    pixels: Tensor
    """(H,W) int64, class of each pixel; the number of classes for background."""


@torch.no_grad()
def write_first_labels(folder: Path, net: AffinityNet, data: Any, **settings: Any) -> None:
    """Write the first round's bags.json, pixels.json and peaks.json.

    Args:
        folder: gets the files.
        net: a classifier with affinities.
        data: the data module, with tags and proposals.
        **settings: those of `first_evidence`.

    Raises:
        InputError: no image has a bag.
    """
    index, samples = data.index("train"), data.samples("train", train=False, supervision={"tags"})
    net.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    peaks, boxes, pixels = {}, {}, {}
    for i in bar(range(len(samples)), desc="peaks and pixel labels", unit="image"):
        sample = samples.sample(i)
        number, proposals = sample["image_id"], sample["proposals"].boxes
        found = first_evidence(net, sample, **settings)
        peaks[number] = found.points
        labels = [int(label) for label, *_ in found.points]
        boxes[number] = _bag_records(found.bags, labels, proposals, index)
        pixels[number] = _pixel_records(found.pixels, index)
    _write(folder, index, peaks, boxes, pixels)


def first_evidence(
    net: AffinityNet,
    sample: Sample,
    side: int,
    bag_size: int,
    penalty: float,
    min_peak: float,
    peak_window: int,
    peak_smoothing: int,
    walk_steps: int,
    scales: tuple[float, ...],
    background_score: float,
) -> Evidence:
    """Return the peaks of an image, the bags of proposals around them, and labels of pixels.

    Args:
        net: a classifier with affinities.
        sample: an image, its tags and its proposals.
        side: short side in pixels that the image is scaled to; 0 keeps its size.
        bag_size: largest number of proposals in a bag.
        penalty: weight of a box's mean background in its rank.
        min_peak: lowest peak, as a fraction of the map's maximum.
        peak_window: side in cells of the window of which a peak is the maximum.
        peak_smoothing: side in cells of the mean filter before peaks are searched; 1 for none.
        walk_steps: steps of the random walk along affinities.
        scales: of the image, over which its maps are averaged.
        background_score: score of background in the pixel labels.
    """
    (seen,) = image_views(sample["image"], Inference((side,) if side else (), flip=False))
    image, tags = seen.image.to(net.device), sample["target"]["tags"].to(net.device)
    size, proposals = size_of(image), proposals_in(seen, sample["proposals"])
    maps = net([image])[1]
    peaks = class_peaks(
        maps, tags[None], net.backbone.stride, [size], min_peak, peak_window, peak_smoothing
    )
    walked = net.refine(image, tags, scales, steps=walk_steps)
    pixels, foreground = pixel_labels(walked, tags, net.stride, size, background_score)
    points, objectness = peaks.points.cpu(), proposals.scores
    found = bags(points, proposals.boxes, objectness, foreground.cpu(), bag_size, penalty)
    points = torch.cat([peaks.labels.cpu()[:, None], points / torch.tensor(seen.view.scale)], 1)
    whole = F.interpolate(pixels[None, None].double(), sample["size"], mode="nearest-exact")
    return Evidence(points.tolist(), found, whole[0, 0].long())


def write_next_labels(
    folder: Path, detections: Path, data: Any, size: int, overlaps: Overlaps
) -> None:
    """Write a later round's bags.json, pixels.json and peaks.json from detections.

    Args:
        folder: gets the files.
        detections: COCO json of the round before; bags lie around its boxes, their centres are the
            peaks, and the unions of its masks are the pixels of classes.
        data: the data module, with proposals.
        size: largest number of proposals in a bag.
        overlaps: class of a pixel in the masks of several classes: that of the best "score", or the
            highest "class".

    Raises:
        InputError: no image has a bag.
    """
    labelled = data.variant(detections)
    index = labelled.index("train")
    samples = labelled.samples("train", train=False, supervision={"tags", "boxes", "masks"})
    peaks, boxes, pixels = {}, {}, {}
    for i in bar(range(len(samples)), desc="bags and pixel labels", unit="image"):
        sample = samples.sample(i)
        target, number = sample["target"], sample["image_id"]
        labels, proposals = target["labels"], sample["proposals"].boxes
        of_image = bags_of_boxes(target["boxes"], proposals, size)
        boxes[number] = _bag_records(of_image, labels.tolist(), proposals, index)
        centres = (target["boxes"][:, :2] + target["boxes"][:, 2:]) / 2
        peaks[number] = torch.cat([labels[:, None], centres], 1).tolist()
        scores = torch.tensor([a.get("score", 1.0) for a in index.annotations[number]])
        rank = scores if overlaps == "score" else labels
        painted = paint(target["masks"], labels, rank, len(index.categories))
        pixels[number] = _pixel_records(painted, index)
    _write(folder, index, peaks, boxes, pixels)


def paint(masks: Tensor, labels: Tensor, rank: Tensor, background: int) -> Tensor:
    """Return the class (H,W) of each pixel: that of the mask of highest rank, or `background`.

    Args:
        masks: (M,H,W) bool.
        labels: (M,) int64, class of each mask.
        rank: (M,); of equal ranks the last counts.
        background: class of pixels in no mask.
    """
    painted = torch.full(masks.shape[1:], background)
    for k in rank.argsort(stable=True).tolist():
        painted[masks[k]] = labels[k]
    return painted


def _write(
    folder: Path,
    index: Index,
    peaks: dict[int, list[list[float]]],
    boxes: dict[int, list[Record]],
    pixels: dict[int, list[Record]],
) -> None:
    """Write peaks.json of all images, and bags.json and pixels.json of those that have a bag."""
    with atomic_write(folder / "peaks.json") as scratch:
        scratch.write_text(json.dumps(peaks))
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


def _pixel_records(pixels: Tensor, index: Index) -> list[Record]:
    """Return an annotation with the mask of each class that some pixel (H,W) has."""
    present = [label for label in torch.unique(pixels).tolist() if label < len(index.categories)]
    encoded = {label: run_lengths(pixels == label) for label in present}
    return [
        {
            "bbox": rle.toBbox(mask).tolist(),
            "category_id": index.categories[label]["id"],
            "segmentation": mask,
        }
        for label, mask in encoded.items()
    ]
