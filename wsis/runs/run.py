"""A run: one folder, several stages, each done at most once.

A stage's folder holds `stage.json` from the moment it begins: its settings, their fingerprint
(which includes those of the stages before) and whether it is finished.

* finished, same fingerprint: skipped;
* begun, same fingerprint: continued from `checkpoints/last.ckpt`;
* another fingerprint: the folder is emptied and the stage repeated, and so are all that follow;
* finished by a run that may be reused, with the same fingerprint: copied from there.
"""

from __future__ import annotations

import gc
import json
import logging
import math
import shutil
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
import torch
from lightning_utilities.core.rank_zero import rank_zero_only

from wsis.data.module import DataModule
from wsis.errors import InputError
from wsis.files import atomic_write
from wsis.fingerprint import fingerprint, plain
from wsis.method import Method, describe_supervision
from wsis.metrics.evaluation import Evaluation
from wsis.runs.best import BestCheckpoint, measured
from wsis.runs.checkpoints import CheckpointCallback, Reseed, newest, step_of
from wsis.runs.cost import Clock, commit, device, peak_memory
from wsis.runs.dependencies import describe, shaping
from wsis.runs.labels import Labeller, write_labels
from wsis.runs.loggers import CSV, LogRate, LogStep
from wsis.runs.progress import title
from wsis.runs.record import (
    StageRecord,
    is_available,
    open_stage,
    read_stage,
    reopen_if_lost,
    stages,
    wait_for,
    write_stage,
)

if TYPE_CHECKING:
    from wsis.types import Index

__all__ = ["OnlyStage", "Run", "Split", "rank"]

MAX_JUDGED = 48
"""Training images that are looked at where there is no validation split."""

log = logging.getLogger(__name__)


class OnlyStage(Exception):
    """Raised to leave a method's `stages` at an unfinished stage that `only` excludes."""


@dataclass
class Run:
    """Stages in one folder.

    Args:
        folder: of the run.
        make_trainer: `make_trainer(folder, callbacks, **settings)` returns a fresh Trainer that
            writes to `folder`.
        seed: from which the generators of each stage are seeded.
        save_every: optimiser steps from one checkpoint to the next.
        only: name of the one stage to work on; None for all.
        announce: called with a line for the user.
        reuse: a folder of runs; stages that one of them has finished with identical settings are
            copied.
        planned: names of all stages in order, to count them; empty if they are not known.
        supervision: the method's; a stage may use other labels only if they lie in this run's
            folder.
    """

    folder: Path
    make_trainer: Callable[..., pl.Trainer]
    seed: int = 0
    save_every: int = 500
    only: str | None = None
    announce: Callable[[str], None] = log.info
    reuse: Path | None = None
    planned: Sequence[str] = ()
    supervision: frozenset[str] = Method.supervision
    _history: list[str] = field(default_factory=list)
    _since: float = 0.0

    def fit(
        self,
        name: str,
        model: Method,
        data: pl.LightningDataModule,
        weights_of: str = "",
        **trainer: Any,
    ) -> Path:
        """Train `model` to the end, validate it, and return its last checkpoint.

        `best.ckpt` is kept beside it where validation ran more than once, and no stage reads it.

        Args:
            name: of the stage and its folder.
            model: what to train.
            data: what to train on.
            weights_of: stage whose weights `model` begins with, if any.
            **trainer: Trainer settings of this stage, such as `max_steps`.
        """
        self._check_supervision(name, model, data)
        last = self.checkpoint(name)
        save, clock = CheckpointCallback(last, self.save_every), Clock()
        best = BestCheckpoint(last.with_name("best.ckpt"), model.main_metrics)
        callbacks = [Reseed(self._seed_of(name)), save, best, clock, LogStep(), LogRate()]
        made = self.make_trainer(self.folder / name, callbacks, **trainer)
        later = (*model.label_settings, *model.later_settings)
        settings = describe(model, data, later) | shaping(made)
        settings |= {"weights_of": weights_of} if weights_of else {}
        if rank() == 0:
            reopen_if_lost(last)
        if not self._begin(name, settings, steps=made.max_steps):
            start = newest(last.parent)
            save.writer.keep = start == last
            best.begin(self._continue(name, start, made, model))
            made.fit(model, datamodule=data, ckpt_path=start)
            metrics = _validate(made, model, data)
            facts = {"metrics": metrics, "best": best.state_dict()}
            self._end(name, steps=made.global_step, minutes=clock.seconds / 60, **facts)
        _release(model, data)
        return last

    def predict(self, name: str, model: Method, data: pl.LightningDataModule, split: str) -> Path:
        """Predict every image of `split` once, divided among ranks; return predictions.json.

        Args:
            name: of the stage and its folder.
            model: its `predict_step` returns one Prediction per sample.
            data: has a method `dataloader(split, train)`.
            split: "train" or "val".
        """
        folder = self.folder / name
        if not self._begin(name, describe(model, data) | {"split": split}):
            made = self.make_trainer(folder)
            made.predict(model, datamodule=Split(data, split), return_predictions=False)
            self._end(name)
            _release(model, data)
        return folder / "predictions.json"

    def label(
        self, name: str, model: Method, data: pl.LightningDataModule, score_threshold: float = 0.5
    ) -> Path:
        """Label every training image, divided among ranks; return labels.json (COCO instances).

        Args:
            name: of the stage and its folder.
            model: its `label` makes the labels.
            data: its training images are labelled.
            score_threshold: lowest score of a label that is not the best of its class.

        Raises:
            InputError: no image has a label.
        """
        folder = self.folder / name
        settings = describe(model, data, model.later_settings)
        if not self._begin(name, settings | {"score_threshold": score_threshold}):
            made, labeller = self.make_trainer(folder), Labeller(model, score_threshold)
            made.predict(labeller, datamodule=Split(data, "train"), return_predictions=False)
            if rank() == 0:
                _collect_labels(folder, model, data)
            self._end(name)
            _release(model, data)
        wait_for(folder, finished=True)
        return folder / "labels.json"

    def make(self, name: str, produce: Callable[[Path], object], **settings: Any) -> Path:
        """Run any other stage by calling `produce(folder)` on rank zero; return the folder.

        Args:
            name: of the stage and its folder.
            produce: writes to the folder, which is empty or, after a crash, as it was left.
            **settings: all that the result depends on besides the stages before.
        """
        folder = self.folder / name
        if not self._begin(name, settings):
            if rank() == 0:
                produce(folder)
            self._end(name)
        wait_for(folder, finished=True)
        return folder

    def checkpoint(self, name: str) -> Path:
        """Return the path of a trained stage's last checkpoint."""
        return self.folder / name / "checkpoints" / "last.ckpt"

    def with_trainer(self, **settings: Any) -> Run:
        """Return the same run with other defaults of the Trainer's settings."""
        return replace(self, make_trainer=partial(self.make_trainer, **settings))

    @property
    def names(self) -> list[str]:
        """Names of the stages that the method has reached."""
        return [entry.split()[0] for entry in self._history]

    def drop_others(self) -> None:
        """Delete, on rank zero, earlier stages that the method has not reached this time."""
        for folder, _ in stages(self.folder) if rank() == 0 else ():
            if folder.name not in self.names:
                self.announce(f"{folder.name}: no longer a stage of this run, deleted")
                shutil.rmtree(folder)

    def _begin(self, name: str, settings: dict[str, Any], steps: int | None = None) -> bool:
        """Open a stage and return whether it is finished.

        Generators are seeded anew, so that results do not depend on which earlier stages ran in
        this process.
        """
        if name in self.names:
            raise ValueError(f"two stages are called '{name}'")
        folder = self.folder / name
        settings = plain(settings, inside=self.folder)
        digest = fingerprint(settings, self.seed, self._history)
        self._history.append(f"{name} {digest} {steps}")
        elsewhere = self.only not in (None, name)
        if elsewhere and not is_available(folder, digest, steps, self.reuse):
            raise OnlyStage(name)
        if rank() == 0:
            wanted = StageRecord(len(self._history), digest, settings)
            record = open_stage(folder, wanted, steps, self.reuse, self.announce)
        else:
            record = wait_for(folder, digest)
        state = "done before" if record.finished else "working"
        length = f", {steps} steps" if steps and steps > 0 and not record.finished else ""
        self.announce(f"{title(name, self.planned)}: {state}{length}")
        pl.seed_everything(self._seed_of(name), verbose=False)
        self._since = time.monotonic()
        return record.finished

    def _end(self, name: str, **facts: Any) -> None:
        """Record on rank zero that the stage is finished, with its cost.

        Generators are seeded anew: what is built next must not depend on this stage.
        """
        folder = self.folder / name
        record = read_stage(folder) if rank() == 0 else None
        if record is not None:
            cost = {"minutes": (time.monotonic() - self._since) / 60, "memory": peak_memory()}
            facts = cost | {"device": device(), "commit": commit()} | facts
            if facts.get("metrics"):
                with atomic_write(folder / "metrics.json") as scratch:
                    scratch.write_text(json.dumps(facts["metrics"], indent=1))
            write_stage(folder, replace(record, finished=True, **facts))
        pl.seed_everything(self._seed_of(f"after {name}"), verbose=False)

    def _seed_of(self, name: str) -> int:
        return zlib.crc32(f"{self.seed}/{name}".encode())

    def _check_supervision(self, name: str, model: Method, data: pl.LightningDataModule) -> None:
        """Raise InputError if a stage would train on labels that the run's method may not use."""
        beyond = sorted(model.supervision - self.supervision)
        sources: list[Any] = []
        if beyond:
            sources = [data, *data.others.values()]  # type: ignore[attr-defined]
        inside = self.folder.resolve()
        labels = [source.relabelled for source in sources]
        if not all(path and path.resolve().is_relative_to(inside) for path in labels):
            allowed = describe_supervision(self.supervision)
            raise InputError(
                f"stage '{name}': {type(model).__name__} trains on {', '.join(beyond)}, which a "
                f"method that learns from {allowed} may not see; "
                "give the stage `labels` made in this run"
            )

    def _continue(
        self, name: str, start: Path | None, trainer: pl.Trainer, model: pl.LightningModule
    ) -> int:
        """Return and announce the step at which training goes on; delete later rows of logs."""
        step = 0
        if start is not None:
            step = step_of(start, model)
            if start.name == "previous.ckpt":
                self.announce(
                    f"{name}: last.ckpt is missing or damaged, "
                    "going back to the checkpoint before it"
                )
            self.announce(f"{title(name, self.planned)}: continuing at step {step}")
        for logger in trainer.loggers:
            if isinstance(logger, CSV):
                logger.rewind(step)
        return step


class Split(pl.LightningDataModule):
    """One split of a data module, for prediction."""

    def __init__(self, data: Any, split: str) -> None:
        super().__init__()
        self.data, self.split = data, split

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["data"], name)

    def prepare_data(self) -> None:
        """Prepare the split's files in one process."""
        self.data.prepare_data()
        self.predict_dataloader()

    def predict_dataloader(self) -> Any:
        """Return a loader of this rank's part of the images, each image once."""
        self.data.trainer = self.trainer
        return self.data.dataloader(self.split, train=False)


def rank() -> int:
    """Return the number of this process among those that train together."""
    return int(getattr(rank_zero_only, "rank", 0) or 0)


def _validate(trainer: pl.Trainer, model: Method, data: pl.LightningDataModule) -> dict[str, float]:
    """Return the metrics after training; empty if model or data have no validation.

    Without a validation split, some training images show how well their tags are found, and from
    which score on detections are to be drawn.
    """
    if not model.validates() or type(data).val_dataloader is pl.LightningDataModule.val_dataloader:
        return {}
    if not isinstance(data, DataModule) or data.has_val:
        trainer.validate(model, datamodule=data, verbose=False)
    elif model.predicts():
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Evaluation):
                callback.prefix = "train"
        trainer.limit_val_batches = math.ceil(MAX_JUDGED / data.loading.batch_size)
        trainer.validate(model, dataloaders=data.dataloader("train", False), verbose=False)
    return measured(trainer)


def _collect_labels(folder: Path, model: Method, data: pl.LightningDataModule) -> None:
    """Convert predictions.json in the folder of a stage to labels.json."""
    index: Index = data.index("train")  # type: ignore[attr-defined]
    labels, predictions = folder / "labels.json", folder / "predictions.json"
    found = write_labels(labels, predictions, index, model, folder.name)
    if not any(len(prediction.boxes) for prediction in found):
        raise InputError(
            f"{folder}: no training image got a label; train the stages before it longer"
        )
    predictions.unlink()


def _release(model: Method, data: pl.LightningDataModule) -> None:
    """Free the memory that a stage's trainer held: optimiser state, gradients, device caches."""
    model.trainer = data.trainer = None
    model.zero_grad(set_to_none=True)
    gc.collect()
    torch.cuda.empty_cache()
