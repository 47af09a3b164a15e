"""Train the rows of ablation tables: `python -m wsis.ablate configs/ablation/pdsl.yaml`."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from jsonargparse import ArgumentParser

from wsis.command_line.messages import plain_errors
from wsis.command_line.options import run_options
from wsis.command_line.parser import CLI, Help, parse
from wsis.command_line.settings import spelled
from wsis.command_line.trainers import write_settings
from wsis.errors import InputError
from wsis.files import atomic_write
from wsis.fingerprint import fingerprint
from wsis.reports.ablation import (
    Ablation,
    Table,
    Variant,
    heading,
    headings,
    markdown,
    read_ablation,
    sweep,
)
from wsis.reports.batch import Batch, Planned, with_seed
from wsis.reports.table import Row, csv_rows, lines_of, print_table, write_csv
from wsis.runs.jobs import Job, places_for, work

__all__ = ["ablate", "main"]

OWN = ("--seeds", "--first_seed", "--rows", "--jobs", "--out", "--sweep", "-h", "--help")
SET_HERE = (
    "--model",
    "--run_dir",
    "--resume",
    "--reuse",
    "--stage",
    "--list_stages",
    "--seed_everything",
)
"""Settings of wsis.fit that each run has from its row and seed."""


def main(argv: Sequence[str] | None = None) -> list[Row]:
    """Train the rows that `argv` names; return the rows of the tables."""
    with plain_errors(lambda: "; to continue: repeat the command"):
        own, settings = _divide(list(sys.argv[1:] if argv is None else argv))
        parser = ArgumentParser(
            prog="python -m wsis.ablate",
            usage="%(prog)s TABLES [--seeds N] [--rows ROW ...] [any setting of wsis.fit]",
            description=__doc__,
            exit_on_error=False,
            formatter_class=Help,
        )
        parser.add_argument(
            "tables", type=Path, help="File of tables, such as configs/ablation/pdsl.yaml."
        )
        parser.add_argument(
            "--rows",
            nargs="+",
            type=str,
            help="Rows, or tables; all if not given, but those that need a file of their own.",
        )
        parser.add_function_arguments(ablate, skip={"tables", "rows", "settings"})
        return ablate(**parse(parser, own), settings=settings)


def _divide(words: list[str]) -> tuple[list[str], list[str]]:
    """Split words into those of wsis.ablate and those of wsis.fit.

    Raises:
        InputError: no tables, or a setting that each row sets for its runs.
    """
    words = words or ["--help"]
    if words[0].startswith("-") and not {"-h", "--help"} & set(words):
        raise InputError(
            "name a file of tables first: python -m wsis.ablate configs/ablation/pdsl.yaml"
        )
    own: list[str] = []
    settings: list[str] = []
    is_own = True
    for word in map(spelled, words):
        flag = word.partition("=")[0]
        if re.match("--?[a-z]", flag):
            is_own = flag in OWN
        if flag in SET_HERE:
            raise InputError(f"{flag} is set by wsis.ablate for each run; leave it out")
        (own if is_own else settings).append(word)
    return own, settings


def ablate(
    tables: Path,
    seeds: int = 3,
    rows: list[str] | None = None,
    jobs: int | Literal["auto"] = "auto",
    out: Path | None = None,
    first_seed: int = 0,
    sweep: Path | None = None,
    settings: Sequence[str] = (),
) -> list[Row]:
    """Train rows of a file of tables; write OUT/ablation.csv and OUT/ablation.md.

    Each row and seed is an ordinary run in OUT/ROW/SEED. Stages that runs have in common train
    once, and a repeated command continues where it was stopped. In a setting of wsis.fit, {seed}
    stands for the run's seed: `--data.seed {seed}` generates other data for each seed.

    Args:
        tables: File of tables, such as configs/ablation/pdsl.yaml.
        seeds: Runs of each row.
        rows: Rows or tables; by default all rows except those that need a file of their own.
        jobs: Runs at a time; auto starts with one, then as many as cores and free memory allow.
        out: Folder of the runs; runs/ablate/TABLES/DATA if not given.
        first_seed: Seed of a row's first run; the others count on from it.
        sweep: Write a W&B sweep of the rows and seeds to this file and train nothing.
        settings: Words of wsis.fit for all runs; a row's own settings come after them.

    Raises:
        InputError: an unknown row, settings that a row's model or data reject, or a folder of other
            tables.
    """
    if seeds < 1 or first_seed < 0 or (jobs != "auto" and jobs < 1):
        raise InputError("--seeds and --jobs are 1 at least, --first_seed 0")
    ablation = read_ablation(tables)
    chosen = ablation.choose(rows)
    _check_needs(chosen, settings)
    all_seeds = range(first_seed, first_seed + seeds)
    if sweep:
        names = [variant.name for _, variant in chosen]
        words = [*(["--out", str(out)] if out else []), *settings]
        _write_sweep(sweep, ablation, tables, names, all_seeds, words)
        return []
    planned = [_plan(row, with_seed(settings, first_seed)) for _, row in chosen]
    place = out or Path("runs", "ablate", ablation.name, planned[0].data)
    batch = Batch(ablation, place, planned[0], settings)
    batch.claim()
    todo = [job for job in batch.jobs(chosen, planned, all_seeds) if not batch.finished(job)]
    count = f"{len(chosen)} rows x {seeds} seeds in {place}"
    print(count + _left_out(ablation, rows, chosen), flush=True)
    failed = _Progress(batch, todo, len(chosen) * seeds).work(jobs)
    table_rows = batch.rows()
    _show(batch, table_rows)
    if failed:
        unfinished = ", ".join(f"{job.name} ({job.log})" for job in failed)
        print(f"failed: {unfinished}", file=sys.stderr, flush=True)
        raise SystemExit(1)
    return table_rows


def _left_out(
    ablation: Ablation, rows: Sequence[str] | None, chosen: Sequence[tuple[Table, Variant]]
) -> str:
    """Name the rows that are left out because they need something."""
    if rows:
        return ""
    taken = [variant for _, variant in chosen]
    return "".join(
        f"; left out: {row.name}, which needs --{row.needs} (--rows {row.name} --{row.needs} ...)"
        for row in ablation.variants.values()
        if row.needs and row not in taken
    )


def _check_needs(chosen: Sequence[tuple[Table, Variant]], settings: Sequence[str]) -> None:
    """Raise InputError if a row lacks the setting that it needs, or other rows would get it too."""
    given = {word[2:].partition("=")[0] for word in settings if word.startswith("--")}
    for _, row in chosen:
        if row.needs and row.needs not in given:
            raise InputError(
                f"row {row.name} needs --{row.needs}, which is for it alone; "
                f"give it with --rows {row.name}"
            )
        if row.needs and len(chosen) > 1:
            raise InputError(
                f"row {row.name} has --{row.needs} for itself; "
                f"train it with --rows {row.name} alone"
            )


def _plan(row: Variant, settings: Sequence[str]) -> Planned:
    """Make a row's model and data, and let the method check its settings, without training.

    Raises:
        InputError: settings that are rejected, with the row's name.
    """
    try:
        cli = CLI("fit", ["--model", row.model, *settings, *row.words], options=run_options)
        _check_stages(cli.model, cli.datamodule)
    except InputError as error:
        raise InputError(f"row {row.name}: {error}") from error
    config = cli.settings()
    given = config["model"]["init_args"]
    later = {*cli.model.label_settings, *cli.model.later_settings}
    first = {name: value for name, value in given.items() if name not in later}
    return Planned(
        config,
        fingerprint(first, config["data"], config["trainer"]),
        cli.names["data"],
        cli.config_init.wandb,
    )


class _Begun(Exception):
    """A method has come to its first stage."""


class _NoRun:
    """A run that does nothing: before its first stage, a method refuses settings of all stages."""

    def fit(self, *_: Any, **__: Any) -> None:
        raise _Begun

    predict = label = make = fit


def _check_stages(model: Any, data: Any) -> None:
    with contextlib.suppress(_Begun):
        model.stages(_NoRun(), data)


class _Progress:
    """Works through jobs and prints its progress."""

    def __init__(self, batch: Batch, todo: Sequence[Job], total: int) -> None:
        self.batch, self.todo, self.total = batch, todo, total
        self.failed: list[Job] = []
        self.began: dict[str, float] = {}
        self.took: list[float] = []
        self.places: list[dict[str, str]] = []

    def work(self, jobs: int | str) -> list[Job]:
        """Do all jobs; return those that failed."""
        trainer = self.batch.first.config["trainer"]
        gpu = trainer["accelerator"] != "cpu" and torch.cuda.is_available()
        if before := self.total - len(self.todo):
            print(f"{before} done before", flush=True)

        peak = 0

        def places() -> list[dict[str, str]]:
            nonlocal peak
            if not peak:  # asked again once it is known, which is while nothing runs
                peak = self.batch.peak_memory()
                self.places = places_for(jobs, peak, gpu, str(trainer["devices"]))
            return self.places

        work(self.todo, places, self._begun, self._ended)
        return self.failed

    def _begun(self, job: Job) -> None:
        self.batch.begin(job)
        self.began[job.name] = time.monotonic()
        print(f"  {job.name}  begins", flush=True)

    def _ended(self, job: Job, well: bool) -> None:
        self.took.append((time.monotonic() - self.began[job.name]) / 60)
        if well:
            self.batch.finish(job)
        else:
            self.failed.append(job)
        left = len(self.todo) - len(self.took)
        rest = left * sum(self.took) / len(self.took) / len(self.places)
        result = "done" if well else f"FAILED, see {job.log},"
        line = f"{self.total - left} of {self.total}  {job.name}  {result}"
        line += f" in {self.took[-1]:.1f} min"
        print(line + (f"; {left} left, about {_time(rest)}" if left else ""), flush=True)


def _time(minutes: float) -> str:
    return f"{minutes / 60:.1f} h" if minutes > 90 else f"{max(minutes, 1):.0f} min"


def _show(batch: Batch, rows: Sequence[Row]) -> None:
    """Print and write the tables; log them to W&B if a project is named."""
    if not rows:
        return
    ablation, data = batch.ablation, batch.first.data
    for table in ablation.tables:
        group = [row for row in rows if row.group == table.name]
        if group:
            print(f"\n{heading(ablation, table, data)}")
            print_table(lines_of(group, headings(table)))
    cells = csv_rows(rows, {m: m for table in ablation.tables for m in table.metrics})
    write_csv(batch.out / "ablation.csv", cells)
    with atomic_write(batch.out / "ablation.md") as scratch:
        scratch.write_text(markdown(ablation, data, rows), encoding="utf-8")
    print(f"\nwrote {batch.out / 'ablation.csv'}, {batch.out / 'ablation.md'}")
    if batch.first.wandb.project and "WANDB_SWEEP_ID" not in os.environ:  # its run is the agent's
        batch.first.wandb.log_table(batch.out, f"ablate-{ablation.name}", cells)


def _write_sweep(
    path: Path,
    ablation: Ablation,
    tables: Path,
    rows: Sequence[str],
    seeds: Sequence[int],
    words: Sequence[str],
) -> None:
    """Write a W&B sweep; agents log to the project of `--wandb.project`, by default wsis."""
    flag = "--wandb.project"
    pairs = zip(words, [*words[1:], ""], strict=True)
    named = [word.partition("=")[2] or after for word, after in pairs if word.split("=")[0] == flag]
    project = named[-1] if named else "wsis"
    words = [*words, *([] if named else [flag, project])]
    write_settings(path, sweep(ablation, tables, rows, seeds, project, words))
    print(f"wrote {path}; start it with: wandb sweep {path}")


if __name__ == "__main__":
    main()
