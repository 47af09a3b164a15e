"""The error that users are meant to read."""

from __future__ import annotations

__all__ = ["InputError"]


class InputError(ValueError):
    """A mistake in what the user gave: the message says what, where, and what to do. Verbs print it without a traceback."""
