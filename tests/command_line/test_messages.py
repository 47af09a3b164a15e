"""What goes wrong is told in one line."""

from __future__ import annotations

import pytest

from wsis.command_line.messages import plain_errors
from wsis.errors import InputError


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (InputError("a\nb.jpg is empty; fetch it"), "a b.jpg is empty; fetch it"),
        (
            InputError(
                "Caught InputError in DataLoader worker process 0.\nOriginal Traceback ...\n"
                "wsis.errors.InputError: a\nb.jpg is empty"
            ),
            "a b.jpg is empty",
        ),
    ],
)
def test_a_file_whose_name_has_two_lines_is_told_in_one(error, line, capsys):
    with pytest.raises(SystemExit), plain_errors():
        raise error
    assert capsys.readouterr().err == f"error: {line}\n"
