"""What a run's folder says of itself: method, what it learnt from, what it cost, and how good its predictions are."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wsis import registry
from wsis.command_line.settings import Config, recipe
from wsis.errors import InputError
from wsis.files import read_json
from wsis.inference import make_data, read_run, trained
from wsis.method import Method, describe_supervision
from wsis.proposals import proposers
from wsis.proposals.file import ProposalFile
from wsis.reports.settings import departures, row_key
from wsis.runs.record import stages
from wsis.types import Index

__all__ = ["Entry", "Judged", "check_alike", "read_entry", "read_judged"]


@dataclass(frozen=True)
class Judged:
    """The images that a run is judged on; runs with the same settings of data share one."""

    data: Any
    index: Index
    digest: str
    """Of images, classes and annotations, wherever they lie."""
    trained_on: int
    """Number of training images."""
    labels: Path | None
    """What replaces the annotations of the training set."""


@dataclass(frozen=True)
class Entry:
    """A run."""

    folder: Path
    method: str
    supervision: str
    segments: str
    """Where proposals came from."""
    weights: str
    """Where networks started from."""
    backbone: str
    seed: tuple[int, int]
    """Of training, and of the order of images."""
    key: str
    """The same for runs that differ in nothing but their seed."""
    config: str
    """The recipe, and settings that depart from it."""
    departures: dict[str, Any]
    """The latter by name."""
    minutes: float
    memory: float
    """Most bytes."""
    device: str
    commit: str
    figures: dict[str, float]
    per_class: dict[str, dict[str, float]]
    """Class -> figure -> value."""
    judged: Judged
    predictions: Path

    @property
    def given_boxes(self) -> bool:
        """Whether it segments what given boxes hold, so that nothing but masks can be judged."""
        return "mIoU" in self.figures and "AP" not in self.figures


def read_judged(config: Config, split: str, known: dict[str, Judged]) -> Judged:
    """Read what a run is judged on; `known` keeps it for the next run that has the same settings.

    Raises:
        InputError: the data are not there, or have no classes or annotations.
    """
    section = config["data"]
    own = {
        k: v for k, v in (section.get("init_args") or {}).items() if k not in ("augment", "loading")
    }
    key = json.dumps([section["class_path"], own], sort_keys=True, default=str)
    if key not in known:
        made: Any = make_data(section)
        data = made.as_annotated()
        index: Index = data.index(split)
        if not index.categories:
            raise InputError(
                f"{index.name} in {index.root} has no classes; add categories to its annotations"
            )
        if not any(index.annotations.values()):
            raise InputError(
                f"{index.name} has no boxes or masks in its {split} split to judge by; annotate some images"
            )
        known[key] = Judged(
            data, index, _digest(index), len(data.index("train").images), made.relabelled
        )
    return known[key]


def check_alike(entries: Sequence[tuple[Path, Judged]]) -> None:
    """Refuse runs that were not judged on the same images.

    Raises:
        InputError: which two, and in what they differ.
    """
    (first, ours), *others = entries
    for folder, theirs in others:
        if theirs.digest != ours.digest:
            raise InputError(
                f"{folder} and {first} cannot be compared: {_difference(theirs.index, ours.index)}; give runs on the same data"
            )


def _difference(a: Index, b: Index) -> str:
    if a.name != b.name:
        return f"one is on {a.name}, the other on {b.name}"
    if [c["name"] for c in a.categories] != [c["name"] for c in b.categories]:
        return f"one has {len(a.categories)} classes of {a.name}, the other {len(b.categories)}, or others"
    if len(a.images) != len(b.images):
        return f"one is judged on {len(a.images)} images of {a.name}, the other on {len(b.images)}"
    return f"they are judged on other images of {a.name}, such as another draw or limit"


def _digest(index: Index) -> str:
    named = [
        [i["id"], i["height"], i["width"], _bytes(index.root / i["file_name"])]
        for i in index.images
    ]
    drawn = [
        [i["id"], *(a["bbox"] + [a["category_id"]] for a in index.annotations.get(i["id"], []))]
        for i in index.images
    ]
    return hashlib.sha256(
        json.dumps([index.name, index.categories, named, drawn]).encode()
    ).hexdigest()


def _bytes(path: Path) -> int:
    """Size of a file: two draws of generated data may differ in pixels alone."""
    return path.stat().st_size if path.is_file() else 0


def check_finished(folder: Path) -> None:
    """Refuse what is no run, or one that is not finished.

    Raises:
        InputError: which, and how to continue it.
    """
    read_run(folder)
    begun = stages(folder)
    waiting = [path.name for path, stage in begun if not stage.finished]
    if not begun or waiting:
        what = f"stage {waiting[0]} is not finished" if waiting else "it has not begun"
        raise InputError(f"{folder}: {what}; finish it with python -m wsis.fit --resume {folder}")


def read_entry(folder: Path, results: Path, judged: Judged) -> Entry:
    """Read a finished run whose predictions have been judged.

    Args:
        folder: of the run.
        results: folder of its predictions.json and metrics.json.
        judged: what they are of.

    Raises:
        InputError: the figures are of other images, or a file is damaged.
    """
    config = read_run(folder)
    given, data = config["model"].get("init_args") or {}, config["data"].get("init_args") or {}
    cls = registry.find("model", config["model"]["class_path"])
    figures, per_class = _figures(results / "metrics.json", judged.index)
    done = [stage for _, stage in stages(folder)]
    mined = next(
        (stage.metrics["val/mIoU"] for stage in done if "val/mIoU" in stage.metrics), math.nan
    )
    figures.setdefault("mIoU", mined if results.name.startswith("test-val") else math.nan)
    supervision, segments, weights = (
        _supervision(cls, given, judged.labels),
        _segments(cls, data),
        _weights(given),
    )
    names = {kind: registry.short_name(kind, config[kind]["class_path"]) for kind in registry.KINDS}
    path, changed = recipe(**names), departures(config)
    said = [
        f"{path.parent.name}/{path.name}" if path else "no recipe",
        *(f"{k}={_short(v)}" for k, v in changed.items()),
    ]
    return Entry(
        folder=folder,
        method=names["model"],
        supervision=supervision,
        segments=segments,
        weights=weights,
        backbone=", ".join(_each(given, "backbone")) or "-",
        seed=(
            int(config.get("seed_everything") or 0),
            int((data.get("loading") or {}).get("seed") or 0),
        ),
        key=row_key(config, supervision, segments, weights),
        config=" ".join(said),
        departures=changed,
        minutes=sum(math.nan if stage.minutes is None else stage.minutes for stage in done),
        memory=max((stage.memory or math.nan for stage in done), default=math.nan),
        device=", ".join(dict.fromkeys(stage.device for stage in done if stage.device)),
        commit=", ".join(dict.fromkeys(stage.commit for stage in done if stage.commit)),
        figures=figures,
        per_class=per_class,
        judged=judged,
        predictions=results / "predictions.json",
    )


def last_trained(folder: Path) -> Path:
    """Checkpoint of the model that a run is judged by."""
    return folder / list(trained(folder))[-1] / "checkpoints" / "last.ckpt"


def _figures(path: Path, index: Index) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    content = read_json(path)
    if (
        not isinstance(content, dict)
        or not {"metrics", "per_class", "images", "data"} <= content.keys()
    ):
        raise InputError(f"{path} is not what wsis.test writes; delete its folder to judge anew")
    if (content["data"], content["images"]) != (index.name, len(index.images)):
        theirs, ours = (
            f"{content['images']} images of {content['data']}",
            f"{len(index.images)} of {index.name}",
        )
        raise InputError(
            f"{path} is of {theirs}, the run's data has {ours}; delete its folder to judge anew"
        )
    return _numbers(content["metrics"]), {
        name: _numbers(values) for name, values in content["per_class"].items()
    }


def _numbers(figures: Mapping[str, float | None]) -> dict[str, float]:
    return {name: math.nan if value is None else float(value) for name, value in figures.items()}


def _supervision(cls: type[Method], given: Mapping[str, Any], labels: Path | None) -> str:
    """What labels a run has seen, in whatever way."""
    if labels:
        return f"labels by {_source(labels)}"
    salient = " + salient masks" if given.get("salient_fraction") else ""
    return f"{describe_supervision(cls.supervision)}{salient}"


def _source(path: Path) -> str:
    """Who made a file of labels, as its first annotation says, without the run; the file's name where nothing is known."""
    if path.is_file():
        annotations = read_json(path).get("annotations") or [{}]
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


def _weights(given: Mapping[str, Any]) -> str:
    names = {"none": "random", "imagenet": "ImageNet"}
    return (
        ", ".join(dict.fromkeys(names.get(w, Path(w).name) for w in _each(given, "weights"))) or "-"
    )


def _each(given: Mapping[str, Any], setting: str) -> list[str]:
    """Values of a setting of the model and of the parts it describes, each once."""
    nested = [
        part[setting] for part in given.values() if isinstance(part, Mapping) and part.get(setting)
    ]
    return list(
        dict.fromkeys(map(str, [*([given[setting]] if given.get(setting) else []), *nested]))
    )


def _short(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)
