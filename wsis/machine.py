"""CPU cores, memory and terminal of this process."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

__all__ = ["bar", "cores", "free_memory"]


def bar(*args: Any, **settings: Any) -> Any:
    """Return a progress bar of tqdm; without a terminal it writes a line a minute."""
    if sys.stderr.isatty():
        return tqdm(*args, **settings)
    line = "{desc}: {n_fmt} of {total_fmt}, {remaining} left"
    return tqdm(*args, file=_Log(), bar_format=line, mininterval=60, maxinterval=60, **settings)


class _Log:
    """What tqdm writes, as whole lines of standard error."""

    def write(self, text: str) -> None:
        """Print text without the returns that would redraw a bar."""
        if line := text.strip():
            print(line, file=sys.stderr, flush=True)

    def flush(self) -> None:
        """Do nothing: lines are flushed as they are written."""


def cores() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def free_memory() -> int:
    """Return the bytes of memory that the system and this process's control group leave free."""
    bounds = []
    group = Path("/sys/fs/cgroup")
    try:
        system = Path("/proc/meminfo").read_text()
        bounds += [1024 * size for size in _sizes(system, "MemAvailable")]
        limit = (group / "memory.max").read_text()
        used = (group / "memory.current").read_text()
        detail = (group / "memory.stat").read_text()
        if limit.strip() != "max":
            cache = _sizes(detail, "inactive_file") or [0]
            bounds.append(int(limit) - int(used) + cache[0])
    except OSError:  # not Linux, or no control groups
        pass
    return min(bounds, default=8 * 2**30)


def _sizes(text: str, name: str) -> list[int]:
    """Return the numbers of the lines that start with `name`."""
    return [int(line.split()[1]) for line in text.splitlines() if line.startswith(name)]
