"""The score from which detections are shown."""

from __future__ import annotations

import numpy as np

from wsis.metrics.states import Array

__all__ = ["best_threshold"]


def best_threshold(scores: Array, correct: Array, total: int) -> float:
    """Return the score threshold, itself included, of the best F1; infinite if none is correct.

    Args:
        scores: (N,) of detections.
        correct: (N,) bool.
        total: number of objects.
    """
    order = np.argsort(-scores, kind="stable")
    scores, right = scores[order], np.cumsum(correct[order])
    if not len(right) or not right[-1]:
        return float("inf")
    harmonic = 2 * right / (np.arange(1, len(right) + 1) + total)
    ends = np.append(scores[1:] != scores[:-1], True)  # equal scores are shown together
    return float(scores[np.where(ends, harmonic, -1).argmax()])
