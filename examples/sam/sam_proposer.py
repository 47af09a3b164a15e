"""Segment Anything as a proposer: `pip install segment-anything`, and a checkpoint of it."""

from __future__ import annotations

import os
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from wsis.proposals.convert import from_records
from wsis.types import Proposals


def sam(
    image: NDArray[np.uint8],
    checkpoint: str = os.environ.get("SAM_CHECKPOINT", "sam_vit_b_01ec64.pth"),
    model: str = os.environ.get("SAM_MODEL", "vit_b"),
    points_per_side: int = 32,
) -> Proposals:
    """Propose the masks that Segment Anything finds from a grid of points.

    Args:
        image: (H,W,3) uint8 RGB.
        checkpoint: File of weights.
        model: Size of the network, that of the checkpoint: vit_b, vit_l or vit_h.
        points_per_side: Points along each side of the grid.

    Returns:
        Proposals in image pixels: wholes, then their parts, then duplicates.
    """
    records = _generator(checkpoint, model, points_per_side).generate(image)
    return from_records(records, image.shape[:2])


sam.supervision = "masks of SA-1B"


@cache
def _generator(checkpoint: str, model: str, points_per_side: int) -> Any:
    """Return the mask generator; each process loads it once."""
    from segment_anything import SamAutomaticMaskGenerator, sam_model_registry

    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = sam_model_registry[model](checkpoint=checkpoint).to(device)
    return SamAutomaticMaskGenerator(network, points_per_side, output_mode="coco_rle")
