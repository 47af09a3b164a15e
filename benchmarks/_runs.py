"""What benchmarks of whole runs share: how they run a verb, and how they show a figure of several runs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence


def call(verb: str, words: Sequence[str], threads: int | None = None) -> None:
    """Run a verb of wsis, with so many threads if they are given; stop with what it says if it fails."""
    environment = {**os.environ, **({"OMP_NUM_THREADS": str(threads)} if threads else {})}
    command = [sys.executable, "-m", f"wsis.{verb}", *words]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        sys.exit(done.stdout)


def spread(values: Sequence[float | None]) -> str:
    """Mean (least-most) of what is known."""
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    mean = sum(known) / len(known)
    return f"{mean:.1f}" + (f" ({min(known):.1f}-{max(known):.1f})" if len(known) > 1 else "")
