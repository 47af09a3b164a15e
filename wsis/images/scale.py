"""Scale pictures to a given long side."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = ["resize_long_side", "scaled_size"]


def scaled_size(size: tuple[int, int], scale: float) -> tuple[int, int]:
    """Return (height, width) times `scale`, rounded, at least one pixel each."""
    height, width = size
    return max(1, round(height * scale)), max(1, round(width * scale))


def resize_long_side(
    pixels: NDArray[np.uint8], long_side: int, enlarge: int | None = cv2.INTER_CUBIC
) -> NDArray[np.uint8]:
    """Resize a picture (H,W,3) so that its longer side has `long_side` pixels.

    Args:
        pixels: the picture.
        long_side: pixels of the longer side of the result.
        enlarge: OpenCV's interpolation for smaller pictures; None returns them as they are.
    """
    scale = long_side / max(pixels.shape[:2])
    if scale >= 1 and enlarge is None:
        return pixels
    height, width = scaled_size((pixels.shape[0], pixels.shape[1]), scale)
    interpolation: Any = cv2.INTER_AREA if scale < 1 else enlarge
    resized = cv2.resize(pixels, (width, height), interpolation=interpolation)
    return resized.astype(np.uint8, copy=False)
