"""Cost of a stage: time, memory and device, and the version of the code that ran it."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback

__all__ = ["Clock", "commit", "device", "peak_memory", "version"]


class Clock(Callback):
    """Accumulate training time in the checkpoint, so that steps lost in a crash do not count."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._since: float | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock, or resume from the time in the checkpoint."""
        self._since = time.monotonic()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop the clock."""
        self.seconds, self._since = self._now(), None

    def _now(self) -> float:
        return self.seconds + (0.0 if self._since is None else time.monotonic() - self._since)

    def state_dict(self) -> dict[str, Any]:
        """Return the seconds so far."""
        return {"seconds": self._now()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the seconds from a checkpoint."""
        self.seconds = float(state_dict["seconds"])


def peak_memory() -> int:
    """Return the peak memory in bytes: of the GPU if one was used, else of this process.

    Loader processes are not included.
    """
    if on_gpu := torch.cuda.max_memory_allocated():
        return on_gpu
    with contextlib.suppress(ImportError):  # not on Windows
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else 1024 * peak
    return 0


def device() -> str:
    """Return the name of the GPU if this process has used one, else "cpu"."""
    return torch.cuda.get_device_name() if torch.cuda.max_memory_allocated() else "cpu"


@cache
def commit() -> str:
    """Return the commit of this library's checkout, followed by "+" if files have changed.

    Outside a checkout, return the version of the library.
    """
    package = Path(__file__).parents[1]
    root = _git(package, "rev-parse", "--show-toplevel")
    head = _git(package, "rev-parse", "--short=10", "HEAD")
    if not root or not head or Path(root).resolve() != package.resolve().parent:
        return version()
    changed = _git(package, "status", "--porcelain", "--untracked-files=no", ".")
    return f"{head}+" if changed else head


def version() -> str:
    """Return the version of the library."""
    try:
        return metadata.version("wsis")
    except metadata.PackageNotFoundError:  # a copied folder
        return "unknown"


def _git(folder: Path, *words: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *words],
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
