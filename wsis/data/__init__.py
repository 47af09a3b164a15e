"""Data sets: `--data X` is the class that `X.py` here lists first.

`Augment` and `Loading` say how images are varied and batches loaded; `compose` pastes objects on an image.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wsis.data._module import Augment, Loading
    from wsis.data._paste import compose

__all__ = ["Augment", "Loading", "compose"]

_HOMES = {"Augment": "wsis.data._module", "Loading": "wsis.data._module", "compose": "wsis.data._paste"}


def __getattr__(name: str) -> Any:
    """Import what is asked for."""
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'wsis.data' has no attribute '{name}'")
