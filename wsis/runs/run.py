"""A run: one folder, several stages, each done at most once.

A stage's folder holds `stage.json` from the moment it begins: the settings asked for, their fingerprint (which takes in
those of the stages before) and whether it is finished.

* finished, same fingerprint: skipped;
* begun, same fingerprint: continued from `checkpoints/last.ckpt`;
* another fingerprint: the folder is emptied and the stage done again, and so is all that follows;
* not done here, but by a run that may be reused, with the same fingerprint: taken from there.

Ranks meet on the disk: rank zero keeps the books, the others read them. Nobody waits in a collective call for a stage that
only rank zero works on, however long it takes.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import shutil
import time
import zlib
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
import torch
from lightning_utilities.core.rank_zero import rank_zero_only

from wsis.errors import InputError
from wsis.files import clear_scratch, whole
from wsis.fingerprint import fingerprint, plain
from wsis.method import Method, describe_supervision
from wsis.runs.checkpoints import Reseed, Save, intact, newest
from wsis.runs.cost import Clock, commit, device, peak_memory
from wsis.runs.labels import Labeller, write_labels
from wsis.runs.loggers import CSV

if TYPE_CHECKING:
    from wsis.types import Index

__all__ = ["OnlyStage", "Run", "Split", "rank", "read_stage", "stages"]

log = logging.getLogger(__name__)
POLL = 0.2
"""Seconds between looks at the disk of a rank that waits."""
SHAPING = (
    "max_epochs",
    "accumulate_grad_batches",
    "gradient_clip_val",
    "gradient_clip_algorithm",
    "precision",
    "limit_train_batches",
    "overfit_batches",
)
"""What of a Trainer shapes the weights. The number of steps is not among them: a stage can be prolonged."""


class OnlyStage(Exception):
    """Leaves a method's `stages` once the one stage asked for is done."""


@dataclass
class Run:
    """Stages in one folder.

    Args:
        folder: where the run is.
        make_trainer: `make_trainer(folder, callbacks, **settings)` gives a fresh Trainer that writes to `folder`.
        seed: of everything random.
        save_every: optimiser steps from one checkpoint to the next.
        only: name of the one stage to work on; None is all.
        announce: called with a line for the user.
        reuse: a folder of runs; what one of them has finished is taken from there where this run would do just the same.
        supervision: the method's; stages see no more, unless their labels lie in this run's folder.
    """

    folder: Path
    make_trainer: Callable[..., pl.Trainer]
    seed: int = 0
    save_every: int = 500
    only: str | None = None
    announce: Callable[[str], None] = log.info
    reuse: Path | None = None
    supervision: frozenset[str] = Method.supervision
    _history: list[str] = field(default_factory=list)
    _since: float = 0.0

    def fit(self, name: str, model: Method, data: pl.LightningDataModule, **trainer: Any) -> Path:
        """Train `model` to the end, measure it on the validation split, and return its last checkpoint.

        Args:
            name: of the stage and its folder.
            model: what to train.
            data: what to train on.
            **trainer: Trainer settings of this stage, such as `max_steps`.
        """
        self._check_supervision(name, model, data)
        folder = self.folder / name
        last = folder / "checkpoints" / "last.ckpt"
        save, clock = Save(last, self.save_every), Clock()
        made = self.make_trainer(folder, [Reseed(self._seed_of(name)), save, clock], **trainer)
        later = (*model.label_settings, *model.later_settings)
        settings = self._describe(model, data, later) | {
            "trainer": {key: getattr(made, key, None) for key in SHAPING}
        }
        if (processes := made.num_devices * made.num_nodes) > 1:  # each has a batch of its own
            settings["processes"] = processes
        self._reopen_if_lost(last)
        if not self._begin(name, settings, steps=made.max_steps):
            start = newest(last.parent)
            save.writer.keep = start == last
            self._continue(name, start, made)
            made.fit(model, datamodule=data, ckpt_path=start)
            metrics = _validate(made, model, data)
            self._end(name, steps=made.global_step, metrics=metrics, minutes=clock.seconds / 60)
        _let_go(model, data)
        return last

    def predict(self, name: str, model: Method, data: pl.LightningDataModule, split: str) -> Path:
        """Let `model` see every image of `split` once, all ranks sharing the work; return its predictions.json.

        Args:
            name: of the stage and its folder.
            model: with a `predict_step` that returns one Prediction per sample.
            data: with a method `dataloader(split, train)`.
            split: "train" or "val".
        """
        folder = self.folder / name
        if not self._begin(name, self._describe(model, data) | {"split": split}):
            made = self.make_trainer(folder)
            made.predict(model, datamodule=Split(data, split), return_predictions=False)
            self._end(name)
            _let_go(model, data)
        return folder / "predictions.json"

    def label(
        self, name: str, model: Method, data: pl.LightningDataModule, score_threshold: float = 0.5
    ) -> Path:
        """Let `model` label every training image, all ranks sharing the work; return its labels.json (COCO instances).

        Args:
            name: of the stage and its folder.
            model: its `label` makes the labels.
            data: what to label.
            score_threshold: lowest score of a label that is not the best of its class.

        Raises:
            InputError: no image has a label.
        """
        folder = self.folder / name
        if not self._begin(
            name,
            self._describe(model, data, model.later_settings)
            | {"score_threshold": score_threshold},
        ):
            made = self.make_trainer(folder)
            made.predict(
                Labeller(model, score_threshold),
                datamodule=Split(data, "train"),
                return_predictions=False,
            )
            if rank() == 0:
                index: Index = data.index("train")  # type: ignore[attr-defined]
                if not write_labels(
                    folder / "labels.json", folder / "predictions.json", index, model, name
                ):
                    raise InputError(
                        f"{folder}: no training image got a label; train the stages before it longer"
                    )
                (folder / "predictions.json").unlink()
            self._end(name)
            _let_go(model, data)
        self._wait_for(name, finished=True)
        return folder / "labels.json"

    def make(self, name: str, produce: Callable[[Path], object], **settings: Any) -> Path:
        """Any other stage: `produce(folder)` writes files, on rank zero alone; returns the folder.

        Args:
            name: of the stage and its folder.
            produce: begins in an empty folder; after a crash, in the folder as it was left.
            **settings: what the result depends on besides the stages before.
        """
        if not self._begin(name, settings):
            if rank() == 0:
                produce(self.folder / name)
            self._end(name)
        self._wait_for(name, finished=True)
        return self.folder / name

    @property
    def names(self) -> list[str]:
        """Of the stages that the method has come to."""
        return [entry.split()[0] for entry in self._history]

    def drop_others(self) -> None:
        """Rank zero: delete stages of other settings, which the method, now at its end, did not come to."""
        for folder, _ in stages(self.folder) if rank() == 0 else ():
            if folder.name not in self.names:
                self.announce(f"{folder.name}: no longer a stage of this run, deleted")
                shutil.rmtree(folder)

    # Books

    def _begin(self, name: str, settings: dict[str, Any], steps: int | None = None) -> bool:
        """Open a stage and tell whether it is finished."""
        if name in self.names:
            raise ValueError(f"two stages are called '{name}'")
        settings = plain(settings, inside=self.folder)
        print_ = fingerprint(settings, self.seed, self._history)
        self._history.append(f"{name} {print_} {steps}")
        if self.only not in (None, name) and not self._can_be_had(name, print_, steps):
            raise OnlyStage(name)
        leads = rank() == 0
        stage = self._open(name, print_, settings, steps) if leads else self._wait_for(name, print_)
        done = bool(stage["finished"])
        self.announce(f"{name}: {'done before' if done else 'working'}")
        pl.seed_everything(
            self._seed_of(name), verbose=False
        )  # whether or not earlier stages ran in this process
        self._since = time.monotonic()
        return done

    def _check_supervision(self, name: str, model: Method, data: pl.LightningDataModule) -> None:
        """Raise InputError if a stage would train on labels that the run's method may not see."""
        beyond = sorted(model.supervision - self.supervision)
        sources: list[Any] = [data, *data.others.values()] if beyond else []  # type: ignore[attr-defined]
        inside = self.folder.resolve()
        labels = [source.relabelled for source in sources]
        if not all(path and path.resolve().is_relative_to(inside) for path in labels):
            raise InputError(
                f"stage '{name}': {type(model).__name__} trains on {', '.join(beyond)}, which a method that learns "
                f"from {describe_supervision(self.supervision)} may not see; give the stage `labels` made in this run"
            )

    def _seed_of(self, name: str) -> int:
        return zlib.crc32(f"{self.seed}/{name}".encode())

    def _open(
        self, name: str, print_: str, settings: dict[str, Any], steps: int | None
    ) -> dict[str, Any]:
        """Rank zero: the stage's entry, made afresh where settings have changed."""
        folder = self.folder / name
        stage = read_stage(folder)
        if stage.get("fingerprint") != print_ and (
            found := self._found_elsewhere(name, print_, steps)
        ):
            self.announce(f"{name}: taken from {found}")
            adopt(found, folder)
            stage = read_stage(folder)
        if stage.get("fingerprint") == print_:
            clear_scratch(folder)
            if stage["finished"] and not _is_done(stage, print_, steps):
                self._prolong(folder, stage, steps)
            return stage
        if stage:
            self.announce(f"{name}: settings or earlier stages have changed, beginning again")
            shutil.rmtree(folder)
        stage = {
            "stage": len(self._history),
            "fingerprint": print_,
            "finished": False,
            "steps": None,
            "settings": settings,
        }
        _write(folder, stage)
        return stage

    def _can_be_had(self, name: str, print_: str, steps: int | None) -> bool:
        """Whether a stage is done, here or where it may be taken from."""
        return _is_done(read_stage(self.folder / name), print_, steps) or bool(
            self._found_elsewhere(name, print_, steps)
        )

    def _found_elsewhere(self, name: str, print_: str, steps: int | None) -> Path | None:
        """Folder in which another run has done just this."""
        for depth in range(4 if self.reuse else 0):  # as deep as runs/MODEL/DATA/TIME
            for entry in sorted(Path(str(self.reuse)).glob(f"{'*/' * depth}{name}/stage.json")):
                checkpoint = entry.parent / "checkpoints" / "last.ckpt"
                lost = checkpoint.parent.is_dir() and not intact(checkpoint)
                if not lost and _is_done(read_stage(entry.parent), print_, steps):
                    return entry.parent
        return None

    def _prolong(self, folder: Path, stage: dict[str, Any], steps: int | None) -> None:
        """Open a finished stage again for more steps."""
        if steps is not None and 0 <= steps < stage["steps"]:
            raise InputError(
                f"{folder} has trained {stage['steps']} steps; ask for more than {steps}, or for another --run_dir"
            )
        stage["finished"] = False
        _write(folder, stage)

    def _reopen_if_lost(self, checkpoint: Path) -> None:
        """Rank zero: a finished stage whose checkpoint is gone or damaged is not finished."""
        folder = checkpoint.parents[1]
        stage = read_stage(folder)
        if rank() == 0 and stage.get("finished") and not intact(checkpoint):
            _write(folder, stage | {"finished": False})

    def _end(self, name: str, **facts: Any) -> None:
        """Rank zero: the stage is finished; what it cost is kept for comparisons."""
        if rank() == 0:
            folder = self.folder / name
            cost = {"minutes": (time.monotonic() - self._since) / 60, "memory": peak_memory()}
            facts = cost | {"device": device(), "commit": commit()} | facts
            if facts.get("metrics"):
                with whole(folder / "metrics.json") as scratch:
                    scratch.write_text(json.dumps(facts["metrics"], indent=1))
            _write(folder, read_stage(folder) | facts | {"finished": True})
        pl.seed_everything(
            self._seed_of(f"after {name}"), verbose=False
        )  # what is built next must not depend on this stage

    def _wait_for(
        self, name: str, print_: str | None = None, finished: bool = False
    ) -> dict[str, Any]:
        """Another rank: wait until rank zero has opened, or finished, the stage."""
        parent = os.getppid()
        while True:
            stage = read_stage(self.folder / name)
            if (
                stage
                and print_ in (None, stage["fingerprint"])
                and (stage["finished"] or not finished)
            ):
                return stage
            if (
                os.getppid() != parent
            ):  # the process that started this one is gone, and rank zero with it
                raise SystemExit(f"rank {rank()}: rank zero has ended")
            time.sleep(POLL)

    def _describe(
        self, model: Method, data: pl.LightningDataModule, not_for: Collection[str] = ()
    ) -> dict[str, Any]:
        """What shapes the result, as far as model and data tell; settings that a model has for other stages do not."""
        told = data.fingerprint() if hasattr(data, "fingerprint") else dict(data.hparams)
        left_out = {*not_for, *model.data_settings}
        hparams = {name: value for name, value in model.hparams.items() if name not in left_out}
        return {"model": _path(model), "hparams": hparams, "data": [_path(data), told]}

    def _continue(self, name: str, start: Path | None, trainer: pl.Trainer) -> None:
        """Say where training goes on, and forget what was logged beyond it."""
        step = 0
        if start is not None:
            step = int(
                torch.load(start, map_location="cpu", weights_only=True, mmap=True)["global_step"]
            )
            if start.name == "previous.ckpt":
                self.announce(
                    f"{name}: last.ckpt is missing or damaged, going back to the checkpoint before it"
                )
            self.announce(f"{name}: continuing at step {step}")
        for logger in trainer.loggers:
            if isinstance(logger, CSV):
                logger.rewind(step)


class Split(pl.LightningDataModule):
    """One split of a data module, for prediction."""

    def __init__(self, data: Any, split: str) -> None:
        super().__init__()
        self.data, self.split = data, split

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["data"], name)

    def prepare_data(self) -> None:
        """Make what the split needs, in one process."""
        self.data.prepare_data()
        self.predict_dataloader()

    def predict_dataloader(self) -> Any:
        """Every image once, this rank's share."""
        self.data.trainer = self.trainer
        return self.data.dataloader(self.split, train=False)


def _let_go(model: Method, data: pl.LightningDataModule) -> None:
    """Free what a stage's trainer held: optimiser state, gradients, the device's memory."""
    model.trainer = data.trainer = None
    model.zero_grad(set_to_none=True)
    gc.collect()
    torch.cuda.empty_cache()


def _path(thing: object) -> str:
    return f"{type(thing).__module__}.{type(thing).__qualname__}"


def rank() -> int:
    """Number of this process among those that train together."""
    return int(getattr(rank_zero_only, "rank", 0) or 0)


def stages(run: Path) -> list[tuple[Path, dict[str, Any]]]:
    """Folders and entries of a run's stages, in order."""
    found = [(path.parent, read_stage(path.parent)) for path in run.glob("*/stage.json")]
    return sorted(found, key=lambda item: int(item[1]["stage"]))


def adopt(stage: Path, folder: Path) -> None:
    """Copy a finished stage of another run to `folder`, in one step."""
    scratch = folder.parent / ".taken" / folder.name
    for old in (scratch, folder):
        shutil.rmtree(old, ignore_errors=True)
    shutil.copytree(
        stage, scratch, ignore=shutil.ignore_patterns("wandb"), copy_function=shutil.copy
    )  # as new as it is here
    scratch.rename(folder)
    scratch.parent.rmdir()


def read_stage(folder: Path) -> dict[str, Any]:
    """A stage's entry, {} if it has not begun.

    Raises:
        InputError: it is damaged.
    """
    try:
        return dict(json.loads((folder / "stage.json").read_text()))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise InputError(
            f"{folder / 'stage.json'} is damaged; delete {folder} to begin this stage again"
        ) from error


def _is_done(stage: dict[str, Any], print_: str, steps: int | None) -> bool:
    """Whether a stage's entry says that just this has been done; `steps` is -1 where epochs count, None without training."""
    return (
        stage.get("fingerprint") == print_
        and stage["finished"]
        and steps in (None, -1, stage["steps"])
    )


def _write(folder: Path, stage: dict[str, Any]) -> None:
    with whole(folder / "stage.json") as scratch:
        scratch.write_text(json.dumps(stage, indent=1))


def _validate(trainer: pl.Trainer, model: Method, data: pl.LightningDataModule) -> dict[str, float]:
    """Metrics after training; none where model or data have no validation."""
    if not model.validates() or type(data).val_dataloader is pl.LightningDataModule.val_dataloader:
        return {}
    loop = trainer.fit_loop.epoch_loop
    loop._batches_that_stepped = (
        trainer.global_step
    )  # what loggers get as step; Lightning forgets one where no step is left
    trainer.validate(model, datamodule=data, verbose=False)
    return {name: float(value) for name, value in trainer.callback_metrics.items()}
