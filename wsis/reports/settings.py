"""How a run's settings differ from the recipe of its method on its data."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from wsis import registry
from wsis.command_line.settings import Config, read_config, recipe
from wsis.runs.run import SHAPING

__all__ = ["departures", "row_key"]

TRAINER = ("max_steps", *SHAPING)
"""Settings of the trainer that shape a result."""
PLACES = (
    *(
        f"data.{name}"
        for name in ("root", "labels", "proposals", "loading.workers", "loading.seed")
    ),
    "model.salient",
)
"""Settings that say where things are; what they hold is said in other columns. A seed is no setting."""


def departures(config: Config) -> dict[str, Any]:
    """Settings of model, data and trainer that shape a run and are neither its recipe's nor the constructor's default."""
    usual, found = _usual(config), _flat(config)
    for name in usual:
        part = name.rpartition(".")[0]
        if (
            part.startswith("model.") and part in found
        ):  # what the recipe trains is not trained at all
            usual = {**usual, part: "as in the recipe"}
        elif part.startswith("model.") and name not in found:
            found = {**found, name: None}
    return {
        name: value
        for name, value in sorted(found.items())
        if _plain(value) != _plain(usual.get(name))
    }


def row_key(config: Config, *provenance: str) -> str:
    """Text that is the same for runs which differ in nothing but their seed, or in where files lie."""
    shaping = {
        name: value for name, value in _flat(config).items() if not name.endswith(".weights")
    }
    return json.dumps(
        [config["model"]["class_path"], config["data"]["class_path"], shaping, provenance],
        default=str,
    )


def _flat(config: Config) -> dict[str, Any]:
    """Settings that shape a run by dotted name, those of a part each by itself."""
    flat: dict[str, Any] = {}
    for kind in registry.KINDS:
        for name, value in (config[kind].get("init_args") or {}).items():
            inside = isinstance(value, Mapping) and value
            parts = {f"{name}.{k}": v for k, v in value.items()} if inside else {name: value}
            flat |= {
                f"{kind}.{part}": v for part, v in parts.items() if f"{kind}.{part}" not in PLACES
            }
    trainer = config.get("trainer") or {}
    return flat | {
        f"trainer.{name}": trainer[name] for name in TRAINER if trainer.get(name) is not None
    }


def _usual(config: Config) -> dict[str, Any]:
    """What the settings would be if only model and data had been named."""
    usual: dict[str, Any] = {"trainer.accumulate_grad_batches": 1, "trainer.overfit_batches": 0.0}
    for kind in registry.KINDS:
        arguments = registry.arguments(registry.find(kind, config[kind]["class_path"]))
        for name, parameter in arguments.items():
            value = parameter.default
            if dataclasses.is_dataclass(value) and not isinstance(value, type):
                usual |= {f"{kind}.{name}.{k}": v for k, v in dataclasses.asdict(value).items()}
            elif value is not parameter.empty:
                usual[f"{kind}.{name}"] = value
    usual = {name: value for name, value in usual.items() if name not in PLACES}
    path = recipe(
        *(registry.short_name(kind, config[kind]["class_path"]) for kind in registry.KINDS)
    )
    if path is None:
        return usual
    written = read_config(path)
    if registry.class_path("data", written["data"]["class_path"]) != config["data"]["class_path"]:
        written["data"] = {}  # a recipe for another data set says nothing of these
    return usual | _flat(written)


def _plain(value: Any) -> Any:
    """A value in which tuples are lists and 100 is 100.0."""
    return json.loads(json.dumps(value, default=str), parse_int=float)
