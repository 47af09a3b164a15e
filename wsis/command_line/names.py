"""Names of settings: which there are, and what another name may have meant."""

from __future__ import annotations

from collections.abc import Collection
from types import MappingProxyType

from wsis.errors import InputError
from wsis.registry import suggest

__all__ = ["check_known"]

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


def check_known(name: str, known: Collection[str], place: str = "") -> None:
    """Raise InputError, with the nearest name, for a setting that is not known."""
    parts = name.removesuffix("+").split(".")
    if not any(".".join(parts[: i + 1]) in known for i in range(len(parts))):
        raise InputError(f"unknown setting '{name}'{place}{_meant(name, known)}")


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
