"""What a stage's result depends on, as a short hash: values and file contents, never where files are."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["file_hash", "fingerprint", "plain"]


def fingerprint(*parts: Any) -> str:
    """Sixteen hexadecimal digits of the parts, the same in every process."""
    return hashlib.sha256(
        json.dumps([plain(part) for part in parts], sort_keys=True).encode()
    ).hexdigest()[:16]


def plain(value: Any, inside: Path | None = None) -> Any:
    """A value as JSON has it; a file is its content's hash, a folder or a missing path is left out.

    Args:
        value: numbers, strings, paths, dataclasses and containers of them.
        inside: files in this folder are left out: they are results of the run itself.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return plain(dataclasses.asdict(value), inside)
    if isinstance(value, Mapping):
        return {str(key): plain(item, inside) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item, inside) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted(str(item) for item in value)
    named = isinstance(value, str) and ("/" in value or Path(value).suffix) and Path(value).exists()
    if isinstance(value, Path) or named:
        path = Path(value)
        own = inside is not None and path.resolve().is_relative_to(inside.resolve())
        return file_hash(path) if not own and path.is_file() else None
    return (
        value
        if isinstance(value, (bool, int, float, str, type(None)))
        else type(value).__qualname__
    )


def file_hash(path: Path) -> str:
    """Hash of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
