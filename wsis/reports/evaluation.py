"""Evaluate predictions against the ground truth of a data set; write and read metrics.json."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torchmetrics import Metric

from wsis.data.samples import is_boxed, truth_of
from wsis.errors import InputError
from wsis.files import atomic_write, read_json
from wsis.images.panoptic import PanopticMaps
from wsis.inference import load, store_predictions
from wsis.metrics import VOCAP, MaskIoU, PanopticQuality
from wsis.metrics.instances import detection_metrics
from wsis.metrics.panoptic_results import PANOPTIC, read_panoptic
from wsis.metrics.results import read_results
from wsis.metrics.tags import DetectionTags
from wsis.runs.checkpoints import Which
from wsis.runs.classes import for_classes_of
from wsis.types import GroundTruth, Index, Prediction, class_of

__all__ = [
    "PANOPTIC_METRICS",
    "Metrics",
    "evaluate",
    "evaluate_file",
    "evaluate_run",
    "evaluate_tags",
    "evaluation_index",
    "ground_truth",
    "has_truth",
    "image_tags",
    "read_metrics",
    "results_folder",
]

PANOPTIC_METRICS = ("PQ", "SQ", "RQ")


class Metrics(NamedTuple):
    """Metrics from 0 to 1; nan where there is no ground truth to compare with."""

    overall: dict[str, float]
    per_class: dict[str, dict[str, float]]
    """Class name -> metric -> value."""


def results_folder(
    run: Path, split: str, stage: str | None = None, checkpoint: Which = "last"
) -> Path:
    """Return the folder of a run's results: RUN/test-SPLIT, followed by -STAGE and by -best."""
    best = "best" if checkpoint == "best" else None
    return run / "-".join(filter(None, ("test", split, stage, best)))


def evaluation_index(data: Any, split: str) -> Index:
    """Return the index of a split.

    Raises:
        InputError: its images have neither boxes, masks nor tags.
    """
    index: Index = data.index(split)
    if not has_truth(index) and not any(index.tags.values()):
        raise InputError(
            f"{index.name} has no boxes, masks or tags in its {split} split to evaluate with; "
            "annotate some images"
        )
    return index


def has_truth(index: Index) -> bool:
    """Return whether images have boxes or masks of all objects; otherwise their tags are known."""
    return any(index.annotations.values()) and is_boxed(index)


def image_tags(index: Index) -> list[list[int]]:
    """Return the classes of each image by its tags."""
    return [list(index.tags.get(image["id"], ())) for image in index.images]


def ground_truth(index: Index) -> list[GroundTruth]:
    """Return the annotations of each image for metrics."""
    classes = class_of(index.categories)
    return [
        truth_of(index.annotations.get(i["id"], []), classes, (i["height"], i["width"]))
        for i in index.images
    ]


def evaluate_run(
    run: Path,
    data: Any,
    split: str = "val",
    stage: str | None = None,
    folder: Path | None = None,
    panoptic: Path | None = None,
    accelerator: str = "auto",
    devices: int = 1,
    checkpoint: Which = "last",
) -> Metrics | None:
    """Predict a split with a trained run and write predictions.json and metrics.json.

    Where the data have some of the run's classes, or the same in another order, they are matched by
    name, and detections of other classes are left out.

    Args:
        run: folder of the run.
        data: module with the annotations to compare with.
        split: "train" or "val".
        stage: trained stage; the last if None.
        folder: to write to; `results_folder` if None.
        panoptic: panoptic json to evaluate in place of the predicted one.
        accelerator: as Lightning calls it.
        devices: how many.
        checkpoint: "last" or "best" of the stage.

    Returns:
        The metrics; None on all ranks but the first.

    Raises:
        InputError: nothing to compare with, no boxes for a model that needs them, or classes that
            the run has not learnt.
    """
    index = evaluation_index(data, split)
    model = load(run, stage, checkpoint).model
    if model.needs_boxes and not has_truth(index):
        raise InputError(
            f"{type(model).__name__} of {run} segments given boxes, and {index.name} has none in "
            f"its {split} split; annotate some images"
        )
    place = folder or results_folder(run, split, stage, checkpoint)
    judged = for_classes_of(model, data)
    file = store_predictions(judged, data, split, place, accelerator, devices)
    if file is None:
        return None
    return evaluate_file(file, data, split, place, panoptic, model.needs_boxes, run)


def evaluate_file(
    file: Path,
    data: Any,
    split: str = "val",
    folder: Path | None = None,
    panoptic: Path | None = None,
    given_boxes: bool = False,
    run: Path | None = None,
) -> Metrics:
    """Evaluate a COCO results file and write metrics.json; by tags where there are tags alone.

    Args:
        file: the results.
        data: module with the annotations to compare with.
        split: "train" or "val".
        folder: to write to; that of `file` if None.
        panoptic: panoptic json; panoptic.json beside `file`, where there is one, if None.
        given_boxes: whether the boxes were given, so that only the masks in them are evaluated.
        run: the run that made the results.

    Raises:
        InputError: a file without predictions that no run made, or results of other data.
    """
    index = evaluation_index(data, split)
    predictions = read_results(file, index.images, index.categories)
    if not any(len(prediction.labels) for prediction in predictions):
        if run is None:
            raise InputError(f"{file} holds no predictions; write it again, or name another file")
        print("this model finds nothing in these images")
    if has_truth(index):
        names = [category["name"] for category in index.categories]
        metrics = evaluate(predictions, ground_truth(index), names, given_boxes)
    else:
        print("no boxes or masks to compare with: images are ranked by tags")
        metrics = evaluate_tags(predictions, index)
    maps = _panoptic_maps(panoptic, file.with_name(PANOPTIC), index)
    if maps:
        metrics = _with_panoptic(metrics, maps, index, predictions)
    facts = {"predictions": str(run or file), "data": index.name, "split": split}
    _write_metrics(folder or file.parent, metrics, {**facts, "images": len(predictions)})
    return metrics


def evaluate(
    predictions: Sequence[Prediction],
    truths: Sequence[GroundTruth],
    names: Sequence[str],
    given_boxes: bool = False,
) -> Metrics:
    """Compute all metrics of predictions; only those of boxes if a prediction has no masks.

    Args:
        predictions: one per image.
        truths: of the same images.
        names: class names.
        given_boxes: whether the boxes were given, so that only the masks in them are evaluated.
    """
    classes = len(names)
    if given_boxes:
        metrics: list[Metric] = [MaskIoU(classes)]
    else:
        metrics = detection_metrics(classes)
        metrics.append(VOCAP((0.5,), "11", "mask", classes))
    values: dict[str, Any] = {}
    for metric in metrics:
        metric.update(list(predictions), list(truths))
        values |= metric.compute()
    return _metrics(values, names)


def evaluate_tags(predictions: Sequence[Prediction], index: Index) -> Metrics:
    """Compute how well detections tell which images hold a class: `tag_mAP`, `tag_AP`.

    Args:
        predictions: one per image of the index.
        index: the images with their tags.
    """
    tags = torch.zeros(len(index.images), len(index.categories))
    for row, known in zip(tags, image_tags(index), strict=True):
        row[known] = 1
    metric = DetectionTags()
    metric.update(predictions, list(tags))
    return _metrics(metric.compute(), [category["name"] for category in index.categories])


def _metrics(values: Mapping[str, Any], names: Sequence[str]) -> Metrics:
    overall, columns = _split(values)
    per_class = {
        name: {key: column[c] for key, column in columns.items()} for c, name in enumerate(names)
    }
    return Metrics(overall, per_class)


def _split(values: Mapping[str, Any]) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Return the metrics over all classes, and the columns of metrics per class."""
    overall = {name: float(value) for name, value in values.items() if value.ndim == 0}
    columns = {
        name.removeprefix("per_class/"): value.tolist()
        for name, value in values.items()
        if value.ndim
    }
    return overall, columns


def _panoptic_maps(given: Path | None, beside: Path, index: Index) -> PanopticMaps | None:
    """Return the predicted panoptic maps; None if there are none, or no ground truth for them."""
    if given is None and not beside.is_file():
        return None
    if index.panoptic is not None:
        return read_panoptic(given or beside, index.images, index.categories, index.stuff)
    lack = f"{index.name} as read here has no panoptic annotations"
    if given:
        raise InputError(f"{lack} to evaluate {given} with; for COCO set --data.panoptic true")
    print(f"{beside} is not evaluated: {lack}")
    return None


def _with_panoptic(
    metrics: Metrics, maps: PanopticMaps, index: Index, predictions: Sequence[Prediction]
) -> Metrics:
    """Add panoptic quality, image by image: the maps of a data set would not fit in memory."""
    metric = PanopticQuality(len(index.categories), len(index.stuff))
    for image, prediction, truth in zip(
        index.images, predictions, ground_truth(index), strict=True
    ):
        true = index.panoptic(image) if index.panoptic else None
        predicted = None if true is None else maps(image)
        if true is not None and predicted is None:
            raise InputError(
                f"{maps.folder}.json has no map of image {image['id']}; "
                "predict all images of the split"
            )
        metric.update([prediction._replace(panoptic=predicted)], [truth._replace(panoptic=true)])
    overall, columns = _split(metric.compute())
    per_class = {name: dict(known) for name, known in metrics.per_class.items()}
    for c, category in enumerate([*index.categories, *index.stuff]):
        known = per_class.setdefault(category["name"], {})
        known |= {name: columns[name][c] for name in PANOPTIC_METRICS}
    return Metrics(metrics.overall | overall, per_class)


def _write_metrics(folder: Path, metrics: Metrics, facts: Mapping[str, Any]) -> None:
    content = {
        **facts,
        "metrics": _without_nan(metrics.overall),
        "per_class": {name: _without_nan(values) for name, values in metrics.per_class.items()},
    }
    with atomic_write(folder / "metrics.json") as scratch:
        scratch.write_text(json.dumps(content, indent=1))


def _without_nan(values: Mapping[str, float]) -> dict[str, float | None]:
    """Replace nan, which json does not know, by None."""
    return {name: None if math.isnan(value) else value for name, value in values.items()}


def read_metrics(path: Path, index: Index) -> Metrics:
    """Read metrics.json.

    Raises:
        InputError: the file is damaged, or was written for other images.
    """
    content = read_json(path)
    needed = {"metrics", "per_class", "images", "data"}
    if not isinstance(content, dict) or not needed <= content.keys():
        raise InputError(f"{path} is not what wsis.test writes; delete its folder to evaluate anew")
    if (content["data"], content["images"]) != (index.name, len(index.images)):
        theirs = f"{content['images']} images of {content['data']}"
        ours = f"{len(index.images)} of {index.name}"
        raise InputError(
            f"{path} is of {theirs}, the run's data has {ours}; delete its folder to evaluate anew"
        )
    per_class = {name: _with_nan(values) for name, values in content["per_class"].items()}
    return Metrics(_with_nan(content["metrics"]), per_class)


def _with_nan(values: Mapping[str, float | None]) -> dict[str, float]:
    return {name: math.nan if value is None else float(value) for name, value in values.items()}
