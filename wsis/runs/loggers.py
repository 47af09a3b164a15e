"""Loggers: `metrics.csv` in the stage's folder always, W&B when a project is named."""

from __future__ import annotations

import csv
import netrc
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
from lightning_utilities.core.rank_zero import rank_zero_only
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import Logger
from torch.optim import Optimizer

from wsis.files import atomic_write
from wsis.fingerprint import digest
from wsis.runs.progress import unnumbered

__all__ = ["CSV", "LogRate", "LogStep", "WandB"]

# where `wandb login` puts the key of W&B's own server, since release 0.31 and before
HOSTS = ("api.forge.coreweave.com", "api.wandb.ai")


@dataclass(frozen=True)
class WandB:
    """Weights & Biases, off until a project is named.

    Attributes:
        project: Name of the project; without one, metrics go to the run's folder only.
        group: Name that runs are grouped by, such as that of an ablation; by default the run's
            name.
        name: Name of this run; by default that of its folder.
        mode: "online" or "offline"; "auto" follows WANDB_MODE, or else is online with an API key.
    """

    project: str | None = None
    group: str | None = None
    name: str | None = None
    mode: Literal["auto", "online", "offline"] = "auto"

    def logger(self, run: Path, stage: str, planned: Sequence[str] = ()) -> Logger:
        """Return the logger of a stage's W&B run, which is resumed when the stage is continued.

        Its job type is the stage without its number; the last stage has the tag "final".

        Args:
            run: folder of the run.
            stage: name of the stage.
            planned: names of all stages; empty if they are not known.
        """
        import wandb  # takes a second to import
        from pytorch_lightning.loggers import WandbLogger

        if "WANDB_SWEEP_ID" not in os.environ:  # a sweep has one run for all stages
            wandb.finish()  # Lightning would go on in the run of the stage before
        folder = run / stage
        folder.mkdir(parents=True, exist_ok=True)
        # not Lightning's `offline`: it sets a variable that W&B reads only once per process
        logger = WandbLogger(
            save_dir=folder,
            mode=self._mode,
            job_type=unnumbered(stage),
            tags=["final"] if [stage] == [*planned][-1:] else [],
            settings=wandb.Settings(quiet=True),  # no tables of all values after each stage
            **self._identity(folder, f"{self.name or run.name}/{stage}"),
        )
        # W&B warns that it no longer knows this setting, which Lightning always gives
        logger._wandb_init.pop("anonymous", None)
        return logger

    def log_table(self, folder: Path, name: str, rows: Sequence[Mapping[str, str]]) -> None:
        """Log a table in a separate run, both for display and as a versioned artifact.

        Args:
            folder: where W&B keeps its files.
            name: of the table and the artifact, and of the run unless `self.name` is set.
            rows: all with the same columns; columns of numbers are logged as numbers.
        """
        import wandb

        wandb.finish()
        columns = {column: _numbers([row[column] for row in rows]) for column in rows[0]}
        cells = [list(row) for row in zip(*columns.values(), strict=True)]
        table = wandb.Table(columns=[*columns], data=cells)
        artifact = wandb.Artifact(name, type="table")
        artifact.add(table, name)
        with wandb.init(
            dir=folder,
            mode=self._mode,
            job_type="table",
            **self._identity(folder / name, self.name or name),
        ) as run:
            run.log({name: table})
            run.log_artifact(artifact)

    @property
    def offline(self) -> bool:
        """True if runs stay on this machine, to be uploaded with `wandb sync`."""
        return self._mode in ("offline", "dryrun")

    @property
    def _mode(self) -> Any:
        """The `mode` of `wandb.init`."""
        if self.mode != "auto":
            return self.mode
        return os.environ.get("WANDB_MODE") or ("online" if _has_api_key() else "offline")

    def _identity(self, folder: Path, name: str) -> dict[str, Any]:
        """Return the arguments that identify a W&B run; the id depends on `folder` alone."""
        return {
            "project": self.project,
            "group": self.group or name.rpartition("/")[0] or name,
            "name": name,
            "id": digest(str(folder.resolve())),
            "resume": None if self.offline else "allow",
        }


def _numbers(cells: Sequence[str]) -> Sequence[str | float | None]:
    """Return a column as numbers, None for empty cells; unchanged if any cell is not a number."""
    try:
        return [float(cell) if cell else None for cell in cells]
    except ValueError:
        return cells


def _has_api_key() -> bool:
    server = os.environ.get("WANDB_BASE_URL", "").partition("//")[2].split("/")[0]
    try:
        hosts = [server] if server else HOSTS
        return bool(os.environ.get("WANDB_API_KEY")) or any(
            netrc.netrc().authenticators(host) for host in hosts
        )
    except (OSError, netrc.NetrcParseError):
        return False


class LogStep(Callback):
    """Log metrics of the validation after training at the number of optimiser steps.

    Lightning would log them at the step of a counter that it does not restore where a checkpoint
    leaves no step to train; a metric called "step" takes precedence over it.
    """

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the step, except in a validation during training."""
        if trainer.state.fn == "validate":
            pl_module.log("step", float(trainer.global_step), sync_dist=True)


class LogRate(Callback):
    """Log the learning rate of each step as `train/lr`, that of the first group of parameters."""

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Log before schedules move on."""
        pl_module.log("train/lr", float(optimizer.param_groups[0]["lr"]))


class CSV(Logger):
    """Append to `metrics.csv`; a resumed run leaves the same file as an uninterrupted one.

    Args:
        folder: Where the file is.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.path = Path(folder) / "metrics.csv"
        self._columns: list[str] | None = None

    @property
    def name(self) -> str:
        """Empty: the folder is the name."""
        return ""

    @property
    def version(self) -> str:
        """Empty: one version per folder."""
        return ""

    @property
    def log_dir(self) -> str:
        """The folder of the file."""
        return str(self.path.parent)

    @property
    def save_dir(self) -> str:
        """The folder of the file."""
        return self.log_dir

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Do nothing: `config.yaml` lies beside the file."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Append one row."""
        # without "epoch": a run is one epoch
        values = {key: float(value) for key, value in metrics.items() if key != "epoch"}
        row = {"step": step} | values
        if self._columns is None:
            self._columns = self._read()[0]
        if new := [key for key in row if key not in self._columns]:
            self._write(self._columns + new, self._read()[1])
        with open(self.path, "a", encoding="utf-8", newline="") as file:
            csv.DictWriter(file, self._columns).writerow(row)

    @rank_zero_only
    def rewind(self, step: int) -> None:
        """Delete rows from `step` on: training continues there and will log them again."""
        columns, rows = self._read()
        if rows:
            self._write(columns, [row for row in rows if int(row["step"]) < step])

    def _read(self) -> tuple[list[str], list[dict[str, str]]]:
        """Return columns and rows, without a last row that a crash cut short."""
        if not self.path.is_file():
            return [], []
        with open(self.path, encoding="utf-8", newline="") as file:
            reader = csv.DictReader(line for line in file if line.endswith("\n"))
            return list(reader.fieldnames or []), list(reader)

    def _write(self, columns: list[str], rows: list[dict[str, str]]) -> None:
        with (
            atomic_write(self.path) as scratch,
            open(scratch, "w", encoding="utf-8", newline="") as file,
        ):
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows)
        self._columns = columns
