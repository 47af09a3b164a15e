"""Cut and paste (EM-Paste, section 3.3): compose a picture, a pool of foregrounds, the transform of training samples."""

from __future__ import annotations

from wsis.pasting.compose import compose

__all__ = ["compose"]
