"""Heads of BoxCaseg, on the features of a crop (section 3.3)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsis.nn.masks import PixelHead, enlarge, pointwise

__all__ = ["TransferredHead", "WeightTransfer"]


class TransferredHead(nn.Module):
    """A head like the weak one, with weights that an MLP makes from the weak head's (3.3.2).

    The weak head gets no gradient from it.

    Args:
        channels: of the features.
        width: hidden channels.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.first, self.last = WeightTransfer(channels), WeightTransfer(width)
        self.norm = nn.BatchNorm2d(width, momentum=0.01)

    def forward(self, features: Sequence[Tensor], weak: PixelHead) -> Tensor:
        """Maps, the finest (N,D,h,w) first -> logits (N,4h,4w)."""
        hidden = pointwise(features, *self.first(weak.first))
        return enlarge(F.conv2d(self.norm(hidden).relu(), *self.last(weak.last)))[:, 0]


class WeightTransfer(nn.Module):
    """Maps the weights of a 1 x 1 convolution to another's: rows by an MLP, the bias linearly.

    Args:
        width: length of a row of weights.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        layers = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        for layer in layers:
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)
        self.rows = nn.Sequential(layers[0], nn.LeakyReLU(0.1), layers[1])
        self.slope, self.shift = nn.Parameter(torch.ones(())), nn.Parameter(torch.zeros(()))

    def forward(self, source: nn.Conv2d) -> tuple[Tensor, Tensor]:
        """Source convolution, detached -> weight (O,I,1,1) and bias (O,)."""
        weight = self.rows(source.weight.detach().flatten(1))
        bias = source.bias if source.bias is not None else weight.new_zeros(len(weight))
        return weight[..., None, None], self.slope * bias.detach() + self.shift
