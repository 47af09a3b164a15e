"""CAM with the focal loss (Lin et al., ICCV 2017) on tags: a loss of one's own in one file."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

from wsis.models.cam import CAM
from wsis.parts.classifier import tags
from wsis.types import Batch


class FocalCAM(CAM):
    """CAM that looks away from tags that are already told well.

    Args:
        focus: How much less they count, gamma in the paper; 0 is cross-entropy.
    """

    def __init__(self, focus: float = 2.0, **settings: Any) -> None:
        super().__init__(**settings)

    def training_step(self, batch: Batch, _: int) -> Tensor:
        """Train the classifier on the focal loss, mean over images and classes."""
        logits = self.classifier.logits(batch)
        loss = sigmoid_focal_loss(
            logits, tags(batch), alpha=-1, gamma=self.hparams["focus"], reduction="mean"
        )
        self.log_losses({}, loss, len(batch))
        return loss
