"""Tables of rows as HTML."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

from wsis.reports.document import colour_of_row
from wsis.reports.table import FACTS, Row, known_metrics, percent

__all__ = ["facts_table", "metrics_table", "plain_table"]


def metrics_table(rows: Sequence[Row]) -> str:
    """Return a sortable table of supervision, metrics and costs, without unknown metrics."""
    metrics = known_metrics(rows)
    numbers = [*metrics.values(), "seeds", "minutes", "GiB"]
    best = {}
    if len(rows) > 1:
        best = {m: max(row.mean(m) for row in rows if row.metrics.get(m)) for m in metrics}
    lines = [_line(row, r, list(metrics), best) for r, row in enumerate(rows)]
    texts = [(text, "text") for text in ("method", FACTS["supervision"])]
    return _sortable([*texts, *((number, "") for number in numbers)], lines)


def facts_table(rows: Sequence[Row]) -> str:
    """Return a sortable table of the settings of each row and its folders."""
    shown = {fact: text for fact, text in FACTS.items() if fact != "supervision"}
    heads = [(text, "text") for text in ("method", *shown.values(), "folder")]
    lines = []
    for r, row in enumerate(rows):
        facts = [row.facts[fact] for fact in shown]
        cells = map(_text, [*facts, ", ".join(map(str, row.runs))])
        lines.append(f"<tr>{_name(row, r)}{''.join(cells)}</tr>")
    return _sortable(heads, lines, "facts")


def plain_table(lines: Sequence[Sequence[str]]) -> str:
    """Return a table of cells, the first line its head."""
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in lines[0])
    body = ""
    for first, *rest in lines[1:]:
        cells = "".join(f"<td>{escape(cell)}</td>" for cell in rest)
        body += f'<tr><th scope="row">{escape(first)}</th>{cells}</tr>'
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="scroll">{table}</div>'


def _sortable(heads: Sequence[tuple[str, str]], lines: Sequence[str], kind: str = "") -> str:
    head = "".join(
        f'<th scope="col" class="{aligned}"><button type="button">{escape(text)}</button></th>'
        for text, aligned in heads
    )
    body = "".join(lines)
    table = f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody>"
    return f'<div class="scroll"><table class="sortable {kind}">{table}</table></div>'


def _name(row: Row, number: int) -> str:
    method, _, rest = row.name.partition(", ")
    dot = f'<span class="dot" style="--dot:{colour_of_row(number)}" aria-hidden="true"></span>'
    small = f"<small>{escape(rest)}</small>" if rest else ""
    return f'<th scope="row" data-value="{escape(row.name)}">{dot}{escape(method)}{small}</th>'


def _line(row: Row, number: int, metrics: Sequence[str], best: Mapping[str, float]) -> str:
    seeds = ", ".join(str(entry.seed[0]) for entry in row.entries)
    count = len(row.entries)
    cells = [
        _name(row, number),
        _text(row.facts["supervision"]),
        *(_metric(row, metric, best.get(metric)) for metric in metrics),
        f'<td data-value="{count}" title="seeds {seeds}">{count}</td>',
        _number(row.minutes, row.facts["device"]),
        _number(row.memory),
    ]
    return f"<tr>{''.join(cells)}</tr>"


def _text(value: str) -> str:
    shown = escape(value) or "-"
    return f'<td class="text" data-value="{escape(value)}">{shown}</td>'


def _number(value: float, below: str = "") -> str:
    small = f"<small>{escape(below)}</small>" if below else ""
    if math.isnan(value):
        return f'<td data-value="">-{small}</td>'
    return f'<td data-value="{value:.4f}">{value:.1f}{small}</td>'


def _metric(row: Row, metric: str, best: float | None) -> str:
    values, mean = row.metrics.get(metric, []), row.mean(metric)
    paper = row.paper.metrics.get(metric) if row.paper else None
    below = ""
    if len(values) > 1:
        below += f"<small>{percent(min(values))}-{percent(max(values))}</small>"
    if paper is not None:
        below += f"<small>paper {percent(paper)}</small>"
    if not values:
        return f'<td data-value="">-{below}</td>'
    emphasis = " class=best" if mean == best else ""
    return f'<td data-value="{mean:.6f}"{emphasis}>{percent(mean)}{below}</td>'
