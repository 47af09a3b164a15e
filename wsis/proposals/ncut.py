"""Segment proposals from the features of a frozen network: normalised cuts, not trained.

`wsis.proposals.cuts` groups the cells of the network's feature map. A group's edges are those of
the superpixels that `segments` makes: a superpixel belongs to it by the majority of its pixels.

The network is DINOv2's ViT-S/14, which learned without labels. Another network of timm, and a file
of its weights, are named by the environment variables WSIS_NCUT_BACKBONE and WSIS_NCUT_WEIGHTS;
both, the file by its content, are among the settings that are kept with proposals.

Differences from the papers: features are the network's maps rather than the keys of its last
attention layer, and superpixels take the place of the conditional random field.
"""

from __future__ import annotations

import multiprocessing
import os
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from torch import Tensor

from wsis.errors import InputError
from wsis.images.scale import resize_long_side
from wsis.nn.backbone import Backbone, BackboneSettings
from wsis.proposals.cuts import cuts
from wsis.proposals.objectness import objectness
from wsis.proposals.segments import as_proposals, rank, superpixel_map
from wsis.types import Proposals

__all__ = ["propose"]

VERSION = 1
"""Raised whenever the proposals of an image change."""

_DEFAULT = "vit_small_patch14_dinov2"
_BACKBONE = os.environ.get("WSIS_NCUT_BACKBONE", _DEFAULT)
_WEIGHTS = os.environ.get("WSIS_NCUT_WEIGHTS", "imagenet")
SUPERVISION = "none" if _BACKBONE == _DEFAULT else f"the weights of {_BACKBONE}"


def propose(
    image: NDArray[np.uint8],
    backbone: str = _BACKBONE,
    weights: str = _WEIGHTS,
    limit: int = 2000,
    eigenvectors: int = 16,
    thresholds: tuple[float, ...] = (0.35, 0.55),
    quantiles: tuple[float, ...] = (0.1, 0.9),
    superpixels: int = 1000,
    work_side: int = 640,
    min_size: float = 0.0003,
    max_size: float = 0.9,
) -> Proposals:
    """Propose regions that a network's features tell apart.

    Args:
        image: (H,W,3) uint8 RGB.
        backbone: Network of timm.
        weights: File of its weights, or "imagenet" for those that timm downloads.
        limit: Maximum number of proposals.
        eigenvectors: Number of eigenvectors that are cut.
        thresholds: Cosines above which two cells are alike; each makes a graph.
        quantiles: Where an eigenvector is cut besides its mean.
        superpixels: Maximum number of superpixels.
        work_side: Maximum length in pixels of the long side; larger images are scaled down first.
        min_size: Minimum area of a proposal as a fraction of the image.
        max_size: Maximum area of a proposal as a fraction of the image.

    Returns:
        Proposals in image pixels with distinct masks, those with the best scores of
        `wsis.proposals.objectness` first and duplicates last.

    Raises:
        InputError: the network is unknown, or its weights are unavailable or another's.
    """
    small = resize_long_side(image, work_side, enlarge=None)
    labels = superpixel_map(small, superpixels)
    network = _network(backbone, weights, _device())
    masks = cuts(_features(network, small), eigenvectors, thresholds, quantiles)
    members = _snap(masks, labels, network.stride)
    share = members @ np.bincount(labels.ravel()) / labels.size
    members = members[(share >= min_size) & (share <= max_size)]
    found = as_proposals(members, objectness(small, labels, members), labels, image.shape[:2])
    best = torch.from_numpy(rank(found.boxes.numpy(), found.scores.numpy())[:limit])
    return found._replace(
        boxes=found.boxes[best], scores=found.scores[best], members=torch.from_numpy(members)[best]
    )


def _device() -> str:
    """Return the GPU, but in processes that others have begun the CPU: those may not share it."""
    alone = multiprocessing.parent_process() is None
    return "cuda" if alone and torch.cuda.is_available() else "cpu"


@cache
def _network(name: str, weights: str, device: str) -> Backbone:
    """Return the frozen network, loaded once a process, up to its map of stride 14 or 16.

    Maps of convolutional networks are the last but one: those of stride 32 are too coarse, and in a
    trial they found fewer objects even where dilation makes them finer.
    """
    level = -1 if "vit" in name else -2
    settings = BackboneSettings(name, weights, output_stride=32, feature_level=level)
    try:
        return Backbone(settings).eval().to(device)
    except InputError as error:
        text = str(error).replace("--model.backbone.name ", "WSIS_NCUT_BACKBONE=")
        text = text.replace("--model.backbone.weights ", "WSIS_NCUT_WEIGHTS=")
        raise InputError(f"proposer ncut: {text}") from error


@torch.no_grad()
def _features(network: Backbone, image: NDArray[np.uint8]) -> Tensor:
    """Return the features (D,h,w) of the cells that an image (H,W,3) reaches into."""
    pixels = torch.from_numpy(image).permute(2, 0, 1).to(network.mean.device)
    height, width = (-(-side // network.stride) for side in image.shape[:2])
    return network(pixels[None])[0, :, :height, :width].float()


def _snap(masks: NDArray[np.bool_], labels: NDArray[np.int32], stride: int) -> NDArray[np.bool_]:
    """Return the distinct sets of superpixels (P,S) that masks of cells cover by majority.

    Args:
        masks: (M,h,w) of cells.
        labels: (H,W) superpixel of each pixel.
        stride: pixels along a side of a cell.
    """
    cells = masks.shape[1] * masks.shape[2]
    rows, columns = (np.arange(side) // stride for side in labels.shape)
    cell = rows[:, None] * masks.shape[2] + columns
    shape = (int(labels.max()) + 1, cells)
    ones = np.ones(labels.size, np.float32)
    pixels = coo_matrix((ones, (labels.ravel(), cell.ravel())), shape).tocsr()  # of each pair
    covered = (pixels @ masks.reshape(len(masks), cells).T.astype(np.float32)).T
    members = covered > np.bincount(labels.ravel()) / 2
    first = np.unique(np.packbits(members, axis=1), axis=0, return_index=True)[1]
    return members[np.sort(first)]
