"""How a mask head learns from boxes, as in BoxInst (Tian et al., CVPR 2021)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import roi_align

from wsis.images.colour import lab
from wsis.losses import pairwise_loss, projection_loss
from wsis.nn.masks import of_class

__all__ = ["cells_inside", "losses_of_boxes", "region_colours"]


def losses_of_boxes(
    images: list[Tensor],
    logits: Tensor,
    regions: list[Tensor],
    targets: list[dict[str, Tensor]],
    objects: list[Tensor],
    *,
    threshold: float,
    dilation: int,
) -> dict[str, Tensor]:
    """Return the projection and the pairwise loss of masks whose boxes are known.

    With images and settings given, it is one of `wsis.parts.mask_rcnn.MaskLosses`.

    Args:
        images: (3,H,W) each.
        logits: (R,C+1,h,w) of regions; channel 0 is background.
        regions: (R_i,4) of each image, R in all.
        targets: of each image, boxes (M,4) and labels (M,), the channels of the classes.
        objects: (R_i,) object of each region.
        threshold: lowest colour similarity of neighbours that should have one label.
        dilation: cells from a cell to its neighbours.
    """
    pairs = list(zip(targets, objects, strict=True))
    labels = torch.cat([target["labels"][index] for target, index in pairs])
    boxes = torch.cat([target["boxes"][index] for target, index in pairs])
    size = logits.shape[-1]
    of_labels = of_class(logits, labels)
    inside = cells_inside(boxes, torch.cat(regions), size)
    colours = region_colours(images, regions, size)
    return {
        "projection": projection_loss(of_labels.sigmoid(), inside),  # eq. (3)
        "pairwise": pairwise_loss(of_labels, colours, inside, threshold, dilation),  # eq. (7)
    }


def cells_inside(boxes: Tensor, regions: Tensor, size: int) -> Tensor:
    """Return which cells (R,size,size) of regions (R,4) have their centres inside boxes (R,4)."""
    centres = (torch.arange(size, device=boxes.device) + 0.5) / size
    lines = []
    for low, high in ((1, 3), (0, 2)):  # rows, then columns
        extent = (regions[:, high] - regions[:, low])[:, None]
        place = regions[:, low, None] + centres * extent
        lines.append((place > boxes[:, low, None]) & (place < boxes[:, high, None]))
    return lines[0][:, :, None] & lines[1][:, None]


def region_colours(images: list[Tensor], regions: list[Tensor], size: int) -> Tensor:
    """Return the mean colours (R,3,size,size) in CIE L*a*b* of the cells of regions."""
    height, width = (max(image.shape[i] for image in images) for i in (1, 2))
    room = [(0, width - image.shape[2], 0, height - image.shape[1]) for image in images]
    padded = [F.pad(lab(image), sides) for image, sides in zip(images, room, strict=True)]
    return roi_align(torch.stack(padded), regions, size, sampling_ratio=2, aligned=True)
