"""Normalised cuts of an image's tokens, the cells of a feature map: candidate masks of objects.

Tokens are the nodes of a graph whose edges join alike tokens. The eigenvectors of its Laplacian
are smooth inside of groups and change between them.

* Shi and Malik, "Normalized Cuts and Image Segmentation", TPAMI 2000.
* TokenCut: Wang et al., "Self-Supervised Transformers for Unsupervised Object Discovery using
  Normalized Cut", CVPR 2022: the graph, and the cut at the mean.
* MaskCut: Wang et al., "Cut and Learn for Unsupervised Object Detection and Instance Segmentation"
  (CutLER), CVPR 2023: objects one after another.

MaskCut cuts off an object, leaves its tokens out and cuts again. Here all objects come from the
first eigenvectors of one graph: in a trial on 24 photos 30 rounds of MaskCut gave 17 masks that
found a tenth of the objects, and 16 eigenvectors 290 masks that found half of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

__all__ = ["affinity", "bipartition", "cuts", "eigenvectors"]

_FLOOR = 1e-5
"""Weight of an edge between tokens that are not alike."""
_STEPS = 30
"""Steps of the eigensolver at most: cuts need no exact vectors."""


def affinity(features: Tensor, threshold: float) -> Tensor:
    """Return the weights (...,T,T) of the edges between tokens.

    TokenCut, section 3.2: 1 where the cosine of two tokens is above the threshold, and a small
    number elsewhere, so that the graph is connected.

    Args:
        features: (...,T,D) of the tokens.
        threshold: of the cosine.
    """
    unit = F.normalize(features, dim=-1)
    alike = unit @ unit.transpose(-1, -2) > threshold
    return torch.where(alike, 1.0, _FLOOR).to(features.dtype)


def eigenvectors(weights: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the solutions of (D - W) y = lambda D y after the constant one, smallest first.

    Shi and Malik, eq. (6), where D is the diagonal matrix of the rows' sums. By eq. (7),
    z = D^1/2 y are the eigenvectors of the normalised Laplacian I - N, N = D^-1/2 W D^-1/2. The
    constant solution y = 1, of lambda 0, is taken out of N, and of the rest of N the largest
    eigenvalues 1 - lambda are found.

    Args:
        weights: (...,T,T) symmetric and above 0.
        count: how many; T - 1 at most are returned.

    Returns:
        lambda (...,K) and y (...,T,K), whose sign is arbitrary.
    """
    size = weights.shape[-1]
    count = min(count, size - 1)
    root = weights.sum(-1, keepdim=True).sqrt()
    constant = root / root.norm(dim=-2, keepdim=True)
    rest = weights / root / root.transpose(-1, -2) - constant @ constant.transpose(-1, -2)
    values, vectors = _largest(rest, count)
    return 1 - values, vectors / root


def _largest(matrix: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the largest eigenvalues (...,K), falling, and the eigenvectors (...,T,K).

    `torch.lobpcg` begins with the same numbers each time. Graphs that are too small for it or too
    symmetric, such as that of an image of one colour, are solved whole.
    """
    size = matrix.shape[-1]
    block = count + count // 2  # with more vectors than wanted, those wanted come sooner
    if size >= 3 * block > 0:
        numbers = torch.Generator().manual_seed(0)
        start = torch.randn(size, block, generator=numbers, dtype=matrix.dtype).to(matrix.device)
        start = start.expand(*matrix.shape[:-1], block)
        try:
            values, vectors = torch.lobpcg(matrix, count, X=start, niter=_STEPS, largest=True)
        except RuntimeError:  # of linear algebra: columns that depend on each other
            pass
        else:
            if vectors.isfinite().all():
                return values, vectors
    values, vectors = torch.linalg.eigh(matrix)
    return values.flip(-1)[..., :count], vectors.flip(-1)[..., :count]


def bipartition(vector: NDArray[np.float32], quantiles: Sequence[float]) -> NDArray[np.bool_]:
    """Return parts of the tokens (M,h,w) that an eigenvector cuts off.

    Both sides of the mean (TokenCut, section 3.2), as either may be the object, and what is below
    or above each quantile. Where the papers choose a side by the largest value and by the image's
    corners, the proposals' ranking has to choose.

    Args:
        vector: (h,w).
        quantiles: those below .5 give what is not above them, others what is above.
    """
    above = vector > vector.mean()
    limits = np.quantile(vector, quantiles)
    tails = [
        vector > limit if quantile >= 0.5 else vector <= limit
        for quantile, limit in zip(quantiles, limits, strict=True)
    ]
    return np.stack([above, ~above, *tails])


def cuts(
    features: Tensor, count: int, thresholds: Sequence[float], quantiles: Sequence[float]
) -> NDArray[np.bool_]:
    """Return the connected parts of all cuts as masks of tokens (M,h,w); some come repeatedly.

    Args:
        features: (D,h,w).
        count: number of eigenvectors of each graph.
        thresholds: see `affinity`; each makes a graph.
        quantiles: see `bipartition`.
    """
    _, height, width = features.shape
    tokens = features.flatten(1).T
    graphs = torch.stack([affinity(tokens, threshold) for threshold in thresholds])
    vectors = eigenvectors(graphs, count)[1].transpose(1, 2).reshape(-1, height, width)
    found = [np.zeros((0, height, width), bool)]
    for vector in vectors.cpu().numpy():
        for side in bipartition(vector, quantiles):
            parts, number = ndimage.label(side)
            found.append(parts == np.arange(1, number + 1)[:, None, None])
    return np.concatenate(found)
