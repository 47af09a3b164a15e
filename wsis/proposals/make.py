"""Make proposals from images: for a whole index into a file, or for each image when it is read."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import cv2
import torch

from wsis.errors import InputError
from wsis.images.read import read_image
from wsis.machine import bar, cores
from wsis.proposals.file import pack, write
from wsis.proposals.proposers import BUILT_IN, find, propose
from wsis.types import Index, Proposals, Record

__all__ = ["Fresh", "make"]


class Job(NamedTuple):
    """An image to make proposals for, as it is sent to a worker."""

    proposer: str
    path: Path
    size: tuple[int, int]


class Fresh:
    """Makes proposals when images are read; takes the place of a `ProposalFile`.

    Args:
        proposer: name of the proposer.
        root: folder of the images.
    """

    def __init__(self, proposer: str = BUILT_IN, root: Path = Path()) -> None:
        self.proposer, self.root = find(proposer).name, root

    def read(
        self,
        file_name: str,
        size: tuple[int, int],
        segments: bool = False,
        limit: int | None = None,
    ) -> Proposals:
        """Make the proposals of one image; the arguments are those of `ProposalFile.read`."""
        made = _propose(Job(self.proposer, self.root / file_name, size))
        if not segments or made.labels is None or made.members is None:
            return Proposals(made.boxes[:limit], made.scores[:limit])
        return Proposals(made.boxes[:limit], made.scores[:limit], made.labels, made.members[:limit])


def make(
    index: Index,
    out: str | os.PathLike[str],
    workers: int | None = None,
    proposer: str = BUILT_IN,
) -> Path:
    """Make the proposals of `index` that the file `out` does not hold yet, and return `out`.

    Args:
        index: the images.
        out: the proposal file; created if it does not exist.
        workers: worker processes; one per core if None, only this process if 0.
        proposer: name of the proposer.

    Raises:
        InputError: an image cannot be read or a worker died; all other images are done first.
    """
    failures: list[str] = []
    with write(out, {"data": index.name, **find(proposer).provenance}) as writer:
        todo = [
            image for image in index.images if writer.files.get(image["file_name"]) != _size(image)
        ]
        if todo:
            print(f"making proposals of {len(todo)} images, kept in {out}", flush=True)
        jobs = [Job(proposer, index.root / image["file_name"], _size(image)) for image in todo]
        for image, result in zip(todo, _results(jobs, workers), strict=True):
            if isinstance(result, str):
                failures.append(result)
            else:
                writer.insert(image["file_name"], _size(image), result)
    if failures:
        more = f" (and {len(failures) - 1} more images)" if len(failures) > 1 else ""
        raise InputError(
            f"{failures[0]}{more}; the other proposals are kept in {out}: "
            "repair, then repeat the command"
        )
    return Path(out)


def _size(image: Record) -> tuple[int, int]:
    return image["height"], image["width"]


def _results(jobs: list[Job], workers: int | None) -> Iterator[bytes | str]:
    """Yield each image's packed proposals or the text of its error, and show progress."""
    count = min(cores() if workers is None else workers, len(jobs))
    results = map(_work, jobs) if count <= 1 else _parallel(jobs, count)
    return iter(bar(results, "proposals", len(jobs), unit="image", disable=not jobs))


def _parallel(jobs: list[Job], workers: int) -> Iterator[bytes | str]:
    # fork, as DataLoader does: a plain script has no `if __name__ == "__main__"`
    context = get_context("fork" if sys.platform == "linux" else "spawn")
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)  # here, because a forked child that touches OpenCV's threads hangs
    with ProcessPoolExecutor(workers, context, _begin) as pool:
        try:
            yield from pool.map(_work, jobs, chunksize=4)
        except BrokenProcessPool as error:
            raise InputError(
                "a worker died, most likely for want of memory; "
                "repeat the command with fewer workers"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)
            cv2.setNumThreads(threads)


def _begin() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which stops the pool
    torch.set_num_threads(1)


def _work(job: Job) -> bytes | str:
    """Return the packed proposals of one image, or the text of the error.

    Bytes are sent between processes without the file handles that tensors would need.
    """
    try:
        return pack(_propose(job))
    except InputError as error:  # one bad image must not stop a run of hours
        return str(error)


def _propose(job: Job) -> Proposals:
    """Return the proposals of an image.

    Raises:
        InputError: the image cannot be read, or the proposer fails on it.
    """
    image = read_image(job.path, job.size).permute(1, 2, 0).numpy()
    try:
        return propose(image, job.proposer)
    except InputError:
        raise
    except Exception as error:  # a proposer of another package can raise anything
        if os.environ.get("WSIS_TRACEBACK"):
            raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise InputError(f"{job.path}: the proposer '{job.proposer}' failed ({reason})") from error
