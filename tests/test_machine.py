"""Progress in a log."""

from __future__ import annotations

import pytest

from wsis.machine import bar


def test_a_bar_is_lines_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(bar(range(30), "proposals", unit="image")) == list(range(30))
    assert (
        capsys.readouterr().err == "proposals: 0 of 30, ? left\nproposals: 30 of 30, 00:00 left\n"
    )


def test_a_bar_of_nothing_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert not list(bar([], "proposals", disable=True))
    assert capsys.readouterr().err == ""
