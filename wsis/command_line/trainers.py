"""Trainers and folders of runs, once settings are parsed."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import yaml
from pytorch_lightning.callbacks import Callback

from wsis.command_line.settings import Config
from wsis.errors import InputError
from wsis.files import atomic_write
from wsis.runs.run import rank
from wsis.values import COUNT, NOT_NEGATIVE, POSITIVE, WHOLE, check_ranges

__all__ = [
    "Record",
    "check_loggers",
    "check_numbers",
    "check_precision",
    "new_trainer",
    "run_folder",
    "write_settings",
]

PACKAGES = {
    "TensorBoardLogger": ("tensorboard", "tensorboardX"),
    "MLFlowLogger": ("mlflow", "mlflow_skinny"),
    "CometLogger": ("comet_ml",),
    "NeptuneLogger": ("neptune",),
    "LitLogger": ("litlogger",),
}
"""Packages of Lightning's loggers, of which one is needed."""

PRECISIONS = frozenset({"32-true", "32", "bf16-mixed", "bf16", "16-mixed", "16"})
"""Of Lightning, those in which every method trains; the others end in torch's errors."""


class Record(Callback):
    """Write the resolved settings to the stage's folder and every logger as training begins."""

    def __init__(self, folder: Path, settings: Config) -> None:
        self.folder, self.settings = folder, settings

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Write when training begins, on the first rank."""
        if stage == "fit" and trainer.is_global_zero:
            write_settings(self.folder / "config.yaml", self.settings)
            for logger in trainer.loggers:
                logger.log_hyperparams(self.settings)


def new_trainer(**settings: Any) -> pl.Trainer:
    """Make Lightning's Trainer.

    Raises:
        InputError: settings that it refuses, such as an accelerator that is not there.
    """
    try:
        return pl.Trainer(**settings)
    except (ValueError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"the Trainer refuses its settings: {reason}") from error


def check_precision(asked: Any) -> None:
    """Check the value of `--trainer.precision` before anything takes long.

    Raises:
        InputError: weights would not be in single precision, in which operators such as
            torchvision's non-maximum suppression and images are.
    """
    if asked is not None and str(asked) not in PRECISIONS:
        raise InputError(
            f"--trainer.precision {asked}: methods keep their weights in single precision; give "
            "bf16-mixed, 16-mixed or 32-true"
        )


def check_numbers(trainer: Mapping[str, Any]) -> None:
    """Check lengths and counts of the Trainer before anything takes long.

    Raises:
        InputError: with one of them, nothing would be trained or kept.
    """
    given = dict(trainer)
    for name in ("max_steps", "max_epochs"):
        if given[name] == -1:  # as long as others say
            given[name] = None
    ranges = {
        COUNT: ("max_steps", "max_epochs", "accumulate_grad_batches"),
        POSITIVE: ("limit_train_batches",),
        WHOLE: ("log_every_n_steps",),
        NOT_NEGATIVE: ("gradient_clip_val", "limit_val_batches"),
    }
    check_ranges("trainer", given, ranges)
    for name in ("fast_dev_run", "barebones"):
        if given[name]:
            raise InputError(
                f"--trainer.{name} keeps no checkpoint, and stages begin with those before; give "
                "--trainer.max_steps 2 to try a run out"
            )


def check_loggers(asked: Any) -> None:
    """Check the value of `--trainer.logger` before anything takes long.

    Raises:
        InputError: it names no logger, or one whose package is not installed.
    """
    for logger in asked if isinstance(asked, list) else [asked]:
        if logger is True:
            raise InputError(
                "--trainer.logger true: metrics.csv is always written; name another logger, such "
                "as TensorBoardLogger"
            )
        name = str(getattr(logger, "class_path", "")).rpartition(".")[2]
        packages = PACKAGES.get(name, ())
        if packages and not any(map(find_spec, packages)):
            raise InputError(f"--trainer.logger {name} needs a package: pip install {packages[0]}")


def write_settings(path: Path, settings: Config) -> None:
    """Save settings as a file that `--config` takes."""
    text = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
    with atomic_write(path) as scratch:
        scratch.write_text(text, encoding="utf-8")


def run_folder(model: str, data: str, given: Path | None) -> Path:
    """Return the folder of a new run, the same on every rank: `runs/MODEL/DATA/TIME`, or `given`.

    The folder is taken by making it, so that two runs never get the same one.

    Raises:
        InputError: the ranks were started by another program and cannot agree on a time, or the
            folder cannot be made.
    """
    if given is not None:
        return given
    if rank():
        if "WSIS_RUN_DIR" not in os.environ:
            raise InputError(
                "several processes started from outside need one folder: give --run_dir"
            )
        return Path(os.environ["WSIS_RUN_DIR"])
    first = Path("runs", model, data, f"{datetime.now():%Y%m%d-%H%M%S}")
    folder, number = first, 1
    while not _take(folder):  # by a run of the same second
        number += 1
        folder = first.with_name(f"{first.name}-{number}")
    return folder


def _take(folder: Path) -> bool:
    """Make a folder; return False if somebody else has made it."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir()
    except OSError as error:
        if folder.exists():
            return False
        raise InputError(
            f"cannot write {folder}: {error.strerror}; choose a folder with --run_dir"
        ) from error
    return True
