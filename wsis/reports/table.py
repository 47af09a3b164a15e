"""One table of all runs: rows, CSV, and Markdown for a README."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from wsis.errors import InputError
from wsis.files import whole
from wsis.reports.papers import Published, published
from wsis.reports.runs import Entry
from wsis.reports.tables import markdown_table, mean_and_range

__all__ = [
    "FIGURES",
    "Row",
    "Spread",
    "cells_of",
    "find_place",
    "make_rows",
    "markdown",
    "write_into",
]

FIGURES = {
    "AP25": "AP25",
    "AP50": "AP50",
    "AP70": "AP70",
    "AP75": "AP75",
    "AP": "AP",
    "PQ": "PQ",
} | {
    "CorLoc": "CorLoc",
    "mIoU": "mIoU*",
}
"""Figures and their headings, in order."""
GIB = 2**30
BEGIN, END = "<!-- compare -->", "<!-- /compare -->"


class Spread(NamedTuple):
    """A figure over seeds, from 0 to 1; nan where it is not known."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Row:
    """Runs that differ in nothing but their seed."""

    name: str
    entries: list[Entry]
    """In order of their seeds; the first stands for all where one must."""
    figures: dict[str, Spread]
    paper: Published | None
    minutes: float
    """Mean."""
    memory: float
    """Most, in GiB."""

    @property
    def first(self) -> Entry:
        """The run of the least seed."""
        return self.entries[0]

    @property
    def commit(self) -> str:
        """Commits of all runs."""
        return ", ".join(dict.fromkeys(e.commit for e in self.entries if e.commit)) or "-"


def make_rows(entries: Iterable[Entry]) -> list[Row]:
    """Put runs that differ in nothing but their seed into one row; the best first, by AP50, else by mIoU*.

    A second run of a seed, such as one with weights of the same name from elsewhere, is in a row of its own.
    """
    groups: dict[tuple[str, int], list[Entry]] = {}
    seen = Counter[tuple[str, tuple[int, int]]]()
    for entry in entries:
        alike = entry.key, entry.seed
        groups.setdefault((entry.key, seen[alike]), []).append(entry)
        seen[alike] += 1
    sorted_ = [sorted(group, key=lambda e: e.seed) for group in groups.values()]
    rows = [_row(name, group) for name, group in zip(_names(sorted_), sorted_, strict=True)]
    return sorted(
        rows, key=lambda row: [-_known(row.figures[figure].mean) for figure in ("AP50", "mIoU")]
    )


def _row(name: str, group: list[Entry]) -> Row:
    figures = {
        figure: _spread([e.figures.get(figure, math.nan) for e in group]) for figure in FIGURES
    }
    memory = max((e.memory for e in group if not math.isnan(e.memory)), default=math.nan) / GIB
    return Row(
        name, group, figures, published(group[0]), _spread([e.minutes for e in group]).mean, memory
    )


def _spread(values: Sequence[float]) -> Spread:
    """Of the values that all runs have."""
    if any(math.isnan(v) for v in values):
        return Spread(math.nan, math.nan, math.nan)
    return Spread(sum(values) / len(values), min(values), max(values))


def _known(value: float) -> float:
    return -1.0 if math.isnan(value) else value


def _names(groups: Sequence[Sequence[Entry]]) -> list[str]:
    """The method; where several rows have it, with what tells them apart."""
    names = []
    for first, *_ in groups:
        rivals = [group[0] for group in groups if group[0].method == first.method]
        differing = {
            key
            for rival in rivals
            for key in rival.departures
            if any(
                str(rival.departures[key]) != str(other.departures.get(key, "")) for other in rivals
            )
        }
        own = [
            f"{key.rpartition('.')[2]} {_words(first.departures[key])}"
            for key in first.departures
            if key in differing
        ]
        if len({rival.supervision for rival in rivals}) > 1:
            own.insert(0, first.supervision)
        names.append(", ".join([first.method, *own]))
    count, seen = Counter(names), Counter[str]()
    for i, name in enumerate(names):
        seen[name] += 1
        names[i] = name if count[name] == 1 else f"{name} ({seen[name]})"
    return names


def _words(value: Any) -> str:
    """A setting's value in a name."""
    return (
        " + ".join(map(str, value))
        if isinstance(value, list)
        else "none"
        if value is None
        else str(value)
    )


def cells_of(row: Row, split: str) -> dict[str, str]:
    """All that is known of a row, for a CSV; figures in percent: mean, range over seeds, the paper's."""
    first = row.first
    index = first.judged.index
    cells = {
        "name": row.name,
        "method": first.method,
        "data": index.name,
        "split": split,
        "images": str(len(index.images)),
    }
    cells |= {"trained_on": str(first.judged.trained_on), "supervision": first.supervision}
    cells |= {"segments": first.segments, "weights": first.weights, "backbone": first.backbone}
    for figure, heading in FIGURES.items():
        mean, low, high = (_plain(100 * value, 2) for value in row.figures[figure])
        paper = row.paper.figures.get(figure, math.nan) if row.paper else math.nan
        cells |= {
            heading: mean,
            f"{heading}_min": low,
            f"{heading}_max": high,
            f"{heading}_paper": _plain(100 * paper, 2),
        }
    cells |= {
        "seeds": str(len(row.entries)),
        "minutes": _plain(row.minutes, 2),
        "memory_gib": _plain(row.memory, 2),
    }
    cells |= {"device": first.device, "commit": row.commit, "config": first.config}
    return cells | {
        "paper": row.paper.source if row.paper else "",
        "runs": " ".join(str(e.folder) for e in row.entries),
    }


def _plain(value: float, digits: int) -> str:
    return "" if math.isnan(value) else f"{value:.{digits}f}"


def markdown(rows: Sequence[Row], split: str) -> str:
    """The table for a README: figures in percent, range over seeds in parentheses, the paper's in brackets."""
    shown = [f for f in FIGURES if any(not math.isnan(row.figures[f].mean) for row in rows)]
    heads = [
        "method",
        "learns from",
        "segments",
        "weights",
        "backbone",
        *(FIGURES[f] for f in shown),
    ]
    heads += ["seeds", "minutes", "GiB", "commit", "settings"]
    lines = [heads]
    for row in rows:
        first = row.first
        cells = [row.name, first.supervision, first.segments, first.weights, first.backbone]
        cells += [_figure(row, figure) for figure in shown]
        cells += [
            str(len(row.entries)),
            _plain(row.minutes, 1) or "-",
            _plain(row.memory, 1) or "-",
            row.commit,
            first.config,
        ]
        lines.append(cells)
    index = rows[0].first.judged.index
    said = f"{index.name}, {split}: {len(index.images)} images, {len(index.categories)} classes. Mean (range) over seeds, in %"
    papers = "; in brackets the paper's." if any(row.paper for row in rows) else "."
    return f"{said}{papers}\n\n{markdown_table(lines)}"


def _figure(row: Row, figure: str) -> str:
    paper = row.paper.figures.get(figure) if row.paper else None
    known = not math.isnan(row.figures[figure].mean)
    text = mean_and_range([100 * e.figures[figure] for e in row.entries] if known else [])
    return text if paper is None else f"{text} [{100 * paper:.1f}]"


def find_place(path: Path) -> str:
    """Give what a file has between the lines `<!-- compare -->` and `<!-- /compare -->`, with them.

    Raises:
        InputError: no such file, or not these lines in it, once each and in this order.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"cannot read {path}: {getattr(error, 'strerror', None) or error}; give a text file"
        ) from error
    found = re.findall(f"^{BEGIN}$.*?^{END}$", text, flags=re.DOTALL | re.MULTILINE)
    if len(found) != 1 or found[0].count(f"{BEGIN}\n") != 1:
        raise InputError(
            f"{path} needs the lines {BEGIN} and {END}, once each; add them where the table is to stand"
        )
    return str(found[0])


def write_into(path: Path, table: str) -> None:
    """Put the table in its place in a file.

    Raises:
        InputError: the file has no place for it, or cannot be written.
    """
    old = find_place(path)
    new = path.read_text(encoding="utf-8").replace(old, f"{BEGIN}\n{table}\n{END}")
    with whole(path) as scratch:
        scratch.write_text(new, encoding="utf-8")
