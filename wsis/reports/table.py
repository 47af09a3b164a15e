"""Tables of runs: one row for runs that differ only in their seed; as text, Markdown and CSV."""

from __future__ import annotations

import csv
import io
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wsis.errors import InputError
from wsis.files import atomic_write
from wsis.reports.evaluation import PANOPTIC_METRICS
from wsis.reports.papers import Published, published
from wsis.reports.runs import Entry

__all__ = [
    "METRICS",
    "VOC_METRICS",
    "Row",
    "complete",
    "csv_rows",
    "find_place",
    "known_metrics",
    "lines_of",
    "make_rows",
    "markdown",
    "markdown_table",
    "mean_and_range",
    "metric_tables",
    "percent",
    "print_table",
    "write_csv",
    "write_into",
]

METRICS = {name: name for name in ("AP25", "AP50", "AP70", "AP75", "AP", "PQ", "CorLoc")}
METRICS |= {"mIoU": "mIoU*", "tag_mAP": "tag_mAP"}
"""Metrics that runs are compared by, in order, and their headings."""
VOC_METRICS = {
    **{name: name for name in ("VOC_AP25", "VOC_AP50", "VOC_AP70", "VOC_AP75")},
    **{name: name for name in ("box_VOC_AP50", "box_VOC_AP75", "box_VOC07_AP50")},
}
"""Metrics that are shown where a paper has reported them; in a csv file always."""
FACTS = {"supervision": "learns from", "segments": "segments", "weights": "weights"}
FACTS |= {"backbone": "backbone", "commit": "commit", "config": "settings"}
"""Facts of a row that are shown beside its metrics, and their headings."""
GIB = 2**30
BEGIN, END = "<!-- compare -->", "<!-- /compare -->"


@dataclass(frozen=True)
class Row:
    """Runs that differ only in their seed."""

    name: str
    runs: list[Path]
    """Folders, in order of their seeds."""
    metrics: dict[str, list[float]]
    """Metric -> value of each run, from 0 to 1; empty unless all runs have it."""
    minutes: float
    """Mean."""
    memory: float
    """Peak, in GiB."""
    paper: Published | None = None
    group: str = ""
    """Table that the row belongs to, where there are several."""
    facts: dict[str, str] = field(default_factory=dict)
    """Fact -> text."""
    entries: list[Entry] = field(default_factory=list)
    """The runs, where their predictions have been evaluated; the first stands for all."""

    @property
    def first(self) -> Entry:
        """The run with the lowest seed."""
        return self.entries[0]

    def mean(self, metric: str) -> float:
        """Return the mean of a metric over runs; nan if unknown."""
        return _mean(self.metrics.get(metric, []))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def make_rows(entries: Iterable[Entry]) -> list[Row]:
    """Put runs that differ only in their seed into one row; sort by AP50, mIoU, then tag_mAP.

    A second run with the same seed, such as one with other weights of the same name, is in a row of
    its own.
    """
    groups: dict[tuple[str, int], list[Entry]] = {}
    seen = Counter[tuple[str, tuple[int, int]]]()
    for entry in entries:
        alike = entry.key, entry.seed
        groups.setdefault((entry.key, seen[alike]), []).append(entry)
        seen[alike] += 1
    ordered = [sorted(group, key=lambda entry: entry.seed) for group in groups.values()]
    rows = [_row(name, group) for name, group in zip(_names(ordered), ordered, strict=True)]
    ranking = ("AP50", "mIoU", "tag_mAP")
    return sorted(rows, key=lambda row: [_worst_last(row.mean(name)) for name in ranking])


def _worst_last(value: float) -> float:
    return 1.0 if math.isnan(value) else -value


def _row(name: str, group: list[Entry]) -> Row:
    memory = [entry.memory for entry in group if not math.isnan(entry.memory)]
    return Row(
        name=name,
        runs=[entry.folder for entry in group],
        metrics=complete([entry.metrics for entry in group]),
        minutes=_mean([entry.minutes for entry in group]),
        memory=max(memory, default=math.nan) / GIB,
        paper=published(group[0]),
        facts=_facts(group),
        entries=group,
    )


def complete(runs: Sequence[Mapping[str, float]]) -> dict[str, list[float]]:
    """Collect the metrics of runs: metric -> value of each run; empty if one does not have it."""
    collected = {}
    for name in dict.fromkeys(name for metrics in runs for name in metrics):
        values = [metrics.get(name, math.nan) for metrics in runs]
        collected[name] = [] if any(map(math.isnan, values)) else values
    return collected


def _facts(group: Sequence[Entry]) -> dict[str, str]:
    first, shown = group[0], group[0].evaluation_set
    commits = dict.fromkeys(entry.commit for entry in group if entry.commit)
    return {
        "method": first.method,
        "data": shown.index.name,
        "split": shown.split,
        "images": str(len(shown.index.images)),
        "trained_on": "" if shown.trained_on is None else str(shown.trained_on),
        "supervision": first.supervision,
        "segments": first.segments,
        "weights": first.weights,
        "backbone": first.backbone,
        "device": first.device,
        "commit": ", ".join(commits) or "-",
        "config": first.config,
    }


def _names(groups: Sequence[Sequence[Entry]]) -> list[str]:
    """Name rows by method, and rows of the same method also by the settings that differ."""
    names = []
    for first, *_ in groups:
        rivals = [group[0] for group in groups if group[0].method == first.method]
        settings = [
            f"{key.rpartition('.')[2]} {_words(value)}"
            for key, value in first.departures.items()
            if len({str(rival.departures.get(key, "")) for rival in rivals}) > 1
        ]
        if len({rival.supervision for rival in rivals}) > 1:
            settings.insert(0, first.supervision)
        names.append(", ".join([first.method, *settings]))
    count, seen = Counter(names), Counter[str]()
    for i, name in enumerate(names):
        seen[name] += 1
        names[i] = name if count[name] == 1 else f"{name} ({seen[name]})"
    return names


def _words(value: Any) -> str:
    """Write a setting's value as part of a name."""
    if isinstance(value, list):
        return " + ".join(map(str, value))
    return "none" if value is None else str(value)


def known_metrics(rows: Sequence[Row]) -> dict[str, str]:
    """Return the metrics to show, with their headings.

    These are those of METRICS that any row has, and those of VOC_METRICS that its paper has, too.
    """
    known = {name for row in rows for name, values in row.metrics.items() if values}
    reported = {name for row in rows if row.paper for name in row.paper.metrics}
    shown = {name for name in known if name in METRICS or name in reported}
    return {name: text for name, text in (METRICS | VOC_METRICS).items() if name in shown}


def lines_of(
    rows: Sequence[Row],
    metrics: Mapping[str, str],
    facts: Mapping[str, str] | None = None,
    brief: bool = False,
) -> list[list[str]]:
    """Return the cells of a table, first its head; metrics in percent.

    Args:
        rows: of the table.
        metrics: metric -> heading.
        facts: fact -> heading, for columns at the end.
        brief: show the mean alone, not the range over seeds and the paper's value.
    """
    facts = facts or {}
    heads = [rows[0].group or "method", *metrics.values(), "seeds", "minutes", "GiB"]
    lines = [[*heads, *facts.values()]]
    for row in rows:
        costs = [str(len(row.runs)), _number(row.minutes, 1) or "-", _number(row.memory, 1) or "-"]
        values = [percent(row.mean(m)) if brief else _with_paper(row, m) for m in metrics]
        lines.append([row.name, *values, *costs, *(row.facts[fact] for fact in facts)])
    return lines


def _with_paper(row: Row, metric: str) -> str:
    text = mean_and_range([100 * value for value in row.metrics.get(metric, [])])
    paper = row.paper.metrics.get(metric) if row.paper else None
    return text if paper is None else f"{text} [{percent(paper)}]"


def percent(fraction: float) -> str:
    """Write a fraction in percent, nan as "-"."""
    return _number(100 * fraction, 1) or "-"


def _number(value: float, digits: int) -> str:
    return "" if math.isnan(value) else f"{value:.{digits}f}"


def mean_and_range(values: Sequence[float | None]) -> str:
    """Write a metric of several runs: "54.2 (44.3-61.9)", or "-" if no value is known."""
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    mean = f"{_mean(known):.1f}"
    return mean if len(known) == 1 else f"{mean} ({min(known):.1f}-{max(known):.1f})"


def metric_tables(metrics: Mapping[str, float]) -> list[list[list[str]]]:
    """Return all metrics of a run as tables in percent: COCO's, VOC's, CorLoc, panoptic; tags."""
    if "tag_mAP" in metrics and "AP" not in metrics:
        return [[["", "tag_mAP"], ["images ranked by tags", percent(metrics["tag_mAP"])]]]
    if "mIoU" in metrics and "AP" not in metrics:
        names = ["mIoU", "IoU50", "IoU75"]
        kinds = [("masks in given boxes", "", "")]
    else:
        names = ["AP", "AP25", "AP50", "AP70", "AP75", "APs", "APm", "APl"]
        kinds = [("masks", "", ""), ("boxes", "box_", "")]
    panoptic = [("panoptic", "", ""), ("things", "", "_things"), ("stuff", "", "_stuff")]
    tables = [_metric_table(metrics, names, kinds)]
    of_voc = ["VOC_AP25", "VOC_AP50", "VOC_AP70", "VOC_AP75", "VOC07_AP50"]
    if not metrics.keys().isdisjoint(of_voc):
        tables.append(_metric_table(metrics, of_voc, kinds))
    if "CorLoc" in metrics:
        found = [percent(metrics[name]) for name in ("CorLoc", "CorLoc_images")]
        tables.append([["", "mean of classes", "over images"], ["CorLoc", *found]])
    if "PQ" in metrics:
        tables.append(_metric_table(metrics, PANOPTIC_METRICS, panoptic))
    return tables


def _metric_table(
    metrics: Mapping[str, float], names: Sequence[str], kinds: Sequence[tuple[str, str, str]]
) -> list[list[str]]:
    """Make a table with a row for each kind: its name, and what its metrics begin and end with."""
    shown = [name for name in names if any(a + name + b in metrics for _, a, b in kinds)]
    lines = [["", *shown]]
    for kind, prefix, suffix in kinds:
        cells = [percent(metrics.get(prefix + name + suffix, math.nan)) for name in shown]
        if set(cells) != {"-"}:
            lines.append([kind, *cells])
    return lines


def print_table(lines: Sequence[Sequence[str]]) -> None:
    """Print cells in columns, the first aligned left and the others right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for first, *rest in lines:
        cells = [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
        print("  ".join([first.ljust(widths[0]), *cells]))


def markdown_table(lines: Sequence[Sequence[str]]) -> str:
    """Write cells as a Markdown table; the first line is its head."""
    head, *body = ([cell.replace("|", "\\|") for cell in line] for line in lines)
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *body])


def markdown(rows: Sequence[Row]) -> str:
    """Write the table of a comparison for a README: what it is of, and all rows."""
    shown = rows[0].first.evaluation_set
    images, classes = len(shown.index.images), len(shown.index.categories)
    data = f"{shown.index.name}, {shown.split}: {images} images, {classes} classes"
    papers = "; in brackets the paper's" if any(row.paper for row in rows) else ""
    lines = lines_of(rows, known_metrics(rows), FACTS)
    return f"{data}. Mean (range) over seeds, in %{papers}.\n\n{markdown_table(lines)}"


def csv_rows(rows: Sequence[Row], metrics: Mapping[str, str]) -> list[dict[str, str]]:
    """Return all that is known of each row, by column; metrics in percent."""
    table = []
    for row in rows:
        cells = ({"group": row.group} if row.group else {}) | {"name": row.name} | row.facts
        for name, heading in metrics.items():
            values = row.metrics.get(name) or [math.nan]
            paper = row.paper.metrics.get(name, math.nan) if row.paper else math.nan
            columns = {"": _mean(values), "_min": min(values), "_max": max(values), "_paper": paper}
            cells |= {heading + end: _number(100 * v, 2) for end, v in columns.items()}
        cells |= {"seeds": str(len(row.runs)), "minutes": _number(row.minutes, 2)}
        cells |= {"memory_gib": _number(row.memory, 2)}
        cells |= {"paper": row.paper.source if row.paper else ""}
        table.append(cells | {"runs": " ".join(map(str, row.runs))})
    return table


def write_csv(path: Path, rows: Sequence[Mapping[str, str]]) -> None:
    """Write at least one row; all have the same columns."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    with atomic_write(path) as scratch:
        scratch.write_text(text.getvalue(), encoding="utf-8")


def find_place(path: Path) -> str:
    """Return the part of a file from the line `<!-- compare -->` to `<!-- /compare -->`.

    Raises:
        InputError: no such file, or it does not have these lines once each and in this order.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot read {path}: {reason}; give a text file") from error
    places = re.findall(f"^{BEGIN}$.*?^{END}$", text, flags=re.DOTALL | re.MULTILINE)
    if len(places) != 1 or places[0].count(f"{BEGIN}\n") != 1:
        raise InputError(
            f"{path} needs the lines {BEGIN} and {END}, once each; add them where the table goes"
        )
    return str(places[0])


def write_into(path: Path, table: str) -> None:
    """Replace what lies between the lines that `find_place` finds by a table."""
    old = find_place(path)
    new = path.read_text(encoding="utf-8").replace(old, f"{BEGIN}\n{table}\n{END}")
    with atomic_write(path) as scratch:
        scratch.write_text(new, encoding="utf-8")
