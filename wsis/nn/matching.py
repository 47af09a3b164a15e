"""Predicted masks against true ones at points of an image, and which query answers which object.

Cheng et al., Masked-attention Mask Transformer, CVPR 2022, section 3.3; the points are those of
Kirillov et al., PointRend, CVPR 2020. Q queries, M objects, P points, C classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

__all__ = ["WEIGHTS", "costs", "match", "random_points", "sample", "uncertain_points"]

WEIGHTS = {"class": 2.0, "mask": 5.0, "dice": 5.0}
"""Of the terms of a cost and, alike, of the losses."""
_OVERSAMPLED, _UNCERTAIN = 3, 0.75  # PointRend's k and beta


def sample(maps: Tensor, points: Tensor) -> Tensor:
    """Return the values (K,P) of maps (K,h,w) at points (K,P,2) or, of all maps alike, (P,2).

    Points are x and y in cells, 0 at the map's left and top edge. Values are bilinear between the
    centres of cells, and those of the nearest cell beyond the outermost centres.
    """
    shared = points.dim() == 2
    size = points.new_tensor([maps.shape[2], maps.shape[1]])
    grid = (2 * points / size - 1).to(maps.dtype)
    if shared:  # maps as channels of one image
        maps, grid = maps[None], grid[None]
    else:
        maps = maps[:, None]
    found = F.grid_sample(maps, grid[:, None], padding_mode="border", align_corners=False)
    return found[0, :, 0] if shared else found[:, 0, 0]


def random_points(count: int, size: Tensor, *shape: int) -> Tensor:
    """Return points (*shape,count,2) in cells of a map, drawn evenly; `size` (2,) is (w, h)."""
    return torch.rand(*shape, count, 2, device=size.device) * size


@torch.no_grad()
def uncertain_points(logits: Tensor, count: int, size: Tensor) -> Tensor:
    """Return `count` points (K,count,2) of masks, three in four where their logits are near 0.

    Those are the least certain of three times as many as are drawn; the others are drawn evenly.

    Args:
        logits: (K,h,w).
        count: points of each mask.
        size: (2,) width and height in cells of the part that is drawn from.
    """
    drawn = random_points(_OVERSAMPLED * count, size, len(logits))
    chosen = round(_UNCERTAIN * count)
    nearest = sample(logits, drawn).abs().topk(chosen, dim=1, largest=False).indices
    uncertain = drawn.gather(1, nearest[:, :, None].expand(-1, -1, 2))
    return torch.cat([uncertain, random_points(count - chosen, size, len(logits))], 1)


def costs(classes: Tensor, masks: Tensor, labels: Tensor, truth: Tensor) -> Tensor:
    """Return what it costs to answer each object with each query (Q,M).

    The sum of minus the probability of the class, of the binary cross-entropy over points, and of
    the Dice loss, weighted 2, 5 and 5.

    Args:
        classes: (Q,C+1) logits, "no object" last.
        masks: (Q,P) logits at points.
        labels: (M,) int64.
        truth: (M,P) in [0, 1], the objects at the points.
    """
    probability = classes.softmax(1)[:, labels]
    # the cross-entropy of x and t is softplus(x) - x t
    cross_entropy = (F.softplus(masks).sum(1)[:, None] - masks @ truth.T) / masks.shape[1]
    filled = masks.sigmoid()
    sizes = filled.sum(1)[:, None] + truth.sum(1)
    dice = 1 - (2 * filled @ truth.T + 1) / (sizes + 1)
    terms = zip(WEIGHTS.values(), (-probability, cross_entropy, dice), strict=True)
    return torch.stack([weight * term for weight, term in terms]).sum(0)


@torch.no_grad()
def match(classes: Tensor, masks: Tensor, labels: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Return queries (K,) and the objects (K,) that they answer, at the least total cost.

    No query and no object is taken twice; K is the smaller of Q and M. Arguments as in `costs`.
    """
    matrix = costs(classes, masks, labels, truth).nan_to_num(1e6, 1e6, -1e6)
    queries, objects = linear_sum_assignment(matrix.cpu().numpy())
    device = labels.device
    return torch.from_numpy(queries).to(device), torch.from_numpy(objects).to(device)
