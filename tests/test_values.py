from __future__ import annotations

import math
from typing import Literal

import numpy as np
import pytest
from torch import nn

from wsis.errors import InputError
from wsis.values import (
    COUNT,
    FRACTION,
    PART,
    POSITIVE,
    WHOLE,
    Range,
    check_arguments,
    check_ranges,
    without_effect,
)


@pytest.mark.parametrize(
    ("allowed", "inside", "outside"),
    [
        (COUNT, [1, 3.0, np.int64(2)], [0, -1, 1.5, True]),
        (WHOLE, [0, 7], [-1, 0.5]),
        (POSITIVE, [1e-9, 3], [0, -1e-9]),
        (FRACTION, [0, 0.5, 1], [-0.1, 1.1]),
        (PART, [0.1, 1], [0, 1.5]),
        (Range(2, 4), [2, 4], [1.9, 4.1]),
    ],
)
def test_ranges_hold_their_numbers(allowed, inside, outside):
    assert all(number in allowed for number in inside)
    odd = [math.nan, math.inf, -math.inf, "1", None, [1]]
    assert not any(number in allowed for number in [*outside, *odd])


def test_numbers_are_told_with_their_place():
    check_ranges("Net", {"lr": None, "sides": (3, 4)}, {POSITIVE: ("lr",), COUNT: ("sides",)})
    with pytest.raises(
        InputError, match=r"^Net: sides \[3, 0\]: give a whole number of at least 1$"
    ):
        check_ranges("Net", {"sides": (3, 0)}, {COUNT: ("sides",)})
    with pytest.raises(InputError, match=r"^Net: part 2: give a number above 0, at most 1$"):
        check_ranges("Net", {"part": 2}, {PART: ("part",)})


class Net:
    def __init__(self, width: int = 3, how: Literal["a", "b"] = "a", group: dict | None = None):
        pass


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"widht": 1}, r"unknown setting 'model\.net\.widht'; did you mean 'width'"),
        ({"width": "x"}, r"^model\.net\.width x: expected 'int'"),
        ({"width": 2.5}, r"^model\.net\.width 2\.5: expected 'int'"),
        ({"how": "c"}, r"model\.net\.how c"),
        ({"group": "x"}, r"model\.net\.group x"),
        ({"how": "a"}, r"unknown setting 'model\.net\.how'"),
    ],
)
def test_arguments_are_checked_as_on_the_command_line(given, told):
    with pytest.raises(InputError, match=told) as error:
        check_arguments(Net, "model.net", given, without=["how"] if given == {"how": "a"} else [])
    assert "\n" not in str(error.value)


def test_objects_among_arguments_are_not_looked_into():
    check_arguments(Net, "model.net", {"width": nn.Identity(), "group": {"name": nn.Identity()}})


def test_a_setting_without_effect_is_noted_if_it_is_given():
    idle = {"how": "with width 3"}
    assert without_effect("model", ["width"], idle) == []
    note = "note: model.how has no effect with width 3"
    assert without_effect("model", ["width", "how"], idle) == [note]
