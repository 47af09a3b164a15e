"""A long-tailed draw from a multi-label set, after VOC-MLT and COCO-MLT (Wu et al., Distribution-Balanced Loss, 2020)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import pareto

__all__ = ["draw_long_tail", "tail_counts"]


def tail_counts(
    classes: int, maximum: int, minimum: int = 1, shape: float = 6.0
) -> NDArray[np.int64]:
    """Give images per class, head first: the Pareto density at even steps up to its 99 % quantile, from maximum to minimum."""
    distribution = pareto(shape)
    density: NDArray[np.float64] = distribution.pdf(
        np.linspace(distribution.ppf(0), distribution.ppf(0.99), classes)
    )
    return np.round((maximum - minimum) / shape * density + minimum).astype(np.int64)


def draw_long_tail(
    tags: Mapping[int, Sequence[int]], classes: int, maximum: int, seed: int = 0
) -> list[int]:
    """Draw image ids so that images per class follow `tail_counts`, as nearly as co-occurrence lets them.

    Classes that co-occur most become the head, since they come along anyway. From the tail up, images of a class are
    added at random until it has its number; then images are removed whose every class has more than that.

    Args:
        tags: image id -> classes.
        classes: number of classes.
        maximum: images of the most frequent class.
        seed: of the draw.
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
