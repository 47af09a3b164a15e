"""CAM on a network of one's own: a module whose forward pass returns feature maps."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
from torch import Tensor, nn

import wsis


class Pyramid(nn.Module):
    """Maps of strides 2, 4 and 8, fine to coarse."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.stages = nn.ModuleList([stage(3, width), stage(width, width), stage(width, 2 * width)])

    def forward(self, images: Tensor) -> list[Tensor]:
        """Images (N,3,H,W), normalised and padded to the largest stride -> maps (N,D,H/s,W/s)."""
        maps = []
        for layers in self.stages:
            images = layers(images)
            maps.append(images)
        return maps


def stage(channels: int, width: int) -> nn.Sequential:
    """Return layers that halve the sides of a map."""
    convolution = nn.Conv2d(channels, width, 3, stride=2, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(width), nn.ReLU())


def settings() -> dict[str, Any]:
    """Return a backbone's settings; `weights` says that they are random."""
    return {"name": Pyramid(), "weights": "none", "frozen_stages": 0}


def train(data: Any, steps: int) -> wsis.CAM:
    """Train CAM on the network and the tags of a data module."""
    model = wsis.CAM(data.num_classes, backbone=settings(), pooling="lse", lr=4e-3)
    pl.Trainer(max_steps=steps, limit_val_batches=0).fit(model, datamodule=data)
    return model


if __name__ == "__main__":
    train(wsis.Shapes(), 900).trainer.save_checkpoint("pyramid.ckpt")
    again = wsis.CAM.load_from_checkpoint("pyramid.ckpt", backbone=settings(), weights_only=True)
    print(again.class_names)
