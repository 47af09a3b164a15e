"""Pseudo-labels of training images, predicted by one model to train another."""

from __future__ import annotations

from pathlib import Path

from pytorch_lightning.callbacks import Callback

from wsis.data.index import write_coco
from wsis.method import Method, describe_supervision
from wsis.metrics.evaluation import Evaluation
from wsis.metrics.results import read_results, to_annotations
from wsis.types import Batch, Index, Prediction

__all__ = ["Labeller", "write_labels"]


class Labeller(Method):
    """Wrap a model so that a trainer's `predict` writes its pseudo-labels.

    Args:
        model: labels the images; data modules treat the labeller as they treat this model.
        score_threshold: lowest score of a label that is not the best of its class.
    """

    def __init__(self, model: Method, score_threshold: float = 0.5) -> None:
        super().__init__()
        self.model, self.score_threshold = model, score_threshold
        self.treat_as(model)

    def configure_callbacks(self) -> list[Callback]:
        """Store what is predicted."""
        return [Evaluation([])]

    def predict_step(self, batch: Batch, batch_idx: int = 0) -> list[Prediction]:
        """Label each image of a batch; panoptic maps are dropped, since they are not labels."""
        labels = self.model.label(batch, self.score_threshold)
        return [prediction._replace(panoptic=None) for prediction in labels]


def write_labels(
    path: Path, results: Path, index: Index, model: Method, run: str
) -> list[Prediction]:
    """Write a Labeller's predictions as a COCO instances file and return them.

    Args:
        path: file to write.
        results: the predictions (COCO results).
        index: the images and classes.
        model: what labelled the images; labels below its `min_mask_score` are marked `ignore`.
        run: stage that made the labels, recorded in the `source` of each.
    """
    found = read_results(results, index.images, index.categories)
    source = f"{type(model).__name__} trained from {describe_supervision(model.supervision)}, {run}"
    labels = {
        prediction.image_id: to_annotations(
            prediction, index.categories, source, model.min_mask_score
        )
        for prediction in found
    }
    write_coco(path, index._replace(annotations=labels))
    return found
