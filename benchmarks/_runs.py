"""What benchmarks of whole runs share: how they run a verb, and a method on a small COCO folder."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

CONFIGS = Path(__file__).parents[1] / "configs"


def on_small_coco(model: str, data: Path, weights: Path) -> list[str]:
    """Words of wsis.fit for a method on a small COCO folder."""
    config = str(CONFIGS / "small" / f"{model}_coco.yaml")
    return [
        "--model",
        model,
        "--data",
        "coco",
        "--config",
        config,
        "--data.root",
        str(data),
        "--model.backbone.weights",
        str(weights),
    ]


def call(verb: str, words: Sequence[str], threads: int | None = None) -> None:
    """Run a verb of wsis, with so many threads if they are given; stop with what it says if it fails."""
    environment = {**os.environ, **({"OMP_NUM_THREADS": str(threads)} if threads else {})}
    command = [sys.executable, "-m", f"wsis.{verb}", *words]
    done = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode:
        sys.exit(done.stdout)
