"""Short names: `pdsl` is the class that `wsis/models/pdsl.py` lists first in its `__all__`.

The name of the file (or of a folder with an `__init__.py`) is the registration. Files are read, not imported, until a class
is asked for, so a method with heavy dependencies costs the others nothing. Other packages add theirs by entry points of the
groups `wsis.models` and `wsis.data`.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import importlib.util
import inspect
from collections.abc import Iterable
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from wsis.errors import InputError

__all__ = [
    "KINDS",
    "arguments",
    "class_path",
    "exports",
    "find",
    "names",
    "short_name",
    "suggest",
    "summary",
]

KINDS = {"model": "wsis.models", "data": "wsis.data"}
"""What can be chosen by name, with the group of entry points that adds to it."""
_PACKAGES = {"model": ("models", "parts"), "data": ("datasets",)}


def names(kind: str) -> list[str]:
    """Short names of one kind ("model" or "data"), built in and from plug-ins."""
    return sorted({*_files(kind), *_plugins(kind)})


def class_path(kind: str, name: str) -> str:
    """`pdsl`, `PDSL`, `em-paste` or `EMPaste` -> dotted path of the class; a dotted path is left alone.

    Raises:
        InputError: no such name; the message has the nearest one.
    """
    if "." in name:
        return name.replace(":", ".")
    known = {_plain(n): n for n in names(kind)}
    if _plain(name) not in known:
        raise InputError(
            f"no {kind} is called '{name}'{suggest(name, known.values())} (have: {', '.join(known.values())})"
        )
    name = known[_plain(name)]
    if name in _files(kind):
        path = _files(kind)[name]
        return f"wsis.{_package(path)}.{name}.{_first_export(path)}"
    return _plugins(kind)[name]


def find(kind: str, name: str) -> type[Any]:
    """The class of a short name or dotted path, imported now.

    Raises:
        InputError: no such name, module or class.
    """
    path = class_path(kind, name)
    module, _, cls = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), cls)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("wsis."):
            raise
        raise InputError(
            f"--{kind} {name}: no module '{error.name}'; install it or correct the name"
        ) from error
    except AttributeError as error:
        raise InputError(f"--{kind} {name}: module '{module}' has no class '{cls}'") from error


def arguments(cls: type[Any]) -> dict[str, inspect.Parameter]:
    """Return the arguments of a constructor, with those that its `**settings` pass on to the base class."""
    known = dict(inspect.signature(cls).parameters)
    passes_on = [name for name, p in known.items() if p.kind is p.VAR_KEYWORD]
    if not passes_on:
        return known
    del known[passes_on[0]]
    return {**arguments(cls.__mro__[1]), **known}


def short_name(kind: str, path: str) -> str:
    """`wsis.models.pdsl.PDSL` -> `pdsl`, for run folders and tables."""
    built_in = any(path.startswith(f"wsis.{package}.") for package in _PACKAGES[kind])
    return path.split(".")[2] if built_in else path.rsplit(".", 1)[-1].lower()


def summary(kind: str, name: str) -> str:
    """First docstring line of a file, without importing it."""
    path = _files(kind).get(name) or _source(_plugins(kind)[name])
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) if path else None
    return (text or "").partition("\n")[0]


def exports() -> dict[str, str]:
    """Class name -> kind of every built-in model and data set: {"PDSL": "model", ...}."""
    return {_first_export(path): kind for kind in KINDS for path in _files(kind).values()}


def suggest(word: str, known: Iterable[str]) -> str:
    """Say which of `known` is nearest to `word`: "; did you mean 'x'?", or nothing."""
    spelled = {_plain(k): k for k in known}
    near = difflib.get_close_matches(_plain(word), spelled, n=1)
    return f"; did you mean '{spelled[near[0]]}'?" if near else ""


def _plain(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "")


@cache
def _files(kind: str) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for package in _PACKAGES[kind]:
        folder = Path(__file__).parent / package
        found |= {path.stem: path for path in folder.glob("[!_]*.py")}
        found |= {path.parent.name: path for path in folder.glob("[!_]*/__init__.py")}
    return dict(sorted(found.items()))


def _package(path: Path) -> str:
    """`.../wsis/models/ccgr/__init__.py` -> `models`."""
    return path.relative_to(Path(__file__).parent).parts[0]


@cache
def _plugins(kind: str) -> dict[str, str]:
    return {
        plugin.name: plugin.value.replace(":", ".") for plugin in entry_points(group=KINDS[kind])
    }


def _source(path: str) -> Path | None:
    """The file of a plug-in's class, where it is a file."""
    try:
        found = importlib.util.find_spec(path.rpartition(".")[0])
    except ModuleNotFoundError:
        return None
    return Path(found.origin) if found and found.origin and found.origin.endswith(".py") else None


@cache
def _first_export(path: Path) -> str:
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) == "__all__":
            return str(ast.literal_eval(node.value)[0])
    raise InputError(f"{path} has no `__all__`; its first name is what the command line loads")
