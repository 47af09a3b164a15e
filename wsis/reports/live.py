"""The page of a run while it trains: how far it is, curves, and what the model finds now."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.strategies import DDPStrategy
from pytorch_lightning.utilities.seed import isolate_rng

from wsis.data.module import DataModule
from wsis.data.samples import Samples
from wsis.errors import InputError
from wsis.inference import UNKNOWN_THRESHOLD
from wsis.metrics.errors import break_down
from wsis.metrics.evaluation import Evaluation
from wsis.reports.curves import curves_of
from wsis.reports.document import Section, gallery_section, page_data, write_document
from wsis.reports.evaluation import ground_truth, has_truth, image_tags
from wsis.reports.gallery import NO_PICTURES, make_gallery, rank_images
from wsis.reports.markup import plain_table
from wsis.reports.panels import source_of_method, source_of_truth
from wsis.reports.table import METRICS, percent
from wsis.runs.progress import Pace, describe
from wsis.runs.record import stages
from wsis.runs.run import rank
from wsis.types import Index, Prediction

__all__ = ["LivePage", "Watcher"]

EVERY = 120.0
"""Seconds from one page to the next, at least."""
SPARING = 20
"""Pages take at most one part in so many of the time."""
PICTURES = 6
REFRESH = 60
"""Seconds after which a browser loads the page again."""


class LivePage:
    """`progress.html` in the folder of a run, kept up to date by one process.

    Args:
        run: folder of the run.
        title: heading of the page.
    """

    def __init__(self, run: Path, title: str) -> None:
        self.run, self.title, self.path = run, title, run / "progress.html"
        self._now = "beginning"
        self._written = False
        self._pictures: dict[str, Any] = page_data([title], [], 0, NO_PICTURES)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Write the page at the end, too, so that it no longer loads itself again."""
        if not self.path.exists():
            self.write(self._now)
        try:
            yield
        except BaseException:
            if self._written:
                with suppress(InputError):  # of a full disk; the first error says more
                    self.write(f"stopped; last {self._now}", running=False)
            raise
        if self._written:
            told = f"python -m wsis.test --run {self.run} judges all images"
            self.write(f"finished; {told}", running=False)

    def watching(self, make_trainer: Callable[..., pl.Trainer]) -> Callable[..., pl.Trainer]:
        """Return a function that makes the same trainers, which write this page."""

        def make(folder: Path, callbacks: Sequence[Callback] = (), **settings: Any) -> pl.Trainer:
            return make_trainer(folder, [*callbacks, Watcher(self, folder.name)], **settings)

        return make

    def write(self, now: str, pictures: dict[str, Any] | None = None, running: bool = True) -> None:
        """Write the page, on the first rank.

        Args:
            now: how far the run is.
            pictures: from `page_data`; those of the last page if None.
            running: whether a browser is to load the page again.
        """
        if rank():
            return
        self._now, self._written = now, True
        self._pictures = pictures or self._pictures
        count = len(self._pictures["images"])
        note = f"{now}. Written at {datetime.now():%H:%M:%S}"
        note += f", loaded again every {REFRESH} seconds." if running else "."
        shown = "What the model found in a few images when it was last looked at."
        curves = curves_of(self.run)
        sections = [
            Section("now", "Progress", note, plain_table(_stage_lines(self.run))),
            *([gallery_section(shown, count)] if count else ()),
            *([Section("runs", "Training", "", curves)] if curves else ()),
        ]
        refresh = REFRESH if running else 0
        write_document(self.path, self.title, str(self.run), sections, self._pictures, refresh)


def _stage_lines(run: Path) -> list[list[str]]:
    """Return a table of the stages that have begun."""
    lines = [["stage", "", "steps", "minutes", "metrics"]]
    for folder, stage in stages(run):
        state = "finished" if stage.finished else "begun"
        steps = "-" if stage.steps is None else str(stage.steps)
        minutes = "-" if stage.minutes is None else f"{stage.minutes:.1f}"
        lines.append([folder.name, state, steps, minutes, _in_words(stage.metrics)])
    return lines


def _in_words(metrics: Mapping[str, float]) -> str:
    names = [f"{split}/{name}" for split in ("val", "train") for name in (*METRICS, "mAP")]
    shown = [f"{name} {percent(metrics[name])}" for name in names if name in metrics]
    return ", ".join(shown) or "-"


class Watcher(Callback):
    """Write the page as a stage begins and ends, after validations, and now and then between.

    Nothing that is computed depends on it: generators, and the modes of all modules, are left as
    they are found.

    Args:
        page: of the run.
        stage: name of the stage.
        every: seconds from one page to the next, at least.
    """

    def __init__(self, page: LivePage, stage: str, every: float = EVERY) -> None:
        self.page, self.stage, self.every = page, stage, every
        self._next, self._pace = 0.0, Pace(0)
        self._looked_at: tuple[Index, Samples, list[int]] | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the page; the first pictures come sooner than later ones."""
        self._pace = Pace(trainer.global_step)
        self._write(trainer, None)
        self._next = time.monotonic() + self.every / 3

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, i: int
    ) -> None:
        """Write the page with pictures, if it is time."""
        if time.monotonic() >= self._next:
            self._write(trainer, pl_module)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the page; in training after the next step, when the metrics have been logged."""
        if trainer.state.fn == "fit":
            self._next = 0.0
        elif not trainer.sanity_checking:
            self._write(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the page; a validation follows if there is anything to draw."""
        self._write(trainer, None)

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write that images are predicted."""
        self.page.write(f"{self.stage}: predicting images")

    def _write(self, trainer: pl.Trainer, model: Any) -> None:
        """Write the page, with pictures of the model if it is given."""
        if not trainer.is_global_zero:
            return
        start = time.monotonic()
        pictures = None if model is None else self._draw(trainer, model)
        self.page.write(f"{self.stage}: {describe(trainer, self._pace)}", pictures)
        end = time.monotonic()
        self._next = end + max(self.every, SPARING * (end - start))

    def _draw(self, trainer: pl.Trainer, model: Any) -> dict[str, Any] | None:
        """Return what the script reads of the model's predictions; None if it makes none."""
        self._looked_at = self._looked_at or _look_at(trainer, model)
        if self._looked_at is None:
            return None
        index, samples, positions = self._looked_at
        predictions = []
        with isolate_rng(), _evaluating(model), trainer.precision_plugin.val_step_context():
            for number, i in enumerate(positions):
                batch = trainer.strategy.batch_to_device([samples.sample(i)])
                predictions += model.predict_step(batch, number)
        return _pictures(self.stage, index, predictions, _threshold(trainer, model))


def _look_at(trainer: pl.Trainer, model: Any) -> tuple[Index, Samples, list[int]] | None:
    """Return a few images, all samples, and the images' positions in them.

    They lie evenly apart in the validation split, or in the training split without one.
    """
    data = getattr(trainer, "datamodule", None)
    apart = trainer.world_size > 1 and not isinstance(trainer.strategy, DDPStrategy)
    if apart or not isinstance(data, DataModule) or not model.predicts():
        return None  # a model in parts cannot predict on one rank
    split = "val" if data.has_val else "train"
    index = data.index(split)
    if model.needs_boxes and not has_truth(index):
        return None
    last, count = len(index.images) - 1, min(PICTURES, len(index.images))
    positions = np.linspace(0, last, count).round().astype(int).tolist()
    few = index._replace(images=[index.images[i] for i in positions])
    return few, data.samples(split, train=False), positions


@contextmanager
def _evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Put all modules into evaluation mode, and each back into its own afterwards."""
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        with torch.no_grad():
            yield
    finally:
        for module, training in modes.items():
            module.training = training


def _threshold(trainer: pl.Trainer, model: Any) -> float:
    """Return the score of the best F1 in the last validation, if there has been one."""
    if model.needs_boxes:
        return -np.inf
    figures: dict[str, Any] = {}
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, Evaluation):
            figures = callback.figures
    score = float(figures.get("F1_threshold", np.nan))
    return score if np.isfinite(score) else UNKNOWN_THRESHOLD


def _pictures(
    stage: str, index: Index, predictions: Sequence[Prediction], threshold: float
) -> dict[str, Any]:
    names = [category["name"] for category in (*index.categories, *index.stuff)]
    truths, errors, sources = ground_truth(index), None, []
    if has_truth(index):
        sources = [source_of_truth(truths)]
        if np.isfinite(threshold):
            errors = break_down(predictions, truths, len(index.categories))
    sources.append(source_of_method(stage, 0, predictions, errors, threshold))
    known = None if has_truth(index) else image_tags(index)
    ranked = rank_images(sources, len(index.images), len(index.images), known)
    gallery = make_gallery(index, sources, dict(sorted(ranked.items())))
    return page_data([stage], names, len(index.categories), gallery)
