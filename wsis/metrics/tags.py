"""Metrics of tags: which images hold a class."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.classification import binary_average_precision

from wsis.metrics.states import from_lines, to_lines
from wsis.metrics.threshold import best_threshold
from wsis.types import Prediction

__all__ = ["DetectionTags", "TagAP", "scores_of"]


class TagAP(Metric):
    """Average precision of ranking images by class, mean over the classes that some image has."""

    full_state_update = False
    higher_is_better = True
    images: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("images", [], dist_reduce_fx="cat")

    def update(self, scores: Tensor, tags: Tensor, images: Sequence[int]) -> None:
        """Add images.

        Args:
            scores: (N,C).
            tags: (N,C) 0 or 1.
            images: N ids; an image that a distributed sampler repeats counts once.
        """
        self.images.append(_lines(scores, tags, images).to(self.device))

    def compute(self) -> Tensor:
        """Return the mean average precision (); nan if no image has a tag."""
        return _known_mean(_precisions(*_table(self.images)))


class DetectionTags(Metric):
    """How well detections tell which classes an image holds, which can be known without masks.

    `compute()` returns `tag_mAP`, the mean average precision of images ranked by their best
    detection of a class, `per_class/tag_AP` (C,), and `F1_threshold`, the score from which on
    detections tell the tags with the best F1; nan if no image has a tag, nothing if there is no
    image.
    """

    full_state_update = False
    images: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("images", [], dist_reduce_fx="cat")

    def update(self, predictions: Sequence[Prediction], tags: Sequence[Tensor]) -> None:
        """Add images and their tags (C,)."""
        scores = [scores_of(p, len(known)) for p, known in zip(predictions, tags, strict=True)]
        lines = _lines(scores, tags, [prediction.image_id for prediction in predictions])
        self.images.append(lines.to(self.device))

    def compute(self) -> dict[str, Tensor]:
        """Return the figures of all images so far."""
        scores, tags = _table(self.images)
        if not len(scores):
            return {}
        told, right = scores.flatten().numpy(), tags.flatten().bool().numpy()
        threshold = best_threshold(told[told > 0], right[told > 0], int(right.sum()))
        known = torch.tensor(threshold if math.isfinite(threshold) else math.nan)
        each = _precisions(scores, tags)
        return {"tag_mAP": _known_mean(each), "per_class/tag_AP": each, "F1_threshold": known}


def scores_of(prediction: Prediction, classes: int) -> Tensor:
    """Return an image's score of each class (C,): its best detection's, 0 without any."""
    scores = torch.zeros(classes, device=prediction.scores.device)
    return scores.scatter_reduce(0, prediction.labels, prediction.scores.float(), "amax")


def _lines(
    scores: Tensor | Sequence[Tensor], tags: Tensor | Sequence[Tensor], images: Sequence[int]
) -> Tensor:
    """Return a state that ranks can exchange in any length."""
    rows = zip(images, scores, tags, strict=True)
    return to_lines(
        {"image_id": image, "scores": of_image.tolist(), "tags": known.tolist()}
        for image, of_image, known in rows
    )


def _table(state: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Return scores and tags (N,C), with each image once; (0,) and (0,) without images."""
    records = from_lines(state)
    scores, tags = ([record[name] for record in records] for name in ("scores", "tags"))
    return torch.tensor(scores), torch.tensor(tags).long()


def _precisions(scores: Tensor, tags: Tensor) -> Tensor:
    """Return the average precision of each class (C,); nan for a class that no image has."""
    classes = tags.shape[1] if len(tags) else 0
    each = torch.full((classes,), math.nan)
    for c in tags.any(0).nonzero().flatten().tolist() if classes else []:
        each[c] = binary_average_precision(scores[:, c], tags[:, c])
    return each


def _known_mean(values: Tensor) -> Tensor:
    """Return the mean () of values that are numbers; nan if none is."""
    return values[~values.isnan()].mean()
