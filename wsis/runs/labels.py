"""A model's labels of training images: what other models then learn from."""

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
    """Predict a model's pseudo-labels, so that a trainer's `predict` writes them.

    Args:
        model: labels the images; data treats the labeller as it treats this model.
        score_threshold: lowest score of a label that is not the best of its class.
    """

    def __init__(self, model: Method, score_threshold: float = 0.5) -> None:
        super().__init__()
        self.model, self.score_threshold = model, score_threshold
        for name in Method.__annotations__:
            setattr(self, name, getattr(model, name))

    def configure_callbacks(self) -> list[Callback]:
        """Store what is predicted."""
        return [Evaluation([])]

    def predict_step(self, batch: Batch, batch_idx: int = 0) -> list[Prediction]:
        """Label each image of a batch, without panoptic maps, which are no labels."""
        labels = self.model.label(batch, self.score_threshold)
        return [prediction._replace(panoptic=None) for prediction in labels]


def write_labels(path: Path, results: Path, index: Index, model: Method, run: str) -> int:
    """Write a Labeller's predictions as a COCO instances file; returns how many labels there are.

    Args:
        path: file to write.
        results: the predictions (COCO results).
        index: the images and classes.
        model: what labelled the images; labels below its `min_mask_score` are marked `ignore`.
        run: what the source of a label is said to be.
    """
    source = f"{type(model).__name__} trained from {describe_supervision(model.supervision)}, {run}"
    found = read_results(results, index.images, index.categories)
    made = {
        p.image_id: to_annotations(p, index.categories, source, model.min_mask_score) for p in found
    }
    write_coco(path, index._replace(annotations=made))
    return sum(map(len, made.values()))
