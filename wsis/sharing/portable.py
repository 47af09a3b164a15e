"""Settings without paths of the machine that they come from."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

__all__ = ["without_paths"]

_SCHEME = re.compile(r"(https?|hub):")


def without_paths(value: Any) -> Any:
    """Return settings with the last part alone of whatever looks like a path.

    Lists of classes stay as they are, and so do URLs.
    """
    if isinstance(value, Mapping):
        return {
            key: part if key == "classes" else without_paths(part) for key, part in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [without_paths(part) for part in value]
    if isinstance(value, PurePath) or (isinstance(value, str) and "/" in value):
        return str(value) if _SCHEME.match(str(value)) else PurePath(value).name
    return value
