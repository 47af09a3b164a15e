"""Backgrounds without the target classes (EM-Paste, section 3.2): captions, substituted words, pictures, the best by CLIP."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> Path:
    """Do what `python -m wsis.generate` does with `argv`."""
    from wsis.generate.__main__ import main

    return main(argv)
