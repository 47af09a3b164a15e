"""The panels of a page: truth, proposals, pseudo-labels, and the predictions of each method."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as rle_masks
from torch import Tensor

from wsis.data.labels import relabel
from wsis.errors import InputError
from wsis.inference import UNKNOWN_THRESHOLD, labelling_stage, load, store_labels
from wsis.metrics.errors import Breakdown, break_down
from wsis.metrics.panoptic_results import PANOPTIC, read_panoptic
from wsis.metrics.results import read_results
from wsis.proposals.file import ProposalFile
from wsis.reports.evaluation import ground_truth, has_truth, image_tags
from wsis.reports.gallery import Objects, Source, rank_images
from wsis.reports.runs import Entry
from wsis.reports.table import Row
from wsis.runs.record import stages
from wsis.types import GroundTruth, Index, Prediction, Record

__all__ = ["Panels", "make_panels", "source_of_method", "source_of_truth"]

MIN_SHOWN, MAX_SHOWN = 6, 25
"""Detections kept of an image: the first many at least, and confident ones up to the second."""
MAX_PROPOSALS = 12


class Panels(NamedTuple):
    """The panels beside each image, and the images to show."""

    errors: list[Breakdown | None]
    """Of each row; None for one that was given boxes."""
    sources: list[Source]
    """Truth first, where it is known."""
    ranked: dict[int, tuple[float, float]]
    """The images to show, from `rank_images`."""


def make_panels(rows: Sequence[Row], max_images: int, label_on: str | None = None) -> Panels:
    """Collect what a page shows beside its images.

    Args:
        rows: of the table.
        max_images: how many images to show.
        label_on: accelerator to make missing pseudo-labels on; None shows only those that exist.
    """
    shown = rows[0].first.evaluation_set
    index, truths, known = shown.index, ground_truth(shown.index), has_truth(shown.index)
    truth = [source_of_truth(truths)] if known else []
    errors: list[Breakdown | None] = []
    methods: list[Source] = []
    for number, row in enumerate(rows):  # one by one: a run's predictions may be a gigabyte
        predictions = read_results(row.first.predictions, index.images, index.categories)
        found = None
        if known and not row.first.given_boxes:
            found = break_down(predictions, truths, len(index.categories))
        errors.append(found)
        threshold = _threshold(row.first, found)
        methods.append(source_of_method(row.name, number, predictions, found, threshold))
    compared = [*truth, *methods]
    tags = None if known else image_tags(index)
    ranked = rank_images(compared, len(index.images), max_images, tags)
    chosen = list(ranked)
    before = _panoptic_truth(rows, index, chosen) + _proposals(rows, chosen)
    before += _pseudo_labels(rows, chosen, label_on)
    after = _panoptic_predictions(rows, index, chosen)
    return Panels(errors, [*truth, *before, *methods, *after] if chosen else compared, ranked)


def _threshold(entry: Entry, errors: Breakdown | None) -> float:
    """Return the score of best F1; all detections are shown of a method that was given boxes."""
    if entry.given_boxes:
        return -math.inf
    score = entry.metrics.get("F1_threshold", math.nan) if errors is None else errors.sure
    return score if math.isfinite(score) else UNKNOWN_THRESHOLD


def source_of_truth(truths: Sequence[GroundTruth]) -> Source:
    """Return the panel of the truth of all images."""
    return Source("truth", "truth", -1, [objects_of_truth(truth) for truth in truths])


def source_of_method(
    name: str,
    number: int,
    predictions: Sequence[Prediction],
    errors: Breakdown | None,
    threshold: float,
) -> Source:
    """Return the panel of a method's predictions of all images.

    Args:
        name: of the method.
        number: its row.
        predictions: of all images, best first.
        errors: of the predictions, if they are known.
        threshold: score from which on a detection is confident.
    """
    kinds: Sequence[NDArray[Any] | None] = [None] * len(predictions)
    if errors is not None:
        kinds = errors.kinds
    pairs = zip(predictions, kinds, strict=True)
    return Source(
        name, "method", number, [objects_of_prediction(p, k, threshold) for p, k in pairs]
    )


def _proposals(rows: Sequence[Row], chosen: Sequence[int]) -> list[Source]:
    using = next((row.first for row in rows if row.first.segments != "none"), None)
    if using is None or not chosen:
        return []
    shown = using.evaluation_set
    file = shown.data.variant().proposal_file(shown.split)
    if file is None:
        return []
    objects = {i: objects_of_proposals(file, shown.index.images[i]) for i in chosen}
    return [Source("proposals", "proposals", -1, objects)]


def _pseudo_labels(
    rows: Sequence[Row], chosen: Sequence[int], label_on: str | None
) -> list[Source]:
    """Show the pseudo-labels of each method that makes some for a later stage."""
    sources = []
    for number, row in enumerate(rows):
        labels = _label_file(row.first, label_on) if chosen else None
        if labels is None:
            continue
        try:
            index = relabel(row.first.evaluation_set.index, labels)
        except InputError:  # the run was trained on other images than these
            continue
        truths = ground_truth(index._replace(images=[index.images[i] for i in chosen]))
        objects = dict(zip(chosen, map(objects_of_truth, truths), strict=True))
        sources.append(Source(f"pseudo-labels of {row.name}", "labels", number, objects))
    return sources


def _label_file(entry: Entry, label_on: str | None) -> Path | None:
    """Return a method's pseudo-labels: those it learnt from, or those made later for others."""
    shown, run = entry.evaluation_set, entry.folder
    paths = [folder / "labels.json" for folder, _ in stages(run)]
    learnt = [path for path in paths if path.is_file()]
    if shown.split == "train":
        given = shown.labels
        return learnt[-1] if learnt else given if given and given.is_file() else None
    if not learnt:
        return None
    file = entry.predictions.with_name("labels.json")
    fresh = file.is_file() and file.stat().st_mtime >= learnt[-1].stat().st_mtime
    if not fresh and label_on is not None:
        print(f"{run} has no pseudo-labels of {shown.split} images yet, making them now")
        model, data, *_ = load(run, labelling_stage(run))
        store_labels(model, data, shown.split, file, run, accelerator=label_on)
        fresh = True
    return file if fresh else None


def _panoptic_truth(rows: Sequence[Row], index: Index, chosen: Sequence[int]) -> list[Source]:
    if index.panoptic is None or not any("PQ" in row.first.metrics for row in rows):
        return []
    return [_panoptic("panoptic truth", -1, index, chosen, index.panoptic)]


def _panoptic_predictions(rows: Sequence[Row], index: Index, chosen: Sequence[int]) -> list[Source]:
    sources = []
    for number, row in enumerate(rows):
        path = row.first.panoptic or row.first.predictions.with_name(PANOPTIC)
        if "PQ" in row.first.metrics and path.is_file():
            maps = read_panoptic(path, index.images, index.categories, index.stuff)
            sources.append(_panoptic(f"panoptic of {row.name}", number, index, chosen, maps))
    return sources


def _panoptic(
    name: str,
    row: int,
    index: Index,
    chosen: Sequence[int],
    read: Callable[[Record], Tensor | None],
) -> Source:
    objects = {i: objects_of_map(read(index.images[i])) for i in chosen}
    return Source(name, "panoptic", row, objects)


def objects_of_truth(truth: GroundTruth) -> Objects:
    """Return the objects of an image, crowds too."""
    count = len(truth.labels)
    labels, boxes, unknown = truth.labels.tolist(), truth.boxes.tolist(), [-1] * count
    return Objects(labels, [1.0] * count, unknown, count, truth.masks, boxes)


def objects_of_prediction(
    prediction: Prediction, kinds: NDArray[Any] | None, threshold: float
) -> Objects:
    """Return the best detections of an image; a score of `threshold` or more is confident."""
    confident = min(MAX_SHOWN, int((prediction.scores >= threshold).sum()))
    count = max(confident, min(MIN_SHOWN, len(prediction.scores)))
    known = [-1] * count if kinds is None else kinds[:count].tolist()
    labels, scores = prediction.labels[:count].tolist(), prediction.scores[:count].tolist()
    boxes = prediction.boxes[:count].tolist()
    return Objects(labels, scores, known, confident, prediction.masks[:count], boxes)


def objects_of_proposals(file: ProposalFile, image: Record) -> Objects:
    """Return the best proposals of an image; none if the file does not have the image."""
    size = image["height"], image["width"]
    try:
        read = file.read(image["file_name"], size, True, MAX_PROPOSALS)
    except InputError:  # a file of boxes has no segments
        try:
            read = file.read(image["file_name"], size, False, MAX_PROPOSALS)
        except InputError:
            return Objects([], [], [], 0, [], [])
    boxes, scores, labels, members = read
    count, masks = len(boxes), []
    if labels is not None and members is not None and count:
        nowhere = np.zeros((count, 1), bool)  # read for label -1
        lookup = np.concatenate([members.numpy(), nowhere], 1)
        inside = lookup[:, labels.numpy()].transpose(1, 2, 0)
        masks = rle_masks.encode(np.asfortranarray(inside, np.uint8))
    return Objects([-1] * count, scores.tolist(), [-1] * count, count, masks, boxes.tolist())


def objects_of_map(panoptic: Tensor | None) -> Objects:
    """Return the segments of a panoptic map (H,W,2), things and stuff; none if there is no map."""
    if panoptic is None:
        return Objects([], [], [], 0, [], [])
    label, instance = np.moveaxis(panoptic.cpu().numpy().astype(np.int64), 2, 0)
    keys = np.where(label < 0, -1, label << 32 | instance)
    labels, masks = [], []
    for key in np.unique(keys[keys >= 0]).tolist():
        labels.append(key >> 32)
        masks.append(rle_masks.encode(np.asfortranarray(keys == key, np.uint8)))
    count = len(labels)
    return Objects(labels, [1.0] * count, [-1] * count, count, masks, [])
