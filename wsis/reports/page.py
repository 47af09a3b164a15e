"""The page of one or several rows: metrics, classes, errors, pictures, settings and curves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from wsis.metrics.errors import ERRORS, Breakdown
from wsis.reports.curves import curves_of
from wsis.reports.document import Section, gallery_section, page_data, write_document
from wsis.reports.evaluation import has_truth
from wsis.reports.markup import facts_table, metrics_table, plain_table
from wsis.reports.table import METRICS, Row, metric_tables

__all__ = ["write_page"]

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
        errors: of each row; None for one that was given boxes, or has only tags to compare with.
        gallery: from `make_gallery`.

    Raises:
        InputError: the folder cannot be written.
    """
    index = rows[0].first.evaluation_set.index
    seeds = any(len(row.runs) > 1 for row in rows)
    pictures = len(gallery["images"])
    note = _gallery_note(pictures, len(index.images), len(rows), has_truth(index))
    known = [breakdown for breakdown in errors if breakdown]
    curves = "".join(_run(row, len(rows) == 1) for row in rows)
    sections = [
        Section("metrics", "Metrics", _metrics_note(rows, seeds), metrics_table(rows)),
        Section("classes", "Classes", "", _CLASSES),
        *([Section("errors", "Errors", _errors_note(seeds), _ERRORS)] if known else ()),
        gallery_section(note, pictures),
        Section("settings", "Settings", "", facts_table(rows)),
        Section("runs", "Training", _runs_note(seeds), curves),
    ]
    data = _data(rows, errors, gallery, len(index.categories))
    write_document(path, _title(rows), _subtitle(rows), sections, data)


_CLASSES = (
    '<p class="controls"><label>Metric <select id="class-metric"></select></label> '
    '<span class="soft">of each class, in %; no bar where it is not known.</span></p>'
    '<div id="class-table" class="scroll"></div>'
)
_ERRORS = '<div id="error-table" class="scroll"></div>'


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
    note = f"Metrics in %{', mean and range over seeds' if seeds else ''}.{papers}"
    if has_truth(rows[0].first.evaluation_set.index):
        return note
    return note + (
        " There are no boxes or masks to compare with: tag_mAP says how well images are ranked by "
        "the score of their best detection of a class. It says nothing of the masks."
    )


def _errors_note(seeds: bool) -> str:
    return (
        "Gain in AP50 if all errors of one kind, and no others, were corrected "
        "(TIDE, Bolya et al., ECCV 2020). For boxes if a method has no masks."
    ) + (" First seed." if seeds else "")


def _gallery_note(pictures: int, images: int, rows: int, truth: bool) -> str:
    if not pictures:
        return "No pictures were asked for."
    order = "furthest from the truth" if truth else "whose tags are told worst"
    note = "Detections are shown from the score with the best F1; where none reaches it, the best."
    if rows > 1:
        order = "on which methods disagree most"
        note += (
            " The disagreement of two sources is one minus the mean, over their objects, of the "
            "greatest IoU with an object of the same class in the other. A method that finds "
            "nothing in any image does not count."
        )
    return (f"The {pictures:,} images {order}. " if pictures < images else "") + note


def _runs_note(seeds: bool) -> str:
    return "All metrics, in %, and training curves" + (", of the first seed." if seeds else ".")


def _run(row: Row, is_open: bool) -> str:
    """Return all metrics and the training curves of a row's first run."""
    tables = "".join(map(plain_table, metric_tables(row.first.metrics)))
    summary = f"<summary>{escape(row.name)}</summary>"
    content = tables + curves_of(row.first.folder)
    return f"<details{' open' if is_open else ''}>{summary}{content}</details>"


def _data(
    rows: Sequence[Row], errors: Sequence[Breakdown | None], gallery: Mapping[str, Any], things: int
) -> dict[str, Any]:
    """Return what the page's script reads."""
    classes = list(dict.fromkeys(name for row in rows for name in row.first.per_class))
    per_class = {
        METRICS.get(m, m): [[_of_class(row, name, m) for name in classes] for row in rows]
        for m in CLASS_METRICS
    }
    return page_data([row.name for row in rows], classes, things, gallery) | {
        "per_class": {m: table for m, table in per_class.items() if _is_known(table)},
        "errors": {
            "names": [(name, HELP[name]) for name in ERRORS],
            "rows": [_error_row(breakdown) for breakdown in errors],
        },
    }


def _is_known(table: Sequence[Sequence[float | None]]) -> bool:
    return any(value is not None for line in table for value in line)


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
