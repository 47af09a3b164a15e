"""The contract of a method: what it tells data, runs, labels and reports about itself.

A method derives from `Method`, sets the attributes in which it differs, and writes `training_step`, `predict` and
`configure_optimizers`. Nothing here belongs to a paper.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor

from wsis import registry
from wsis.errors import InputError
from wsis.metrics import Evaluation
from wsis.types import Batch, Prediction, Sample

__all__ = ["Method", "Stages", "describe_supervision", "filled", "tagged"]

Settings = TypeVar("Settings")


class Stages(Protocol):
    """What `Method.stages` can ask of its run; `wsis.runs.run.Run` has the details."""

    def fit(self, name: str, model: Method, data: Any, **trainer: Any) -> Path:
        """Train `model` and return its last checkpoint."""

    def predict(self, name: str, model: Method, data: Any, split: str) -> Path:
        """Predict every image of a split and return predictions.json."""

    def label(self, name: str, model: Method, data: Any, score_threshold: float = 0.5) -> Path:
        """Label every training image and return labels.json."""

    def make(self, name: str, produce: Any, **settings: Any) -> Path:
        """Write files with `produce(folder)` and return the folder."""


class Method(pl.LightningModule):
    """Base of every method and of every network that is trained as a stage of one.

    The attributes are read by the data module (what a sample holds), by runs (what a stage depends on), by labels and by
    reports. An instance may replace a class's value, as BoxCaseg does with `min_mask_score`.
    """

    supervision: frozenset[str] = frozenset({"tags"})
    """Fields of `Target` that training may read: of tags, stuff_tags, boxes, masks."""
    needs_proposals: bool = True
    """Samples hold proposals."""
    needs_segments: bool = False
    """Proposals come with superpixels and memberships."""
    needs_boxes: bool = False
    """Predictions are masks of given boxes, one each and in their order."""
    panoptic: bool = False
    """Predictions hold panoptic maps, and panoptic quality is measured."""
    min_mask_score: float = 0.0
    """Pseudo-labels of a lower score are marked `ignore`: their masks train nothing."""
    label_settings: tuple[str, ...] = ()
    """Constructor arguments that only `label` reads: training does not depend on them."""
    later_settings: tuple[str, ...] = ()
    """Constructor arguments that only later stages read."""

    data_settings: tuple[str, ...] = ()
    """Constructor arguments that only choose data for `training_data`, whose fingerprint says what was chosen."""

    def save_hyperparameters(self, *names: Any, **options: Any) -> None:
        """Do as Lightning, with groups of settings as dictionaries, so that checkpoints hold plain values alone."""
        options.setdefault("frame", inspect.currentframe().f_back)  # type: ignore[union-attr]
        super().save_hyperparameters(*names, **options)
        for name, value in self.hparams.items():
            if is_dataclass(value) and not isinstance(value, type):
                self.hparams[name] = asdict(value)
        self._hparams_initial = copy.deepcopy(self.hparams)

    @classmethod
    def predicts(cls) -> bool:
        """Return whether the method implements `predict` or `predict_step`."""
        return cls.predict is not Method.predict or cls.predict_step is not Method.predict_step

    @classmethod
    def validates(cls) -> bool:
        """Return whether validation measures anything."""
        return cls.predicts() or cls.validation_step is not Method.validation_step

    def training_data(self, data: Any) -> Any:
        """Return what to train on, given the data set of the run: by default just that.

        A method that loads other images beside those of the data set adds them here. From Python:
        `trainer.fit(model, model.training_data(data))`.
        """
        return data

    def stages(self, run: Stages, data: Any) -> None:
        """Train in one stage; a method with several says so here, in the paper's order."""
        run.fit("train", self, self.training_data(data))

    def configure_callbacks(self) -> list[Callback]:
        """Evaluate what is predicted."""
        return [Evaluation()] if self.predicts() else []

    def predict(self, sample: Sample) -> Prediction:
        """Return the objects of one image, the best first."""
        raise NotImplementedError(f"{type(self).__name__} predicts nothing")

    def predict_step(self, batch: Batch, batch_idx: int = 0) -> list[Prediction]:
        """Predict each image of a batch."""
        return [self.predict(sample) for sample in batch]

    def validation_step(self, batch: Batch, batch_idx: int = 0) -> Any:
        """Predict each image, for the callback to evaluate."""
        return self.predict_step(batch, batch_idx) if self.predicts() else None

    def test_step(self, batch: Batch, batch_idx: int = 0) -> Any:
        """Do as in validation."""
        return self.validation_step(batch, batch_idx)

    def label(self, batch: Batch, score_threshold: float = 0.5) -> list[Prediction]:
        """Label training images: detections of tagged classes, the best of each and those above the threshold."""
        found = self.predict_step(batch, 0)
        return [
            tagged(prediction, sample["target"]["tags"], score_threshold)
            for prediction, sample in zip(found, batch, strict=True)
        ]

    def log_losses(self, losses: Mapping[str, Tensor], total: Tensor, batch_size: int) -> None:
        """Log each part of a loss as `train/NAME` and the sum that is minimised as `train/loss`."""
        parts = {f"train/{name}": value for name, value in losses.items()}
        self.log_dict(parts, batch_size=batch_size)
        self.log("train/loss", total, prog_bar=True, batch_size=batch_size)


def filled(default: Settings, given: Settings | Mapping[str, Any]) -> Settings:
    """Return a group of settings, where `given` may say only what differs from `default`.

    Raises:
        InputError: `given` has a setting that the group does not have.
    """
    if not isinstance(given, Mapping):
        return given
    known = {field.name for field in fields(default)}  # type: ignore[arg-type]
    for name in given:
        if name not in known:
            raise InputError(
                f"{type(default).__name__} has no setting '{name}'{registry.suggest(name, known)}"
            )
    return replace(default, **given)  # type: ignore[type-var]


def describe_supervision(supervision: frozenset[str]) -> str:
    """Return the fields as tables show them, without those that others imply: "boxes" for tags and boxes."""
    implied = {"boxes": {"tags"}, "masks": {"tags", "boxes"}}
    weaker = {field for strong in supervision for field in implied.get(strong, ())}
    return " + ".join(
        field.replace("_", " ") for field in sorted(supervision - weaker, reverse=True)
    )


def tagged(prediction: Prediction, tags: Tensor, score_threshold: float) -> Prediction:
    """Keep detections of tagged classes: the best of each class, and those of at least `score_threshold`.

    Args:
        prediction: of one image.
        tags: (C,) 1 where the image holds the class.
        score_threshold: applies to detections that are not the best of their class.
    """
    labels, scores = prediction.labels.cpu(), prediction.scores.cpu()
    lowest = torch.full_like(tags.cpu(), -torch.inf)
    best = lowest.scatter_reduce(0, labels, scores.to(tags.dtype), "amax")
    first = _first_of_each(labels, scores == best[labels])
    wanted = (tags.cpu()[labels] > 0) & (first | (scores >= score_threshold))
    kept = wanted.nonzero().squeeze(1)
    masks = [prediction.masks[i] for i in kept.tolist()] if prediction.masks else []
    kept = kept.to(prediction.boxes.device)
    return prediction._replace(
        boxes=prediction.boxes[kept],
        scores=prediction.scores[kept],
        labels=prediction.labels[kept],
        masks=masks,
    )


def _first_of_each(labels: Tensor, candidate: Tensor) -> Tensor:
    """Mark the first candidate of each label (N,), so that one of equal scores counts as best."""
    earlier = torch.ones(len(labels), len(labels)).tril(-1).bool()
    same = (labels[:, None] == labels) & candidate & earlier
    return candidate & ~same.any(1)
