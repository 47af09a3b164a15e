"""Processes of verbs: parallel training, as many as cores and memory allow."""

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

__all__ = ["Job", "places_for", "start", "work"]

LIBC: Any = ctypes.CDLL(None) if sys.platform == "linux" else None
POLL = 0.1
"""Seconds between checks of running processes."""
MARGIN = 1.2
"""Memory reserved for a process, relative to the measured peak, which omits loader processes."""


@dataclass(frozen=True)
class Job:
    """A training, or another verb, to run in its own process."""

    name: str
    words: tuple[str, ...] = field(repr=False)
    """Arguments after `python -m wsis.VERB`."""
    log: Path
    """File that the output is appended to."""
    after: frozenset[str] = frozenset()
    """Names of jobs to wait for, because this one reuses their stages."""
    key: str = ""
    """Fingerprint of all its settings."""
    verb: str = "fit"


def work(
    jobs: Sequence[Job],
    places: Callable[[], Sequence[Mapping[str, str]]],
    begun: Callable[[Job], object],
    ended: Callable[[Job, bool], object],
) -> None:
    """Run all jobs, each in its own process; a failed job does not stop the others.

    Args:
        jobs: in order of preference.
        places: returns the environment variables of each process that may run now; called before
            processes are started.
        begun: called when a job starts.
        ended: called when a job ends, with True if it succeeded.
    """
    waiting, running = list(jobs), dict[int, tuple[Job, subprocess.Popen[bytes]]]()
    try:
        while waiting or running:
            unfinished = [*waiting, *(job for job, _ in running.values())]
            names = {job.name for job in unfinished}
            ready = [job for job in waiting if not job.after & names]
            free = [(i, place) for i, place in enumerate(places()) if i not in running]
            for job, (i, place) in zip(ready, free, strict=False):
                waiting.remove(job)
                running[i] = job, start(job, place)
                begun(job)
            time.sleep(POLL)
            exited = [i for i, (_, process) in running.items() if process.poll() is not None]
            for i in exited:
                job, process = running.pop(i)
                ended(job, process.returncode == 0)
    finally:  # after an error or Ctrl-C
        for _, process in running.values():
            process.terminate()
        for _, process in running.values():
            process.wait()


def start(job: Job, place: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start a job; it ends with the thread that started it.

    Args:
        job: what to run.
        place: environment variables of its process.
    """
    job.log.parent.mkdir(parents=True, exist_ok=True)
    with open(job.log, "ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", f"wsis.{job.verb}", *job.words],
            env={**os.environ, **place},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            preexec_fn=_end_with_parent if LIBC else None,
        )


def _end_with_parent() -> None:
    """End this process with its parent, else it would train beside its successor after a kill."""
    LIBC.prctl(1, signal.SIGTERM)


def places_for(
    jobs: int | str, peak: int = 0, gpu: bool = False, devices: str = "1"
) -> list[dict[str, str]]:
    """Return the environment variables of each process that may run.

    Args:
        jobs: number of processes; "auto" is as many as cores and memory allow, and one until the
            peak memory of a run is known.
        peak: largest peak memory of the runs so far, in bytes; 0 if unknown.
        gpu: whether the peak is of GPU memory.
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
        needed = MARGIN * peak + 2**30  # a CUDA context takes half a GiB
        counts = {i: int(torch.cuda.mem_get_info(i)[0] / needed) for i in gpus}
        room = []
        for k in range(max(counts.values(), default=1)):
            room += [i for i in gpus if k < counts[i]]
        room = room or [None]
    else:
        room = [None] * max(1, int(free_memory() / (MARGIN * peak)))
    room = room[: cores()] if jobs == "auto" else room
    threads = os.environ.get("OMP_NUM_THREADS", str(max(1, cores() // len(room))))
    variables = {"OMP_NUM_THREADS": threads}
    return [variables | ({} if i is None else {"CUDA_VISIBLE_DEVICES": _visible(i)}) for i in room]


def _visible(i: int) -> str:
    """Return the name of the i-th GPU that is visible to this process."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    return given.split(",")[i] if given else str(i)
