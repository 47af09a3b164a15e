"""The objects of an image, as they are written for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as rle

from wsis.images.outlines import Part, outlines
from wsis.types import Prediction, Record

__all__ = ["Found"]


class Found(NamedTuple):
    """An image and the objects found in it."""

    image: Record
    """id, file_name, height and width."""
    name: str
    """Of the files made of the image, without suffix."""
    path: Path
    """Of the image."""
    objects: Prediction
    """The objects, the best score first."""

    def mask(self, k: int) -> NDArray[np.bool_] | None:
        """Return the mask (H,W) of an object, None if it has none or an empty one."""
        if not self.objects.masks:
            return None
        mask = rle.decode(self.objects.masks[k]).astype(bool)
        return mask if mask.any() else None

    def box(self, k: int) -> tuple[float, float, float, float]:
        """Return the box of an object, xyxy in pixels, inside the image."""
        height, width = self.objects.size
        x1, y1, x2, y2 = self.objects.boxes[k].tolist()
        return max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height))

    def mask_or_box(self, k: int) -> NDArray[np.bool_]:
        """Return the mask (H,W) of an object, or the pixels that its box touches."""
        mask = self.mask(k)
        if mask is None:
            mask = np.zeros(self.objects.size, bool)
            x1, y1, x2, y2 = self.box(k)
            mask[int(y1) : int(np.ceil(y2)), int(x1) : int(np.ceil(x2))] = True
        return mask

    def parts(self, k: int) -> list[Part]:
        """Return the outlines of an object, those of its box if it has no mask."""
        mask = self.mask(k)
        if mask is not None:
            return outlines(mask)
        x1, y1, x2, y2 = self.box(k)
        return [Part(np.array([[x1, y1], [x1, y2], [x2, y2], [x2, y1]]), [])]
