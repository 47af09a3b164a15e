"""The error whose message is meant for users."""

from __future__ import annotations

__all__ = ["InputError"]


class InputError(ValueError):
    """A mistake in the user's input.

    The message says in one line what is wrong, where, and what to do. The command line prints it
    without a traceback.
    """
