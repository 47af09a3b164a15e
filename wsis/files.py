"""Files are written whole or not at all, and a user's mistake is one clear line."""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["InputError", "whole"]

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class InputError(ValueError):
    """A mistake in what the user gave: the message says what, where, and what to do. Verbs print it without a traceback."""


@contextmanager
def whole(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a scratch path beside `path`; on success it becomes `path` in one step, on failure `path` is untouched.

    Raises:
        InputError: the folder cannot be written or the disk is full.
    """
    path = Path(path)
    scratch = path.parent / f".{path.name}.{uuid.uuid4().hex[:8]}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch.touch(exist_ok=False)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}; choose a folder that can be written") from error
    try:
        yield scratch
        with open(scratch, "rb") as file:
            os.fsync(file.fileno())
        os.replace(scratch, path)
    except OSError as error:
        if error.errno in _NO_ROOM:
            raise InputError(f"cannot write {path}: {error.strerror}; free space, then repeat the command") from error
        raise
    finally:
        scratch.unlink(missing_ok=True)
