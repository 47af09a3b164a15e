"""Proposals on disk, in an SQLite file.

Each image is read on its own, and a killed writer loses at most the last few images.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import struct
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from wsis.errors import InputError
from wsis.files import atomic_write, cache_folder, database, read_json
from wsis.fingerprint import digest
from wsis.types import Proposals, Record

__all__ = ["ProposalFile", "ProposalWriter", "forget", "is_ours", "pack", "write"]

_FORMAT = "wsis proposals 1"
_HEADER = struct.Struct("<IIB")  # proposals, superpixels, bytes per label (0: boxes only)
_BATCH = 16  # images per transaction, the most that a killed writer can lose
_SETTLED = 2.0  # seconds after which another write is sure to change the modification time


class ProposalFile:
    """Reads proposals image by image; each process opens the file on first use, so it pickles.

    Args:
        path: a proposal file of this library.

    Raises:
        InputError: the file does not exist or is not a proposal file.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise InputError(f"no proposal file {self.path}; make one with python -m wsis.propose")
        self._opened: tuple[int, sqlite3.Connection] | None = None
        _ = self.provenance  # a foreign or damaged file is reported here, not during training

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "_opened": None}

    @property
    def provenance(self) -> dict[str, Any]:
        """How the proposals were made: proposer, settings and supervision."""
        entries = self._ask("SELECT key, value FROM meta")
        try:
            meta: dict[str, Any] = {key: json.loads(value) for key, value in entries}
        except (ValueError, TypeError) as error:
            raise _foreign(self.path) from error
        if meta.pop("format", None) != _FORMAT:
            raise _foreign(self.path)
        return meta

    def __len__(self) -> int:
        return int(self._ask("SELECT count(*) FROM proposals")[0][0])

    def files(self) -> dict[str, tuple[int, int]]:
        """Return the names and sizes (height, width) of the images in the file."""
        return {
            name: (height, width)
            for name, height, width in self._ask("SELECT file, height, width FROM proposals")
        }

    def digest(self) -> str:
        """Return a hash of the proposals of all images, not of how they were made.

        The hash is kept in the user's cache for as long as the file's size and modification time
        do not change, so that gigabytes are not read again for every stage.
        """
        state = self.path.stat()
        stamp = [state.st_size, state.st_mtime_ns]
        kept = cache_folder() / "digests" / f"{digest(str(self.path.resolve()))}.json"
        with suppress(InputError, AttributeError):
            known = read_json(kept)
            if known.get("stamp") == stamp and isinstance(known.get("digest"), str):
                return str(known["digest"])
        made = self._digest()
        if time.time() - state.st_mtime > _SETTLED:
            with suppress(InputError), atomic_write(kept) as scratch:
                scratch.write_text(json.dumps({"stamp": stamp, "digest": made}))
        return made

    def _digest(self) -> str:
        content = hashlib.sha256()
        for name in sorted(self.files()):  # one image at a time: a file can hold gigabytes
            (blob,) = self._ask("SELECT blob FROM proposals WHERE file = ?", name)[0]
            content.update(name.encode() + blob)
        return content.hexdigest()

    def check(self, images: Iterable[Record]) -> None:
        """Check that the file has proposals of all `images`, made at their size.

        Raises:
            InputError: an image is missing or has another size.
        """
        made = self.files()
        for image in images:
            self._check(
                image["file_name"], (image["height"], image["width"]), made.get(image["file_name"])
            )

    def _check(self, file_name: str, size: tuple[int, int], made: tuple[int, int] | None) -> None:
        if made is None:
            raise InputError(
                f"{self.path} has no proposals for {file_name}; finish it with python -m "
                "wsis.propose"
            )
        if made != tuple(size):
            raise InputError(
                f"{self.path}: {file_name} was {made[1]} x {made[0]} pixels, is {size[1]} x "
                f"{size[0]}: proposals made for other images; make them anew with python -m "
                "wsis.propose"
            )

    def read(
        self,
        file_name: str,
        size: tuple[int, int],
        segments: bool | None = False,
        limit: int | None = None,
    ) -> Proposals:
        """Read the proposals of one image.

        Args:
            file_name: name of the image relative to the image folder.
            size: (height, width) of the image.
            segments: also return `labels` and `members`; None returns them if there are any.
            limit: maximum number of proposals, highest ranked first.

        Raises:
            InputError: the image is missing, has another size, has boxes only though segments are
                needed, or its entry is damaged.
        """
        found = self._ask("SELECT width, height, blob FROM proposals WHERE file = ?", file_name)
        width, height, blob = found[0] if found else (0, 0, b"")
        self._check(file_name, size, (height, width) if found else None)
        try:
            proposals = _unpack(blob, (height, width), segments is not False, limit)
        except (zlib.error, struct.error, IndexError, ValueError, TypeError) as error:
            raise _broken(self.path, f"the entry of {file_name}") from error
        if segments and proposals.labels is None:
            raise InputError(
                f"{self.path} has boxes alone for {file_name}; this method needs segments: use "
                "--data.proposals segments"
            )
        return proposals

    def _ask(self, query: str, *values: object) -> list[Any]:
        try:
            return self._connection().execute(query, values).fetchall()
        except sqlite3.Error as error:
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
        # SQLite handles must not cross a fork
        if self._opened is None or self._opened[0] != os.getpid():
            # only "rw" can roll back a transaction that a killed writer left unfinished
            mode = "rw" if os.access(self.path, os.W_OK) else "ro"
            uri = f"{self.path.resolve().as_uri()}?mode={mode}"
            connection = sqlite3.connect(uri, uri=True, timeout=60, check_same_thread=False)
            self._opened = os.getpid(), connection
        return self._opened[1]


class ProposalWriter:
    """Adds images to an open proposal file; created by `write`."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection, self._uncommitted = connection, 0
        self.files: dict[str, tuple[int, int]] = {
            name: (height, width)
            for name, height, width in connection.execute(
                "SELECT file, height, width FROM proposals"
            )
        }

    def add(self, file_name: str, size: tuple[int, int], proposals: Proposals) -> None:
        """Store the proposals of an image of `size` (height, width), replacing earlier ones."""
        self.insert(file_name, size, pack(proposals))

    def insert(self, file_name: str, size: tuple[int, int], packed: bytes) -> None:
        """Store proposals that another process has packed."""
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
    """Open a proposal file for writing, or continue one of the same provenance.

    Images added before an error are kept; a new file without any is deleted.

    Raises:
        InputError: the file has another provenance, is not a proposal file, or cannot be written.
    """
    path = Path(path)
    is_new = not path.exists()
    if path.is_file() and path.stat().st_size and not is_ours(path):
        raise _foreign(path)  # SQLite takes a file of a few bytes for an empty database
    try:
        with database(path) as connection:
            if connection.execute("SELECT 1 FROM sqlite_master").fetchone() is None:
                _create(connection, provenance)
            _require_same(path, provenance)
            try:
                yield ProposalWriter(connection)
            finally:
                connection.commit()
    except sqlite3.Error as error:
        raise _foreign(path) from error
    except BaseException:
        with suppress(InputError):
            if is_new and not len(ProposalFile(path)):
                path.unlink()
        raise


def is_ours(path: Path) -> bool:
    """Return whether a file is SQLite, as this library's are, and not to be converted."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(15) == b"SQLite format 3"


def forget(path: Path, files: Sequence[str]) -> None:
    """Delete the proposals of images from a proposal file."""
    if files:
        ProposalFile(path)  # reports a foreign or damaged file
        with database(path) as connection, connection:
            connection.executemany(
                "DELETE FROM proposals WHERE file = ?", [(name,) for name in files]
            )


def _require_same(path: Path, provenance: dict[str, Any]) -> None:
    found = ProposalFile(path).provenance
    if found != json.loads(json.dumps(provenance)):
        differing = sorted(
            key for key in {*found, *provenance} if found.get(key) != provenance.get(key)
        )
        raise InputError(
            f"{path} was made in another way ({', '.join(differing)} differ); delete it or choose "
            "another --out"
        )


def _create(connection: sqlite3.Connection, provenance: dict[str, Any]) -> None:
    with connection:
        # one transaction for both tables: otherwise a full disk can leave only the first
        connection.execute("BEGIN")
        connection.execute("CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL)")
        connection.execute(
            "CREATE TABLE proposals (file TEXT PRIMARY KEY, width INT NOT NULL, height INT NOT "
            "NULL, blob BLOB NOT NULL)"
        )
        entries = {"format": _FORMAT, **provenance}
        connection.executemany(
            "INSERT INTO meta VALUES (?, ?)",
            [(key, json.dumps(value)) for key, value in entries.items()],
        )


def pack(proposals: Proposals) -> bytes:
    """Compress proposals by column.

    Boxes are stored coordinate by coordinate, labels as differences along rows, and members as
    bits, proposal by proposal.
    """
    boxes, scores = proposals.boxes.numpy().astype("<f4"), proposals.scores.numpy().astype("<f4")
    parts = [boxes.T.tobytes(), scores.tobytes()]
    superpixels = width = 0
    if proposals.labels is not None and proposals.members is not None:
        superpixels = proposals.members.shape[1]
        width = 2 if superpixels < 2**15 else 4
        labels = proposals.labels.numpy()
        steps = labels.astype(f"<i{width}")
        np.subtract(labels[:, 1:], labels[:, :-1], out=steps[:, 1:], casting="unsafe")
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
    """Yield a function for each column that decompresses it; unused columns cost nothing."""
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
