"""Ablation tables of a paper: files that name their rows, and rows made from finished runs."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any, NamedTuple

from wsis import registry
from wsis.command_line.settings import Config, find_config, read_config
from wsis.errors import InputError
from wsis.reports.papers import Published
from wsis.reports.table import GIB, Row, complete, lines_of, markdown_table
from wsis.runs.record import stages

__all__ = [
    "Ablation",
    "Table",
    "Variant",
    "heading",
    "headings",
    "markdown",
    "read_ablation",
    "row_of_runs",
    "sweep",
]


class Variant(NamedTuple):
    """A method with some settings changed: what a row of a table trains."""

    name: str
    words: tuple[str, ...]
    """Its settings as flags of wsis.fit."""
    paper: dict[str, float]
    """The paper's metrics, from 0 to 1."""
    needs: str
    """Setting that the user gives for this row alone, such as a file of proposals; "" for none."""
    model: str


class Table(NamedTuple):
    """Variants that the paper has in one table."""

    name: str
    source: str
    metrics: tuple[str, ...]
    stage: str
    """The last stage that its metrics need; "" for the whole run."""
    variants: tuple[Variant, ...]


class Ablation(NamedTuple):
    """All tables of a file."""

    name: str
    tables: tuple[Table, ...]

    @property
    def variants(self) -> dict[str, Variant]:
        """Variants of all tables by name."""
        return {variant.name: variant for table in self.tables for variant in table.variants}

    def choose(self, names: Sequence[str] | None) -> list[tuple[Table, Variant]]:
        """Return rows and tables by name, or all rows; a row that needs something by its name only.

        Raises:
            InputError: a name that is neither a row nor a table.
        """
        known = [*self.variants, *(table.name for table in self.tables)]
        for name in names or ():
            if name not in known:
                raise InputError(
                    f"no row of {self.name} is called '{name}'{registry.suggest(name, known)} "
                    f"(rows: {', '.join(known)})"
                )
        return [
            (table, variant)
            for table in self.tables
            for variant in table.variants
            if variant.name in (names or ())
            or (not variant.needs and (names is None or table.name in names))
        ]


def read_ablation(path: Path) -> Ablation:
    """Read a file of tables.

    Raises:
        InputError: no such file, or not tables.
    """
    content = read_config(find_config(path))
    if not content.get("tables"):
        raise InputError(
            f"{path} is no file of ablation tables; give one such as configs/ablation/pdsl.yaml"
        )
    model, paper = (content.get("model") or {}).get("class_path", ""), str(content.get("paper", ""))
    tables = [
        _read_table(path, name, table, model, paper) for name, table in content["tables"].items()
    ]
    names = [variant.name for table in tables for variant in table.variants]
    if twice := [name for name in names if names.count(name) > 1]:
        raise InputError(
            f"{path} has two rows called '{twice[0]}'; a row's folder has its name, "
            "so give each its own"
        )
    return Ablation(path.stem, tuple(tables))


def _read_table(path: Path, name: str, content: Any, model: str, paper: str) -> Table:
    place = f"table '{name}' in {path}"
    _check_keys(content, {"title", "metrics", "stage", "rows"}, {"metrics", "rows"}, place)
    metrics = tuple(content["metrics"])
    variants = [
        _read_variant(path, str(row), settings, metrics, model)
        for row, settings in content["rows"].items()
    ]
    source = ", ".join(filter(None, (paper, str(content.get("title", "")))))
    return Table(name, source, metrics, str(content.get("stage", "")), tuple(variants))


def _read_variant(
    path: Path, name: str, content: Any, metrics: Sequence[str], model: str
) -> Variant:
    place = f"row '{name}' in {path}"
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise InputError(f"{place}: a row's name is its folder's; use letters, digits, _ . -")
    _check_keys(content, {"config", "set", "paper", "needs", "model"}, set(), place)
    if not content.get("model", model):
        raise InputError(f"{place} needs `model: NAME`, for itself or at the top of the file")
    settings = dict(content.get("set") or {})
    model = content.get("model", model)
    try:
        registry.class_path("model", model)  # a file names no other code
    except InputError as error:
        raise InputError(f"{place}: {error}") from error
    if "config" in content:
        overlay = read_config(path.parent / content["config"])
        settings = dict(_flatten(overlay, _groups(model))) | settings
    for key in {"model", "data", "config"} & settings.keys():
        raise InputError(f"{place}: `set` takes settings such as {key}.NAME, not {key} itself")
    paper = content.get("paper") or [None] * len(metrics)
    if len(paper) != len(metrics):
        raise InputError(
            f"{place}: give {len(metrics)} metrics of the paper ({', '.join(metrics)}), "
            "null where it has none"
        )
    known = {m: value / 100 for m, value in zip(metrics, paper, strict=True) if value is not None}
    words, needs = tuple(_as_words(settings)), content.get("needs", "")
    return Variant(name, words, known, needs, model)


def _check_keys(content: Any, known: set[str], required: set[str], place: str) -> None:
    if not isinstance(content, Mapping):
        raise InputError(
            f"{place} must hold `name: value` with names of {', '.join(sorted(known))}"
        )
    for key in content:
        if key not in known:
            raise InputError(
                f"{place}: unknown '{key}'{registry.suggest(str(key), known)} "
                f"(have: {', '.join(sorted(known))})"
            )
    if missing := required - content.keys():
        raise InputError(f"{place} needs {', '.join(sorted(missing))}")


def _flatten(config: Config, groups: Set[str], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield settings by dotted name; a dictionary that is a value of the model stays one."""
    for key, value in config.items():
        name = prefix if key == "init_args" else f"{prefix}{key}."
        within_model = prefix.startswith("model.") and key != "init_args"
        is_group = not within_model or (prefix == "model." and key in groups)
        if isinstance(value, dict) and is_group:
            yield from _flatten(value, groups, name)
        elif key != "class_path":
            yield f"{prefix}{key}", value


def _groups(model: str) -> set[str]:
    """Return the arguments of a model that are groups of settings."""
    parameters = registry.arguments(registry.find("model", model))
    return {name for name, p in parameters.items() if dataclasses.is_dataclass(p.default)}


def _as_words(settings: Config) -> list[str]:
    """Return settings as flags of wsis.fit."""
    texts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in settings.items()}
    return [f"--{key}={text}" for key, text in texts.items()]


def row_of_runs(table: Table, variant: Variant, runs: Sequence[Path]) -> Row:
    """Read metrics and costs of a variant's finished runs, in order of their seeds."""
    done = [[stage for _, stage in stages(run)] for run in runs]
    logged = [
        {name: value for stage in run for name, value in stage.metrics.items()} for run in done
    ]
    validated = complete(
        [{m: run.get(f"val/{m}", math.nan) for m in table.metrics} for run in logged]
    )
    minutes = [sum(stage.minutes or 0.0 for stage in run) for run in done]
    memory = [float(stage.memory or 0) for run in done for stage in run]
    return Row(
        name=variant.name,
        runs=list(runs),
        metrics=validated,
        minutes=sum(minutes) / len(minutes),
        memory=max(memory, default=0.0) / GIB,
        paper=Published(variant.paper, table.source),
        group=table.name,
        facts={"config": " ".join(variant.words)},
    )


def markdown(ablation: Ablation, data: str, rows: Sequence[Row]) -> str:
    """Write all tables that have rows, as Markdown."""
    parts = []
    for table in ablation.tables:
        group = [row for row in rows if row.group == table.name]
        if group:
            lines = markdown_table(lines_of(group, headings(table)))
            parts.append(f"{heading(ablation, table, data)}\n\n{lines}\n")
    return "\n".join(parts)


def headings(table: Table) -> dict[str, str]:
    """Return the metrics of a table with their headings."""
    return {metric: metric for metric in table.metrics}


def heading(ablation: Ablation, table: Table, data: str) -> str:
    """Return the sentence above a table."""
    text = f"{ablation.name} on {data}, {table.name}, in %: mean (range) over seeds"
    if any(variant.paper for variant in table.variants):
        return f"{text} [paper]. Paper: {table.source}."
    return f"{text}. {table.source}." if table.source else f"{text}."


def sweep(
    ablation: Ablation,
    tables: Path,
    rows: Sequence[str],
    seeds: Sequence[int],
    project: str,
    words: Sequence[str],
) -> dict[str, Any]:
    """Return a W&B sweep whose agents train one row and seed at a time.

    Args:
        ablation: the tables.
        tables: their file.
        rows: names of the rows.
        seeds: of each row.
        project: W&B project.
        words: more words of wsis.ablate, which all agents get.
    """
    metrics = [metric for table in ablation.tables for metric in table.metrics]
    metric = "AP50" if "AP50" in ablation.tables[0].metrics else metrics[0]
    command = ["${env}", "${interpreter}", "-m", "${program}", str(tables), "--seeds", "1"]
    return {
        "name": ablation.name,
        "project": project,
        "program": "wsis.ablate",
        "method": "grid",
        "metric": {"name": f"val/{metric}", "goal": "maximize"},
        "parameters": {"rows": {"values": [*rows]}, "first_seed": {"values": [*seeds]}},
        "command": [*command, *words, "${args}"],
    }
