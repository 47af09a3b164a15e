"""CPU cores, memory and terminal of this process."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

__all__ = ["bar", "cores", "free_memory"]


def bar(*args: Any, **settings: Any) -> Any:
    """Return a progress bar of tqdm; without a terminal it is written once a minute at most."""
    pace = 0.1 if sys.stderr.isatty() else 60
    return tqdm(*args, mininterval=pace, **settings)


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
