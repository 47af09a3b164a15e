"""What benchmarks of whole runs share: how they run a verb."""

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
