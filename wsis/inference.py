"""Trained models: load a run, predict an image or a split, write pseudo-labels."""

from __future__ import annotations

import os
import sys
from itertools import takewhile
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args, overload

import numpy as np
import pytorch_lightning as pl
import torch
import torch.distributed as dist
from jsonargparse import ArgumentParser
from numpy.typing import NDArray
from torch import Tensor

from wsis import registry
from wsis.command_line.parser import overlay
from wsis.command_line.settings import Config, read_run
from wsis.command_line.trainers import new_trainer
from wsis.errors import InputError
from wsis.images.read import as_pixels
from wsis.method import Method
from wsis.metrics.evaluation import Evaluation
from wsis.nn.checkpoint import load_model, load_shared, read_checkpoint
from wsis.proposals.proposers import BUILT_IN, propose
from wsis.runs.checkpoints import Which, checkpoint_of, intact
from wsis.runs.classes import check_classes, classes_in
from wsis.runs.failures import Tolerant
from wsis.runs.labels import Labeller, write_labels
from wsis.runs.record import read_stage, stages
from wsis.runs.run import Split
from wsis.sharing.folder import MODEL, WEIGHTS, is_shared
from wsis.sharing.places import find_run
from wsis.types import Index, Prediction, Proposals, Record, Sample, View

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = [
    "Labelled",
    "Loaded",
    "classes_of",
    "labelling_stage",
    "load",
    "make_data",
    "predict",
    "read_run",
    "score_threshold",
    "store_labels",
    "store_predictions",
    "trained",
]


UNKNOWN_THRESHOLD = 0.3
"""Score from which on detections are shown if none was correct in validation."""


class Loaded(NamedTuple):
    """A run, ready to use."""

    model: Method
    """Of the stage asked for, in evaluation mode, on the CPU, with its `class_names`."""
    data: pl.LightningDataModule
    """As it was trained on."""
    config: Config
    """All settings of the run."""
    threshold: float
    """Score from which on detections are shown: that of the best F1 in the stage's validation."""


class Labelled(NamedTuple):
    """The pseudo-labels of a split."""

    data: Index
    """Index of the images that have labels, or were found to have none."""
    labels: list[Prediction]
    """Of each of them."""
    failed: dict[int, str]
    """Why the model failed on other images, by their ids."""


def load(
    run: str | os.PathLike[str], stage: str | None = None, checkpoint: Which = "last"
) -> Loaded:
    """Return the model, data and settings of a run or a shared model; data are not read.

    The last checkpoint is the default, as in the papers: which one is best depends on how often one
    looked, and where validation has masks, to choose by them is to learn from them.

    Args:
        run: folder of the run; or of a shared model, or its archive (.zip, .tar, .tar.gz), the
            https URL of one, or `hub:USER/NAME`.
        stage: name of the stage whose model is wanted; by default the last that was trained, which
            of a method that ends with Mask R-CNN is Mask R-CNN.
        checkpoint: "last", or "best" for that of the best validation, if there were several.

    Raises:
        InputError: not the folder of a run, the model is not trained yet, it has no best
            checkpoint, or the shared model cannot be fetched or is not as it was shared.
    """
    folder = find_run(run)
    config = read_run(folder)
    known = trained(folder)
    if stage not in (None, *known):
        raise InputError(f"{folder} has no trained stage '{stage}'; it has {', '.join(known)}")
    name = stage or list(known)[-1]
    path = _checkpoint(folder, name, checkpoint)
    given = config["model"].get("init_args") or {}
    later = {setting: given[setting] for setting in known[name].label_settings if setting in given}
    model = _model_of(known[name], path, later)
    threshold = score_threshold(folder / name, checkpoint)
    return Loaded(model.eval(), make_data(config["data"]), config, threshold)


def _model_of(kind: type[Method], path: Path, settings: Config) -> Method:
    """Make a model from a checkpoint, or from shared weights, whose arguments are checked.

    Args:
        kind: class of the model.
        path: the checkpoint or weights.
        settings: constructor arguments that replace those of the file.
    """
    if path.name != WEIGHTS:
        return load_model(kind, path, **settings)

    def make(arguments: Config) -> Method:
        class_path = f"{kind.__module__}.{kind.__qualname__}"
        section = {"class_path": class_path, "init_args": arguments | settings}
        made: Method = _make("model", section, str(path.with_name(MODEL)))
        return made

    return load_shared(make, path, kind.__name__)


def _checkpoint(run: Path, stage: str, which: Which) -> Path:
    """Return the file of a stage's checkpoint."""
    path = checkpoint_of(run, stage, which)
    if which not in get_args(Which):
        raise InputError(f"no checkpoint is called '{which}'; give last or best")
    if which == "best" and is_shared(run):
        raise InputError(f"{run} is shared, with one checkpoint; leave out --checkpoint")
    if which == "best" and not path.is_file():
        raise InputError(
            f"{run} has no {stage}/checkpoints/best.ckpt, because validation ran at the end alone; "
            "leave out --checkpoint, or train with --trainer.val_check_interval N"
        )
    if not intact(path):
        raise InputError(
            f"{path} is damaged or missing; mend it with `python -m wsis.fit --resume {run}`"
        )
    return path


def score_threshold(stage: Path, checkpoint: Which = "last") -> float:
    """Return the score from which on detections of a stage are shown.

    Args:
        stage: folder of the stage.
        checkpoint: "last" or "best".
    """
    record = read_stage(stage)
    if record is None:
        return UNKNOWN_THRESHOLD
    metrics = record.best if checkpoint == "best" else record.metrics
    of_training = metrics.get("train/F1_threshold", UNKNOWN_THRESHOLD)
    return metrics.get("val/F1_threshold", of_training)


def trained(run: Path) -> dict[str, type[Method]]:
    """Return names and classes of a run's trained stages that predict, in order.

    A stage that trains the method itself always counts.

    Raises:
        InputError: not the folder of a run, or no such stage is finished.
    """
    method = registry.find("model", read_run(run)["model"]["class_path"])
    finished = takewhile(lambda entry: entry[1].finished, stages(run))  # later ones are stale
    models = {
        place.name: registry.find("model", stage.model)
        for place, stage in finished
        if (place / "checkpoints").is_dir() or is_shared(run)
    }
    known = {name: model for name, model in models.items() if model is method or model.predicts()}
    if not known:
        raise InputError(
            f"{run} has no finished stage that predicts; "
            f"continue it: `python -m wsis.fit --resume {run}`"
        )
    return known


def make_data(section: Config) -> pl.LightningDataModule:
    """Make the data module that the `data` section of a run's settings describes.

    Raises:
        InputError: settings that it does not have or of the wrong type, or code not installed.
    """
    made: pl.LightningDataModule = _make("data", section, "the settings of the run")
    return made


def _make(kind: Literal["model", "data"], section: Config, place: str) -> Any:
    """Make what a section of settings describes, which is checked first; messages name `place`."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(registry.find(kind, section["class_path"]), kind, fail_untyped=False)
    settings = overlay(parser, {kind: section}, place)
    return parser.instantiate(settings)[kind]


def classes_of(run: Path, data: Any) -> tuple[list[Record], list[Record]]:
    """Return a run's thing and stuff classes, from a checkpoint or, without one, from the data."""
    for folder, _ in reversed(stages(run)):
        path = checkpoint_of(run, folder.name)
        known = classes_in(read_checkpoint(path)) if intact(path) else None
        if known:  # no data set is needed
            return list(known["categories"]), list(known["stuff"])
    return list(data.categories), list(data.stuff)


def store_predictions(
    model: Method,
    data: Any,
    split: str,
    folder: Path,
    accelerator: str = "auto",
    devices: int = 1,
) -> Path | None:
    """Predict every image of a split once, divided among the devices.

    Returns:
        `folder`/predictions.json on rank zero; None on the other ranks, whose work ends here.

    Raises:
        InputError: the data have other classes than the model.
    """
    check_classes(model, data)
    trainer = new_trainer(
        default_root_dir=folder,
        accelerator=accelerator,
        devices=devices,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=sys.stderr.isatty(),
        callbacks=[Evaluation([])],
    )
    try:
        trainer.predict(model, datamodule=Split(data, split), return_predictions=False)
    finally:
        if dist.is_initialized():  # else gloo aborts one exit in five
            dist.destroy_process_group()
    return folder / "predictions.json" if trainer.is_global_zero else None


def labelling_stage(run: Path) -> str | None:
    """Return the last trained stage whose model has its own `label`; None if there is none."""
    able = [name for name, model in trained(run).items() if model.label is not Method.label]
    return able[-1] if able else None


def store_labels(
    model: Method,
    data: Any,
    split: str,
    out: Path,
    run: str | os.PathLike[str],
    score_threshold: float = 0.5,
    accelerator: str = "auto",
    devices: int = 1,
) -> Labelled | None:
    """Write a model's pseudo-labels of a split as a COCO instances file.

    Images on which the model fails are left out.

    Args:
        model: labels the images in its own way, or by its detections of tagged classes.
        data: the images and what is known of them.
        split: "train" or "val".
        out: file to write.
        run: the model's run, named as the source of each label.
        score_threshold: lowest score of a label that is not the best of its class.
        accelerator: as Lightning calls it.
        devices: how many.

    Returns:
        None on all ranks but the first.
    """
    with TemporaryDirectory() as folder:
        labeller = Tolerant(Labeller(model, score_threshold))
        results = store_predictions(labeller, data, split, Path(folder), accelerator, devices)
        if results is None:
            return None
        index: Index = data.without(split, labeller.failed.keys()).index(split)
        labels = write_labels(out, results, index, model, str(run)) if index.images else []
        return Labelled(index, labels, labeller.failed)


@overload
def predict(
    model: Method, image: list[Any], boxes: None = None, proposer: str = BUILT_IN
) -> list[Prediction]: ...
@overload
def predict(
    model: Method,
    image: str | os.PathLike[str] | Image | NDArray[np.uint8] | Tensor,
    boxes: Tensor | None = None,
    proposer: str = BUILT_IN,
) -> Prediction: ...
@torch.no_grad()
def predict(
    model: Method, image: Any, boxes: Tensor | None = None, proposer: str = BUILT_IN
) -> Prediction | list[Prediction]:
    """Return the objects in one image, in its own pixels, or in each of a list of images.

    Args:
        model: a trained model; it stays on its device.
        image: a file, a PIL image, (H,W,3) uint8 RGB, or a (3,H,W) uint8 RGB tensor; or a list of
            these.
        boxes: (K,4) xyxy, for a model that segments what given boxes hold; its labels are all 0.
        proposer: name of what proposes regions, for a model that needs proposals.

    Raises:
        InputError: not an image.
    """
    if isinstance(image, list):
        return [predict(model, one, boxes, proposer) for one in image]
    pixels = as_pixels(image)
    height, width = pixels.shape[:2]
    sample: Sample = {
        "image": torch.from_numpy(pixels).permute(2, 0, 1).contiguous().to(model.device),
        "image_id": 0,
        "path": Path(image) if isinstance(image, (str, os.PathLike)) else Path(),
        "size": (height, width),
        "view": View((1.0, 1.0), (0.0, 0.0), width, False),
        "target": {},
    }
    if boxes is not None:
        none = torch.zeros(len(boxes), dtype=torch.int64, device=model.device)
        sample["target"] = {
            "boxes": boxes.to(model.device, torch.float32),
            "labels": none,
            "crowd": none.bool(),
        }
    if model.needs_proposals:
        sample["proposals"] = _to(propose(pixels, proposer), model.device)
    was_training = model.training
    try:
        found = model.eval().predict_step([sample], 0)[0]
        return found if model.needs_boxes else found._replace(class_names=model.class_names)
    finally:
        model.train(was_training)


def _to(proposals: Proposals, device: torch.device) -> Proposals:
    columns = (None if column is None else column.to(device) for column in proposals)
    return Proposals(*columns)  # type: ignore[arg-type]
