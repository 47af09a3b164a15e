"""The card of a shared model: README.md with the front matter that Hugging Face reads."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from wsis import registry
from wsis.command_line.settings import Config
from wsis.reports.runs import Origin, describe_settings
from wsis.reports.settings import departures
from wsis.reports.table import markdown_table, percent
from wsis.runs.cost import version
from wsis.runs.record import StageRecord
from wsis.sharing.folder import PICTURE

__all__ = ["Shared", "write_card"]

SHOWN = ("AP", "AP25", "AP50", "AP75", "box_AP50", "PQ", "CorLoc", "mIoU", "mAP", "tag_mAP")
"""Metrics on a card, in this order."""


@dataclass(frozen=True)
class Shared:
    """What a card tells."""

    config: Config
    """Settings of the run."""
    origin: Origin
    stage: str
    record: StageRecord
    """Of the stage, with the costs of the whole run."""
    is_best: bool
    """Whether the weights are those of the best validation."""
    class_names: Sequence[str]
    given_boxes: bool
    """Whether the model masks what given boxes hold."""
    data: str
    """The data set and what is known of its size."""
    data_licence: str
    picture: str
    """What example.jpg shows; empty if there is none."""
    licence: str
    """Of the weights, as Hugging Face spells it; empty if it was not given."""
    place: str
    """What `wsis.load` takes."""


def write_card(shared: Shared) -> str:
    """Return the text of README.md."""
    method = registry.short_name("model", shared.config["model"]["class_path"])
    front = yaml.safe_dump(_front_matter(shared, method), sort_keys=False, allow_unicode=True)
    picture = f"![{shared.picture}]({PICTURE})\n\n*{shared.picture}*\n\n" if shared.picture else ""
    classes = ", ".join(shared.class_names)
    what = "Masks of what given boxes hold" if shared.given_boxes else "Instance segmentation"
    return f"""---
{front}---

# {method} on {shared.data.partition(",")[0]}

{what}, learned from {shared.origin.supervision} with wsis {version()}.
{len(shared.class_names)} classes: {classes}.

{picture}## Use

```python
import wsis
model, data, config, threshold = wsis.load({shared.place!r})
{_prediction(shared)}
```

`threshold` is the score from which on detections are worth showing. Nothing in this folder is
executed: weights are safetensors, and their sha256 is checked.

## Figures

{_figures(shared)}

## Origin

{markdown_table(_origin(shared, method))}
"""


def _prediction(shared: Shared) -> str:
    if shared.given_boxes:
        return 'wsis.predict(model, "image.jpg", boxes).plot("image.jpg").save("found.jpg")'
    return 'wsis.predict(model, "image.jpg").plot("image.jpg", threshold).save("found.jpg")'


def _metrics(record: StageRecord) -> tuple[str, dict[str, float]]:
    """Return the split on which a stage was judged, and the metrics on a card."""
    for split in ("val", "train"):
        known = {name: record.metrics.get(f"{split}/{name}", math.nan) for name in SHOWN}
        known = {name: value for name, value in known.items() if math.isfinite(value)}
        if known:
            return split, known
    return "", {}


def _figures(shared: Shared) -> str:
    split, known = _metrics(shared.record)
    if not known:
        return "None: the run had nothing to be measured on."
    where = {"val": "validation images", "train": "images it was trained on; others are harder"}
    lines = [["metric", "%"], *([name, percent(value)] for name, value in known.items())]
    best = " The weights were chosen by these figures, which are too good therefore."
    told = f"On {where[split]}.{best if shared.is_best else ''}"
    return f"{told}\n\n{markdown_table(lines)}"


def _origin(shared: Shared, method: str) -> list[list[str]]:
    origin, record = shared.origin, shared.record
    cost = "" if record.minutes is None else f", {record.minutes:.1f} min in all stages"
    device = f" on {record.device}" if record.device else ""
    facts: Mapping[str, str] = {
        "method": f"{method}, stage {shared.stage}",
        "learns from": origin.supervision,
        "data": shared.data,
        "licence of the data": shared.data_licence,
        "segments": origin.segments,
        "backbone": origin.backbone,
        "weights that training began with": origin.weights,
        "licence of these weights": shared.licence or "not given",
        "training": f"{record.steps or 'no'} steps{cost}{device}",
        "seed": str(shared.config.get("seed_everything") or 0),
        "commit": record.commit or "unknown",
        "settings": describe_settings(shared.config, departures(shared.config)),
    }
    return [["", ""], *([name, " ".join(value.split())] for name, value in facts.items())]


def _front_matter(shared: Shared, method: str) -> dict[str, Any]:
    """Return what Hugging Face reads of a card."""
    data = registry.short_name("data", shared.config["data"]["class_path"])
    split, known = _metrics(shared.record)
    metrics = [{"type": name, "value": round(100 * value, 1)} for name, value in known.items()]
    front: dict[str, Any] = {"license": shared.licence} if shared.licence else {}
    front |= {
        "library_name": "wsis",
        "pipeline_tag": "image-segmentation",
        "tags": ["instance-segmentation", "weakly-supervised", method],
    }
    if metrics:
        result = {
            "task": {"type": "image-segmentation"},
            "dataset": {"name": data, "type": data, "split": split},
            "metrics": metrics,
        }
        front["model-index"] = [{"name": f"{method} on {data}", "results": [result]}]
    return front
