"""Describe a run from its folder: method, supervision, costs, and metrics of its predictions."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import timm

from wsis import registry
from wsis.coco.records import Sources, read_records
from wsis.command_line.settings import Config, recipe
from wsis.errors import InputError
from wsis.fingerprint import digest
from wsis.inference import make_data, read_run, trained
from wsis.method import Method, describe_supervision
from wsis.proposals import proposers
from wsis.proposals.file import ProposalFile
from wsis.reports.evaluation import evaluation_index, read_metrics
from wsis.reports.settings import departures, row_key
from wsis.runs.checkpoints import checkpoint_of
from wsis.runs.record import stages
from wsis.types import Index, Record

__all__ = [
    "Entry",
    "EvaluationSet",
    "Origin",
    "check_alike",
    "check_finished",
    "describe_settings",
    "entry_of_file",
    "last_trained",
    "origin_of",
    "read_entry",
    "read_evaluation_set",
]


@dataclass(frozen=True)
class EvaluationSet:
    """The images that a run is evaluated on; runs with the same data settings share one."""

    data: Any
    split: str
    index: Index
    trained_on: int | None
    """Number of training images; None if there is no run."""
    labels: Path | None
    """File that replaces the annotations of the training set."""

    @cached_property
    def digest(self) -> str:
        """Hash of images, classes, annotations and tags, wherever they lie."""
        index = self.index
        images = [
            [i["id"], i["height"], i["width"], _bytes(index.root / i["file_name"])]
            for i in index.images
        ]
        objects = [
            [i["id"], *(_box_and_class(a) for a in index.annotations.get(i["id"], []))]
            for i in index.images
        ]
        tags = sorted(index.tags.items())
        return digest([index.name, index.categories, images, objects, tags])


def _box_and_class(annotation: Record) -> list[float]:
    return [*annotation.get("bbox", ()), annotation["category_id"]]


def _bytes(path: Path) -> int:
    """Return the size of a file: images of two data seeds may differ in pixels alone."""
    return path.stat().st_size if path.is_file() else 0


@dataclass(frozen=True)
class Entry:
    """A run, or a file of predictions."""

    folder: Path
    method: str
    supervision: str
    segments: str
    """Source of the proposals."""
    weights: str
    """Source of the initial weights."""
    backbone: str
    seed: tuple[int, int]
    """Seed of training, and of the order of images."""
    key: str
    """The same for runs that differ only in their seed."""
    config: str
    """The recipe, and the settings that differ from it."""
    departures: dict[str, Any]
    """The latter by name."""
    minutes: float
    memory: float
    """Peak, in bytes."""
    device: str
    commit: str
    metrics: dict[str, float]
    per_class: dict[str, dict[str, float]]
    """Class -> metric -> value."""
    evaluation_set: EvaluationSet
    predictions: Path
    panoptic: Path | None = None
    """Panoptic json; panoptic.json beside the predictions if None."""

    @property
    def given_boxes(self) -> bool:
        """Whether boxes were given, so that only the masks in them are evaluated."""
        return "mIoU" in self.metrics and not {"AP", "tag_mAP"} & self.metrics.keys()


def read_evaluation_set(
    config: Config, split: str, known: dict[str, EvaluationSet]
) -> EvaluationSet:
    """Read the images that a run is evaluated on.

    Args:
        config: settings of the run.
        split: "train" or "val".
        known: keeps each result for the next run with the same data settings.

    Raises:
        InputError: the data are not there, or have no classes or annotations.
    """
    section = config["data"]
    given = section.get("init_args") or {}
    shaping = {k: v for k, v in given.items() if k not in ("augment", "loading")}
    key = json.dumps([section["class_path"], shaping], sort_keys=True, default=str)
    if key not in known:
        made: Any = make_data(section)
        data = made.as_annotated()
        index: Index = data.index(split)
        if not index.categories:
            raise InputError(
                f"{index.name} in {index.root} has no classes; add categories to its annotations"
            )
        evaluation_index(data, split)
        images = len(data.index("train").images)
        known[key] = EvaluationSet(data, split, index, images, made.relabelled)
    return known[key]


def check_alike(sets: Sequence[tuple[Path, EvaluationSet]]) -> None:
    """Raise InputError unless all runs are evaluated on the same images."""
    (first, ours), *others = sets
    for folder, theirs in others:
        if theirs.digest != ours.digest:
            difference = _difference(theirs.index, ours.index)
            raise InputError(
                f"{folder} and {first} cannot be compared: {difference}; give runs on the same data"
            )


def _difference(a: Index, b: Index) -> str:
    if a.name != b.name:
        return f"one is on {a.name}, the other on {b.name}"
    if [c["name"] for c in a.categories] != [c["name"] for c in b.categories]:
        counts = f"{len(a.categories)} classes of {a.name}, the other {len(b.categories)}"
        return f"one has {counts}, or others"
    if len(a.images) != len(b.images):
        counts = f"{len(a.images)} images of {a.name}, the other on {len(b.images)}"
        return f"one is evaluated on {counts}"
    return f"they are evaluated on other images of {a.name}, such as those of another seed or limit"


def check_finished(folder: Path) -> None:
    """Raise InputError unless this is the folder of a finished run."""
    read_run(folder)
    begun = stages(folder)
    waiting = [path.name for path, stage in begun if not stage.finished]
    if not begun or waiting:
        what = f"stage {waiting[0]} is not finished" if waiting else "it has not begun"
        raise InputError(f"{folder}: {what}; finish it with python -m wsis.fit --resume {folder}")


class Origin(NamedTuple):
    """What a run has learned from."""

    supervision: str
    segments: str
    """Source of the proposals."""
    weights: str
    """Source of the initial weights, with their licence where it is known."""
    backbone: str


def origin_of(config: Config, labels: Path | None) -> Origin:
    """Return what a run has learned from.

    Args:
        config: settings of the run.
        labels: file that replaces the annotations of the training set.
    """
    given, data = (config[kind].get("init_args") or {} for kind in ("model", "data"))
    cls = registry.find("model", config["model"]["class_path"])
    backbones = _backbones(given)
    return Origin(
        _supervision(cls, given, labels),
        _segments(cls, data),
        _listed(map(_weights, backbones)),
        _listed(backbone.get("name") for backbone in backbones),
    )


def read_entry(folder: Path, results: Path, evaluation_set: EvaluationSet) -> Entry:
    """Describe a run whose predictions have been evaluated.

    Args:
        folder: of the run.
        results: folder of its predictions.json and metrics.json.
        evaluation_set: the images predicted.

    Raises:
        InputError: the metrics are of other images, or a file is damaged.
    """
    config = read_run(folder)
    done = [stage for _, stage in stages(folder)]
    metrics = read_metrics(results / "metrics.json", evaluation_set.index)
    overall = dict(metrics.overall)
    if results.name.startswith("test-val"):
        reached = [s.metrics["val/mIoU"] for s in done if "val/mIoU" in s.metrics]
        overall |= {"mIoU": reached[0]} if reached and "mIoU" not in overall else {}
    origin, changed = origin_of(config, evaluation_set.labels), departures(config)
    data = config["data"].get("init_args") or {}
    loading_seed = (data.get("loading") or {}).get("seed")
    return Entry(
        folder=folder,
        method=registry.short_name("model", config["model"]["class_path"]),
        supervision=origin.supervision,
        segments=origin.segments,
        weights=origin.weights,
        backbone=origin.backbone,
        seed=(int(config.get("seed_everything") or 0), int(loading_seed or 0)),
        key=row_key(config, origin.supervision, origin.segments, origin.weights),
        config=describe_settings(config, changed),
        departures=changed,
        minutes=sum(math.nan if stage.minutes is None else stage.minutes for stage in done),
        memory=max((stage.memory or math.nan for stage in done), default=math.nan),
        device=", ".join(dict.fromkeys(stage.device for stage in done if stage.device)),
        commit=", ".join(dict.fromkeys(stage.commit for stage in done if stage.commit)),
        metrics=overall,
        per_class=metrics.per_class,
        evaluation_set=evaluation_set,
        predictions=results / "predictions.json",
    )


def entry_of_file(predictions: Path, results: Path, evaluation_set: EvaluationSet) -> Entry:
    """Describe a file of predictions that no run here has made; `results` has its metrics.json."""
    metrics = read_metrics(results / "metrics.json", evaluation_set.index)
    return Entry(
        folder=predictions,
        method=predictions.name,
        supervision="-",
        segments="none",
        weights="-",
        backbone="-",
        seed=(0, 0),
        key="",
        config="-",
        departures={},
        minutes=math.nan,
        memory=math.nan,
        device="",
        commit="",
        metrics=metrics.overall,
        per_class=metrics.per_class,
        evaluation_set=evaluation_set,
        predictions=predictions,
    )


def describe_settings(config: Config, changed: Mapping[str, Any]) -> str:
    """Return the recipe of a run, and the settings that differ from it."""
    names = {kind: registry.short_name(kind, config[kind]["class_path"]) for kind in registry.KINDS}
    path = recipe(**names)
    used = f"{path.parent.name}/{path.name}" if path else "no recipe"
    return " ".join([used, *(f"{name}={_short(value)}" for name, value in changed.items())])


def last_trained(folder: Path) -> Path:
    """Return the checkpoint of the model that a run is evaluated with."""
    return checkpoint_of(folder, list(trained(folder))[-1])


def _supervision(cls: type[Method], given: Mapping[str, Any], labels: Path | None) -> str:
    """Return the kinds of labels that a run has learnt from."""
    if labels:
        return f"labels by {_source(labels)}"
    more = ["salient masks"] if given.get("salient_fraction") else []
    if given.get("evidence_masks"):
        more.append(f"masks by {_source(Path(given['evidence_masks']))}")
    return " + ".join([describe_supervision(cls.supervision), *more])


def _source(path: Path) -> str:
    """Return the method that wrote a file of labels, or the name of the file if it is unknown."""
    if path.is_file():
        annotations = read_records(path, Sources).get("annotations") or [{}]
        if "source" in annotations[0]:
            return str(annotations[0]["source"]).partition(",")[0]
    return path.name


def _segments(cls: type[Method], data: Mapping[str, Any]) -> str:
    given = data.get("proposals", "none")
    if not cls.needs_proposals or given == "none":
        return "none"
    if given in proposers.names():
        proposer = proposers.find(given)
        learned = proposer.supervision
        return f"{given}, {'untrained' if learned == 'none' else f'trained from {learned}'}"
    path = Path(given)
    try:
        known = ProposalFile(path).provenance if path.suffix == ".sqlite" else {}
    except InputError:  # moved since
        known = {}
    return f"{known.get('from', path.name)}, trained from {known.get('supervision', 'unknown')}"


def _weights(backbone: Mapping[str, Any]) -> str | None:
    """Return what a backbone's weights learned from, and their licence, where timm says so."""
    weights = backbone.get("weights")
    if weights != "imagenet":
        return "random" if weights == "none" else weights and Path(weights).name
    config = timm.get_pretrained_cfg(backbone["name"])
    if config is None:
        return "ImageNet"
    return f"{config.tag or 'timm'} ({config.license or 'licence unknown'})"


def _backbones(given: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the settings of a run's backbones, that of the model first, then of its parts."""
    found = []
    for part in [given, *(part for part in given.values() if isinstance(part, Mapping))]:
        backbone = part.get("backbone") or {}
        if isinstance(backbone, str):  # a method of a user's own may have no group of settings
            backbone = {"name": backbone, "weights": part.get("weights")}
        found.append(backbone)
    return found


def _listed(values: Iterable[str | None]) -> str:
    return ", ".join(dict.fromkeys(str(value) for value in values if value)) or "-"


def _short(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)
