"""The base class of all methods, with the attributes that data, runs, labels and reports read.

A method derives from `Method`, sets the attributes in which it differs, and implements
`training_step`, `predict` and `configure_optimizers`. Nothing here is specific to a paper.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Protocol, TypeVar

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor, nn

from wsis import registry
from wsis.errors import InputError
from wsis.metrics import Evaluation
from wsis.nn.backbone import Backbone
from wsis.types import Batch, Prediction, Sample
from wsis.values import Ranges, check_ranges

__all__ = ["Method", "Stages", "describe_supervision", "filled", "tagged"]

Settings = TypeVar("Settings")


class Stages(Protocol):
    """Operations of a run that `Method.stages` can use; see `wsis.runs.run.Run`."""

    seed: int

    def fit(self, name: str, model: Method, data: Any, **trainer: Any) -> Path:
        """Train `model` and return its last checkpoint."""

    def predict(self, name: str, model: Method, data: Any, split: str) -> Path:
        """Predict every image of a split and return predictions.json."""

    def label(self, name: str, model: Method, data: Any, score_threshold: float = 0.5) -> Path:
        """Label every training image and return labels.json."""

    def make(self, name: str, produce: Any, **settings: Any) -> Path:
        """Write files with `produce(folder)` and return the folder."""

    def checkpoint(self, name: str) -> Path:
        """Return the path of a trained stage's last checkpoint."""

    def with_trainer(self, **settings: Any) -> Stages:
        """Return the same run with other defaults of the Trainer's settings."""


class Method(pl.LightningModule):
    """Base class of every method and of every network that is trained as a stage of one.

    The attributes are read by the data module (contents of a sample), by runs (dependencies of a
    stage), by labels and by reports. An instance may override a value of its class, as BoxCaseg
    does with `min_mask_score`.
    """

    supervision: frozenset[str] = frozenset({"tags"})
    """Fields of `Target` that training may read, of `wsis.data.targets.FIELDS`."""
    needs_every_field: bool = True
    """True if training data must have a label for each of the fields in `supervision`."""
    needs_proposals: bool = True
    """True if samples hold proposals."""
    needs_segments: bool = False
    """True if proposals hold superpixels and memberships."""
    needs_boxes: bool = False
    """True if predictions are masks of given boxes, one for each box, in the same order."""
    panoptic: bool = False
    """True if predictions hold panoptic maps; panoptic quality is then measured."""
    class_names: tuple[str, ...] = ()
    """Names of the thing classes in order, of the data trained on; empty if they are not known."""
    stuff_names: tuple[str, ...] = ()
    """Names of the stuff classes, in the same way."""
    main_metrics: tuple[str, ...] = ("AP50", "mIoU", "PQ", "box_AP50", "mAP", "tag_mAP")
    """Names of metrics; the first that validation measures tells which checkpoint is best."""
    min_mask_score: float = 0.0
    """Masks of pseudo-labels with a lower score are marked `ignore` and excluded from the loss."""
    label_settings: tuple[str, ...] = ()
    """Constructor arguments that only `label` reads, so training does not depend on them."""
    later_settings: tuple[str, ...] = ()
    """Constructor arguments that only later stages read."""

    data_settings: tuple[str, ...] = ()
    """Constructor arguments that only select data in `training_data`; its fingerprint has them."""
    ranges: ClassVar[Ranges] = MappingProxyType({})
    """What numbers constructor arguments may be; checked by `save_hyperparameters`."""

    @classmethod
    def check_data(cls, data: Any, settings: Mapping[str, Any]) -> None:
        """Raise InputError if data lack what training needs; called before weights are fetched.

        Args:
            data: to train on.
            settings: constructor arguments.
        """

    def save_hyperparameters(self, *names: Any, **options: Any) -> None:
        """Save hyperparameters as Lightning does, but groups of settings as dictionaries.

        Checkpoints then hold plain values only.

        Raises:
            InputError: a number is not in its range.
        """
        options.setdefault("frame", inspect.currentframe().f_back)  # type: ignore[union-attr]
        super().save_hyperparameters(*names, **options)
        for name, value in self.hparams.items():
            self.hparams[name] = registry.as_dict(value)
        self._hparams_initial = copy.deepcopy(self.hparams)
        check_ranges(type(self).__name__, self.hparams, self.ranges)

    def idle(self) -> dict[str, str]:
        """Return the constructor arguments that have no effect beside the others.

        The reason of each ends a sentence: {"alpha": "with heads [weak]"}. Whoever gives one of
        them is told so; those of a recipe are not counted.
        """
        return {}

    def treat_as(self, model: Method) -> None:
        """Take the declared attributes of a model that this one wraps, so that data fit it."""
        for name in Method.__annotations__:
            setattr(self, name, getattr(model, name))

    def setup(self, stage: str) -> None:
        """Take the class names of the data to train on, and keep features where that is asked.

        Raises:
            InputError: features are to be kept, and training images vary by more than flips.
        """
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if stage == "fit":
            self.class_names = tuple(getattr(data, "class_names", ()))
            self.stuff_names = tuple(category["name"] for category in getattr(data, "stuff", ()))
            self.check_augment(getattr(data, "augment", None))
        for backbone in self._backbones():
            # weights are hashed and the place is told once
            if backbone.settings.stored and backbone.frozen and backbone.store is None:
                self.print(f"features of {backbone.name} are kept in {backbone.keep_features()}")

    def check_augment(self, augment: Any, place: str = "data.augment") -> None:
        """Raise InputError if features are to be kept, and training images vary by more than flips.

        Args:
            augment: `wsis.data.Augment` of the training images; None is not checked.
            place: the setting that decides it.
        """
        kept = any(b.settings.stored and b.frozen for b in self._backbones())
        if kept and augment is not None and not augment.only_flips:
            raise InputError(
                "backbone.stored needs training images that vary by flips alone; give "
                f"--{place}.crop 1 --{place}.jitter 1 and one short side, or leave it out"
            )

    def on_fit_start(self) -> None:
        """Raise InputError for a backbone whose features are random and stay so."""
        for backbone in self._backbones():
            if backbone.is_random and backbone.frozen:
                raise InputError(
                    f"{type(self).__name__} would learn from random features: its backbone "
                    f"{backbone.name} has weights none and is frozen; give weights, or "
                    "frozen_stages 0"
                )

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the class names that the data module has written to the checkpoint."""
        for backbone in self._backbones():
            backbone.is_random = False
        for state in checkpoint.values():
            if isinstance(state, dict) and "categories" in state:
                self.class_names = tuple(category["name"] for category in state["categories"])
                self.stuff_names = tuple(category["name"] for category in state.get("stuff", ()))

    def _backbones(self) -> list[Backbone]:
        return [module for module in self.modules() if isinstance(module, Backbone)]

    @classmethod
    def predicts(cls) -> bool:
        """Return True if the method implements `predict` or `predict_step`."""
        return cls.predict is not Method.predict or cls.predict_step is not Method.predict_step

    @classmethod
    def validates(cls) -> bool:
        """Return True if validation measures anything."""
        return cls.predicts() or cls.validation_step is not Method.validation_step

    def training_data(self, data: Any) -> Any:
        """Return the data to train on, given the data set of the run: by default `data` itself.

        A method that trains on images from elsewhere, too, adds them here. From Python:
        `trainer.fit(model, model.training_data(data))`.
        """
        return data

    def stages(self, run: Stages, data: Any) -> None:
        """Train in one stage; a method with several stages overrides this to run them in order."""
        run.fit("train", self, self.training_data(data))

    def stage_names(self) -> list[str]:
        """Return the names of all that `stages` does, in order, to count them while they work.

        A method that overrides `stages` may leave this empty; its stages are then not counted.
        """
        return ["train"] if type(self).stages is Method.stages else []

    def configure_callbacks(self) -> list[Callback]:
        """Return the evaluation callback, if the method predicts."""
        return [Evaluation()] if self.predicts() else []

    def predict(self, sample: Sample) -> Prediction:
        """Return the objects of one image, best first."""
        raise NotImplementedError(f"{type(self).__name__} predicts nothing")

    def predict_step(self, batch: Batch, batch_idx: int = 0) -> list[Prediction]:
        """Predict each image of a batch.

        Raises:
            InputError: the model needs proposals, and the data are to have none.
        """
        if self.needs_proposals and "proposals" not in batch[0]:
            raise InputError(
                f"{type(self).__name__} needs proposals to predict; leave out "
                "`--data.proposals none`"
            )
        return [self.predict(sample) for sample in batch]

    def validation_step(self, batch: Batch, batch_idx: int = 0) -> Any:
        """Predict each image; the callback evaluates the predictions."""
        return self.predict_step(batch, batch_idx) if self.predicts() else None

    def test_step(self, batch: Batch, batch_idx: int = 0) -> Any:
        """Predict as in validation."""
        return self.validation_step(batch, batch_idx)

    def label(self, batch: Batch, score_threshold: float = 0.5) -> list[Prediction]:
        """Label training images with detections of tagged classes, as `tagged` selects them."""
        predictions = self.predict_step(batch, 0)
        return [
            tagged(prediction, sample["target"]["tags"], score_threshold)
            for prediction, sample in zip(predictions, batch, strict=True)
        ]

    def log_losses(self, losses: Mapping[str, Tensor], total: Tensor, batch_size: int) -> None:
        """Log each part of a loss as `train/NAME` and the minimised total as `train/loss`."""
        parts = {f"train/{name}": value for name, value in losses.items()}
        self.log_dict(parts, batch_size=batch_size)
        self.log("train/loss", total, prog_bar=True, batch_size=batch_size)


def filled(default: Settings, given: Settings | Mapping[str, Any]) -> Settings:
    """Return a group of settings; `given` may hold only what differs from `default`.

    A module in place of a backbone's settings is its network.

    Raises:
        InputError: `given` has a setting that the group does not have.
    """
    if isinstance(given, nn.Module):
        given = {"name": given}
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
    """Return the fields for tables, without those that others imply: boxes imply tags."""
    implied = {"points": {"tags"}, "boxes": {"tags"}, "masks": {"tags", "boxes"}}
    weaker = {field for strong in supervision for field in implied.get(strong, ())}
    strongest = sorted(supervision - weaker - {"complete"}, reverse=True)
    return " + ".join(field.replace("_", " ") for field in strongest)


def tagged(prediction: Prediction, tags: Tensor, score_threshold: float) -> Prediction:
    """Keep the best detection of each tagged class, and those with at least `score_threshold`.

    Args:
        prediction: of one image.
        tags: (C,) 0 or 1.
        score_threshold: lowest score of detections that are not the best of their class.
    """
    labels, scores = prediction.labels.cpu(), prediction.scores.cpu()
    lowest = torch.full_like(tags.cpu(), -torch.inf)
    best = lowest.scatter_reduce(0, labels, scores.to(tags.dtype), "amax")
    first = _first_of_each(labels, scores == best[labels])
    wanted = (tags.cpu()[labels] > 0) & (first | (scores >= score_threshold))
    return prediction.rows(wanted.nonzero().squeeze(1))


def _first_of_each(labels: Tensor, candidate: Tensor) -> Tensor:
    """Mark the first candidate of each label (N,), so that one of several equal scores is best."""
    earlier = torch.ones(len(labels), len(labels)).tril(-1).bool()
    same = (labels[:, None] == labels) & candidate & earlier
    return candidate & ~same.any(1)
