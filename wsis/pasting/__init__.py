"""Cut and paste (EM-Paste, section 3.3): a foreground pool, composition, pasted samples."""

from __future__ import annotations

from wsis.pasting.compose import compose

__all__ = ["compose"]
