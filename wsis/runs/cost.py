"""What a stage cost: minutes, memory, and the code that it ran."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from functools import cache
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback

import wsis

__all__ = ["Clock", "commit", "device", "peak_memory"]


class Clock(Callback):
    """Times a training; the count lies in checkpoints, so that steps which led to the weights count once, and no others."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._since: float | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin, or go on from where the checkpoint was written."""
        self._since = time.monotonic()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop."""
        self.seconds, self._since = self._now(), None

    def _now(self) -> float:
        return self.seconds + (0.0 if self._since is None else time.monotonic() - self._since)

    def state_dict(self) -> dict[str, Any]:
        """Seconds so far."""
        return {"seconds": self._now()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the count of a checkpoint."""
        self.seconds = float(state_dict["seconds"])


def peak_memory() -> int:
    """Most bytes held so far: of the GPU where this process has used one, else of this process itself, without its workers."""
    if on_gpu := torch.cuda.max_memory_allocated():
        return on_gpu
    with contextlib.suppress(ImportError):  # not on Windows
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else 1024 * peak
    return 0


def device() -> str:
    """Name of the GPU where this process has used one, else "cpu"."""
    return torch.cuda.get_device_name() if torch.cuda.max_memory_allocated() else "cpu"


@cache
def commit() -> str:
    """The commit of this library's checkout, with "+" where files differ from it; its version where it was installed."""
    package = Path(wsis.__file__).parent
    root, head = (
        _git(package, "rev-parse", "--show-toplevel"),
        _git(package, "rev-parse", "--short=10", "HEAD"),
    )
    if not root or not head or Path(root).resolve() != package.resolve().parent:
        return wsis.__version__
    return head + (
        "+" if _git(package, "status", "--porcelain", "--untracked-files=no", ".") else ""
    )


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
