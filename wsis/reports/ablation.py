"""A paper's ablation tables: files that name their rows, and the paper's figures beside ours."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from wsis import registry
from wsis.command_line.settings import Config, read_config
from wsis.errors import InputError
from wsis.reports.tables import markdown_table, mean_and_range
from wsis.runs.run import stages

__all__ = [
    "Ablation",
    "Outcome",
    "Row",
    "Table",
    "cells_of",
    "heading",
    "lines_of",
    "markdown",
    "outcome",
    "read_ablation",
]


class Row(NamedTuple):
    """A variant of the method."""

    name: str
    words: tuple[str, ...]
    """Its settings as flags of wsis.fit."""
    paper: dict[str, float]
    """The paper's figures, in percent."""
    needs: str
    """A setting that the user has to give for this row alone, such as a file of proposals; "" for none."""
    model: str
    """The method; that of the file unless the row has its own."""


class Table(NamedTuple):
    """Rows that the paper has in one table."""

    name: str
    source: str
    figures: tuple[str, ...]
    stage: str
    """The last stage that its figures ask for; "" for the whole run."""
    rows: tuple[Row, ...]


class Ablation(NamedTuple):
    """All tables of a file."""

    name: str
    tables: tuple[Table, ...]

    @property
    def rows(self) -> dict[str, Row]:
        """Rows of all tables by name."""
        return {row.name: row for table in self.tables for row in table.rows}

    def choose(self, names: Sequence[str] | None) -> list[tuple[Table, Row]]:
        """Rows of these names, or of tables of these names; where none is asked for, all but those that need something.

        Raises:
            InputError: a name that is neither.
        """
        known = [*self.rows, *(table.name for table in self.tables)]
        for name in names or ():
            if name not in known:
                raise InputError(
                    f"no row of {self.name} is called '{name}'{registry.suggest(name, known)} (rows: {', '.join(known)})"
                )
        everything = [(table, row) for table in self.tables for row in table.rows]
        if names is None:
            return [(table, row) for table, row in everything if not row.needs]
        return [
            (table, row)
            for table, row in everything
            if row.name in names or (table.name in names and not row.needs)
        ]


def read_ablation(path: Path) -> Ablation:
    """Read a file of tables, with the overlays that its rows name.

    Raises:
        InputError: no such file, or not tables.
    """
    content = read_config(path)
    if not content.get("tables"):
        raise InputError(
            f"{path} is no file of ablation tables; give one such as configs/ablation/pdsl.yaml"
        )
    shared = (content.get("model") or {}).get("class_path", ""), str(content.get("paper", ""))
    tables = tuple(
        _read_table(path, name, table, *shared) for name, table in content["tables"].items()
    )
    names = [row.name for table in tables for row in table.rows]
    if twice := [name for name in names if names.count(name) > 1]:
        raise InputError(
            f"{path} has two rows called '{twice[0]}'; a row's folder has its name, so give each its own"
        )
    return Ablation(path.stem, tables)


def _read_table(path: Path, name: str, content: Any, model: str, paper: str) -> Table:
    where = f"table '{name}' in {path}"
    _check_keys(content, {"title", "figures", "stage", "rows"}, {"figures", "rows"}, where)
    figures = tuple(content["figures"])
    rows = tuple(
        _read_row(path, str(row), settings, figures, model)
        for row, settings in content["rows"].items()
    )
    source = ", ".join(filter(None, (paper, str(content.get("title", "")))))
    return Table(name, source, figures, str(content.get("stage", "")), rows)


def _read_row(path: Path, name: str, content: Any, figures: Sequence[str], model: str) -> Row:
    where = f"row '{name}' in {path}"
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise InputError(f"{where}: a row's name is its folder's; use letters, digits, _ . -")
    _check_keys(content, {"config", "set", "paper", "needs", "model"}, set(), where)
    if not content.get("model", model):
        raise InputError(f"{where} needs `model: NAME`, for itself or at the top of the file")
    try:
        if "." in content.get("model", model):  # a file names no code that is not installed
            registry.class_path("model", content.get("model", model))
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    overlay = read_config(path.parent / content["config"]) if "config" in content else {}
    settings = dict(_flatten(overlay)) | (content.get("set") or {})
    settings.pop(content.get("needs"), None)
    for key in {"model", "data", "config"} & settings.keys():
        raise InputError(f"{where}: `set` takes settings such as {key}.NAME, not {key} itself")
    paper = content.get("paper") or [None] * len(figures)
    if len(paper) != len(figures):
        raise InputError(
            f"{where}: give {len(figures)} figures of the paper ({', '.join(figures)}), null where it has none"
        )
    known = {
        figure: float(value)
        for figure, value in zip(figures, paper, strict=True)
        if value is not None
    }
    return Row(
        name,
        tuple(_as_words(settings)),
        known,
        content.get("needs", ""),
        content.get("model", model),
    )


def _check_keys(content: Any, known: set[str], required: set[str], where: str) -> None:
    if not isinstance(content, Mapping):
        raise InputError(
            f"{where} must hold `name: value` with names of {', '.join(sorted(known))}"
        )
    for key in content:
        if key not in known:
            raise InputError(
                f"{where}: unknown '{key}'{registry.suggest(str(key), known)} (have: {', '.join(sorted(known))})"
            )
    if missing := required - content.keys():
        raise InputError(f"{where} needs {', '.join(sorted(missing))}")


def _flatten(config: Config, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Settings of an overlay by name; a dictionary that a model takes is one, and replaces that of the recipe."""
    for key, value in config.items():
        if isinstance(value, dict) and (prefix != "model." or key == "init_args"):
            yield from _flatten(value, prefix if key == "init_args" else f"{prefix}{key}.")
        elif key != "class_path":
            yield f"{prefix}{key}", value


def _as_words(settings: Config) -> list[str]:
    """Return settings as flags of wsis.fit."""
    texts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in settings.items()}
    return [f"--{key}={text}" for key, text in texts.items()]


@dataclass(frozen=True)
class Outcome:
    """What the runs of a row have come to."""

    table: Table
    row: Row
    figures: dict[str, list[float]]
    """In percent, of each seed in turn; none where not all runs have the figure."""
    minutes: list[float]
    memory: float
    """Most bytes of any run."""
    runs: list[Path]


def outcome(table: Table, row: Row, runs: Sequence[Path]) -> Outcome:
    """Read figures and costs of a row's finished runs."""
    done = [[stage for _, stage in stages(run)] for run in runs]
    metrics = [
        {k: v for stage in entries for k, v in (stage.get("metrics") or {}).items()}
        for entries in done
    ]
    figures = {}
    for figure in table.figures:
        found = [100 * known[f"val/{figure}"] for known in metrics if f"val/{figure}" in known]
        figures[figure] = found if len(found) == len(runs) else []
    minutes = [sum(stage.get("minutes", 0.0) for stage in entries) for entries in done]
    memory = max(
        (float(stage.get("memory", 0)) for entries in done for stage in entries), default=0.0
    )
    return Outcome(table, row, figures, minutes, memory, list(runs))


def lines_of(table: Table, outcomes: Sequence[Outcome]) -> list[list[str]]:
    """One table as cells: for each figure ours, mean and range over seeds, beside the paper's."""
    lines = [
        ["", *(head for figure in table.figures for head in (figure, "paper")), "seeds", "minutes"]
    ]
    for found in (o for o in outcomes if o.table.name == table.name):
        cells = [
            cell
            for figure in table.figures
            for cell in (
                mean_and_range(found.figures[figure]),
                _number(found.row.paper.get(figure)) or "-",
            )
        ]
        minutes = f"{_mean(found.minutes):.1f}" if found.minutes else "-"
        lines.append([found.row.name, *cells, str(len(found.runs)), minutes])
    return lines


def markdown(ablation: Ablation, data: str, outcomes: Sequence[Outcome]) -> str:
    """All tables for a README."""
    parts = []
    for table in ablation.tables:
        lines = lines_of(table, outcomes)
        if len(lines) > 1:
            parts.append(f"{heading(ablation, table, data)}\n\n{markdown_table(lines)}\n")
    return "\n".join(parts)


def heading(ablation: Ablation, table: Table, data: str) -> str:
    """What a table shows."""
    known = "Paper: " if any(row.paper for row in table.rows) else ""
    source = f" {known}{table.source}." if table.source else ""
    return f"{ablation.name} on {data}, {table.name}, in %: mean (range) over seeds.{source}"


def cells_of(outcomes: Sequence[Outcome]) -> list[dict[str, str]]:
    """All rows with all that is known of them, figures in percent, for a CSV."""
    figures = dict.fromkeys(figure for found in outcomes for figure in found.table.figures)
    rows = []
    for found in outcomes:
        cells = {"table": found.table.name, "row": found.row.name, "seeds": str(len(found.runs))}
        for figure in figures:
            ours = found.figures.get(figure) or []
            known = [_mean(ours), min(ours), max(ours)] if ours else [None, None, None]
            ends = zip(
                ("", "_min", "_max", "_paper"), (*known, found.row.paper.get(figure)), strict=True
            )
            cells |= {figure + end: _number(value, 2) for end, value in ends}
        cells |= {
            "minutes": _number(_mean(found.minutes), 2) if found.minutes else "",
            "memory_gib": f"{found.memory / 2**30:.2f}",
        }
        rows.append(
            cells
            | {
                "source": found.table.source,
                "settings": " ".join(found.row.words),
                "runs": " ".join(map(str, found.runs)),
            }
        )
    return rows


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _number(value: float | None, digits: int = 1) -> str:
    return "" if value is None else f"{value:.{digits}f}"
