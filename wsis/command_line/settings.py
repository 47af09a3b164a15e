"""Settings before they are parsed: words of a command line, settings files, recipes.

Settings come from, weakest first: constructor defaults, the recipe of this model on this data (`configs/`), `--config`
files in order, flags.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import get_loader

from wsis import registry
from wsis.errors import InputError

__all__ = [
    "Config",
    "arrange",
    "as_words",
    "check_known",
    "flatten",
    "layer",
    "read_config",
    "recipe",
    "spelled",
]

Config = dict[str, Any]


def arrange(argv: Sequence[str]) -> tuple[dict[str, str], list[Path], list[str]]:
    """Split arguments into chosen names ("model", "data"), `--config` files and the rest, so that order does not matter."""
    chosen: dict[str, str] = {}
    files: list[Path] = []
    rest, todo = [], list(argv)
    while todo:
        flag, equals, value = spelled(todo.pop(0)).partition("=")
        if flag not in ("-c", "--config", "--model", "--data"):
            rest.append(flag + equals + value)
            continue
        if not equals and (not todo or todo[0].startswith("-")):
            raise InputError(f"{flag} needs a value")
        value = value if equals else todo.pop(0)
        if flag in ("-c", "--config"):
            files.append(Path(value))
        else:
            chosen[flag[2:]] = value
    return chosen, files, rest


def spelled(word: str) -> str:
    """A word of a command line, a flag with underscores as the settings have them."""
    flag, equals, value = word.partition("=")
    return f"--{flag[2:].replace('-', '_')}{equals}{value}" if flag.startswith("--") else word


def read_config(path: Path) -> Config:
    """A settings file as nested dictionaries; `model: pdsl` is short for `model: {class_path: pdsl}`.

    Raises:
        InputError: no such file, not YAML, or a section that is none.
    """
    try:
        config = (
            get_loader("yaml")(path.read_text(encoding="utf-8")) or {}
        )  # unlike PyYAML it reads 1e-4 as a number
    except OSError as error:
        raise InputError(f"cannot read settings file {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(
            f"settings file {path} is not YAML: {' '.join(str(error).split())}"
        ) from error
    if not isinstance(config, dict):
        raise InputError(f"settings file {path} must hold `section: {{setting: value}}`")
    for kind in registry.KINDS:
        if isinstance(config.get(kind), str):
            config[kind] = {"class_path": config[kind]}
        if not _is_section(config.get(kind)):
            raise InputError(
                f"settings file {path}: `{kind}` is a name, or {{class_path: NAME, init_args: {{SETTING: VALUE}}}}"
            )
    return config


def _is_section(section: Any) -> bool:
    """Whether this can say of a class which it is, and its settings."""
    section = {} if section is None else section
    return (
        isinstance(section, dict)
        and isinstance(section.get("class_path", ""), str)
        and isinstance(section.get("init_args") or {}, dict)
    )


def recipe(model: str, data: str) -> Path | None:
    """The settings file of a model on a data set (short names), else the one of its paper's data set, else None."""
    package = Path(__file__).parents[1]
    folder = next(
        (f for f in (package / "configs", package.parent / "configs") if f.is_dir()), package
    )
    if data == "shapes":
        tried = [folder / "shapes" / f"{model}.yaml"]
    else:
        tried = [folder / f"{model}_{data}.yaml", folder / f"{model}.yaml"]
    return next((path for path in tried if path.is_file()), None)


def layer(path: Path, classes: Mapping[str, str], known: Collection[str]) -> Config:
    """Settings of one file by dotted key; a section written for another class than the chosen one is left out.

    Raises:
        InputError: a setting that is not among `known`.
    """
    config = read_config(path)
    for kind, chosen in classes.items():
        written_for = (config.get(kind) or {}).get("class_path")
        if written_for and registry.class_path(kind, written_for) != chosen:
            del config[kind]
    found = dict(flatten(config, known))
    for key in found:
        check_known(key, known, f" in {path}")
    return found


def as_words(settings: Config) -> list[str]:
    """Settings as the flags that say the same."""
    return [
        f"--{key}={value if isinstance(value, str) else json.dumps(value)}"
        for key, value in settings.items()
    ]


def check_known(key: str, known: Collection[str], where: str = "") -> None:
    """Refuse a setting that nothing has.

    Raises:
        InputError: with the nearest name.
    """
    parts = key.removesuffix("+").split(".")
    if not any(".".join(parts[: i + 1]) in known for i in range(len(parts))):
        sections = {name.partition(".")[0] for name in known}
        raise InputError(
            f"unknown setting '{key}'{where}{registry.suggest(key, known if '.' in key else sections)}"
        )


def flatten(config: Config, known: Collection[str], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys; a dictionary that is the value of one setting stays whole."""
    for key, value in config.items():
        path = prefix + str(key)
        if path in _CLASS_PATHS:
            continue
        if path in _INIT_ARGS:
            yield from flatten(value or {}, known, prefix)
        elif isinstance(value, dict) and any(k.startswith(f"{path}.") for k in known):
            yield from flatten(value, known, f"{path}.")
        elif not (value is None and path in registry.KINDS):
            yield path, value


_CLASS_PATHS = {f"{kind}.class_path" for kind in registry.KINDS}
_INIT_ARGS = {f"{kind}.init_args" for kind in registry.KINDS}
