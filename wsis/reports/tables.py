"""Tables, on the terminal, in Markdown and as CSV, and a figure of several runs in one cell."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from wsis.files import whole

__all__ = ["markdown_table", "mean_and_range", "print_table", "write_csv"]


def mean_and_range(values: Sequence[float | None]) -> str:
    """The cell of a figure that several runs have: "54.2 (44.3-61.9)" of those known, "-" of none."""
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    mean = f"{sum(known) / len(known):.1f}"
    return mean if len(known) == 1 else f"{mean} ({min(known):.1f}-{max(known):.1f})"


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Print cells in columns, the first to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *rest in rows:
        print(
            "  ".join(
                [
                    first.ljust(widths[0]),
                    *(c.rjust(w) for c, w in zip(rest, widths[1:], strict=True)),
                ]
            )
        )


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """A table of Markdown; the first row is its head."""
    head, *body = ([cell.replace("|", "\\|") for cell in row] for row in rows)
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *body])


def write_csv(path: Path, rows: Sequence[Mapping[str, str]]) -> None:
    """Write rows that have the same columns, one at least."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    with whole(path) as scratch:
        scratch.write_text(text.getvalue(), encoding="utf-8")
