"""Class activation maps. Pure functions, whose results carry no gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from wsis.errors import InputError
from wsis.types import size_of

__all__ = ["average_over_scales", "cam", "finite", "grad_cam", "inside", "normalise"]


def cam(features: Tensor, weight: Tensor) -> Tensor:
    """Return activation maps of a linear head on pooled features (Zhou et al., CVPR 2016).

    Args:
        features: (N,D,H,W).
        weight: (C,D) of the linear head.

    Returns:
        (N,C,H,W) in [0, 1]: negative evidence is 0, the largest of each map is 1; a map without
        positive evidence is all 0.
    """
    return normalise(torch.einsum("ndhw,cd->nchw", features.detach(), weight.detach()))


def grad_cam(
    features: Tensor, head: Callable[[Tensor], Tensor], classes: Tensor | None = None
) -> Tensor:
    """Return Grad-CAM of a differentiable head (Selvaraju et al., ICCV 2017, eqs. 1-2).

    Args:
        features: (N,D,H,W).
        head: function from features to scores (N,C) before softmax or sigmoid; the scores of an
            image depend on its own features only.
        classes: (K,) int, the classes to explain; by default all.

    Returns:
        (N,K,H,W) in [0, 1], normalised as by `cam`.
    """
    with torch.enable_grad():
        features = features.detach().requires_grad_()
        scores = head(features).sum(0)
        chosen = range(len(scores)) if classes is None else classes.tolist()
        gradients = [torch.autograd.grad(scores[c], features, retain_graph=True)[0] for c in chosen]
    importance = torch.stack(gradients, 1).mean((3, 4))
    return normalise(torch.einsum("ndhw,nkd->nkhw", features.detach(), importance))


def average_over_scales(
    image: Tensor,
    maps: Callable[[Tensor], Tensor],
    scales: tuple[float, ...] = (0.5, 1.0, 1.5, 2.0),
) -> Tensor:
    """Return the mean of an image's maps over scales and their mirror images.

    Args:
        image: (3,H,W) uint8 or float.
        maps: function from float images (N,3,h,w) to maps (N,C,h',w').
        scales: factors on the image's size.

    Returns:
        (C,H,W), normalised again.
    """
    size = size_of(image)
    total: Tensor | float = 0.0
    for scale in scales:
        scaled = F.interpolate(
            image[None].float(), scale_factor=scale, mode="bilinear", antialias=True
        )
        plain, mirrored = F.interpolate(
            maps(torch.cat([scaled, scaled.flip(-1)])), size, mode="bilinear"
        )
        total = total + plain + mirrored.flip(-1)
    assert isinstance(total, Tensor)
    return normalise(total)


def inside(sizes: Sequence[tuple[int, int]], maps: Tensor, stride: float) -> Tensor:
    """Mark the cells of a padded batch that begin inside their image.

    Args:
        sizes: (H, W) of the N images, in input pixels.
        maps: (...,h,w), any maps of the same size and device.
        stride: input pixels per cell.

    Returns:
        (N,h,w) bool.
    """
    y, x = (torch.arange(cells, device=maps.device) * stride for cells in maps.shape[-2:])
    limits = torch.tensor(sizes, device=maps.device).reshape(-1, 2, 1)
    return (y < limits[:, 0])[:, :, None] & (x < limits[:, 1])[:, None, :]


def finite(values: Tensor, what: str = "class maps") -> Tensor:
    """Return `values`, checked for NaN and infinity.

    Raises:
        InputError: one is NaN or infinite, as after a training that diverged.
    """
    if not values.isfinite().all():
        raise InputError(
            f"{what} hold NaN or infinity: training has diverged; lower its learning rate"
        )
    return values


def normalise(maps: Tensor) -> Tensor:
    """Scale maps (...,H,W) to [0, 1]: clamp them at 0, then divide each by its maximum.

    A map without positive values is all 0.
    """
    maps = maps.clamp(min=0)
    peak = maps.amax((-2, -1), keepdim=True)
    return maps / peak.where(peak > 0, 1)
