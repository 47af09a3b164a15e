"""Generation of backgrounds without the target classes (EM-Paste, section 3.2).

Images are captioned, words for the classes substituted, pictures painted from the captions, and the
best chosen by CLIP.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> Path:
    """Run `python -m wsis.generate` with `argv`."""
    from wsis.generate.__main__ import main

    return main(argv)
