"""Short names: `cam` is the class that `wsis/models/cam.py` lists first in its `__all__`.

A file (or a folder with an `__init__.py`) registers its class by its name. Files are parsed, not
imported, until a class is needed, so that the heavy dependencies of one method do not slow down the
others. Other packages register classes by entry points of the groups `wsis.models`, `wsis.data` and
`wsis.proposers`.

A name resolves only to this library and to installed plug-ins, never to other code, because
settings files, run folders and tables may come from somebody else.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import importlib.util
import inspect
from collections.abc import Iterable
from dataclasses import asdict, is_dataclass
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Literal, overload

from wsis.errors import InputError

__all__ = [
    "KINDS",
    "arguments",
    "as_dict",
    "class_path",
    "description",
    "exports",
    "find",
    "names",
    "path_of",
    "short_name",
    "suggest",
    "summary",
]

KINDS = ("model", "data")
"""Kinds that the command line selects by name; each is a section of a settings file."""
_GROUPS = {"model": "wsis.models", "data": "wsis.data", "proposer": "wsis.proposers"}
_PACKAGES = {"model": ("models", "parts"), "data": ("datasets",)}
_STAGES = {"model": ("evidence",)}
"""Packages with networks that are trained only as a stage of a method."""
_BASES = {"model": "LightningModule", "data": "LightningDataModule"}
_FUNCTIONS = {
    "proposer": {
        "ncut": "wsis.proposals.ncut.propose",
        "segments": "wsis.proposals.segments.propose",
    }
}
"""Built-in functions by name, for kinds that are functions rather than classes."""


def names(kind: str) -> list[str]:
    """Return the short names of one kind ("model", "data", "proposer"), including plug-ins."""
    return sorted({*_files(kind), *_FUNCTIONS.get(kind, {}), *_plugins(kind)})


def class_path(kind: str, name: str, typed: bool = False) -> str:
    """Return the dotted path for `pdsl`, `PDSL`, `em-paste`, `EMPaste` or a dotted path.

    Args:
        kind: "model", "data" or "proposer".
        name: a short name in any spelling, or a dotted path.
        typed: the user typed the name, so that it may be the path of any code.

    Raises:
        InputError: no such name (the message suggests the nearest), or the path is not installed.
    """
    if "." in name:
        path = name.replace(":", ".")
        if not typed and not _is_installed(kind, path):
            raise InputError(
                f"{kind} {name} is not installed, and a file may name no other code; "
                f"if it is your own, install it with an entry point of {_GROUPS[kind]} "
                f"or type wsis.fit --{kind} {name}"
            )
        return path
    known = {_plain(n): n for n in names(kind)}
    if _plain(name) not in known:
        nearest = suggest(name, known.values())
        raise InputError(
            f"no {kind} is called '{name}'{nearest} (have: {', '.join(known.values())})"
        )
    name = known[_plain(name)]
    if name in _files(kind):
        return _path_of_file(_files(kind)[name])
    return _FUNCTIONS.get(kind, {}).get(name) or _plugins(kind)[name]


@overload
def find(kind: Literal["model", "data"], name: str, typed: bool = ...) -> type[Any]: ...
@overload
def find(kind: str, name: str, typed: bool = ...) -> Any: ...
def find(kind: str, name: str, typed: bool = False) -> Any:
    """Import the class, or for a proposer the function, of a short name or dotted path.

    Args:
        kind: "model", "data" or "proposer".
        name: as in `class_path`.
        typed: the user typed the name, so that it may be the path of any code.

    Raises:
        InputError: no such name, module or class, not installed, or not of this kind.
    """
    path = class_path(kind, name, typed)
    module, _, attribute = path.rpartition(".")
    try:
        thing = getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        raise InputError(
            f"{kind} {name}: no module '{error.name}'; install it or correct the name"
        ) from error
    except AttributeError as error:
        raise InputError(f"{kind} {name}: module '{module}' has no class '{attribute}'") from error
    base = _BASES.get(kind)
    if not callable(thing) if base is None else not _derives_from(thing, base):
        raise InputError(f"{kind} {name} is no {base or 'function'}; correct the name")
    return thing


def arguments(cls: type[Any]) -> dict[str, inspect.Parameter]:
    """Return the arguments of a constructor, including those its `**settings` pass to the base."""
    known = dict(inspect.signature(cls).parameters)
    passes_on = [name for name, p in known.items() if p.kind is p.VAR_KEYWORD]
    if not passes_on:
        return known
    del known[passes_on[0]]
    return {**arguments(cls.__mro__[1]), **known}


def as_dict(value: Any) -> Any:
    """Return a group of settings as the dictionary that a settings file has; others unchanged.

    A module among the settings is named by its class.
    """
    if not is_dataclass(value) or isinstance(value, type):
        return value
    return {name: path_of(v) if callable(v) else v for name, v in asdict(value).items()}


def short_name(kind: str, path: str) -> str:
    """Return `pdsl` for `wsis.models.pdsl.PDSL`, for run folders and tables."""
    built_in = any(path.startswith(f"wsis.{package}.") for package in _PACKAGES.get(kind, ()))
    return path.split(".")[2] if built_in else path.rsplit(".", 1)[-1].lower()


def summary(kind: str, name: str) -> str:
    """Return the first docstring line of a name's file, without importing it."""
    path = _files(kind).get(name) or _source(_plugins(kind)[name])
    return description(path) if path else ""


def description(path: Path) -> str:
    """Return the first docstring line of a Python file."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    return (text or "").partition("\n")[0]


def exports() -> dict[str, str]:
    """Return the kind of every built-in class by its name: {"PDSL": "model", ...}."""
    return {_first_export(path): kind for kind in KINDS for path in _files(kind).values()}


def suggest(word: str, known: Iterable[str], above: str = "") -> str:
    """Return "; did you mean 'x'?" with the nearest of `known`, or "" if none is near.

    Args:
        word: what was written.
        known: what could be meant.
        above: written before the suggestion.
    """
    spelled = {_plain(k): k for k in known}
    near = difflib.get_close_matches(_plain(word), spelled, n=1)
    return f"; did you mean '{above}{spelled[near[0]]}'?" if near else ""


def path_of(thing: object) -> str:
    """Return the class path of an object."""
    return f"{type(thing).__module__}.{type(thing).__qualname__}"


def _plain(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "")


@cache
def _files(kind: str) -> dict[str, Path]:
    files: dict[str, Path] = {}
    for package in _PACKAGES.get(kind, ()):
        folder = Path(__file__).parent / package
        files |= {path.stem: path for path in folder.glob("[!_]*.py")}
        files |= {path.parent.name: path for path in folder.glob("[!_]*/__init__.py")}
    return dict(sorted(files.items()))


def _path_of_file(path: Path) -> str:
    """Return `wsis.models.ccgr.CCGR` for `.../wsis/models/ccgr/__init__.py`."""
    parts = path.relative_to(Path(__file__).parent).with_suffix("").parts
    return ".".join(["wsis", *parts[:2], _first_export(path)])


@cache
def _plugins(kind: str) -> dict[str, str]:
    return {
        plugin.name: plugin.value.replace(":", ".") for plugin in entry_points(group=_GROUPS[kind])
    }


def _is_installed(kind: str, path: str) -> bool:
    """Return True if a path is in a package of this kind or in the module of a plug-in."""
    packages = [f"wsis.{name}" for name in (*_PACKAGES.get(kind, ()), *_STAGES.get(kind, ()))]
    plugins = [plugin.rpartition(".")[0] for plugin in _plugins(kind).values()]
    inside = any(path.startswith(f"{place}.") for place in [*packages, *plugins])
    return inside or path in _FUNCTIONS.get(kind, {}).values()


def _derives_from(thing: Any, base: str) -> bool:
    import pytorch_lightning as pl

    return isinstance(thing, type) and issubclass(thing, getattr(pl, base))


def _source(path: str) -> Path | None:
    """Return the Python file of a plug-in's class, or None if there is none."""
    try:
        spec = importlib.util.find_spec(path.rpartition(".")[0])
    except ModuleNotFoundError:
        return None
    return Path(spec.origin) if spec and spec.origin and spec.origin.endswith(".py") else None


@cache
def _first_export(path: Path) -> str:
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) == "__all__":
            return str(ast.literal_eval(node.value)[0])
    raise InputError(f"{path} has no `__all__`; its first name is what the command line loads")
