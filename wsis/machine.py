"""What the machine lends this process: cores and memory."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["cores", "free_memory"]


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def free_memory() -> int:
    """Bytes that may still be used, by what the system and this process's control group say."""
    known = []
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        known += [1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable")]
        limit, used, detail = (
            Path(f"/sys/fs/cgroup/memory.{name}").read_text() for name in ("max", "current", "stat")
        )
        if limit.strip() != "max":
            cache = next(
                (
                    int(line.split()[1])
                    for line in detail.splitlines()
                    if line.startswith("inactive_file")
                ),
                0,
            )
            known.append(int(limit) - int(used) + cache)
    except OSError:  # not Linux, or no control groups
        pass
    return min(known, default=8 * 2**30)
