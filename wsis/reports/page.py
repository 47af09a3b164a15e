"""The page: one HTML file with tables, errors, pictures and training curves, without network."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from wsis.files import atomic_write
from wsis.images import draw
from wsis.metrics.errors import ERRORS, KINDS, Breakdown
from wsis.reports.curves import chart, read_curves
from wsis.reports.table import METRICS, Row, known_metrics, metric_tables, percent

__all__ = ["write_page"]

COLOURS = (
    *("#2b6cb0", "#d97706", "#2f855a", "#b83280", "#6b46c1"),
    *("#0e7490", "#c53030", "#8a6d1f", "#4a5568", "#65a30d"),
)
"""Colours of rows."""
CLASS_METRICS = (
    *("AP50", "AP", "AP25", "AP70", "AP75", "box_AP50"),
    *("CorLoc", "mIoU", "PQ", "SQ", "RQ", "tag_AP"),
)
HELP = {
    "classification": "fits an object, but of another class",
    "localisation": "of the right class, but with an IoU between 0.1 and 0.5",
    "both": "of the wrong class, and with an IoU below 0.5",
    "duplicate": "fits an object that a detection with a higher score has taken",
    "background": "overlaps no object by 0.1 or more",
    "missed": "an object that no detection has found, nor would with its class or box corrected",
}


def write_page(
    path: Path,
    rows: Sequence[Row],
    errors: Sequence[Breakdown | None],
    gallery: Mapping[str, Any],
) -> None:
    """Write the page of one or several rows, whole or not at all.

    Args:
        path: of the page.
        rows: of the table.
        errors: of each row; None for one that was given boxes.
        gallery: from `make_gallery`.

    Raises:
        InputError: the folder cannot be written.
    """
    shown = rows[0].first.evaluation_set
    seeds = any(len(row.runs) > 1 for row in rows)
    parts = {
        "title": escape(_title(rows)),
        "subtitle": escape(_subtitle(rows)),
        "metrics_note": _metrics_note(rows, seeds),
        "errors_note": _errors_note(seeds),
        "gallery_note": _gallery_note(len(gallery["images"]), len(shown.index.images), len(rows)),
        "runs_note": _runs_note(seeds),
        "table": _table(rows),
        "runs": "".join(_run(row, len(rows) == 1) for row in rows),
        "style": _asset("page.css"),
        "data": _json(_data(rows, errors, gallery, len(shown.index.categories))),
        "script": _asset("page.js"),
    }
    page = re.sub(r"\{(\w+)\}", lambda match: parts[match[1]], _asset("page.html"))
    with atomic_write(path) as scratch:
        scratch.write_text(page, encoding="utf-8")


def _asset(name: str) -> str:
    return (files("wsis.reports") / name).read_text(encoding="utf-8")


def _title(rows: Sequence[Row]) -> str:
    name = rows[0].first.evaluation_set.index.name
    return f"{len(rows)} methods on {name}" if len(rows) > 1 else f"{rows[0].name} on {name}"


def _subtitle(rows: Sequence[Row]) -> str:
    shown = rows[0].first.evaluation_set
    classes = len(shown.index.categories)
    text = f"{shown.split}: {len(shown.index.images):,} images, {classes} classes"
    counts = [row.first.evaluation_set.trained_on for row in rows]
    known = sorted({count for count in counts if count is not None})
    if known:
        text += (
            f"; trained on {' to '.join(f'{n:,}' for n in dict.fromkeys((known[0], known[-1])))}"
        )
        text += " images"
    return text if len(rows) > 1 else f"{text}; {', '.join(map(str, rows[0].runs))}"


def _metrics_note(rows: Sequence[Row], seeds: bool) -> str:
    sources = dict.fromkeys(row.paper.source for row in rows if row.paper)
    papers = f" The papers' metrics are from {'; '.join(sources)}." if sources else ""
    return escape(f"In %{', mean and range over seeds' if seeds else ''}.{papers}")


def _errors_note(seeds: bool) -> str:
    return (
        "Gain in AP50 if all errors of one kind, and no others, were corrected "
        "(TIDE, Bolya et al., ECCV 2020). For boxes if a method has no masks."
    ) + (" First seed." if seeds else "")


def _gallery_note(pictures: int, images: int, rows: int) -> str:
    if not pictures:
        return "No pictures were asked for."
    order = "on which methods disagree most" if rows > 1 else "furthest from the truth"
    return (f"The {pictures:,} images {order}. " if pictures < images else "") + (
        "Detections are shown from the score with the best F1. The disagreement of two sources is "
        "one minus the mean, over their objects, of the greatest IoU with an object of the same "
        "class in the other."
    )


def _runs_note(seeds: bool) -> str:
    return "All metrics, in %, and training curves" + (", of the first seed." if seeds else ".")


def _run(row: Row, is_open: bool) -> str:
    """Return all metrics and the training curves of a row's first run."""
    tables = "".join(map(_plain_table, metric_tables(row.first.metrics)))
    charts = "".join(map(chart, read_curves(row.first.folder)))
    curves = f'<div class="curves">{charts}</div>' if charts else ""
    summary = f"<summary>{escape(row.name)}</summary>"
    return f"<details{' open' if is_open else ''}>{summary}{tables}{curves}</details>"


def _plain_table(lines: Sequence[Sequence[str]]) -> str:
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in lines[0])
    body = ""
    for first, *rest in lines[1:]:
        cells = "".join(f"<td>{escape(cell)}</td>" for cell in rest)
        body += f'<tr><th scope="row">{escape(first)}</th>{cells}</tr>'
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="scroll">{table}</div>'


def _table(rows: Sequence[Row]) -> str:
    """Return the sortable table, without columns of which nothing is known."""
    metrics = known_metrics(rows)
    numbers = [*metrics.values(), "seeds", "minutes", "GiB"]
    heads = [("method", "text"), ("learns from", "text"), *((text, "") for text in numbers)]
    heads += [(text, "text") for text in ("segments", "weights", "backbone", "commit", "settings")]
    head = "".join(
        f'<th scope="col" class="{kind}"><button type="button">{text}</button></th>'
        for text, kind in heads
    )
    best = {}
    if len(rows) > 1:
        best = {m: max(row.mean(m) for row in rows if row.metrics.get(m)) for m in metrics}
    body = "".join(_line(row, colour(r), list(metrics), best) for r, row in enumerate(rows))
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="scroll">{table}</div>'


def colour(row: int) -> str:
    """Return the colour of a row."""
    return COLOURS[row % len(COLOURS)]


def _line(row: Row, dot: str, metrics: Sequence[str], best: Mapping[str, float]) -> str:
    method, _, rest = row.name.partition(", ")
    name = f'<span class="dot" style="--dot:{dot}" aria-hidden="true"></span>{escape(method)}'
    name += f"<small>{escape(rest)}</small>" if rest else ""
    seeds = ", ".join(str(entry.seed[0]) for entry in row.entries)
    count = len(row.entries)
    settings, folders = escape(row.facts["config"]), escape(", ".join(map(str, row.runs)))
    cells = [
        f'<th scope="row" data-value="{escape(row.name)}">{name}</th>',
        _text(row.facts["supervision"]),
        *(_metric(row, metric, best.get(metric)) for metric in metrics),
        f'<td data-value="{count}" title="seeds {seeds}">{count}</td>',
        _number(row.minutes, row.facts["device"]),
        _number(row.memory),
        *(_text(row.facts[fact]) for fact in ("segments", "weights", "backbone", "commit")),
        f'<td class="settings" data-value="{settings}" title="{folders}">'
        f'<div tabindex="0">{settings}</div></td>',
    ]
    return f"<tr>{''.join(cells)}</tr>"


def _text(value: str) -> str:
    return f'<td class="text" data-value="{escape(value)}">{escape(value)}</td>'


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


def _data(
    rows: Sequence[Row], errors: Sequence[Breakdown | None], gallery: Mapping[str, Any], things: int
) -> dict[str, Any]:
    """Return what the page's script reads."""
    classes = list(dict.fromkeys(name for row in rows for name in row.first.per_class))
    per_class = {
        METRICS.get(m, m): [[_of_class(row, name, m) for name in classes] for row in rows]
        for m in CLASS_METRICS
    }
    return {
        "rows": [{"name": row.name, "colour": colour(r)} for r, row in enumerate(rows)],
        "classes": classes,
        "things": things,
        "colours": [_shades(c, things) for c in range(len(classes))],
        "per_class": {m: table for m, table in per_class.items() if _is_known(table)},
        "errors": {
            "names": [(name, HELP[name]) for name in ERRORS],
            "rows": [_error_row(breakdown) for breakdown in errors],
        },
        "kinds": KINDS,
        **gallery,
    }


def _is_known(table: Sequence[Sequence[float | None]]) -> bool:
    return any(value is not None for line in table for value in line)


def _shades(label: int, things: int) -> list[str]:
    """Return four colours of a class, for neighbouring objects."""
    shades = [draw.stuff_colour(label - things)] * 4
    if label < things:
        shades = [draw.colour(label, k) for k in range(4)]
    return [f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue in shades]


def _of_class(row: Row, name: str, metric: str) -> float | None:
    """Return the mean of a class over seeds."""
    values = [entry.per_class.get(name, {}).get(metric, math.nan) for entry in row.entries]
    return _rounded(sum(values) / len(values))


def _error_row(breakdown: Breakdown | None) -> dict[str, Any] | None:
    if breakdown is None:
        return None
    gains, counts = (
        [part[name] for name in ERRORS] for part in (breakdown.gains, breakdown.counts)
    )
    return {"ap": _rounded(breakdown.ap), "gains": gains, "counts": counts}


def _rounded(value: float) -> float | None:
    """Round for the page; None for nan, which json does not know."""
    return None if math.isnan(value) else round(value, 5)


def _json(content: Mapping[str, Any]) -> str:
    return json.dumps(content, separators=(",", ":")).replace("<", "\\u003c")
