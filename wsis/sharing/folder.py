"""The files of a shared folder, and their digests."""

from __future__ import annotations

import json
import os
from functools import lru_cache
from pathlib import Path, PurePosixPath

from wsis import fingerprint
from wsis.errors import InputError
from wsis.files import atomic_write, read_json

__all__ = [
    "CARD",
    "DIGESTS",
    "MODEL",
    "PICTURE",
    "RECORD",
    "SETTINGS",
    "WEIGHTS",
    "check_shared",
    "is_shared",
    "is_whole",
    "sha256",
    "write_digests",
]

WEIGHTS, MODEL, SETTINGS = "model.safetensors", "model.json", "config.yaml"
CARD, PICTURE, DIGESTS = "README.md", "example.jpg", "digests.json"
RECORD = "*/stage.json"
"""The record of the stage that is shared, in a folder with the name of the stage."""


def is_shared(folder: Path) -> bool:
    """Return whether a folder holds a shared model, whole or not."""
    return (folder / DIGESTS).is_file() or (folder / WEIGHTS).is_file()


def write_digests(folder: Path) -> None:
    """Write digests.json: the sha256 of every file in a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    digests = {path.relative_to(folder).as_posix(): sha256(path) for path in files}
    with atomic_write(folder / DIGESTS) as scratch:
        scratch.write_text(json.dumps(digests, indent=1), encoding="utf-8")


def is_whole(folder: Path) -> bool:
    """Return whether a folder holds a shared model with all files as they were shared."""
    try:
        check_shared(folder)
    except InputError:
        return False
    return True


def check_shared(folder: Path, source: str = "") -> None:
    """Raise InputError unless all files that loading reads are those that were shared.

    The card and the picture are for people, and may have been edited since.

    Args:
        folder: with the files.
        source: what messages call it; its path if empty.
    """
    source = source or str(folder)
    digests = _read_digests(folder, source)
    records = {path.relative_to(folder).as_posix() for path in folder.glob(RECORD)}
    listed = {name for name in digests if PurePosixPath(name).match(RECORD)}
    if len(records | listed) != 1:
        raise InputError(f"{source} has not the record of one stage; get the shared model again")
    for name in (WEIGHTS, MODEL, SETTINGS, *listed):
        if not (folder / name).is_file():
            raise InputError(f"{source} lacks {name}; get the shared model again")
        if sha256(folder / name) != digests.get(name):
            raise InputError(
                f"{source}: {name} is damaged or was changed, as its sha256 is not that in "
                f"{DIGESTS}; get the shared model again"
            )


def _read_digests(folder: Path, source: str) -> dict[str, str]:
    """Return the sha256 of each file by its path in the folder."""
    if not (folder / DIGESTS).is_file():
        raise InputError(f"{source} lacks {DIGESTS}; get the shared model again")
    digests = read_json(folder / DIGESTS)
    pairs = digests.items() if isinstance(digests, dict) else [("", None)]
    for name, digest in pairs:
        outside = name.startswith("/") or ".." in PurePosixPath(name).parts
        if not name or outside or not isinstance(digest, str):
            raise InputError(f"{source}: {DIGESTS} is not {{file: sha256}}; get it again")
    return dict(pairs)


def sha256(path: Path) -> str:
    """Return the sha256 of a file, computed once unless the file changes."""
    known = path.stat()
    return _sha256(os.path.realpath(path), known.st_size, known.st_mtime_ns)


@lru_cache(maxsize=64)
def _sha256(path: str, size: int, modified: int) -> str:
    return fingerprint.sha256(Path(path))
