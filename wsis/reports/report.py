"""A run on one page: figures, classes, training curves and pictures in a single HTML file that needs nothing else."""

from __future__ import annotations

import base64
import csv
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

from wsis.files import whole
from wsis.images.draw import Picture, jpeg

__all__ = ["Curve", "Pair", "read_curves", "write_report"]

Figures = Mapping[str, float]


class Pair(NamedTuple):
    """An image of the gallery."""

    caption: str
    prediction: Picture
    truth: Picture


class Curve(NamedTuple):
    """How a logged number went."""

    name: str
    points: list[tuple[float, float]]
    """(step, value) in order of steps."""


def write_report(
    path: Path,
    title: str,
    facts: Mapping[str, str],
    tables: Sequence[Sequence[Sequence[str]]],
    per_class: Mapping[str, Figures],
    curves: Sequence[Curve],
    gallery: Sequence[Pair],
) -> None:
    """Write the page.

    Args:
        path: of the page.
        title: its heading.
        facts: what was judged: name and value of each line.
        tables: figures as text; in each table first the row of headings, first in each row its name.
        per_class: figures by class name; nan where a class has no truth.
        curves: what was logged in training; none where there is no run.
        gallery: predictions beside truths.

    Raises:
        InputError: the folder cannot be written.
    """
    sections = [
        f"<h1>{escape(title)}</h1>",
        "<dl>"
        + "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in facts.items())
        + "</dl>",
        "<h2>Figures</h2>" + "".join(map(_table, tables)),
        "<h2>Classes</h2>" + _classes(per_class) if per_class else "",
        '<h2>Training</h2><div class="curves">' + "".join(map(_chart, curves)) + "</div>"
        if curves
        else "",
        "<h2>Pictures</h2><p>Prediction on the left, truth on the right.</p>"
        + "".join(map(_pair, gallery))
        if gallery
        else "",
    ]
    page = _PAGE.replace("{title}", escape(title)).replace(
        "{body}", "\n".join(section for section in sections if section)
    )
    with whole(path) as scratch:
        scratch.write_text(page, encoding="utf-8")


def read_curves(run: Path) -> list[Curve]:
    """Read what a run's stages logged in their metrics.csv: one curve per stage and column of at least two points."""
    curves = []
    for path in sorted(run.glob("*/metrics.csv")):
        points: dict[str, list[tuple[float, float]]] = {}
        with open(path, newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                for name, text in row.items():
                    value = _number(text)
                    if name not in ("step", "epoch") and value is not None:
                        points.setdefault(name, []).append((_number(row["step"]) or 0.0, value))
        curves += [
            Curve(f"{path.parent.name}: {name}", line)
            for name, line in points.items()
            if len(line) > 1
        ]
    return curves


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _table(rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in rows[0])
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows[1:]
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _classes(per_class: Mapping[str, Figures]) -> str:
    """A table with a bar behind each figure."""
    columns = list(next(iter(per_class.values())))
    head = "<th></th>" + "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = ""
    for name, figures in per_class.items():
        body += (
            f"<tr><td>{escape(name)}</td>"
            + "".join(_bar(figures[column]) for column in columns)
            + "</tr>"
        )
    return f'<table class="bars"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def _bar(share: float) -> str:
    if math.isnan(share):
        return "<td>-</td>"
    return f'<td style="--share:{100 * share:.1f}%">{100 * share:.1f}</td>'


def _chart(curve: Curve, width: int = 300, height: int = 120) -> str:
    """A line chart with its ends named."""
    steps, values = zip(*_thinned(curve.points), strict=True)
    low, high = min(values), max(values)
    across, up = (steps[-1] - steps[0]) or 1, (high - low) or 1
    line = " ".join(
        f"{(s - steps[0]) / across * width:.1f},{height - (v - low) / up * height:.1f}"
        for s, v in zip(steps, values, strict=True)
    )
    name, span = (
        escape(curve.name),
        f"<span>{low:.4g} to {high:.4g}</span><span>step {steps[0]:.0f} to {steps[-1]:.0f}</span>",
    )
    return (
        f"<figure><figcaption>{name} <b>{values[-1]:.4g}</b></figcaption>"
        f'<svg viewBox="-4 -4 {width + 8} {height + 8}" role="img" aria-label="{name}">'
        f'<path class="axis" d="M0 0V{height}H{width}"/><polyline points="{line}"/></svg>'
        f'<div class="ends">{span}</div></figure>'
    )


def _thinned(points: list[tuple[float, float]], most: int = 400) -> list[tuple[float, float]]:
    """Means of neighbours, so that a long training stays a small file and a noisy line can be read."""
    each = -(-len(points) // most)
    groups = [points[i : i + each] for i in range(0, len(points), each)]
    return [
        (sum(s for s, _ in group) / len(group), sum(v for _, v in group) / len(group))
        for group in groups
    ]


def _pair(pair: Pair) -> str:
    sides = "".join(
        f'<img loading="lazy" alt="{side}" src="data:image/jpeg;base64,{base64.b64encode(jpeg(picture, 85)).decode()}">'
        for side, picture in (("prediction", pair.prediction), ("truth", pair.truth))
    )
    return f'<figure class="pair"><figcaption>{escape(pair.caption)}</figcaption><div>{sides}</div></figure>'


_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root { --ink: #1e2024; --soft: #6b7078; --paper: #fafaf8; --line: #dddcd6; --accent: #2b6cb0; --bar: #d5e3f2;
  color-scheme: light dark }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e8e4; --soft: #9a9fa8; --paper: #17181b; --line: #35373c; --accent: #7db3e8; --bar: #26405c }
}
body { max-width: 68rem; margin: 2.5rem auto; padding: 0 1.25rem; color: var(--ink); background: var(--paper);
  font: 15px/1.5 system-ui, sans-serif }
h1 { font-size: 1.6rem; margin: 0 0 .6rem; letter-spacing: -.01em }
h2 { font-size: 1.1rem; margin: 2.4rem 0 .6rem }
p, figcaption, dt, .ends { color: var(--soft) }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; margin: 0 }
dd { margin: 0; overflow-wrap: anywhere }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; display: block; overflow-x: auto }
th, td { padding: .3rem .8rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap }
table + table { margin-top: 1rem }
th { color: var(--soft); font-weight: 500 } th:first-child, td:first-child { text-align: left; padding-left: 0 }
.bars td[style] { min-width: 4.5rem; background: linear-gradient(to right, var(--bar) var(--share), transparent var(--share)) }
.curves { display: grid; grid-template-columns: repeat(auto-fill, minmax(17rem, 1fr)); gap: 1.2rem 1.6rem }
figure { margin: 0 } figcaption b { color: var(--ink); font-weight: 600 }
svg { width: 100%; display: block } polyline { fill: none; stroke: var(--accent); stroke-width: 1.8; stroke-linejoin: round }
.axis { fill: none; stroke: var(--line) } .ends { display: flex; justify-content: space-between; font-size: .8rem }
.pair { margin: 0 0 1.4rem } .pair div { display: grid; grid-template-columns: 1fr 1fr; gap: .5rem }
.pair img { width: 100%; border-radius: 4px; display: block }
</style>
{body}
</html>
"""
