"""Draw a long-tailed subset of a multi-label data set, as for VOC-MLT and COCO-MLT.

Source: Wu et al., Distribution-Balanced Loss, ECCV 2020.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import pareto

__all__ = ["draw_long_tail", "tail_counts"]


def tail_counts(
    classes: int, maximum: int, minimum: int = 1, shape: float = 6.0
) -> NDArray[np.int64]:
    """Return the number of images per class, head first, from `maximum` to about `minimum`.

    It follows the Pareto density at even steps up to its 99 % quantile.
    """
    distribution = pareto(shape)
    density: NDArray[np.float64] = distribution.pdf(
        np.linspace(distribution.ppf(0), distribution.ppf(0.99), classes)
    )
    return np.round((maximum - minimum) / shape * density + minimum).astype(np.int64)


def draw_long_tail(
    tags: Mapping[int, Sequence[int]], classes: int, maximum: int, seed: int = 0
) -> list[int]:
    """Draw image ids so that images per class follow `tail_counts` as closely as possible.

    The classes that co-occur most are the head, since other classes bring them along. From the tail
    up, random images of a class are added until it has its number; then images are removed if all
    their classes exceed their numbers.

    Args:
        tags: image id -> classes.
        classes: number of classes.
        maximum: number of images of the most frequent class.
        seed: seed of the draw.
    """
    ids = np.array([image for image, found in tags.items() if found])
    holds = np.zeros((len(ids), classes), bool)
    for row, image in enumerate(ids):
        holds[row, list(tags[int(image)])] = True
    together = holds.T.astype(int) @ holds
    order = np.argsort(-(together.sum(1) - together.diagonal()), kind="stable")
    wanted = np.empty(classes, int)
    wanted[order] = tail_counts(classes, maximum)
    rng = np.random.default_rng(seed)
    drawn = np.zeros(len(ids), bool)
    for label in order[::-1]:
        candidates = rng.permutation(np.flatnonzero(holds[:, label] & ~drawn))
        drawn[candidates[: max(0, wanted[label] - holds[drawn, label].sum())]] = True
    counts = holds[drawn].sum(0)
    for row in rng.permutation(np.flatnonzero(drawn)):
        if (counts > wanted)[holds[row]].all():
            drawn[row] = False
            counts -= holds[row]
    return [int(image) for image in ids[drawn]]
