"""The metrics that the papers report, for runs in their setting."""

from __future__ import annotations

import csv
from functools import cache
from importlib.resources import files
from typing import NamedTuple

from wsis.reports.runs import Entry

__all__ = ["Published", "published"]

FREE = ("backbone.name", "backbone.weights", "panoptic")
"""Settings that may differ from the paper's: other columns of the table show them."""


class Published(NamedTuple):
    """Metrics from a paper."""

    metrics: dict[str, float]
    """From 0 to 1."""
    source: str


def published(entry: Entry) -> Published | None:
    """Return the paper's metrics; None unless settings, classes and images are the paper's.

    Settings are those of the recipe, but for the departures that a row of papers.csv names.
    """
    index = entry.evaluation_set.index
    if entry.supervision.startswith("labels by"):
        return None
    changed = [f"{k}={v}" for k, v in entry.departures.items() if not k.endswith(FREE)]
    place = (
        entry.method,
        index.name,
        entry.backbone,
        str(len(index.images)),
        str(len(index.categories)),
        " ".join(changed),
    )
    row = _rows().get(place)
    if row is None:
        return None
    known = {k: value for k, value in row.items() if value and k not in (*_PLACE, "source")}
    return Published({name: float(value) / 100 for name, value in known.items()}, row["source"])


_PLACE = ("method", "data", "backbone", "images", "classes", "departures")


@cache
def _rows() -> dict[tuple[str, ...], dict[str, str]]:
    text = (files("wsis.reports") / "papers.csv").read_text(encoding="utf-8")
    rows = csv.DictReader(text.splitlines(), restval="")
    return {tuple(row[name] for name in _PLACE): row for row in rows}
