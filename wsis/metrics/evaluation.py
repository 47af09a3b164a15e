"""The callback that evaluates a model while Lightning runs it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import Logger
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from wsis.metrics.instances import detection_metrics
from wsis.metrics.panoptic import PanopticQuality
from wsis.metrics.panoptic_results import store_map, write_panoptic
from wsis.metrics.results import to_results, write_results
from wsis.metrics.states import from_lines, to_lines
from wsis.metrics.tags import DetectionTags
from wsis.types import Batch, Prediction, Sample

if TYPE_CHECKING:
    from wsis.images.draw import Picture

__all__ = ["Evaluation"]


class Evaluation(Callback):
    """Evaluate a model's predictions in validation and test, and store them in test and predict.

    `validation_step`, `test_step` and `predict_step` return `list[Prediction]`, one per sample of
    the batch. If samples have a `truth`, metrics are logged as `val/AP50`, `val/CorLoc`, ..., or
    `test/...`. Test and predict write `predictions.json` (COCO results) to the trainer's
    `default_root_dir`, and panoptic.json with its pngs if predictions have panoptic maps.
    Validation draws the first images for every logger that takes pictures, from the score of the
    best F1 on. Where there is no truth, tags tell that score, and `tag_mAP` how well classes are
    found.

    Args:
        metrics: metrics to compute; by default `detection_metrics`, and PanopticQuality for a model
            with `panoptic = True`.
        pictures: number of images to draw in each validation, at most 8.
    """

    def __init__(
        self,
        metrics: Sequence[Metric] | None = None,
        pictures: int = 8,
    ) -> None:
        self.metrics = list(metrics) if metrics is not None else None
        self.pictures = min(pictures, 8)
        self.prefix = "val"
        """Of the names of validation metrics: the split that is looked at."""
        self.figures: dict[str, Tensor] = {}
        """All metrics of the last validation or test, including those per class."""
        self._results, self._tags = _Results(), DetectionTags()
        self._shown: list[tuple[Prediction, Sample]] = []

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Create the default metrics, which need the data's number of classes."""
        if self.metrics is None:
            data = _data(trainer)
            classes = getattr(data, "num_classes", None)
            self.metrics = detection_metrics(classes)
            if classes and pl_module.panoptic:
                self.metrics.append(PanopticQuality(classes, getattr(data, "num_stuff", 0)))

    def _begin(self, module: pl.LightningModule) -> None:
        self._shown = []
        for metric in (*(self.metrics or ()), self._results, self._tags):
            metric.to(module.device)
            metric.reset()
            metric.update([], [])  # so that a rank without images has a state to exchange

    def _evaluate(self, predictions: list[Prediction], batch: Batch) -> None:
        judged = [(p, s["truth"]) for p, s in zip(predictions, batch, strict=True) if "truth" in s]
        for metric in self.metrics or ():
            metric.update([p for p, _ in judged], [t for _, t in judged])
        if all("tags" in sample.get("target", {}) for sample in batch):
            self._tags.update(predictions, [sample["target"]["tags"] for sample in batch])

    def _end(self, module: pl.LightningModule, prefix: str) -> None:
        self.figures = {}
        for metric in self.metrics or ():
            self.figures |= metric.compute()
        if not self.figures.get("F1_threshold", torch.tensor(torch.nan)).isfinite():
            self.figures |= self._tags.compute()
        scalars = {
            f"{prefix}/{name}": value.float()
            for name, value in self.figures.items()
            if value.ndim == 0 and not value.isnan()
        }
        module.log_dict(scalars, sync_dist=True)

    def _keep(self, trainer: pl.Trainer, predictions: list[Prediction]) -> None:
        things, stuff = _classes(trainer)
        # without a data module a class is its own id
        ids = [category["id"] for category in (*things, *stuff)] or range(1 << 31)
        folder = Path(trainer.default_root_dir)
        maps = [store_map(folder, prediction, ids) for prediction in predictions]
        self._results.update(predictions, ids, maps)

    def _store(self, trainer: pl.Trainer) -> None:
        lines = self._results.compute()
        if trainer.is_global_zero:
            records, folder = from_lines(lines), Path(trainer.default_root_dir)
            results = [result for record in records for result in record["results"]]
            write_results(folder / "predictions.json", results)
            annotations = [record["panoptic"] for record in records if record["panoptic"]]
            write_panoptic(folder, annotations, *_classes(trainer))

    def _draw(self, trainer: pl.Trainer) -> Iterator[Picture]:
        """Draw the images that were kept, from the score of the best F1 on."""
        from wsis.images import draw  # loads an image library, which most runs do not need

        names, stuff = ([category["name"] for category in part] for part in _classes(trainer))
        overlay = partial(draw.overlay, names=names, long_side=512)
        overlay_map = partial(draw.overlay_panoptic, things=names, stuff=stuff, long_side=512)
        threshold = float(self.figures.get("F1_threshold", 0))
        for prediction, sample in self._shown:
            image, truth = sample["image"], sample.get("truth")
            sides = {"prediction": overlay(image, prediction, score_threshold=threshold)}
            if truth:
                sides["truth"] = overlay(image, truth)
            if prediction.panoptic is not None:
                sides["panoptic prediction"] = overlay_map(image, prediction.panoptic)
            if truth and truth.panoptic is not None:
                sides["panoptic truth"] = overlay_map(image, truth.panoptic)
            yield draw.grid(list(sides.values()), captions=list(sides))

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Reset the metrics."""
        self._begin(pl_module)

    on_test_epoch_start = on_validation_epoch_start
    on_predict_epoch_start = on_validation_epoch_start

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Evaluate a batch, and keep its images until there are enough to draw."""
        self._evaluate(_checked(outputs, batch), batch)
        if _picture_loggers(trainer):
            wanted = self.pictures - len(self._shown)
            self._shown += list(zip(outputs, batch, strict=True))[:wanted]

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Evaluate and keep a batch."""
        self._evaluate(_checked(outputs, batch), batch)
        self._keep(trainer, outputs)

    def on_predict_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep a batch."""
        self._keep(trainer, _checked(outputs, batch))

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log `val/...` and the pictures."""
        self._end(pl_module, self.prefix)
        for number, picture in enumerate(self._draw(trainer) if self._shown else ()):
            for logger in _picture_loggers(trainer):
                _show(logger, f"{self.prefix}/pictures/{number}", picture, trainer.global_step)
        self._shown = []

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log `test/...` and write the predictions."""
        self._end(pl_module, "test")
        self._store(trainer)

    def on_predict_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the predictions."""
        self._store(trainer)


class _Results(Metric):
    """COCO results and annotations of panoptic maps, of all ranks, in the order of the images."""

    full_state_update = False
    lines: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("lines", [], dist_reduce_fx="cat")

    def update(
        self,
        predictions: Sequence[Prediction],
        category_ids: Sequence[int],
        maps: Sequence[dict[str, Any] | None] = (),
    ) -> None:
        records = [
            {
                "image_id": prediction.image_id,
                "results": to_results(prediction, category_ids),
                "panoptic": panoptic,
            }
            for prediction, panoptic in zip(predictions, maps, strict=True)
        ]
        self.lines.append(to_lines(records).to(self.device))

    def compute(self) -> Tensor:
        # bytes, since torchmetrics would walk through every value of a list of records
        return dim_zero_cat(self.lines)


def _checked(outputs: Any, batch: Batch) -> list[Prediction]:
    complete = isinstance(outputs, list) and len(outputs) == len(batch)
    if complete and all(isinstance(output, Prediction) for output in outputs):
        return cast("list[Prediction]", outputs)
    raise TypeError(
        "Evaluation needs a list of one Prediction per sample, but the step returned "
        f"{type(outputs).__name__}"
    )


def _picture_loggers(trainer: pl.Trainer) -> list[Logger]:
    """Return this process's loggers that take pictures as those of W&B or TensorBoard do."""
    if trainer.sanity_checking or not trainer.is_global_zero:
        return []
    return [
        logger
        for logger in trainer.loggers
        if hasattr(logger, "log_image") or hasattr(_experiment(logger), "add_image")
    ]


def _show(logger: Logger, name: str, picture: Picture, step: int) -> None:
    if hasattr(logger, "log_image"):
        logger.log_image(name, [picture], step)
    else:
        _experiment(logger).add_image(name, picture, step, dataformats="HWC")


def _experiment(logger: Logger) -> Any:
    return getattr(logger, "experiment", None)


def _data(trainer: pl.Trainer) -> Any:
    return getattr(trainer, "datamodule", None)


def _classes(trainer: pl.Trainer) -> tuple[Sequence[dict[str, Any]], Sequence[dict[str, Any]]]:
    """Return the data set's things and stuff; both empty without a data module."""
    return getattr(_data(trainer), "categories", ()), getattr(_data(trainer), "stuff", ())
