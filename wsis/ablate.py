"""Train the rows of a paper's ablation tables: `python -m wsis.ablate configs/ablation/pdsl.yaml --seeds 3`."""

from __future__ import annotations

import contextlib
import json
import re
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from jsonargparse import ArgumentParser

from wsis.command_line.messages import plain_errors
from wsis.command_line.parser import CLI, Help, parse
from wsis.command_line.settings import Config, spelled
from wsis.errors import InputError
from wsis.files import read_json, whole
from wsis.fingerprint import fingerprint
from wsis.fit import options
from wsis.reports.ablation import (
    Ablation,
    Outcome,
    Row,
    Table,
    cells_of,
    heading,
    lines_of,
    markdown,
    outcome,
    read_ablation,
)
from wsis.reports.tables import print_table, write_csv
from wsis.runs.jobs import Job, places_for, work
from wsis.runs.loggers import WandB
from wsis.runs.record import stages

__all__ = ["ablate", "main"]

OWN = ("--seeds", "--first_seed", "--rows", "--jobs", "--out", "-h", "--help")
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


def main(argv: Sequence[str] | None = None) -> list[Outcome]:
    """Train what `argv` asks for; returns the rows of the tables."""
    with plain_errors(lambda: "; to continue: repeat the command"):
        own, settings = _divide(list(sys.argv[1:] if argv is None else argv))
        parser = ArgumentParser(
            prog="python -m wsis.ablate",
            usage="%(prog)s TABLES [--seeds N] [--rows ROW ...] [--jobs N] [--out DIR] [any setting of wsis.fit]",
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
    """The words that are ours, and those of wsis.fit.

    Raises:
        InputError: no tables, or a setting that each run has from its row.
    """
    if not words or (words[0].startswith("-") and not {"-h", "--help"} & set(words)):
        raise InputError(
            "name a file of tables first: python -m wsis.ablate configs/ablation/pdsl.yaml"
        )
    own: list[str] = []
    theirs: list[str] = []
    mine = True
    for word in map(spelled, words):
        flag = word.partition("=")[0]
        if re.match("--?[a-z]", flag):
            mine = flag in OWN
        if flag in SET_HERE:
            raise InputError(f"{flag} is what wsis.ablate sets for each run; leave it out")
        (own if mine else theirs).append(word)
    return own, theirs


def ablate(
    tables: Path,
    seeds: int = 3,
    rows: list[str] | None = None,
    jobs: int | Literal["auto"] = "auto",
    out: Path | None = None,
    first_seed: int = 0,
    settings: Sequence[str] = (),
) -> list[Outcome]:
    """Train rows of a file of tables, print them beside the paper's, and write OUT/ablation.csv and OUT/ablation.md.

    Each row and seed is an ordinary run in OUT/ROW/SEED. Runs take over from each other what they would train alike, and a
    repeated command continues where it was stopped. In a setting of wsis.fit, {seed} stands for a run's seed:
    `--data.seed {seed}` has each seed draw its own generated data.

    Args:
        tables: File of tables, such as configs/ablation/pdsl.yaml.
        seeds: Runs of each row.
        rows: Rows, or tables; all if not given, but those that need a file of their own.
        jobs: Runs at a time; auto begins with one, then has as many as cores and free memory allow.
        out: Folder of the runs; runs/ablate/TABLES/DATA if not given.
        first_seed: Seed of a row's first run; the others count on from it.
        settings: Words of wsis.fit for all runs; a row's own settings come after them.

    Raises:
        InputError: an unknown row, settings that a row's model or data refuse, or a folder of other tables.
    """
    if seeds < 1 or first_seed < 0 or (jobs != "auto" and jobs < 1):
        raise InputError("--seeds and --jobs are 1 at least, --first_seed 0")
    ablation = read_ablation(tables)
    chosen = ablation.choose(rows)
    _check_needs(chosen, settings)
    planned = [_plan(row, _with_seed(settings, first_seed)) for _, row in chosen]
    batch = Batch(
        ablation,
        out or Path("runs", "ablate", ablation.name, planned[0].data),
        planned[0],
        settings,
    )
    batch.claim()
    todo = [
        job
        for job in batch.jobs(chosen, planned, range(first_seed, first_seed + seeds))
        if not batch.finished(job)
    ]
    print(
        f"{len(chosen)} rows x {seeds} seeds in {batch.out}" + _left_out(ablation, rows, chosen),
        flush=True,
    )
    failed = _Progress(batch, todo, len(chosen) * seeds).work(jobs)
    outcomes = batch.outcomes()
    _show(batch, outcomes)
    if failed:
        print(
            f"failed: {', '.join(f'{job.name} ({job.log})' for job in failed)}",
            file=sys.stderr,
            flush=True,
        )
        raise SystemExit(1)
    return outcomes


def _left_out(
    ablation: Ablation, rows: Sequence[str] | None, chosen: Sequence[tuple[Table, Row]]
) -> str:
    missing = [
        row for row in ablation.rows.values() if row.needs and row not in [one for _, one in chosen]
    ]
    said = [
        f"; left out: {row.name}, which needs --{row.needs} (--rows {row.name} --{row.needs} ...)"
        for row in missing
    ]
    return "" if rows else "".join(said)


def _check_needs(chosen: Sequence[tuple[Table, Row]], settings: Sequence[str]) -> None:
    """Refuse a row without what it needs, and what it needs for rows beside it."""
    given = {word[2:].partition("=")[0] for word in settings if word.startswith("--")}
    for _, row in chosen:
        if row.needs and row.needs not in given:
            raise InputError(
                f"row {row.name} needs --{row.needs}, which is for it alone; give it with --rows {row.name}"
            )
        if row.needs and len(chosen) > 1:
            raise InputError(
                f"row {row.name} has --{row.needs} for itself; train it with --rows {row.name} alone"
            )


def _with_seed(settings: Sequence[str], seed: int) -> list[str]:
    return [word.replace("{seed}", str(seed)) for word in settings]


class Planned(NamedTuple):
    """What a row resolves to."""

    config: Config
    """All settings but the seed."""
    first: str
    """Of all that its first trained stage depends on."""
    data: str
    wandb: WandB


def _plan(row: Row, settings: Sequence[str]) -> Planned:
    """Make a row's model and data, and let the method check its settings, without training.

    Raises:
        InputError: settings that are refused, with the row's name.
    """
    try:
        cli = CLI("fit", ["--model", row.model, *settings, *row.words], options=options)
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


class Batch(NamedTuple):
    """Runs of rows and seeds in one folder."""

    ablation: Ablation
    out: Path
    first: Planned
    settings: Sequence[str]

    def claim(self) -> None:
        """Make the folder that of these tables.

        Raises:
            InputError: it is that of others.
        """
        place = self.out / "ablation.json"
        mine = {"tables": self.ablation.name, "data": self.first.data}
        theirs = read_json(place) if place.exists() else mine
        if theirs != mine:
            held = (
                f"{theirs.get('tables')} on {theirs.get('data')}"
                if isinstance(theirs, dict)
                else "something else"
            )
            raise InputError(f"{self.out} holds rows of {held}; give another --out")
        with whole(place) as scratch:
            scratch.write_text(json.dumps(mine))

    def jobs(
        self, chosen: Sequence[tuple[Table, Row]], planned: Sequence[Planned], seeds: Sequence[int]
    ) -> Iterator[Job]:
        """One for each row and seed; first rows come first, and rows alike come after one another."""
        for number, ((table, row), plan) in enumerate(zip(chosen, planned, strict=True)):
            like = next(i for i, other in enumerate(planned) if other.first == plan.first)
            lenders = {chosen[i][1].name for i in (0, like) if i < number}
            for seed in seeds:
                name, run = f"{row.name}/{seed}", self.out / row.name / str(seed)
                place = [
                    "--seed_everything",
                    str(seed),
                    "--run_dir",
                    str(run),
                    "--reuse",
                    str(self.out),
                ]
                label = ["--wandb.name", name] + (
                    [] if plan.wandb.group else ["--wandb.group", f"ablate-{self.ablation.name}"]
                )
                last = ["--stage", table.stage] if table.stage else []
                settings = _with_seed(self.settings, seed)
                words = ("--model", row.model, *settings, *row.words, *place, *label, *last)
                key = fingerprint(plan.config | {"seed_everything": seed}, table.stage)
                yield Job(
                    name,
                    words,
                    run / "log.txt",
                    frozenset(f"{lender}/{seed}" for lender in lenders),
                    key,
                )

    def finished(self, job: Job) -> bool:
        """Whether a job has been done, with the settings that it has now."""
        mark, done = self._mark(job), stages(self.out / job.name)
        return (
            bool(done)
            and all(stage.finished for _, stage in done)
            and mark.exists()
            and read_json(mark) == job.key
        )

    def begin(self, job: Job) -> None:
        """Withdraw what the row and seed had with other settings."""
        self._mark(job).unlink(missing_ok=True)

    def finish(self, job: Job) -> None:
        """Note that a job has been done."""
        with whole(self._mark(job)) as scratch:
            scratch.write_text(json.dumps(job.key))

    def _mark(self, job: Job) -> Path:
        return self.out / job.name / "finished.json"

    def outcomes(self) -> list[Outcome]:
        """Of all rows, whether trained now or before."""
        found = []
        for table in self.ablation.tables:
            for row in table.rows:
                marks = sorted(
                    (self.out / row.name).glob("*/finished.json"),
                    key=lambda path: path.parent.name.zfill(9),
                )
                if marks:
                    found.append(outcome(table, row, [path.parent for path in marks]))
        return found

    def peak_memory(self) -> int:
        """Most bytes that a finished run has needed, 0 before one has finished."""
        known = [
            stage for path in self.out.glob("*/*/finished.json") for _, stage in stages(path.parent)
        ]
        return max((int(stage.memory or 0) for stage in known), default=0)


class _Progress:
    """Works through jobs and says how far it is."""

    def __init__(self, batch: Batch, todo: Sequence[Job], total: int) -> None:
        self.batch, self.todo, self.total = batch, todo, total
        self.failed: list[Job] = []
        self.began: dict[str, float] = {}
        self.took: list[float] = []
        self.places: list[dict[str, str]] = []

    def work(self, jobs: int | str) -> list[Job]:
        """Do them all; returns those that failed."""
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
        how = "done" if well else f"FAILED, see {job.log},"
        so_far = (
            f"{self.total - left} of {self.total}  {job.name}  {how} in {self.took[-1]:.1f} min"
        )
        print(so_far + (f"; {left} left, about {_time(rest)}" if left else ""), flush=True)


def _time(minutes: float) -> str:
    return (
        f"{minutes / 60:.1f} h"
        if minutes > 90
        else f"{minutes:.0f} min"
        if minutes > 1
        else "1 min"
    )


def _show(batch: Batch, outcomes: Sequence[Outcome]) -> None:
    """Print and write the tables; log them where a project is named."""
    if not outcomes:
        return
    for table in batch.ablation.tables:
        lines = lines_of(table, outcomes)
        if len(lines) > 1:
            print(f"\n{heading(batch.ablation, table, batch.first.data)}")
            print_table(lines)
    cells = cells_of(outcomes)
    write_csv(batch.out / "ablation.csv", cells)
    with whole(batch.out / "ablation.md") as scratch:
        scratch.write_text(markdown(batch.ablation, batch.first.data, outcomes), encoding="utf-8")
    print(f"\nwrote {batch.out / 'ablation.csv'}, {batch.out / 'ablation.md'}")
    if batch.first.wandb.project:
        batch.first.wandb.log_table(batch.out, f"ablate-{batch.ablation.name}", cells)


if __name__ == "__main__":
    main()
