"""Proposers by name: functions that return the proposals of an image.

`segments` and `ncut` are built in. Other packages add theirs as entry points of the group
`wsis.proposers`:

    [project.entry-points."wsis.proposers"]
    sam = "my_package.sam:propose"

A proposer takes an image (H,W,3) uint8 RGB and returns `Proposals` in image pixels, best first. Its
other parameters are its settings and must have defaults. The function's attribute `supervision`
names the labels that it was trained on, "none" if it was not trained.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsis import registry
from wsis.fingerprint import plain
from wsis.types import Proposals

__all__ = ["BUILT_IN", "Proposer", "find", "names", "propose"]

BUILT_IN = "segments"
"""The proposer where none is named."""


@dataclass(frozen=True)
class Proposer:
    """A function that makes proposals, and its description in proposal files."""

    name: str
    function: Callable[..., Proposals]
    version: str
    supervision: str

    @property
    def provenance(self) -> dict[str, Any]:
        """All that an image's proposals depend on: name, version and settings of the proposer."""
        parameters = list(inspect.signature(self.function).parameters.values())[1:]
        settings = {parameter.name: plain(parameter.default) for parameter in parameters}
        origin = {"made": self.name, "version": self.version, "supervision": self.supervision}
        return {**settings, **origin}


def names() -> list[str]:
    """Return the names of all proposers."""
    return registry.names("proposer")


@cache
def find(name: str) -> Proposer:
    """Return the proposer called `name` and import its module.

    Raises:
        InputError: the name is unknown, or the proposer cannot be imported.
    """
    function = registry.find("proposer", name)
    if function.__module__.startswith("wsis.proposals."):
        module = sys.modules[function.__module__]
        return Proposer(name, function, str(module.VERSION), module.SUPERVISION)
    return Proposer(name, function, _version(name), getattr(function, "supervision", "unknown"))


def propose(image: NDArray[np.uint8], name: str = BUILT_IN) -> Proposals:
    """Return the proposals of an image.

    Args:
        image: (H,W,3) uint8 RGB.
        name: name of the proposer.

    Raises:
        InputError: the name is unknown.
        TypeError: the proposer does not return `Proposals`.
    """
    proposals = find(name).function(np.ascontiguousarray(image))
    if isinstance(proposals, Proposals):
        return proposals
    raise TypeError(f"the proposer '{name}' returned {type(proposals).__name__}, not Proposals")


def _version(name: str) -> str:
    """Return the version of the package that a plug-in is from."""
    (plugin,) = entry_points(group="wsis.proposers", name=name)
    return plugin.dist.version if plugin.dist else "unknown"
