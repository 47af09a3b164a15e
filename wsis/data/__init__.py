"""Code shared by all data sets: the index of images and labels, training samples, and loaders.

To add a data set, derive from `DataModule` and return an `Index` from `read`. `Augment` and
`Loading` hold its settings.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wsis.data.module import DataModule, Loading
    from wsis.data.transforms import Augment
    from wsis.types import Index

__all__ = ["Augment", "DataModule", "Index", "Loading"]

_HOMES = {"Augment": "transforms", "DataModule": "module", "Index": "index", "Loading": "module"}


def __getattr__(name: str) -> Any:
    """Import a public name on first use."""
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'wsis.data' has no attribute '{name}'")
