"""Padding that does not depend on the size of an image."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch.nn.functional as F
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.pool2d_same import MaxPool2dSame
from torch import Tensor, nn

__all__ = ["with_fixed_padding"]

Network = TypeVar("Network", bound=nn.Module)


def with_fixed_padding(network: Network) -> Network:
    """Return a copy in which timm's layers with padding "same" pad by numbers.

    Those are the same for all images whose sides the network's stride divides, but timm computes
    them from the size of each image, which torch.export cannot follow.
    """
    fixed = copy.deepcopy(network)
    for parent in list(fixed.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, (Conv2dSame, MaxPool2dSame)):
                setattr(parent, name, _Fixed(layer))
    return fixed


class _Fixed(nn.Module):
    """A layer with padding "same", for maps whose sides its stride divides."""

    def __init__(self, layer: Conv2dSame | MaxPool2dSame) -> None:
        super().__init__()
        self.layer = layer
        numbers = (_pair(n) for n in (layer.kernel_size, layer.dilation, layer.stride))
        total = [max((k - 1) * d + 1 - s, 0) for k, d, s in zip(*numbers, strict=True)]
        (above, below), (left, right) = ((n // 2, n - n // 2) for n in total)
        self.sides = (left, right, above, below)

    def forward(self, x: Tensor) -> Tensor:
        """(N,D,h,w) -> (N,D',h/stride,w/stride)."""
        layer = self.layer
        if isinstance(layer, MaxPool2dSame):
            padded = F.pad(x, self.sides, value=-float("inf"))
            return F.max_pool2d(padded, layer.kernel_size, layer.stride, 0, layer.dilation)
        padded, rest = F.pad(x, self.sides), (layer.dilation, layer.groups)
        return F.conv2d(padded, layer.weight, layer.bias, layer.stride, 0, *rest)


def _pair(number: int | tuple[int, ...]) -> tuple[int, ...]:
    return (number, number) if isinstance(number, int) else number
