"""A mask transformer from an image to its objects: what `MaskTransformer.predict` does."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from wsis.errors import InputError
from wsis.graphs.pixels import OBJECTS, extent, number, resample, scale, tight
from wsis.nn.mask_decoder import inside, visible
from wsis.parts.mask_transformer import MaskTransformer, certainty

__all__ = ["MaskTransformerGraph"]


class MaskTransformerGraph(nn.Module):
    """An image (3,H,W) uint8 -> boxes (N,4), scores (N,), labels (N,) and masks (N,H,W) bool.

    Args:
        model: trained, in evaluation mode.
        score: lowest score of an object.

    Raises:
        InputError: attention is still masked, because training ended early.
    """

    outputs: ClassVar = OBJECTS

    def __init__(self, model: MaskTransformer, score: float) -> None:
        super().__init__()
        if model.decoder.is_masked:
            raise InputError(
                "this mask transformer still masks its attention, which is not exported: it was "
                "stored before training was over; take --checkpoint last of a longer training"
            )
        self.model, self.score = model, score

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Segment the scaled image, enlarge masks to the original one."""
        model, settings = self.model, self.model.hparams
        view = scale(image, model.backbone, settings["test_side"], settings["test_max_side"])
        masks, classes = self._found(model.backbone.network(view.batch), view.size[None])
        scores = (classes.softmax(1)[:, :-1] * certainty(masks)[:, None]).flatten()
        highest, index = scores.topk(min(settings["max_detections"], scores.shape[0]))
        sure = ((highest > settings["score_threshold"]) & (highest >= self.score)).nonzero()[:, 0]
        highest, index = highest[sure], index[sure]
        stride, names = model.decoder.upscale.stride, classes.shape[1] - 1
        chosen, labels = masks[index // names], index % names
        cells = torch.stack([number(side) for side in masks.shape[1:]])
        frame = (extent(cells * stride) * view.factor)[None]
        last = (view.size / stride).ceil() - 1
        pixels = resample(chosen, frame, (image.shape[1], image.shape[2]), last) >= 0
        full = pixels.flatten(1).any(1).nonzero()[:, 0]
        pixels = pixels[full]
        return tight(pixels), highest[full], labels[full], pixels

    def _found(self, maps: list[Tensor], size: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits of masks (Q,h,w), negative in padding, and of classes (Q,C+1)."""
        decoder = self.model.decoder
        state, pixels, grid, known = decoder.begin(maps, size)
        for block in decoder.blocks:
            state = block(state, visible(known, len(decoder.queries)))
        found = decoder.find(state, pixels, grid)
        masks = found.masks.where(inside(size, decoder.upscale.stride, found.masks), -1.0)
        return masks[0], found.classes[0]
