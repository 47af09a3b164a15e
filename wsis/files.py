"""Atomic writes of files; safe reading of JSON, SQLite and pickles from elsewhere."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pickle
import sqlite3
import uuid
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from wsis.errors import InputError

__all__ = [
    "atomic_write",
    "cache_folder",
    "check_writable",
    "clear_scratch",
    "database",
    "is_utf8",
    "not_whole_json",
    "read_bytes",
    "read_json",
    "read_pickle",
    "short_name",
    "shown",
]

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a scratch path that replaces `path` on success; on failure `path` is left untouched.

    Raises:
        InputError: `path` is a folder or a device, its folder is not writable, or the disk is full.
    """
    path = Path(path)
    scratch = _scratch_of(path)
    try:
        yield scratch
        with open(scratch, "rb") as file:
            os.fsync(file.fileno())
        os.replace(scratch, path)
    except OSError as error:
        if error.errno in _NO_ROOM:
            raise InputError(
                f"cannot write {path}: {error.strerror}; free space, then repeat the command"
            ) from error
        raise
    finally:
        scratch.unlink(missing_ok=True)


def check_writable(path: Path) -> None:
    """Make the folder of a file, and raise InputError now if `atomic_write` could not write it."""
    _scratch_of(path).unlink()


def _scratch_of(path: Path) -> Path:
    """Make an empty file beside `path`, and its folder."""
    scratch = path.parent / f".{short_name(path.name, 100)}.{uuid.uuid4().hex[:8]}"
    with _folder_of(path):
        scratch.touch(exist_ok=False)
    return scratch


@contextmanager
def _folder_of(path: Path) -> Iterator[None]:
    """Make the folder of a file to write; tell why it, or what is done in it, is impossible."""
    _refuse_others(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise InputError(
            f"cannot write {path}: {error.strerror}; choose a folder that can be written"
        ) from error


def _refuse_others(path: Path) -> None:
    """Raise InputError for a folder, and for what must not be replaced: /dev/null, /dev/stdout."""
    if os.path.isdir(path):
        raise InputError(f"cannot write {path}: it is a folder; give the name of a file")
    is_open = os.path.islink(path) and os.readlink(path).startswith("/proc/")
    if is_open or (os.path.exists(path) and not os.path.isfile(path)):
        raise InputError(f"cannot write {path}: it is a device or a pipe; give the name of a file")


def short_name(name: str, most: int = 240) -> str:
    """Return a name for a file or folder that has at most `most` bytes; file systems take 255.

    A name that is too long is cut, and ends with a digest of all of it, so that names that differ
    stay different. The default leaves room for a number and a suffix.
    """
    whole = os.fsencode(name)
    if len(whole) <= most:
        return name
    end = f"-{hashlib.sha256(whole).hexdigest()[:8]}"
    return whole[: most - len(end)].decode(errors="ignore") + end


def is_utf8(name: str) -> bool:
    """Return whether a name from the file system is UTF-8; files of old archives may be not."""
    return name == name.encode(errors="replace").decode()


def shown(name: str) -> str:
    """Return a name that can be printed, with its bytes that are not UTF-8 as escapes."""
    return name.encode(errors="backslashreplace").decode()


def clear_scratch(folder: Path) -> None:
    """Delete scratch files that killed processes left under `folder` in `atomic_write`."""
    for scratch in folder.rglob(".*." + 8 * "[0-9a-f]"):
        scratch.unlink(missing_ok=True)


@contextmanager
def database(path: Path) -> Iterator[sqlite3.Connection]:
    """Open an SQLite file for writing, creating it if needed; commits survive any later error.

    Raises:
        InputError: the file cannot be written, now or later while it is open.
        sqlite3.DatabaseError: the file is damaged or not SQLite.
    """
    with _folder_of(path):
        pass
    try:
        with closing(sqlite3.connect(path, timeout=60)) as connection:
            yield connection
    except sqlite3.OperationalError as error:
        raise InputError(
            f"cannot write {path}: {error}; free space or choose another place, then repeat the "
            "command"
        ) from error


def cache_folder() -> Path:
    """Return the cache folder: WSIS_CACHE if set, else `wsis` in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("WSIS_CACHE") or Path(base) / "wsis")


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """Read a file.

    Raises:
        InputError: no such file, or it cannot be read.
    """
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; give an existing file") from error


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read a JSON file.

    Raises:
        InputError: no such file, or it is incomplete or not JSON.
    """
    content = read_bytes(path)
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise not_whole_json(path, error) from error


def not_whole_json(path: str | os.PathLike[str], error: Exception) -> InputError:
    """Return the error of a file that a JSON parser does not take."""
    return InputError(f"{path} is not a whole json file ({error}); fetch or write it again")


def read_pickle(path: str | os.PathLike[str]) -> Any:
    """Read a pickle of containers, numbers, strings and arrays without running any of its code.

    Pickles of any Python version are read; text of Python 2 as latin-1, which keeps its bytes.

    Raises:
        InputError: no such file, or it is truncated, not a pickle, or holds more than data.
    """
    try:
        with open(path, "rb") as file:
            return _DataUnpickler(file, encoding="latin1").load()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; check the path") from error
    except Exception as error:  # a damaged pickle can raise nearly any exception
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"cannot read {path} as a pickle of numpy data: {reason}; fetch it again or convert it"
        ) from error


class _DataUnpickler(pickle.Unpickler):
    """Unpickler that resolves the names of numpy arrays and containers, and no others."""

    def find_class(self, module: str, name: str) -> Any:
        # the names before numpy 2 and Python 3
        module = module.replace("numpy.core", "numpy._core").replace("__builtin__", "builtins")
        try:
            return _DATA[module, name]
        except KeyError:
            raise pickle.UnpicklingError(
                f"it asks for {module}.{name}, which is not data"
            ) from None


def _empty_array(*_: Any) -> np.ndarray[Any, Any]:
    """Return the array that unpickling starts from; shape, type and data are set afterwards."""
    return np.empty(0)


def _array_from_bytes(
    data: bytes, dtype: np.dtype[Any], shape: tuple[int, ...], order: Any
) -> np.ndarray[Any, Any]:
    return np.frombuffer(data, dtype).reshape(shape, order=order)


def _number(dtype: np.dtype[Any], data: bytes | str) -> Any:
    return np.frombuffer(data.encode("latin1") if isinstance(data, str) else data, dtype)[0]


def _latin1(text: str, encoding: str) -> bytes:
    """Decode bytes as pickle protocols before 3 store them."""
    return text.encode("latin1")


_DATA: dict[tuple[str, str], Any] = {
    ("numpy", "dtype"): np.dtype,
    ("numpy", "ndarray"): None,  # only ever an argument of _reconstruct
    ("numpy._core.multiarray", "_reconstruct"): _empty_array,
    ("numpy._core.multiarray", "scalar"): _number,
    ("numpy._core.numeric", "_frombuffer"): _array_from_bytes,
    ("_codecs", "encode"): _latin1,
    ("collections", "OrderedDict"): OrderedDict,
    ("builtins", "set"): set,
    ("builtins", "frozenset"): frozenset,
}
