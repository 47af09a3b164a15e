"""CAM's classifier from an image to the probabilities and the maps of its classes.

Objects of CAM are proposals that fit parts of these maps; neither proposals nor connected parts can
be computed by a graph of tensors.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from wsis.graphs.pixels import extent, number, resample, scale
from wsis.models.cam import CAM
from wsis.nn.mask_decoder import inside
from wsis.parts.classifier import MapPooling, pool

__all__ = ["ClassMaps"]


class ClassMaps(nn.Module):
    """An image (3,H,W) uint8 -> probabilities (C,) and class activation maps (C,H,W), from 0.

    Args:
        model: trained, in evaluation mode.
    """

    outputs: ClassVar = {
        "probabilities": ("classes",),
        "maps": ("classes", "height", "width"),
    }

    def __init__(self, model: CAM) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Classify the scaled image, enlarge maps to the original one."""
        settings, classifier = self.model.hparams, self.model.classifier
        backbone = classifier.backbone
        view = scale(image, backbone, settings["test_side"], settings["test_max_side"])
        maps = classifier.head(backbone.network(view.batch)[backbone.feature_level])[0]
        seen = inside(view.size[None], backbone.stride, maps[None]).flatten().nonzero()[:, 0]
        torch._check(seen.shape[0] >= 1)
        given = classifier.hparams
        logits = _pooled(maps.flatten(1)[:, seen], given["pooling"], given["sharpness"])
        whole = torch.stack([number(side) for side in maps.shape[1:]])
        frame = (extent(whole * backbone.stride) * view.factor)[None]
        size = image.shape[1], image.shape[2]
        return logits.sigmoid(), resample(maps.relu(), frame, size, whole - 1)


def _pooled(cells: Tensor, how: MapPooling, sharpness: float) -> Tensor:
    """Pool the cells (C,n) of maps to (C,)."""
    if how == "lse":  # `wsis.losses.log_mean_exp`, whose logarithm of n torch.export cannot follow
        return (torch.logsumexp(sharpness * cells, 1) - number(cells.shape[1]).log()) / sharpness
    return pool(cells[:, None], how, sharpness)
