"""Short hashes of settings and file contents, the same in every process and on every machine."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["digest", "file_hash", "fingerprint", "plain", "sha256"]


def digest(content: Any) -> str:
    """Return sixteen hexadecimal digits that identify a value by its JSON text."""
    text = json.dumps(content, sort_keys=True, default=_text)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def fingerprint(*parts: Any) -> str:
    """Return the digest of values in which each file counts by its content, not its path."""
    return digest([plain(part) for part in parts])


def plain(value: Any, inside: Path | None = None) -> Any:
    """Return a value made of JSON types: a file as its hash, a folder or missing path as None.

    Args:
        value: numbers, strings, paths, dataclasses and containers of them.
        inside: a folder whose files become None, because the run itself writes them.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return plain(dataclasses.asdict(value), inside)
    if isinstance(value, Mapping):
        return {str(key): plain(item, inside) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item, inside) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted(str(item) for item in value)
    if isinstance(value, Path) or (isinstance(value, str) and _names_a_file(value)):
        path = Path(value)
        made_here = inside is not None and path.resolve().is_relative_to(inside.resolve())
        return file_hash(path) if path.is_file() and not made_here else None
    known = isinstance(value, (bool, int, float, str, type(None)))
    return value if known else type(value).__qualname__


def file_hash(path: Path) -> str:
    """Return sixteen hexadecimal digits that identify a file's content."""
    return sha256(path)[:16]


def sha256(path: Path) -> str:
    """Return the sha256 of a file, in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _names_a_file(text: str) -> bool:
    return bool("/" in text or Path(text).suffix) and Path(text).exists()


def _text(value: Any) -> Any:
    """Return text for values that JSON does not have: bytes, such as run lengths, and paths."""
    return value.decode("latin1") if isinstance(value, bytes) else str(value)
