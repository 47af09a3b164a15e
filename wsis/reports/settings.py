"""Compare the settings of a run with the recipe of its method on its data."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from wsis import registry
from wsis.command_line.settings import Config, read_config, recipe
from wsis.runs.dependencies import SHAPING

__all__ = ["TRAINER", "departures", "row_key"]

TRAINER = ("max_steps", *SHAPING)
"""Settings of the trainer that shape a result."""
PLACES = (
    *("data.root", "data.labels", "data.proposals", "data.loading.workers"),
    *("data.loading.seed", "model.salient"),
)
"""Paths, which other columns describe, and what does not tell one row from another."""


def departures(config: Config) -> dict[str, Any]:
    """Return the settings that shape a run and differ from its recipe and the defaults, by name."""
    defaults, given = _defaults(config), _flat(config)
    usual = defaults | _recipe(config)
    parts = [name for name in usual if name.startswith("model.") and name not in defaults]
    for name in parts:
        parents = [name[:k] for k, letter in enumerate(name) if letter == "."]
        untrained = next((parent for parent in parents if parent in given), None)
        if untrained:  # a part that the recipe trains is switched off
            usual[untrained] = "as in the recipe"
        else:
            given.setdefault(name, None)
    changed = {k: v for k, v in given.items() if _as_json(v) != _as_json(usual.get(k))}
    return dict(sorted(changed.items()))


def row_key(config: Config, *provenance: str) -> str:
    """Return text that is the same for runs that differ only in their seed or in paths."""
    shaping = {name: v for name, v in _flat(config).items() if not name.endswith(".weights")}
    classes = [config["model"]["class_path"], config["data"]["class_path"]]
    return json.dumps([*classes, shaping, provenance], default=str)


def _flat(config: Config) -> dict[str, Any]:
    """Return the settings that shape a run by dotted name."""
    flat: dict[str, Any] = {}
    for kind in registry.KINDS:
        given = config[kind].get("init_args") or {}
        flat |= {name: value for name, value in _leaves(given, kind) if name not in PLACES}
    trainer = config.get("trainer") or {}
    return flat | {f"trainer.{k}": trainer[k] for k in TRAINER if trainer.get(k) is not None}


def _leaves(settings: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        name = f"{prefix}.{key}"
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, name)
        else:
            yield name, value


def _defaults(config: Config) -> dict[str, Any]:
    """Return the defaults of model, data and trainer."""
    usual: dict[str, Any] = {"trainer.accumulate_grad_batches": 1, "trainer.overfit_batches": 0.0}
    for kind in registry.KINDS:
        cls = registry.find(kind, config[kind]["class_path"])
        defaults = {
            name: registry.as_dict(parameter.default)
            for name, parameter in registry.arguments(cls).items()
            if parameter.default is not parameter.empty
        }
        usual |= {name: v for name, v in _leaves(defaults, kind) if name not in PLACES}
    return usual


def _recipe(config: Config) -> dict[str, Any]:
    """Return the settings of the recipe of a run's model on its data; none if there is none."""
    names = (registry.short_name(kind, config[kind]["class_path"]) for kind in registry.KINDS)
    path = recipe(*names)
    if path is None:
        return {}
    written = read_config(path)
    if registry.class_path("data", written["data"]["class_path"]) != config["data"]["class_path"]:
        written["data"] = {}  # a recipe for another data set
    return _flat(written)


def _as_json(value: Any) -> Any:
    """Turn tuples into lists and 100 into 100.0."""
    return json.loads(json.dumps(value, default=str), parse_int=float)
