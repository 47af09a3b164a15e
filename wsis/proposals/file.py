"""Proposals on disk: one SQLite file per split. Any image is read alone, and a killed writer loses nothing done before."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sqlite3
import struct
import sys
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from wsis.errors import InputError
from wsis.files import database
from wsis.images.read import read_image
from wsis.machine import cores
from wsis.types import Index, Proposals, Record

__all__ = ["ProposalFile", "ProposalWriter", "make", "write"]

_FORMAT = "wsis proposals 1"
_HEADER = struct.Struct("<IIB")  # proposals, superpixels, bytes per label; 0 bytes: boxes alone
_BATCH = 16  # images per transaction: what a kill can lose


class ProposalFile:
    """Reads proposals image by image; opened when first used and once per process, so it travels to loader workers.

    Args:
        path: a file of this library.

    Raises:
        InputError: no such file, or not a proposal file.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise InputError(f"no proposal file {self.path}; make one with python -m wsis.propose")
        self._opened: tuple[int, sqlite3.Connection] | None = None
        _ = (
            self.provenance
        )  # a foreign or damaged file is refused here, not in the middle of training

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "_opened": None}

    @property
    def provenance(self) -> dict[str, Any]:
        """How the proposals were made, with which settings and which supervision."""
        meta: dict[str, Any] = {
            key: json.loads(value) for key, value in self._ask("SELECT key, value FROM meta")
        }
        if meta.pop("format", None) != _FORMAT:
            raise _foreign(self.path)
        return meta

    def __len__(self) -> int:
        return int(self._ask("SELECT count(*) FROM proposals")[0][0])

    def files(self) -> dict[str, tuple[int, int]]:
        """Names and sizes (height, width) of the images whose proposals are here."""
        return {
            name: (height, width)
            for name, height, width in self._ask("SELECT file, height, width FROM proposals")
        }

    def digest(self) -> str:
        """Hash the proposals of all images, not how they were made."""
        digest = hashlib.sha256()
        for name in sorted(self.files()):  # one after the other: a file is up to gigabytes
            digest.update(
                name.encode() + self._ask("SELECT blob FROM proposals WHERE file = ?", name)[0][0]
            )
        return digest.hexdigest()

    def check(self, images: Iterable[Record]) -> None:
        """Refuse images whose proposals are not here, or were made at another size.

        Raises:
            InputError: which image, and what to do.
        """
        made = self.files()
        for image in images:
            self._check(
                image["file_name"], (image["height"], image["width"]), made.get(image["file_name"])
            )

    def _check(self, file_name: str, size: tuple[int, int], made: tuple[int, int] | None) -> None:
        if made is None:
            raise InputError(
                f"{self.path} has no proposals for {file_name}; finish it with python -m wsis.propose"
            )
        if made != tuple(size):
            raise InputError(
                f"{self.path}: {file_name} was {made[1]} x {made[0]} pixels, is {size[1]} x {size[0]}: "
                "proposals made for other images; make them anew with python -m wsis.propose"
            )

    def read(
        self,
        file_name: str,
        size: tuple[int, int],
        segments: bool = False,
        limit: int | None = None,
    ) -> Proposals:
        """Read the proposals of one image.

        Args:
            file_name: the image's name relative to the image folder.
            size: (height, width) of the image.
            segments: also give `labels` and `members`.
            limit: the best so many.

        Raises:
            InputError: the image is not in the file, was of another size, has no segments here, or its entry is damaged.
        """
        found = self._ask("SELECT width, height, blob FROM proposals WHERE file = ?", file_name)
        width, height, blob = found[0] if found else (0, 0, b"")
        self._check(file_name, size, (height, width) if found else None)
        try:
            proposals = _unpack(blob, (height, width), segments, limit)
        except (zlib.error, struct.error, IndexError, ValueError) as error:
            raise _broken(self.path, f"the entry of {file_name}") from error
        if segments and proposals.labels is None:
            raise InputError(
                f"{self.path} has boxes alone for {file_name}; this method needs segments: use --data.proposals auto"
            )
        return proposals

    def _ask(self, query: str, *values: object) -> list[Any]:
        try:
            return self._connection().execute(query, values).fetchall()
        except sqlite3.DatabaseError as error:
            if "locked" in str(error):
                raise InputError(
                    f"{self.path} is being written by another process; wait for it to end"
                ) from error
            raise (
                _foreign(self.path)
                if "no such" in str(error) or "not a database" in str(error)
                else _broken(self.path)
            ) from error

    def _connection(self) -> sqlite3.Connection:
        if (
            self._opened is None or self._opened[0] != os.getpid()
        ):  # SQLite handles must not cross a fork
            mode = (
                "rw" if os.access(self.path, os.W_OK) else "ro"
            )  # what a killed writer left half done is only undone by "rw"
            uri = f"{self.path.resolve().as_uri()}?mode={mode}"
            self._opened = (
                os.getpid(),
                sqlite3.connect(uri, uri=True, timeout=60, check_same_thread=False),
            )
        return self._opened[1]


class ProposalWriter:
    """Adds images to an open proposal file; `write` makes it."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection, self._uncommitted = connection, 0
        self.files: dict[str, tuple[int, int]] = {
            name: (height, width)
            for name, height, width in connection.execute(
                "SELECT file, height, width FROM proposals"
            )
        }

    def add(self, file_name: str, size: tuple[int, int], proposals: Proposals) -> None:
        """Store the proposals of an image of `size` (height, width), in place of what was there."""
        self.insert(file_name, size, _pack(proposals))

    def insert(self, file_name: str, size: tuple[int, int], packed: bytes) -> None:
        """Store proposals that are packed already, as they come from another process."""
        self.connection.execute(
            "INSERT OR REPLACE INTO proposals VALUES (?, ?, ?, ?)",
            (file_name, size[1], size[0], packed),
        )
        self.files[file_name] = size
        self._uncommitted += 1
        if self._uncommitted == _BATCH:
            self.connection.commit()
            self._uncommitted = 0


@contextmanager
def write(path: str | os.PathLike[str], provenance: dict[str, Any]) -> Iterator[ProposalWriter]:
    """Open a new proposal file, or one begun with the same provenance to continue it; what was added stays on any error.

    Raises:
        InputError: the file is of another provenance or no proposal file, or cannot be written.
    """
    path = Path(path)
    try:
        with database(path) as connection:
            if connection.execute("SELECT 1 FROM sqlite_master").fetchone() is None:
                _create(connection, provenance)
            _require_same(path, provenance)
            try:
                yield ProposalWriter(connection)
            finally:
                connection.commit()
    except sqlite3.DatabaseError as error:
        raise _foreign(path) from error


def _require_same(path: Path, provenance: dict[str, Any]) -> None:
    found = ProposalFile(path).provenance
    if found != json.loads(json.dumps(provenance)):
        differing = sorted(
            key for key in {*found, *provenance} if found.get(key) != provenance.get(key)
        )
        raise InputError(
            f"{path} was made in another way ({', '.join(differing)} differ); delete it or choose another --out"
        )


def make(index: Index, out: str | os.PathLike[str], workers: int | None = None) -> Path:
    """Propose segments for every image of `index` that `out` does not hold yet, in `workers` processes (all cores if None).

    Raises:
        InputError: an image cannot be read or a worker died; all other images are done and kept first.
    """
    from wsis.proposals.segments import settings

    provenance = {
        "made": "wsis.proposals.segments",
        "supervision": "none",
        "data": index.name,
        **settings(),
    }
    failures: list[str] = []
    with write(out, provenance) as writer:
        todo = [
            image
            for image in index.images
            if writer.files.get(image["file_name"]) != (image["height"], image["width"])
        ]
        for image, result in _results(todo, index.root, workers):
            if isinstance(result, str):
                failures.append(result)
            else:
                writer.insert(image["file_name"], (image["height"], image["width"]), result)
    if failures:
        more = f" (and {len(failures) - 1} more images)" if len(failures) > 1 else ""
        raise InputError(
            f"{failures[0]}{more}; the other proposals are kept in {out}: repair, then repeat the command"
        )
    return Path(out)


def _results(
    images: list[Record], root: Path, workers: int | None
) -> Iterator[tuple[Record, bytes | str]]:
    """Packed proposals of each image, or what went wrong, as they come, with progress."""
    count = min(cores() if workers is None else workers, len(images))
    jobs = [(root, image) for image in images]
    results = map(_propose, jobs) if count <= 1 else _parallel(jobs, count)
    yield from zip(
        images,
        tqdm(results, "proposals", len(images), unit="image", disable=not images),
        strict=True,
    )


def _parallel(jobs: list[tuple[Path, Record]], workers: int) -> Iterator[bytes | str]:
    context = get_context(
        "fork" if sys.platform == "linux" else "spawn"
    )  # as a DataLoader: a plain script has no main guard
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)  # here, because a forked child that touches OpenCV's threads hangs
    with ProcessPoolExecutor(workers, context, _begin) as pool:
        try:
            yield from pool.map(_propose, jobs, chunksize=4)
        except BrokenProcessPool as error:
            raise InputError(
                "a worker died, most likely for want of memory; repeat the command with fewer workers"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)
            cv2.setNumThreads(threads)


def _begin() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which stops the pool
    torch.set_num_threads(1)


def _propose(job: tuple[Path, Record]) -> bytes | str:
    """Packed proposals of one image (bytes travel between processes, tensors would hold file handles), or the error's line."""
    from wsis.proposals.segments import propose

    root, image = job
    try:
        pixels = read_image(root / image["file_name"], (image["height"], image["width"]))
        return _pack(propose(np.ascontiguousarray(pixels.permute(1, 2, 0).numpy())))
    except InputError as error:
        return str(error)
    except Exception as error:  # one odd image must not end a run of hours
        return f"{root / image['file_name']}: no proposals ({type(error).__name__}: {error})"


def _create(connection: sqlite3.Connection, provenance: dict[str, Any]) -> None:
    with connection:
        connection.execute(
            "BEGIN"
        )  # else each table is a transaction of its own, and a full disk leaves one of two
        connection.execute("CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL)")
        connection.execute(
            "CREATE TABLE proposals (file TEXT PRIMARY KEY, width INT NOT NULL, height INT NOT NULL, blob BLOB NOT NULL)"
        )
        entries = {"format": _FORMAT, **provenance}
        connection.executemany(
            "INSERT INTO meta VALUES (?, ?)",
            [(key, json.dumps(value)) for key, value in entries.items()],
        )


def _pack(proposals: Proposals) -> bytes:
    """Compress the columns: boxes by coordinate, labels as steps along rows, members as bits of one proposal after another."""
    boxes, scores = proposals.boxes.numpy().astype("<f4"), proposals.scores.numpy().astype("<f4")
    parts = [boxes.T.tobytes(), scores.tobytes()]
    superpixels = width = 0
    if proposals.labels is not None and proposals.members is not None:
        superpixels = proposals.members.shape[1]
        width = 2 if superpixels < 2**15 else 4
        steps = np.diff(proposals.labels.numpy(), axis=1, prepend=0).astype(f"<i{width}")
        parts += [steps.tobytes(), np.packbits(proposals.members.numpy(), axis=1).tobytes()]
    return _HEADER.pack(len(boxes), superpixels, width) + b"".join(_chunk(part) for part in parts)


def _chunk(part: bytes) -> bytes:
    packed = zlib.compress(part, 6)
    return struct.pack("<I", len(packed)) + packed


def _unpack(blob: bytes, size: tuple[int, int], segments: bool, limit: int | None) -> Proposals:
    count, superpixels, width = _HEADER.unpack_from(blob)
    parts = list(_parts(blob))
    boxes = np.frombuffer(parts[0](), "<f4").reshape(4, count).T[:limit].copy()
    scores = np.frombuffer(parts[1](), "<f4")[:limit].copy()
    if not segments or not width:
        return Proposals(torch.from_numpy(boxes), torch.from_numpy(scores))
    labels = np.cumsum(
        np.frombuffer(parts[2](), f"<i{width}").reshape(size), axis=1, dtype=np.int32
    )
    packed: NDArray[np.uint8] = np.frombuffer(parts[3](), np.uint8).reshape(
        count, (superpixels + 7) // 8
    )
    members = np.unpackbits(packed[:limit], axis=1, count=superpixels).astype(bool)
    return Proposals(*(torch.from_numpy(array) for array in (boxes, scores, labels, members)))


def _parts(blob: bytes) -> Iterator[Any]:
    """Functions that decompress the columns, so that what is not asked for costs nothing."""
    at = _HEADER.size
    while at < len(blob):
        (length,) = struct.unpack_from("<I", blob, at)
        yield lambda start=at + 4, end=at + 4 + length: zlib.decompress(blob[start:end])
        at += 4 + length


def _foreign(path: Path) -> InputError:
    return InputError(
        f"{path} is not a proposal file; convert it with python -m wsis.propose --from {path}"
    )


def _broken(path: Path, what: str = "the file") -> InputError:
    return InputError(
        f"{path}: {what} is damaged; delete the file and make it anew with python -m wsis.propose"
    )
