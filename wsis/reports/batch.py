"""Runs of an ablation's rows and seeds in one folder: OUT/ROW/SEED."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from wsis.command_line.settings import Config
from wsis.errors import InputError
from wsis.files import atomic_write, read_json
from wsis.fingerprint import fingerprint
from wsis.reports.ablation import Ablation, Table, Variant, row_of_runs
from wsis.reports.table import Row
from wsis.runs.jobs import Job
from wsis.runs.loggers import WandB
from wsis.runs.record import stages

__all__ = ["Batch", "Planned", "with_seed"]


def with_seed(settings: Sequence[str], seed: int) -> list[str]:
    """Replace {seed} in settings."""
    return [word.replace("{seed}", str(seed)) for word in settings]


class Planned(NamedTuple):
    """A row's settings, resolved."""

    config: Config
    """All settings except the seed."""
    first: str
    """Fingerprint of all settings that the first trained stage depends on."""
    data: str
    wandb: WandB


class Batch(NamedTuple):
    """Runs of rows and seeds in one folder."""

    ablation: Ablation
    out: Path
    first: Planned
    settings: Sequence[str]

    def claim(self) -> None:
        """Note in the folder which tables it belongs to.

        Raises:
            InputError: it belongs to others.
        """
        place = self.out / "ablation.json"
        ours = {"tables": self.ablation.name, "data": self.first.data}
        theirs = read_json(place) if place.exists() else ours
        if theirs != ours:
            held = "something else"
            if isinstance(theirs, dict):
                held = f"{theirs.get('tables')} on {theirs.get('data')}"
            raise InputError(f"{self.out} holds rows of {held}; give another --out")
        with atomic_write(place) as scratch:
            scratch.write_text(json.dumps(ours))

    def jobs(
        self,
        chosen: Sequence[tuple[Table, Variant]],
        planned: Sequence[Planned],
        seeds: Sequence[int],
    ) -> Iterator[Job]:
        """Yield a job for each row and seed; rows wait for the first with the same first stage."""
        for number, ((table, variant), plan) in enumerate(zip(chosen, planned, strict=True)):
            alike = next(i for i, other in enumerate(planned) if other.first == plan.first)
            lenders = {chosen[i][1].name for i in (0, alike) if i < number}
            for seed in seeds:
                after = frozenset(f"{lender}/{seed}" for lender in lenders)
                yield self._job(table, variant, plan, seed, after)

    def _job(
        self, table: Table, variant: Variant, plan: Planned, seed: int, after: frozenset[str]
    ) -> Job:
        name = f"{variant.name}/{seed}"
        run = self.out / name
        words = ["--model", variant.model, *with_seed(self.settings, seed), *variant.words]
        words += ["--seed_everything", str(seed), "--run_dir", str(run), "--reuse", str(self.out)]
        words += ["--wandb.name", name]
        if not plan.wandb.group:
            words += ["--wandb.group", f"ablate-{self.ablation.name}"]
        if table.stage:
            words += ["--stage", table.stage]
        key = fingerprint(plan.config | {"seed_everything": seed}, table.stage)
        return Job(name, tuple(words), run / "log.txt", after, key)

    def finished(self, job: Job) -> bool:
        """Return whether a job has been done with its present settings."""
        mark, done = self._mark(job), stages(self.out / job.name)
        return (
            bool(done)
            and all(stage.finished for _, stage in done)
            and mark.exists()
            and read_json(mark) == job.key
        )

    def begin(self, job: Job) -> None:
        """Forget that the row and seed have been done with other settings."""
        self._mark(job).unlink(missing_ok=True)

    def finish(self, job: Job) -> None:
        """Note that a job has been done."""
        with atomic_write(self._mark(job)) as scratch:
            scratch.write_text(json.dumps(job.key))

    def _mark(self, job: Job) -> Path:
        return self.out / job.name / "finished.json"

    def rows(self) -> list[Row]:
        """Return all rows with finished runs, whether trained now or before."""
        rows = []
        for table in self.ablation.tables:
            for variant in table.variants:
                marks = (self.out / variant.name).glob("*/finished.json")
                runs = sorted((mark.parent for mark in marks), key=lambda run: run.name.zfill(9))
                if runs:
                    rows.append(row_of_runs(table, variant, runs))
        return rows

    def peak_memory(self) -> int:
        """Return the peak memory of finished runs in bytes, 0 before one has finished."""
        runs = [path.parent for path in self.out.glob("*/*/finished.json")]
        memory = [int(stage.memory or 0) for run in runs for _, stage in stages(run)]
        return max(memory, default=0)
