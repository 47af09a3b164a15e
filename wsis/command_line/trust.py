"""What a settings file may name: it may be somebody else's, so it is data and names no code.

A class in a file is a registered or installed model or data set, or a part of the Trainer that
comes with Lightning. Code that the user types in the same command is his own.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lightning_fabric.plugins import CheckpointIO, ClusterEnvironment
from pytorch_lightning import accelerators, callbacks, loggers, profilers, strategies
from pytorch_lightning.plugins import Precision

from wsis import registry
from wsis.errors import InputError

__all__ = ["check_code"]

TRAINER_PARTS = (
    accelerators.Accelerator,
    callbacks.Callback,
    loggers.Logger,
    profilers.Profiler,
    strategies.Strategy,
    CheckpointIO,
    Precision,
    ClusterEnvironment,
)
"""What a file may name in the section of the Trainer, as Lightning brings it."""


def check_code(config: Mapping[str, Any], path: Path, typed: str) -> None:
    """Raise InputError where a file names code that is neither installed nor typed by the user.

    Args:
        config: content of the file.
        path: of the file.
        typed: the words that the user typed.
    """
    for kind in registry.KINDS:
        name = (config.get(kind) or {}).get("class_path")
        if name and "." in name:  # a short name is looked up when it is needed
            try:
                registry.class_path(kind, name, typed=name in typed)
            except InputError as error:
                raise InputError(f"{path}: {error}") from error
    for setting, name in _named_code(config, ""):
        if name not in typed and not _is_trainer_part(setting, name):
            raise InputError(
                f"{path}: {setting} names the code {name}, and a file may name only parts of the "
                "Trainer that come with Lightning; leave it out or type it as a flag"
            )


def _named_code(value: Any, setting: str) -> Iterator[tuple[str, str]]:
    """Yield settings and the names in them that jsonargparse would import and call."""
    if isinstance(value, Mapping):
        for key, part in value.items():
            below = f"{setting}.{key}".lstrip(".")
            if key == "class_path" and setting not in registry.KINDS:
                yield setting, str(part)
            elif key != "class_path":
                yield from _named_code(part, below)
    elif isinstance(value, list):
        for part in value:
            yield from _named_code(part, setting)
    elif isinstance(value, str) and "trainer." in setting and _names_module(value):
        yield setting, value


def _names_module(text: str) -> bool:
    """Return whether a text is a dotted name that begins with a module of this machine."""
    if not re.fullmatch(r"[A-Za-z_]\w*([.:][A-Za-z_]\w*)+", text):
        return False
    return importlib.util.find_spec(re.split("[.:]", text)[0]) is not None


def _is_trainer_part(setting: str, name: str) -> bool:
    """Return whether a setting of the Trainer names a part of it that comes with Lightning."""
    if "trainer." not in setting:
        return False
    module, _, attribute = name.replace(":", ".").rpartition(".")
    if not module:  # one of those that are imported already
        return True
    if module.partition(".")[0] not in ("pytorch_lightning", "lightning_fabric"):
        return False
    try:
        part = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError):
        return False
    return isinstance(part, type) and issubclass(part, TRAINER_PARTS)
