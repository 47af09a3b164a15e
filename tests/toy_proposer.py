"""The toy detector, asking for proposals."""

from __future__ import annotations

import toy_detector

__all__ = ["Asking"]


class Asking(toy_detector.Peeper):
    """Looks at no proposal but wants them.

    Args:
        num_classes: Number of classes.
        blind: Whether it finds nothing.
    """

    needs_proposals = True
