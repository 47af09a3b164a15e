"""Archives of shared folders, unpacked without leaving their folder or filling the disk."""

from __future__ import annotations

import gzip
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import IO, Any, NamedTuple

from wsis.errors import InputError
from wsis.sharing.folder import check_shared, is_shared, is_whole

__all__ = ["SUFFIXES", "Limited", "holds_archive", "is_archive", "unpack"]

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz")
MOST_MEMBERS = 1000
ALLOWANCE, RATIO = 100 * 2**20, 20
"""Bytes that any archive may unpack to, and times its own size beyond. Weights hardly shrink."""
_BROKEN = (zipfile.BadZipFile, gzip.BadGzipFile, tarfile.TarError, zlib.error, EOFError)


class _Member(NamedTuple):
    name: str
    size: int
    kind: str
    """file, folder, link, or what else there is."""
    open: Callable[[], IO[bytes]]


def is_archive(name: str) -> bool:
    """Return whether a file's name is that of an archive."""
    return name.lower().endswith(SUFFIXES)


def holds_archive(path: Path) -> bool:
    """Return whether a file is an archive by name and content: `x.pth.tar` holds weights."""
    if not path.is_file() or not is_archive(path.name):
        return False
    return path.suffix.lower() == ".zip" or tarfile.is_tarfile(path)


def unpack(archive: Path, folder: Path, source: str) -> None:
    """Unpack the shared model in an archive to `folder`, which appears whole or not at all.

    Args:
        archive: its files are at the top, or in one folder there.
        folder: to make, or to replace if it is damaged.
        source: what messages call the archive.

    Raises:
        InputError: a damaged archive, one without a shared model, a path or a link that leads
            elsewhere, or more bytes or files than such a model has.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder.parent, prefix=".unpacking-") as scratch:
        place = Path(scratch, "all")
        place.mkdir()
        _write_members(archive, place, source)
        inside = [path for path in (place, *sorted(place.iterdir())) if is_shared(path)]
        if not inside:
            raise InputError(f"{source} holds no shared model; give what wsis.share has written")
        check_shared(inside[0], source)
        if not is_whole(folder):
            shutil.rmtree(folder, ignore_errors=True)
        try:
            inside[0].rename(folder)
        except OSError:  # another process was faster
            if not is_whole(folder):
                raise


def _write_members(archive: Path, place: Path, source: str) -> None:
    most = ALLOWANCE + RATIO * archive.stat().st_size
    told = (
        f"{source} would unpack to more than {most // 2**20} MB or {MOST_MEMBERS} files, unlike "
        "weights; get it from elsewhere"
    )
    total = 0
    with _readable(source):
        for number, member in enumerate(_members(archive, most, told), 1):
            total += member.size
            if total > most or number > MOST_MEMBERS:
                raise InputError(told)
            path = _place_of(member, place, source)
            if member.kind == "folder":
                path.mkdir(parents=True, exist_ok=True)
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            with member.open() as content, open(path, "xb") as target:
                shutil.copyfileobj(content, target)


def _place_of(member: _Member, place: Path, source: str) -> Path:
    """Return the path of a member, which must be a file or folder below `place`."""
    name = member.name
    if name.startswith("/") or "\\" in name or ".." in PurePosixPath(name).parts:
        raise InputError(f"{source} holds {name!r}, a path that leaves it; get it from elsewhere")
    if member.kind not in ("file", "folder"):
        raise InputError(
            f"{source} holds {name!r}, a {member.kind} in place of a file; get it from elsewhere"
        )
    return place / name


@contextmanager
def _readable(source: str) -> Iterator[None]:
    """Raise InputError for what reading an archive raises."""
    try:
        yield
    except InputError:
        raise
    except _BROKEN as error:
        raise InputError(f"{source} is damaged or no archive ({error}); get it again") from error
    except (OSError, ValueError, RuntimeError, NotImplementedError) as error:
        # no room, impossible names, a password, an unknown method of compression
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise InputError(f"cannot unpack {source}: {reason}; get it again") from error


def _members(archive: Path, most: int, told: str) -> Iterator[_Member]:
    """Yield the members of an archive; each must be read before the next."""
    if archive.name.lower().endswith(".zip"):
        with zipfile.ZipFile(archive) as zipped:
            for info in zipped.infolist():
                is_link = stat.S_ISLNK(info.external_attr >> 16)
                kind = "link" if is_link else "folder" if info.is_dir() else "file"
                yield _Member(info.filename, info.file_size, kind, partial(zipped.open, info))
        return
    is_plain = archive.name.lower().endswith(".tar")
    with open(archive, "rb") if is_plain else gzip.open(archive) as file:
        stream: Any = Limited(file, most, told)  # headers, too, may have any size
        with tarfile.open(fileobj=stream, mode="r|") as tar:
            for entry in tar:
                kind = "link" if entry.issym() or entry.islnk() else "device or the like"
                kind = "file" if entry.isreg() else "folder" if entry.isdir() else kind
                read: Any = partial(tar.extractfile, entry)
                yield _Member(entry.name, entry.size, kind, read)


class Limited:
    """A file that may not go on for ever.

    Args:
        source: What is read.
        most: Bytes that may be read.
        told: Message of the InputError beyond them.
    """

    def __init__(self, source: Any, most: int, told: str) -> None:
        self.source, self.left, self.told = source, most, told

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes."""
        part: bytes = self.source.read(size)
        self.left -= len(part)
        if self.left < 0:
            raise InputError(self.told)
        return part
