"""Settings before they are parsed: words of a command line, settings files, recipes.

Settings come from, weakest first: constructor defaults, the recipe of this model on this data
(`configs/`), `--config` files in order, flags.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from jsonargparse import Namespace, get_loader

from wsis import registry
from wsis.command_line.trust import check_code
from wsis.errors import InputError
from wsis.files import is_utf8, shown
from wsis.sharing.folder import is_shared
from wsis.sharing.places import find_run

__all__ = [
    "Config",
    "Words",
    "arrange",
    "check_words",
    "find_config",
    "folder_of_run",
    "laid_over",
    "read_config",
    "read_run",
    "recipe",
    "replaced",
    "spelled",
]

Config = dict[str, Any]
# fmt: off
_PATHS = frozenset({
    "", "boxes", "captions", "config", "data.root", "from", "images", "images_from", "out",
    "panoptic", "predictions", "resume", "reuse", "run", "run_dir", "sweep", "write",
})
# fmt: on
"""Flags with a path, of all verbs; "" is a word without a flag."""
MOST_VALUES = 100_000
"""In a settings file, those under an alias as often as it is used; nested ones double each time."""


class Words(NamedTuple):
    """The words of a command line, in the order in which they count."""

    chosen: dict[str, str]
    """Names of "model" and "data"."""
    run: str | None
    """Run whose settings come first."""
    files: list[Path]
    """Settings files."""
    rest: list[str]
    """All other words."""


def arrange(argv: Sequence[str], run_flag: str | None = None) -> Words:
    """Sort the words of a command line, so that their order does not matter.

    Args:
        argv: the words.
        run_flag: the flag that names a run; it stays among the rest.

    Raises:
        InputError: a flag without its value, or an empty one where that cannot be meant.
    """
    todo = [spelled(word) for word in argv]
    check_words(todo)
    chosen: dict[str, str] = {}
    run, files, rest = None, [], []
    while todo:
        word = todo.pop(0)
        flag, equals, value = word.partition("=")
        if flag not in ("-c", "--config", "--model", "--data", run_flag):
            rest.append(word)
            continue
        if not equals and (not todo or todo[0].startswith("-")):
            raise InputError(f"{flag} needs a value")
        value = value if equals else todo.pop(0)
        if flag == run_flag:
            run = value
            rest.append(f"{flag}={value}")
        elif flag in ("-c", "--config"):
            files.append(find_config(Path(value)))
        else:
            chosen[flag[2:]] = value
    return Words(chosen, run, files, rest)


def spelled(word: str) -> str:
    """Return a word with the underscores that settings have: `--run-dir` is `--run_dir`."""
    flag, equals, value = word.partition("=")
    return f"--{flag[2:].replace('-', '_')}{equals}{value}" if flag.startswith("--") else word


def check_words(words: Sequence[str]) -> None:
    """Raise InputError for words that are not UTF-8, and for empty paths, such as "$UNSET".

    An empty path would be this folder.
    """
    before = ""
    for word in words:
        if not is_utf8(word):
            raise InputError(f"{shown(word)}: the name is not UTF-8; rename the file")
        flag, equals, value = word.partition("=")
        name = flag if equals else before
        if not value and (equals or not word) and name[2:] in _PATHS:
            place = name or "an argument"
            raise InputError(f'{place} is empty; give a value, such as "." for this folder')
        before = word if word.startswith("--") else ""


def find_config(path: Path) -> Path:
    """Return a settings file, `configs/...` from the package if there is none at its path."""
    packaged = _recipes().joinpath(*path.parts[1:])
    is_ours = path.parts[:1] == ("configs",) and not path.is_file() and packaged.is_file()
    return packaged if is_ours else path


def read_config(path: Path, typed: Collection[str] = ()) -> Config:
    """Read a settings file; `model: pdsl` is short for `model: {class_path: pdsl}`.

    Args:
        path: the file.
        typed: words that the user typed; code that they name may be named by the file, too.

    Raises:
        InputError: no such file, not YAML, a section that is none, or code that is not installed.
    """
    try:
        text = path.read_text(encoding="utf-8")
        config = get_loader("yaml")(text) or {}  # unlike PyYAML it reads 1e-4 as a number
    except OSError as error:
        raise InputError(f"cannot read settings file {path}: {error.strerror}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"settings file {path} is not YAML: {reason}") from error
    if not isinstance(config, dict) or not all(isinstance(key, str) for key in config):
        raise InputError(f"settings file {path} must hold `section: {{setting: value}}`")
    for kind in registry.KINDS:
        if isinstance(config.get(kind), str):
            config[kind] = {"class_path": config[kind]}
        if not _is_section(config.get(kind)):
            raise InputError(
                f"settings file {path}: `{kind}` is a name, or "
                "{class_path: NAME, init_args: {SETTING: VALUE}}"
            )
    try:
        if _written_out(config, {}) > MOST_VALUES:
            raise InputError(
                f"settings file {path} has more than {MOST_VALUES:,} values once its aliases are "
                "written out; take them out"
            )
        check_code(config, path, " ".join(typed))
    except RecursionError as error:
        raise InputError(f"settings file {path} holds itself; take out the alias") from error
    return config


def read_run(folder: Path, typed: Collection[str] = ()) -> Config:
    """Read the settings of a run.

    Args:
        folder: of the run.
        typed: as `read_config` takes it.

    Raises:
        InputError: not the folder of a run.
    """
    path = folder / "config.yaml"
    if not path.is_file():
        raise InputError(f"{folder} is not the folder of a run: it has no config.yaml")
    config = read_config(path, typed)
    if not all((config.get(kind) or {}).get("class_path") for kind in registry.KINDS):
        raise InputError(
            f"{path} does not name the model and data of a run; give the folder of another run"
        )
    return config


def folder_of_run(place: str, flag: str, typed: Collection[str]) -> Path:
    """Return the folder of a run, given it or that of a stage, or of a shared model.

    Args:
        place: what the user gave, as `find_run` takes it.
        flag: with which it was given.
        typed: as `read_config` takes it.

    Raises:
        InputError: no run, or a shared model that is to be trained further.
    """
    folder = find_run(place)
    folder = folder.parent if (folder / "stage.json").is_file() else folder
    read_run(folder, typed)
    if flag == "--resume" and is_shared(folder):
        raise InputError(
            f"{place} is a shared model, which has not what training needs to go on; begin a run "
            f"with its backbone: --model.backbone.weights {place}"
        )
    return folder


def recipe(model: str, data: str) -> Path | None:
    """Return the settings file of a model on a data set, else that of its paper's data set.

    Args:
        model: short name.
        data: short name.
    """
    names = [f"shapes/{model}"] if data == "shapes" else [f"{model}_{data}", model]
    files = [_recipes() / f"{name}.yaml" for name in names]
    return next((path for path in files if path.is_file()), None)


def laid_over(below: Namespace | dict[str, Any] | None, name: str, value: Any) -> Any:
    """Return a setting's value; a dictionary is laid over that of the recipe, as flags are.

    One that names another `model` has other settings, and replaces it.
    """
    old = None if below is None else below.get(name)
    if not isinstance(value, Mapping) or not isinstance(old, (Namespace, dict)):
        return value
    inside = {key: laid_over(old, key, new) for key, new in value.items()}
    if isinstance(old, Namespace) or value.get("model", old.get("model")) != old.get("model"):
        return inside
    return {**old, **inside}


def replaced(path: Path, config: Config, below: Namespace | None) -> list[str]:
    """Return a note for each group, such as `segmentor`, of which a file drops weaker settings.

    Files that come with the package mean to, and so does the file of a run.
    """
    if path.is_relative_to(_recipes()) or below is None:
        return []
    section, weaker = config.get("model") or {}, below.get("model")
    given = {**section, **(section.get("init_args") or {})}
    notes = []
    for name, group in given.items():
        old = None if weaker is None else weaker.get(name)
        if not isinstance(group, dict) or not isinstance(old, dict):
            continue
        other = group.get("model", old.get("model")) != old.get("model")
        if not other and (dropped := _dropped(old, group)):
            notes.append(
                f"{path}: model.{name} replaces the recipe's, without its {', '.join(dropped)}; "
                "write what you want to keep"
            )
    return notes


def _dropped(old: Mapping[str, Any], group: Mapping[str, Any]) -> list[str]:
    """Return the dotted names of the settings of a group that another in its place lacks."""
    names = [name for name in old if name not in group]
    for name, value in group.items():
        if isinstance(value, dict) and isinstance(old.get(name), dict):
            names += [f"{name}.{inner}" for inner in _dropped(old[name], value)]
    return names


def _recipes() -> Path:
    """Return the folder of recipes: inside the package in a wheel, beside it in a checkout."""
    package = Path(__file__).parents[1]
    places = package / "configs", package.parent / "configs"
    return next((place for place in places if place.is_dir()), package)


def _written_out(value: Any, known: dict[int, int]) -> int:
    """Return the number of values in a value, those under an alias as often as it is used."""
    if id(value) not in known:
        parts = value.values() if isinstance(value, dict) else value
        nested = parts if isinstance(value, (dict, list)) else ()
        known[id(value)] = 1 + sum(_written_out(part, known) for part in nested)
    return known[id(value)]


def _is_section(section: Any) -> bool:
    """Return True for None and for a valid {class_path, init_args} mapping."""
    section = {} if section is None else section
    return (
        isinstance(section, dict)
        and isinstance(section.get("class_path", ""), str)
        and isinstance(section.get("init_args") or {}, dict)
    )
