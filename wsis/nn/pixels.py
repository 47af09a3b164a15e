"""A classifier of pixels that learns from a memory of pixels of many images."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsis.nn.masks import PixelHead

__all__ = ["PixelClassifier"]

_MEMORY = 1 << 24
"""Numbers in the memory: 34 MB of a checkpoint, which needs it to resume exactly."""
_NEW, _BATCH = 256, 4096
"""Pixels remembered of an image, and pixels that a loss is computed of."""


class PixelClassifier(nn.Module):
    """Class probabilities of pixels, from frozen features.

    The pixels of one image are alike, so that a step on a few images learns little: after 1,000
    images of horses masks had an AP50 of 41, with the memory 56.

    Args:
        channels: of the features.
        width: hidden channels.
        classes: C.
    """

    features: Tensor
    labels: Tensor
    targets: Tensor
    seen: Tensor

    def __init__(self, channels: int, width: int, classes: int) -> None:
        super().__init__()
        self.head, size = PixelHead(channels, width, classes), _MEMORY // channels
        self.head.norm.momentum = 0.1  # batches of many images are alike
        self.register_buffer("features", torch.zeros(size, channels, dtype=torch.float16))
        self.register_buffer("labels", torch.zeros(size, dtype=torch.int64))
        self.register_buffer("targets", torch.zeros(size, dtype=torch.float16))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def forward(self, features: Tensor) -> Tensor:
        """Features (N,D,h,w) -> logits (N,C,4h,4w)."""
        return self.head([features])

    def remember(self, features: Tensor, labels: Tensor, targets: Tensor, absent: Tensor) -> None:
        """Remember pixels of an image: as many inside as outside of the objects of each class.

        Its pixels are also outside of the objects of classes that it does not hold.

        Args:
            features: (D,h,w).
            labels: (G,) int64 classes, without repeats.
            targets: (G,H,W) in [0, 1], one for each class, over the top left part of (4h,4w).
            absent: (A,) int64 classes of which the image has no object.
        """
        count, (height, width) = -(-_NEW // (2 * max(len(labels), 1))), targets.shape[1:]
        sides = torch.cat([targets, 1 - targets]).flatten(1)
        # where there is no object, or nothing else, any pixel will do
        pixels = torch.multinomial(sides + 1e-6, count, replacement=True)  # (2G,count)
        known = torch.cat([targets, targets]).flatten(1).gather(1, pixels).flatten()
        negatives = _NEW // 2 if len(absent) else 0
        elsewhere = torch.randint(height * width, (negatives,), device=pixels.device)
        others = torch.randint(max(len(absent), 1), (negatives,), device=pixels.device)
        owners = torch.cat([labels.repeat(2).repeat_interleave(count), absent[others]])
        known = torch.cat([known, known.new_zeros(negatives)])
        pixels = torch.cat([pixels.flatten(), elsewhere])
        size = features.new_tensor([4 * features.shape[2], 4 * features.shape[1]])
        at = (torch.stack([pixels % width, pixels // width], -1) + 0.5) / size * 2 - 1
        found = F.grid_sample(
            features[None], at[None, None].to(features), padding_mode="border", align_corners=False
        )[0, :, 0]
        place = (self.seen + torch.arange(len(known), device=known.device)) % len(self.labels)
        self.features[place] = found.T.detach().to(self.features.dtype)
        self.labels[place], self.targets[place] = owners, known.to(self.targets.dtype)
        self.seen += len(known)

    def loss(self) -> Tensor:
        """Return the binary cross-entropy of remembered pixels; 0 before there are any."""
        known = self.seen.clamp(max=len(self.labels))
        index = (torch.rand(_BATCH, device=known.device) * known).long()
        features = self.features[index].to(self.head.first.weight.dtype)
        logits = self.head.logits([features.T[None, :, :, None]])[0, :, :, 0]  # (C,_BATCH)
        logits = logits.gather(0, self.labels[index][None])[0]
        targets = self.targets[index].to(logits.dtype)
        return F.binary_cross_entropy_with_logits(logits, targets) * known.clamp(max=1)
