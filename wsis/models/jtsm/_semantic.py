"""JTSM's semantic branch (section 3.4)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from wsis.nn.regions import enlarge
from wsis.nn.views import ImageView

__all__ = ["SemanticHead"]


class SemanticHead(nn.Sequential):
    """Two 3 x 3 convolutions and a prediction of stuff, on features of the whole image."""

    def __init__(self, channels: int, classes: int, width: int) -> None:
        layers = (
            nn.Conv2d(channels, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
        )
        super().__init__(*layers, nn.Conv2d(width, classes, 1))

    def over(self, features: Tensor, view: ImageView, stride: int, size: tuple[int, int]) -> Tensor:
        """Probabilities (S,H,W) over the image of `size` that `view` is of."""
        height, width = view.image.shape[-2:]
        probabilities = self(features).softmax(1)
        padded = enlarge(probabilities, stride, (height, width))
        seen = padded.flip(-1) if view.view.flip else padded
        return F.interpolate(seen, size=size, mode="bilinear")[0]
