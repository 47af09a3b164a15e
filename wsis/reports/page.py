"""The page: one HTML file with the table, classes, errors and pictures, that asks for nothing outside itself."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from wsis.files import whole
from wsis.images import draw
from wsis.metrics.errors import ERRORS, KINDS, Breakdown
from wsis.reports.table import FIGURES, Row

__all__ = ["write_page"]

COLOURS = (
    "#2b6cb0",
    "#d97706",
    "#2f855a",
    "#b83280",
    "#6b46c1",
    "#0e7490",
    "#c53030",
    "#8a6d1f",
    "#4a5568",
    "#65a30d",
)
"""Of methods."""
CLASS_FIGURES = ("AP50", "AP", "AP25", "AP70", "AP75", "CorLoc", "mIoU", "PQ")
HELP = {
    "classification": "it fits an object, but of another class",
    "localisation": "of the right class, but with an IoU between 0.1 and 0.5",
    "both": "of the wrong class, and with an IoU below 0.5",
    "duplicate": "a surer detection has its object",
    "background": "it overlaps nothing by 0.1 or more",
    "missed": "an object that no detection has, nor would have with its class or place mended",
}


def write_page(
    path: Path,
    rows: Sequence[Row],
    split: str,
    errors: Sequence[Breakdown | None],
    gallery: Mapping[str, Any],
) -> None:
    """Write the page, whole or not at all.

    Args:
        path: of the page.
        rows: of the table.
        split: that was judged.
        errors: of each row; None of one that does not detect.
        gallery: of `make_gallery`, with `sources`.

    Raises:
        InputError: the folder cannot be written.
    """
    index = rows[0].first.judged.index
    title = (
        f"{len(rows)} methods on {index.name}"
        if len(rows) > 1
        else f"{rows[0].name} on {index.name}"
    )
    said = f"{split}: {len(index.images):,} images, {len(index.categories)} classes"
    seeds = any(len(row.entries) > 1 for row in rows)
    parts = {
        "title": escape(title),
        "subtitle": escape(
            f"{said}; trained on {_span([row.first.judged.trained_on for row in rows])} images"
        ),
        "figures_note": "In %"
        + (", mean and range over seeds" if seeds else "")
        + "."
        + _paper_note(rows),
        "errors_note": "What AP50 would gain if all errors of a kind and no others were mended (TIDE, Bolya et al., ECCV 2020)."
        + " Of boxes where a method has no masks."
        + (" Of the first seed." if seeds else ""),
        "gallery_note": _gallery_note(gallery, len(index.images)),
        "table": _table(rows),
        "style": _asset("page.css"),
        "data": _json(_data(rows, errors, gallery, len(index.categories))),
        "script": _asset("page.js"),
    }
    page = re.sub(r"\{(\w+)\}", lambda found: parts[found[1]], _asset("page.html"))
    with whole(path) as scratch:
        scratch.write_text(page, encoding="utf-8")


def _asset(name: str) -> str:
    return (files("wsis.reports") / name).read_text(encoding="utf-8")


def _span(counts: Sequence[int]) -> str:
    low, high = min(counts), max(counts)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _paper_note(rows: Sequence[Row]) -> str:
    sources = dict.fromkeys(row.paper.source for row in rows if row.paper)
    return escape(f" The papers' figures are from {'; '.join(sources)}.") if sources else ""


def _gallery_note(gallery: Mapping[str, Any], images: int) -> str:
    shown = len(gallery["images"])
    if not shown:
        return "No pictures were asked for."
    which = f"The {shown:,} images on which methods disagree most. " if shown < images else ""
    return which + (
        "Each method is shown from the score on at which its F1 is best. Disagreement is one minus the IoU of each object with "
        "the nearest of its class in another method's answer, on average."
    )


def _table(rows: Sequence[Row]) -> str:
    """The sortable table; what is known of no row has no column."""
    shown = [f for f in FIGURES if any(not math.isnan(row.figures[f].mean) for row in rows)]
    numbers = [*(FIGURES[f] for f in shown), "seeds", "minutes", "GiB"]
    heads = [("method", "text"), ("learns from", "text"), *((text, "") for text in numbers)]
    heads += [(text, "text") for text in ("segments", "weights", "backbone", "commit", "settings")]
    best = {
        f: max(
            (row.figures[f].mean for row in rows if not math.isnan(row.figures[f].mean)),
            default=math.nan,
        )
        for f in shown
    }
    head = "".join(
        f'<th scope="col" class="{kind}"><button type="button">{text}</button></th>'
        for text, kind in heads
    )
    body = "".join(
        _line(row, colour(r), shown, best if len(rows) > 1 else {}) for r, row in enumerate(rows)
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def colour(row: int) -> str:
    """Colour of a row."""
    return COLOURS[row % len(COLOURS)]


def _line(row: Row, dot: str, shown: Sequence[str], best: Mapping[str, float]) -> str:
    first = row.first
    method, _, rest = row.name.partition(", ")
    name = f'<span class="dot" style="--dot:{dot}" aria-hidden="true"></span>{escape(method)}'
    name += f"<small>{escape(rest)}</small>" if rest else ""
    cells = [f'<th scope="row" data-value="{escape(row.name)}">{name}</th>']
    cells.append(_text(first.supervision))
    cells += [_figure(row, figure, best.get(figure)) for figure in shown]
    seeds = ", ".join(str(entry.seed[0]) for entry in row.entries)
    cells.append(
        f'<td data-value="{len(row.entries)}" title="seeds {seeds}">{len(row.entries)}</td>'
    )
    cells += [_number(row.minutes, first.device), _number(row.memory)]
    cells += [_text(value) for value in (first.segments, first.weights, first.backbone, row.commit)]
    folders, settings = (
        escape(", ".join(str(entry.folder) for entry in row.entries)),
        escape(first.config),
    )
    said = f'<div tabindex="0">{settings}</div>'
    cells.append(f'<td class="settings" data-value="{settings}" title="{folders}">{said}</td>')
    return f"<tr>{''.join(cells)}</tr>"


def _text(value: str) -> str:
    return f'<td class="text" data-value="{escape(value)}">{escape(value)}</td>'


def _number(value: float, below: str = "") -> str:
    small = f"<small>{escape(below)}</small>" if below else ""
    return (
        f'<td data-value="">-{small}</td>'
        if math.isnan(value)
        else f'<td data-value="{value:.4f}">{value:.1f}{small}</td>'
    )


def _figure(row: Row, figure: str, best: float | None) -> str:
    mean, low, high = row.figures[figure]
    paper = row.paper.figures.get(figure) if row.paper else None
    below = (
        f"<small>{100 * low:.1f}-{100 * high:.1f}</small>"
        if len(row.entries) > 1 and not math.isnan(mean)
        else ""
    )
    below += f"<small>paper {100 * paper:.1f}</small>" if paper is not None else ""
    if math.isnan(mean):
        return f'<td data-value="">-{below}</td>'
    return f'<td data-value="{mean:.6f}"{" class=best" if mean == best else ""}>{100 * mean:.1f}{below}</td>'


def _data(
    rows: Sequence[Row], errors: Sequence[Breakdown | None], gallery: Mapping[str, Any], things: int
) -> dict[str, Any]:
    classes = list(dict.fromkeys(name for row in rows for name in row.first.per_class))
    tints = [
        [draw.colour(c, k) if c < things else draw.stuff_colour(c - things) for k in range(4)]
        for c in range(len(classes))
    ]
    columns = {f: [[_of_class(row, c, f) for c in classes] for row in rows] for f in CLASS_FIGURES}
    known = {
        FIGURES[f]: values
        for f, values in columns.items()
        if any(v is not None for line in values for v in line)
    }
    return {
        "rows": [{"name": row.name, "colour": colour(r)} for r, row in enumerate(rows)],
        "classes": classes,
        "things": things,
        "colours": [
            [f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue in shades] for shades in tints
        ],
        "per_class": known,
        "errors": {
            "names": [(name, HELP[name]) for name in ERRORS],
            "rows": [_error_row(found) for found in errors],
        },
        "kinds": KINDS,
        **gallery,
    }


def _of_class(row: Row, name: str, figure: str) -> float | None:
    """Mean over seeds."""
    values = [entry.per_class.get(name, {}).get(figure, math.nan) for entry in row.entries]
    return _seen(sum(values) / len(values))


def _error_row(found: Breakdown | None) -> dict[str, Any] | None:
    if found is None:
        return None
    gains, counts = ([part[name] for name in ERRORS] for part in (found.gains, found.counts))
    return {"ap": _seen(found.ap), "gains": gains, "counts": counts}


def _seen(value: float | None) -> float | None:
    """A figure as json has it, None where it is not known."""
    return None if value is None or math.isnan(value) else round(value, 5)


def _json(content: Mapping[str, Any]) -> str:
    return json.dumps(content, separators=(",", ":")).replace("<", "\\u003c")
