"""A method, its data and its trainer's settings from Python, with the command line's recipes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import pytorch_lightning as pl
from pytorch_lightning.cli import LightningArgumentParser

from wsis import registry
from wsis.command_line.messages import quietly
from wsis.command_line.parser import CLI, SECTIONS
from wsis.errors import InputError
from wsis.method import Method

__all__ = ["Built", "build", "from_python"]


class Built(NamedTuple):
    """What a recipe describes, ready to be trained."""

    model: Method
    """With random weights, but for those that its backbone has read."""
    data: Any
    """A Lightning data module with the batches and the augmentation of the recipe."""
    trainer: dict[str, Any]
    """Arguments of `pl.Trainer`."""


def build(
    model: str | type[pl.LightningModule],
    data: str | type[pl.LightningDataModule] = "shapes",
    /,
    **settings: Any,
) -> Built:
    """Make a model and its data as `python -m wsis.fit` does, with the recipe of the two.

    The number of classes and their names are those of the data. Generators are seeded first.

    Args:
        model: name or class of a method.
        data: name or class of a data set.
        **settings: what differs from the recipe, in the sections of a settings file: `model`,
            `data` and `trainer`, each a dictionary, and `seed_everything`.

    Raises:
        InputError: an unknown name or setting, a value of the wrong type, or data that are not
            there.

    Example:
        `wsis.build("pdsl", "folder", data={"root": "photos"}, model={"refinements": 3})`
    """
    with quietly():
        cli = from_python(model, data, settings)
    usual = inspect.signature(pl.Trainer).parameters
    trainer = {
        name: value
        for name, value in cli.trainer_settings().items()
        if name != "logger" and value != usual[name].default
    }
    return Built(cli.model, cli.datamodule, trainer)


def from_python(
    model: str | type,
    data: str | type,
    settings: Mapping[str, Any],
    options: Callable[[LightningArgumentParser], object] = lambda parser: None,
) -> CLI:
    """Return the command line of `wsis.fit` for names or classes and the sections of settings.

    Raises:
        InputError: as `CLI`, or data that is an object.
    """
    for section in SECTIONS:
        if not isinstance(settings.get(section, {}), Mapping):
            raise InputError(f"{section}={settings[section]!r}: give a dictionary of settings")
    words = [f"--model={_path('model', model)}", f"--data={_path('data', data)}"]
    cli = CLI("fit", words, options=options, given=settings)
    cli.model.class_names = tuple(getattr(cli.datamodule, "class_names", ()))
    stuff = getattr(cli.datamodule, "stuff", ())
    cli.model.stuff_names = tuple(category["name"] for category in stuff)
    return cli


def _path(kind: str, given: Any) -> str:
    """Return the name that the command line takes for a name or class."""
    if isinstance(given, str):
        return given
    if not isinstance(given, type):
        name = type(given).__name__
        raise InputError(
            f"give the {kind} as a name or class and its settings apart, as in "
            f'"{registry.short_name(kind, f"{type(given).__module__}.{name}")}", '
            f"{kind}={{...}}: the recipe sets what an object has settled, such as the batch size"
        )
    return f"{given.__module__}.{given.__qualname__}"
