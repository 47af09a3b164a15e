"""The record of a stage: `stage.json` in its folder, written from the moment the stage begins.

Ranks synchronise through these files: rank zero writes them and the others poll them, so that no
rank blocks in a collective call during a stage on which only rank zero works.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from wsis.errors import InputError
from wsis.files import atomic_write, clear_scratch
from wsis.runs.checkpoints import intact

__all__ = ["StageRecord", "adopt", "is_available", "open_stage", "read_stage", "reopen_if_lost"]
__all__ += ["stages", "wait_for", "write_stage"]

POLL = 0.2
"""Seconds between two reads of a record by a waiting rank."""
DEPTH = 4
"""Levels of folders searched for a stage to reuse: as deep as runs/MODEL/DATA/TIME."""


@dataclass(frozen=True)
class StageRecord:
    """Settings and results of a stage."""

    number: int
    """Place in the run, from 1."""
    fingerprint: str
    """Digest of the settings, the seed and all stages before."""
    settings: dict[str, Any] = field(default_factory=dict)
    """All that the result depends on besides the stages before."""
    finished: bool = False
    steps: int | None = None
    """Optimiser steps done; None without training or before its end."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Measured on the validation split after training."""
    minutes: float | None = None
    memory: int | None = None
    """Peak memory in bytes."""
    device: str = ""
    """Name of the GPU, or "cpu"."""
    commit: str = ""
    """Commit or version of the library."""
    best: dict[str, float] = field(default_factory=dict)
    """Step and metrics of best.ckpt; empty if there is none."""

    @property
    def model(self) -> str:
        """Dotted path of the class that the stage trained or ran; "" if it had none."""
        return str(self.settings.get("model", ""))

    def is_done(self, fingerprint: str, steps: int | None) -> bool:
        """Return whether the stage of this fingerprint is finished.

        Args:
            fingerprint: of the wanted stage.
            steps: wanted steps; -1 if epochs count, None without training.
        """
        enough = steps in (None, -1, self.steps)
        return self.fingerprint == fingerprint and self.finished and enough


_TYPES: dict[str, Any] = {
    "number": int,
    "fingerprint": str,
    "settings": dict,
    "finished": bool,
    "steps": int | None,
    "metrics": dict,
    "minutes": float | int | None,
    "memory": float | int | None,
    "device": str,
    "commit": str,
    "best": dict,
}


def read_stage(folder: Path) -> StageRecord | None:
    """Read the record of the stage in `folder`; None if the stage has not begun.

    Raises:
        InputError: the file is damaged or not a stage's record.
    """
    path = folder / "stage.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        wrong = [name for name, value in content.items() if not isinstance(value, _TYPES[name])]
        figures = [*content.get("metrics", {}).values(), *content.get("best", {}).values()]
        if wrong or not all(isinstance(figure, float | int) for figure in figures):
            raise TypeError(wrong)
        return StageRecord(**content)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise InputError(f"{path} is damaged; delete {folder} to begin this stage again") from error


def write_stage(folder: Path, record: StageRecord) -> None:
    """Write the record of the stage in `folder`."""
    with atomic_write(folder / "stage.json") as scratch:
        scratch.write_text(json.dumps(asdict(record), indent=1), encoding="utf-8")


def stages(run: Path) -> list[tuple[Path, StageRecord]]:
    """Return folder and record of each stage of a run, in order.

    Raises:
        InputError: a record is damaged.
    """
    folders = [path.parent for path in run.glob("*/stage.json")]
    records = [(folder, read_stage(folder)) for folder in folders]
    begun = [(folder, record) for folder, record in records if record is not None]
    return sorted(begun, key=lambda stage: stage[1].number)


def open_stage(
    folder: Path,
    wanted: StageRecord,
    steps: int | None,
    reuse: Path | None,
    announce: Callable[[str], None],
) -> StageRecord:
    """Return the record of a stage that is about to be worked on, by rank zero.

    A stage with the same fingerprint is continued, or is already finished; one that another run
    has finished is copied; any other is emptied and started from scratch.

    Args:
        folder: of the stage.
        wanted: the record of the stage as it begins.
        steps: wanted steps; -1 if epochs count, None without training.
        reuse: a folder of runs to copy the finished stage from.
        announce: called with a line for the user.

    Raises:
        InputError: the stage has already trained more than the wanted steps.
    """
    name, present = folder.name, read_stage(folder)
    if present is None or present.fingerprint != wanted.fingerprint:
        source = _find_done(reuse, name, wanted.fingerprint, steps)
        if source is not None:
            announce(f"{name}: taken from {source}")
            adopt(source, folder)
            present = read_stage(folder)
    if present is not None and present.fingerprint == wanted.fingerprint:
        clear_scratch(folder)
        done = present.is_done(wanted.fingerprint, steps)
        return _prolong(folder, present, steps) if present.finished and not done else present
    if present is not None:
        announce(f"{name}: settings or earlier stages have changed, beginning again")
        shutil.rmtree(folder)
    write_stage(folder, wanted)
    return wanted


def _prolong(folder: Path, record: StageRecord, steps: int | None) -> StageRecord:
    """Reopen a finished stage for more steps."""
    trained = record.steps or 0
    if steps is not None and 0 <= steps < trained:
        raise InputError(
            f"{folder} has trained {trained} steps; ask for more than {steps}, "
            "or for another --run_dir"
        )
    reopened = replace(record, finished=False)
    write_stage(folder, reopened)
    return reopened


def reopen_if_lost(checkpoint: Path) -> None:
    """Mark a finished stage as unfinished if its checkpoint is missing or damaged."""
    folder = checkpoint.parents[1]
    record = read_stage(folder)
    if record is not None and record.finished and not intact(checkpoint):
        write_stage(folder, replace(record, finished=False))


def is_available(folder: Path, fingerprint: str, steps: int | None, reuse: Path | None) -> bool:
    """Return whether a stage is finished, in its folder or in a run that may be reused."""
    record = read_stage(folder)
    if record is not None and record.is_done(fingerprint, steps):
        return True
    return _find_done(reuse, folder.name, fingerprint, steps) is not None


def _find_done(reuse: Path | None, name: str, fingerprint: str, steps: int | None) -> Path | None:
    """Return the folder in which another run has finished the stage, None if there is none."""
    for depth in range(DEPTH if reuse else 0):
        for path in sorted(Path(str(reuse)).glob(f"{'*/' * depth}{name}/stage.json")):
            checkpoint = path.parent / "checkpoints" / "last.ckpt"
            lost = checkpoint.parent.is_dir() and not intact(checkpoint)
            record = None if lost else read_stage(path.parent)
            if record is not None and record.is_done(fingerprint, steps):
                return path.parent
    return None


def adopt(stage: Path, folder: Path) -> None:
    """Copy a finished stage of another run to `folder` in one step, as newly modified files."""
    scratch = folder.parent / ".taken" / folder.name
    for old in (scratch, folder):
        shutil.rmtree(old, ignore_errors=True)
    left_out = shutil.ignore_patterns("wandb")
    shutil.copytree(stage, scratch, ignore=left_out, copy_function=shutil.copy)
    scratch.rename(folder)
    scratch.parent.rmdir()


def wait_for(folder: Path, fingerprint: str | None = None, finished: bool = False) -> StageRecord:
    """Wait until rank zero has opened, or finished, the stage in `folder`, and return its record.

    Args:
        folder: of the stage.
        fingerprint: that the record must have; None accepts any.
        finished: wait until the stage is finished.

    Raises:
        SystemExit: the process that started this one has ended, and rank zero with it.
    """
    parent = os.getppid()
    while True:
        record = read_stage(folder)
        expected = record is not None and fingerprint in (None, record.fingerprint)
        if record is not None and expected and (record.finished or not finished):
            return record
        if os.getppid() != parent:
            raise SystemExit(f"{folder.name}: rank zero has ended")
        time.sleep(POLL)
