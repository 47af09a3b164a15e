"""Training curves of a run, as small charts in SVG."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

from wsis.errors import InputError

__all__ = ["Curve", "chart", "curves_of", "read_curves"]

MAX_POINTS = 200
"""Points of a chart; longer curves are averaged, which keeps the page small and lines readable."""
WIDTH, HEIGHT = 300, 120

Points = list[tuple[float, float]]


class Curve(NamedTuple):
    """A logged value over the steps of a stage."""

    name: str
    points: Points
    """(step, value), by step."""


def read_curves(run: Path) -> list[Curve]:
    """Read metrics.csv of all stages of a run: a curve for each column with at least two values.

    A column that is always 0, such as a loss that is switched off, has none, and neither have VOC's
    average precisions, beside COCO's.
    """
    curves = []
    for path in sorted(run.glob("*/metrics.csv")):
        columns: dict[str, Points] = {}
        for row in _rows(path):
            step = _number(row.get("step")) or 0.0
            for name, text in row.items():
                value = _number(text)
                if name not in ("step", "epoch") and "VOC" not in name and value is not None:
                    columns.setdefault(name, []).append((step, value))
        stage = path.parent.name
        told = {name: line for name, line in columns.items() if any(v for _, v in line)}
        curves += [Curve(f"{stage}: {name}", line) for name, line in told.items() if line[1:]]
    return curves


def _rows(path: Path) -> list[dict[str, str]]:
    """Return the lines of a metrics.csv by the names of their columns; cells beyond are left out.

    Raises:
        InputError: the file is damaged.
    """
    try:
        with open(path, newline="", encoding="utf-8") as file:
            return [
                {name: text for name, text in row.items() if isinstance(text, str)}
                for row in csv.DictReader(file)
            ]
    except (ValueError, csv.Error, OSError) as error:
        raise InputError(
            f"{path} is damaged ({error}); delete it, and its curves are left out"
        ) from error


def curves_of(run: Path) -> str:
    """Draw all curves of a run, as HTML; empty if there is none."""
    charts = "".join(map(chart, read_curves(run)))
    return f'<div class="curves">{charts}</div>' if charts else ""


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def chart(curve: Curve) -> str:
    """Draw a curve as an HTML figure, with its last value and its extent."""
    steps, values = zip(*_thinned(curve.points), strict=True)
    low, high = min(values), max(values)
    across, up = (steps[-1] - steps[0]) or 1, (high - low) or 1
    line = " ".join(
        f"{(step - steps[0]) / across * WIDTH:.1f},{HEIGHT - (value - low) / up * HEIGHT:.1f}"
        for step, value in zip(steps, values, strict=True)
    )
    name = escape(curve.name)
    return (
        f"<figure><figcaption>{name} <b>{values[-1]:.4g}</b></figcaption>"
        f'<svg viewBox="-4 -4 {WIDTH + 8} {HEIGHT + 8}" role="img" aria-label="{name}">'
        f'<path class="axis" d="M0 0V{HEIGHT}H{WIDTH}"/><polyline points="{line}"/></svg>'
        f'<div class="ends"><span>{low:.4g} to {high:.4g}</span>'
        f"<span>step {steps[0]:.0f} to {steps[-1]:.0f}</span></div></figure>"
    )


def _thinned(points: Points) -> Points:
    """Average neighbouring points."""
    count = -(-len(points) // MAX_POINTS)
    groups = [points[i : i + count] for i in range(0, len(points), count)]
    return [(_mean([s for s, _ in group]), _mean([v for _, v in group])) for group in groups]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
