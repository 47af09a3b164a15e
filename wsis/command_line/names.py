"""Names of settings: which there are, and what another name may have meant."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from wsis.data.module import DataModule
from wsis.errors import InputError
from wsis.method import Method
from wsis.registry import suggest
from wsis.runs.progress import say_idle

__all__ = ["check_known", "dotted", "say_effects"]

ELSEWHERE = MappingProxyType(
    {
        "epochs": ("trainer.max_steps", "trainer.max_epochs"),
        "steps": ("trainer.max_steps",),
        "batch": ("data.loading.batch_size",),
        "device": ("trainer.accelerator",),
        "gpus": ("trainer.devices",),
        "seed": ("seed_everything",),
    }
)
"""What settings are called in other libraries, and here."""
OF_PROPOSALS = ("proposals", "max_proposals", "max_test_proposals", "augment.min_proposal_side")
"""Settings of data that only methods with proposals read."""


def check_known(name: str, known: Collection[str], place: str = "") -> None:
    """Raise InputError, with the nearest name, for a setting that is not known."""
    parts = name.removesuffix("+").split(".")
    if not any(".".join(parts[: i + 1]) in known for i in range(len(parts))):
        raise InputError(f"unknown setting '{name}'{place}{_meant(name, known)}")


def say_effects(made: Mapping[str, Any], typed: Sequence[str]) -> None:
    """Print a note for each setting of model or data that was typed and has no effect.

    Args:
        made: model and data, by their section.
        typed: dotted names of settings.
    """
    for kind, thing in made.items():
        if isinstance(thing, Method | DataModule):
            own = [name[len(kind) + 1 :] for name in typed if name.startswith(f"{kind}.")]
            say_idle(kind, list(dict.fromkeys(own)), _idle(thing, made.get("model")))


def dotted(config: Mapping[str, Any], known: Collection[str], above: str = "") -> Iterator[str]:
    """Yield the dotted names of settings; one whose value is a dictionary is one setting."""
    for key, value in config.items():
        name = f"{above}{key}"
        if isinstance(value, Mapping) and any(other.startswith(f"{name}.") for other in known):
            yield from dotted(value, known, f"{name}.")
        else:
            yield name


def _idle(thing: Method | DataModule, model: Any) -> dict[str, str]:
    """Return the settings of model or data that have no effect, those of data beside `model`."""
    found = thing.idle()
    if isinstance(thing, DataModule) and not getattr(type(model), "needs_proposals", True):
        reason = f"with {type(model).__name__}, which needs no proposals"
        found |= dict.fromkeys(OF_PROPOSALS, reason)
    return found


def _meant(name: str, known: Collection[str]) -> str:
    """Return "; did you mean 'x'?" with the setting that is usually meant, or the nearest."""
    above, _, last = name.rpartition(".")
    section = above.partition(".")[0]
    same = [other for other in known if other.startswith(section) and other.endswith(f".{last}")]
    meant = [other for other in ELSEWHERE.get(name, same) if other in known]
    if meant:
        return f"; did you mean {' or '.join(map(repr, sorted(meant, key=len)[:2]))}?"
    top = {other.partition(".")[0] for other in known}
    if section and section not in top:
        return suggest(section, top)
    beside = f"{above}." if above else ""
    siblings = {o[len(beside) :].partition(".")[0] for o in known if o.startswith(beside)}
    return suggest(last, siblings, beside)
