"""A model's labels of training images: what other models then learn from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor

from wsis.data.index import write_coco
from wsis.metrics.evaluation import Evaluation
from wsis.metrics.results import read_results, to_annotations
from wsis.types import Batch, Index, Prediction

__all__ = ["Labeller", "tagged", "write_labels"]


class Labeller(pl.LightningModule):
    """Predicts a model's pseudo-labels: in its own way, or its detections of tagged classes.

    Args:
        model: what labels.
        score: least score of a detection that is not the best of its class.
    """

    def __init__(self, model: pl.LightningModule, score: float = 0.5) -> None:
        super().__init__()
        self.model, self.score = model, score
        for name in ("supervision", "needs_segments", "needs_proposals"):  # what data asks a model
            if hasattr(model, name):
                setattr(self, name, getattr(model, name))

    def configure_callbacks(self) -> list[Callback]:
        """Store what is predicted."""
        return [Evaluation([])]

    def predict_step(self, batch: Batch, batch_idx: int) -> list[Prediction]:
        """Label each image of a batch; panoptic maps are no labels."""
        model: Any = self.model
        if hasattr(model, "label"):
            found = model.label(batch)
        else:
            seen = zip(model.predict_step(batch, batch_idx), batch, strict=True)
            found = [tagged(p, s["target"]["tags"], self.score) for p, s in seen]
        return [prediction._replace(panoptic=None) for prediction in found]


def write_labels(
    path: Path, results: Path, index: Index, model: pl.LightningModule, run: str
) -> int:
    """Write a Labeller's predictions as a COCO instances file; returns how many labels there are.

    Args:
        path: file to write.
        results: the predictions (COCO results).
        index: the images and classes.
        model: what labelled; masks that score below its `ignore_below`, where it has one, are marked `ignore`.
        run: what the source of a label is said to be.
    """
    source = f"{type(model).__name__} trained from {getattr(model, 'supervision', 'tags')}, {run}"
    least = getattr(model, "ignore_below", 0.0)
    found = read_results(results, index.images, index.categories)
    made = {p.image_id: to_annotations(p, index.categories, source, least) for p in found}
    write_coco(path, index._replace(annotations=made))
    return sum(map(len, made.values()))


def tagged(prediction: Prediction, tags: Tensor, least_score: float) -> Prediction:
    """Keep detections of tagged classes: each class's best, and what reaches `least_score`.

    Args:
        prediction: of an image.
        tags: (C,) 1 where the image holds the class.
        least_score: of detections that are not their class's best.
    """
    labels, scores = prediction.labels.cpu(), prediction.scores.cpu()
    best = torch.full_like(tags.cpu(), -torch.inf).scatter_reduce(
        0, labels, scores.to(tags.dtype), "amax"
    )
    first = _first_of_each(labels, scores == best[labels])
    kept = ((tags.cpu()[labels] > 0) & (first | (scores >= least_score))).nonzero().squeeze(1)
    masks = [prediction.masks[i] for i in kept.tolist()] if prediction.masks else []
    kept = kept.to(prediction.boxes.device)
    return prediction._replace(
        boxes=prediction.boxes[kept],
        scores=prediction.scores[kept],
        labels=prediction.labels[kept],
        masks=masks,
    )


def _first_of_each(labels: Tensor, candidate: Tensor) -> Tensor:
    """Mark the first candidate of each label (N,): of equal scores one is the best."""
    earlier = (
        (labels[:, None] == labels)
        & candidate
        & torch.ones(len(labels), len(labels)).tril(-1).bool()
    )
    return candidate & ~earlier.any(1)
