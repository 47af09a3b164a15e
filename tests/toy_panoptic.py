"""A panoptic method that looks at the truth; without one it finds stuff everywhere."""

from __future__ import annotations

import torch
from toy_detector import Peeper as Detector

from wsis.nn.panoptic import merge

__all__ = ["Painter"]


class Painter(Detector):
    """Says which stuff is there, and some of the things.

    Args:
        num_classes: Number of classes.
        blind: Whether it finds no things.
    """

    panoptic = True

    def look(self, sample):
        found = super().look(sample)
        semantic = torch.zeros(sample["size"]).long()
        true = sample["truth"].panoptic
        if true is not None:
            semantic = (true[..., 0].long() - self.hparams.num_classes).clamp(min=0)
        keep = slice(
            0, max(len(found.labels) - 1, 0) if true is not None else None
        )  # the last is one that is not there
        things = found._replace(
            scores=found.scores[keep], labels=found.labels[keep], masks=found.masks[keep]
        )
        return found._replace(
            panoptic=merge(things, semantic, self.hparams.num_classes, stuff_area=100)
        )
