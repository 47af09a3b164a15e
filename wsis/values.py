"""Names, types and ranges of settings, checked where the settings are declared."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from numbers import Real
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser

from wsis.errors import InputError
from wsis.registry import suggest

__all__ = [
    "COUNT",
    "FRACTION",
    "NOT_NEGATIVE",
    "PART",
    "POSITIVE",
    "WHOLE",
    "Range",
    "Ranges",
    "check_arguments",
    "check_ranges",
    "gist",
    "without_effect",
]


@dataclass(frozen=True)
class Range:
    """The numbers that a setting may be.

    Args:
        lowest: smallest number.
        highest: largest number, finite in any case.
        above: whether the smallest number itself is excluded.
        whole: whether numbers are whole.
    """

    lowest: float
    highest: float = math.inf
    above: bool = False
    whole: bool = False

    def __contains__(self, value: object) -> bool:
        """Return whether a value is such a number; NaN and infinity are not."""
        if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
            return False
        number = float(value)
        if self.whole and number != round(number):
            return False
        return self.lowest <= number <= self.highest and not (self.above and number == self.lowest)

    def __str__(self) -> str:
        """Return the words for messages."""
        kind = "whole number" if self.whole else "number"
        low = f"above {self.lowest:g}" if self.above else f"of at least {self.lowest:g}"
        return f"a {kind} {low}" + (
            "" if self.highest == math.inf else f", at most {self.highest:g}"
        )


COUNT = Range(1, whole=True)
WHOLE = Range(0, whole=True)
POSITIVE = Range(0, above=True)
NOT_NEGATIVE = Range(0)
FRACTION = Range(0, 1)
PART = Range(0, 1, above=True)

Ranges = Mapping[Range, Sequence[str]]
"""Names of settings by the range of their numbers."""


def check_ranges(place: str, settings: Mapping[str, Any], ranges: Ranges) -> None:
    """Check numbers, alone or in lists; None is not checked.

    Args:
        place: what messages call the settings, such as the name of their class.
        settings: by name.
        ranges: of those to check.

    Raises:
        InputError: a value is out of its range, or no number.
    """
    for allowed, names in ranges.items():
        for name in names:
            value = settings[name]
            numbers = value if isinstance(value, list | tuple) else (value,)
            if value is not None and any(number not in allowed for number in numbers):
                shown = list(value) if isinstance(value, tuple) else value
                raise InputError(f"{place}: {name} {shown}: give {allowed}")


def check_arguments(
    cls: type[Any], place: str, given: Mapping[str, Any], without: Collection[str] = ()
) -> None:
    """Check the names and types of a constructor's arguments, as the command line does.

    Args:
        cls: the class.
        place: what messages call the arguments, such as "model.segmentor".
        given: the arguments; objects such as networks are not looked into.
        without: arguments that may not be given.

    Raises:
        InputError: an unknown argument, with the nearest name, or a value of the wrong type.
    """
    parameters = inspect.signature(cls).parameters
    known, plain = parameters.keys() - {*without}, {}
    for name, value in given.items():
        if name not in known:
            raise InputError(f"unknown setting '{place}.{name}'{suggest(name, known)}")
        group = parameters[name].default
        if not is_dataclass(group):
            plain[name] = value
        elif isinstance(value, Mapping):
            check_arguments(type(group), f"{place}.{name}", value)
        elif isinstance(value, str | int | float):
            raise InputError(f"{place}.{name} {value}: give settings, as in {{NAME: VALUE}}")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(cls, fail_untyped=False)
    try:
        parser.parse_object({name: value for name, value in plain.items() if not callable(value)})
    except ArgumentError as error:
        raise InputError(gist(error).replace("--", f"{place}.", 1)) from error


def without_effect(place: str, given: Collection[str], idle: Mapping[str, str]) -> list[str]:
    """Return a note for each setting that somebody has chosen and that has no effect.

    Args:
        place: what notes call the settings, such as "model".
        given: names of settings that somebody has chosen.
        idle: settings without effect, each with the reason, as in "with heads [weak]".
    """
    chosen = [name for name in given if name in idle]
    return [f"note: {place}.{name} has no effect {idle[name]}" for name in chosen]


def gist(error: ArgumentError) -> str:
    """Return the one thing to know of jsonargparse's paragraph about a value."""
    text = re.sub(r"<class ('.*?')>", r"\1", str(error)).replace("typing.", "")
    named = re.search(r"""(?:Parser key|Key|Option) ["']([\w.]+)["']""", text)
    if named and "required" in text:
        return f"give --{named[1]}"
    value = re.search(r"(?:Given|Got) value: (.*)", text)
    nested = re.search(r"NestedArg\(key='(\w+)'", text)
    if named and nested:
        part = rf"""Parser key ["']{nested[1]}["']:\s+Expected an? (.*?)\. Got value: (.*)"""
        if wrong := re.search(part, text):
            return f"--{named[1]}.{nested[1]} {wrong[2]}: expected {wrong[1]}"
        return f"--{named[1]} has no setting '{nested[1]}'"
    union = re.search(r"Subtypes: \[(.*)\]", text)
    if named and value and union:
        return f"--{named[1]} {value[1]}: expected one of {union[1][:200]}"
    expected = re.search(r"Expected an? (.*?)\. Got value", text)
    if named and value and expected:
        is_list = expected[1].strip("'") in ("tuple", "list") and value[1][:1] != "["
        wanted = f"a list, such as [{value[1]}]" if is_list else expected[1]
        return f"--{named[1]} {value[1]}: expected {wanted}"
    limit = re.search(r"Not of type \w+: (.*)", text)
    if named and limit:
        return f"--{named[1]}: {limit[1]}"
    return " ".join(text.split())[:300]
