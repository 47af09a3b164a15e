"""Several trainings side by side: processes of wsis.fit, as many as cores and memory allow."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from wsis.machine import cores, free_memory

__all__ = ["Job", "places_for", "work"]

LIBC: Any = ctypes.CDLL(None) if sys.platform == "linux" else None
POLL = 0.1
"""Seconds between looks at running processes."""
MARGIN = 1.2
"""Memory that is kept free for a process, over what one has needed: its loader processes are not in that figure."""


@dataclass(frozen=True)
class Job:
    """A training."""

    name: str
    words: tuple[str, ...] = field(repr=False)
    """After `python -m wsis.fit`."""
    log: Path
    """What it prints is added to this file."""
    after: frozenset[str] = frozenset()
    """Names of jobs to wait for, because it takes over what they have trained."""
    key: str = ""
    """Of all its settings."""


def work(
    jobs: Sequence[Job],
    places: Callable[[], Sequence[Mapping[str, str]]],
    begun: Callable[[Job], object],
    ended: Callable[[Job, bool], object],
) -> None:
    """Run all jobs, each in a process; one that fails stops no other.

    Args:
        jobs: in order of preference.
        places: environment variables of each process that may run now; asked before a process is started.
        begun: called as a job starts.
        ended: called as a job ends, with whether it went well.
    """
    waiting, running = list(jobs), dict[int, tuple[Job, subprocess.Popen[bytes]]]()
    try:
        while waiting or running:
            open_ = {job.name for job in waiting} | {job.name for job, _ in running.values()}
            ready = [job for job in waiting if not job.after & open_]
            free = [(i, place) for i, place in enumerate(places()) if i not in running]
            for job, (i, place) in zip(ready, free, strict=False):
                waiting.remove(job)
                running[i] = job, _start(job, place)
                begun(job)
            time.sleep(POLL)
            for i in [i for i, (_, process) in running.items() if process.poll() is not None]:
                job, process = running.pop(i)
                ended(job, process.returncode == 0)
    finally:  # an error, or Ctrl-C
        for _, process in running.values():
            process.terminate()
        for _, process in running.values():
            process.wait()


def _start(job: Job, place: Mapping[str, str]) -> subprocess.Popen[bytes]:
    job.log.parent.mkdir(parents=True, exist_ok=True)
    with open(job.log, "ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "wsis.fit", *job.words],
            env={**os.environ, **place},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            preexec_fn=_end_with_parent if LIBC else None,
        )


def _end_with_parent() -> None:
    """Else a batch that is killed and begun again would write to folders in which its old processes still train."""
    LIBC.prctl(1, signal.SIGTERM)


def places_for(
    jobs: int | str, peak: int = 0, gpu: bool = False, devices: str = "1"
) -> list[dict[str, str]]:
    """Environment variables of each process that may run.

    Args:
        jobs: how many; "auto" is what cores and memory allow, one until it is known what a run needs.
        peak: most bytes that a run has needed; 0 if not known yet.
        gpu: whether those are of a GPU.
        devices: `trainer.devices` of each run.
    """
    several = gpu and devices != "1"
    gpus = range(torch.cuda.device_count()) if gpu and not several else range(0)
    if jobs != "auto":
        count = int(jobs)
        room = [gpus[i % len(gpus)] if gpus else None for i in range(count)]
    elif not peak or several:
        room = [None]
    elif gpu:
        rooms = {
            i: int(torch.cuda.mem_get_info(i)[0] / (MARGIN * peak + 2**30)) for i in gpus
        }  # a context takes half a GiB
        room = [i for k in range(max(rooms.values(), default=1)) for i in gpus if k < rooms[i]] or [
            None
        ]
    else:
        room = [None] * max(1, int(free_memory() / (MARGIN * peak)))
    room = room[: cores()] if jobs == "auto" else room
    threads = {
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, cores() // len(room))))
    }
    return [threads | ({} if i is None else {"CUDA_VISIBLE_DEVICES": _visible(i)}) for i in room]


def _visible(i: int) -> str:
    """Name of the i-th GPU that this process sees."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    return given.split(",")[i] if given else str(i)
