"""The callback that evaluates a model while Lightning runs it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import Logger
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from wsis.metrics.instances import CorLoc, InstanceAP
from wsis.metrics.panoptic import PanopticQuality
from wsis.metrics.panoptic_results import store_map, write_panoptic
from wsis.metrics.results import to_results, write_results
from wsis.metrics.states import from_lines, to_lines
from wsis.types import Batch, Prediction

if TYPE_CHECKING:
    from wsis.images.draw import Picture

__all__ = ["Evaluation"]


class Evaluation(Callback):
    """Judges the predictions that `validation_step`, `test_step` and `predict_step` return, and stores those of the last two.

    Steps return `list[Prediction]`, one per sample of the batch. Where samples carry a truth, figures are logged as `val/AP50`,
    `val/CorLoc`, ..., or `test/...`; after test and predict `predictions.json` (COCO results) lies in the trainer's
    `default_root_dir`, and panoptic.json with its pngs where predictions have panoptic maps. In validation the first images are
    drawn for every logger that takes pictures.

    Args:
        metrics: what to compute; InstanceAP and CorLoc when None, and PanopticQuality of a model with `panoptic = True`.
        pictures: how many images to draw in each validation, at most 8.
        least_score: detections below this score are not drawn.
    """

    def __init__(
        self, metrics: Sequence[Metric] | None = None, pictures: int = 8, least_score: float = 0.3
    ) -> None:
        self.metrics = list(metrics) if metrics is not None else None
        self.pictures, self.least_score = min(pictures, 8), least_score
        self.figures: dict[str, Tensor] = {}
        """All figures of the last validation or test, per-class ones included."""
        self._results = _Results()
        self._drawn: list[Picture] = []

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Make the default metrics, which need to know how many classes there are."""
        if self.metrics is None:
            data = _data(trainer)
            classes = getattr(data, "num_classes", None)
            self.metrics = [InstanceAP(classes), CorLoc(classes)]
            if classes and pl_module.panoptic:
                self.metrics.append(PanopticQuality(classes, getattr(data, "num_stuff", 0)))

    def _begin(self, module: pl.LightningModule) -> None:
        self._drawn = []
        for metric in (*(self.metrics or ()), self._results):
            metric.to(module.device)
            metric.reset()
            metric.update([], [])  # so that a rank that sees no image has a state to exchange

    def _judge(self, predictions: list[Prediction], batch: Batch) -> None:
        judged = [(p, s["truth"]) for p, s in zip(predictions, batch, strict=True) if "truth" in s]
        for metric in self.metrics or ():
            metric.update([p for p, _ in judged], [t for _, t in judged])

    def _end(self, module: pl.LightningModule, prefix: str) -> None:
        self.figures = {
            name: value for metric in self.metrics or () for name, value in metric.compute().items()
        }
        scalars = {
            f"{prefix}/{n}": v for n, v in self.figures.items() if v.ndim == 0 and not v.isnan()
        }
        module.log_dict({name: value.float() for name, value in scalars.items()}, sync_dist=True)

    def _keep(self, trainer: pl.Trainer, predictions: list[Prediction]) -> None:
        things, stuff = _classes(trainer)
        numbers = [category["id"] for category in (*things, *stuff)] or range(
            1 << 31
        )  # classes themselves without data module
        maps = [
            store_map(Path(trainer.default_root_dir), prediction, numbers)
            for prediction in predictions
        ]
        self._results.update(predictions, numbers, maps)

    def _store(self, trainer: pl.Trainer) -> None:
        lines = self._results.compute()
        if trainer.is_global_zero:
            records, folder = from_lines(lines), Path(trainer.default_root_dir)
            write_results(
                folder / "predictions.json",
                [result for record in records for result in record["results"]],
            )
            write_panoptic(
                folder, [r["panoptic"] for r in records if r["panoptic"]], *_classes(trainer)
            )

    def _draw(self, trainer: pl.Trainer, predictions: list[Prediction], batch: Batch) -> None:
        from wsis.images import draw  # loads an image library, which most runs do without

        names, stuff = ([category["name"] for category in part] for part in _classes(trainer))
        for prediction, sample in list(zip(predictions, batch, strict=True))[
            : self.pictures - len(self._drawn)
        ]:
            image, truth = sample["image"], sample.get("truth")
            sides = {
                "prediction": draw.overlay(
                    image, prediction, names, self.least_score, long_side=512
                )
            }
            if truth:
                sides["truth"] = draw.overlay(image, truth, names, long_side=512)
            if prediction.panoptic is not None:
                sides["panoptic prediction"] = draw.overlay_panoptic(
                    image, prediction.panoptic, names, stuff, long_side=512
                )
            if truth and truth.panoptic is not None:
                sides["panoptic truth"] = draw.overlay_panoptic(
                    image, truth.panoptic, names, stuff, long_side=512
                )
            self._drawn.append(draw.grid(list(sides.values()), captions=list(sides)))

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Forget the last epoch."""
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
        """Judge a batch, and draw it if it is among the first."""
        self._judge(_checked(outputs, batch), batch)
        if _takers(trainer):
            self._draw(trainer, outputs, batch)

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Judge and keep a batch."""
        self._judge(_checked(outputs, batch), batch)
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
        self._end(pl_module, "val")
        for number, picture in enumerate(self._drawn):
            for logger in _takers(trainer):
                _show(logger, f"val/pictures/{number}", picture, trainer.global_step)

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log `test/...` and write the predictions."""
        self._end(pl_module, "test")
        self._store(trainer)

    def on_predict_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the predictions."""
        self._store(trainer)


class _Results(Metric):
    """COCO results of all ranks, and annotations of their panoptic maps, in the order in which images came."""

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
        return dim_zero_cat(
            self.lines
        )  # bytes: torchmetrics would walk through every value of a list of records


def _checked(outputs: Any, batch: Batch) -> list[Prediction]:
    if (
        isinstance(outputs, list)
        and len(outputs) == len(batch)
        and all(isinstance(o, Prediction) for o in outputs)
    ):
        return outputs
    raise TypeError(
        f"Evaluation needs a list of one Prediction per sample, but the step returned {type(outputs).__name__}"
    )


def _takers(trainer: pl.Trainer) -> list[Logger]:
    """This process's loggers that take pictures: W&B's and TensorBoard's ways are known."""
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
    """The data set's things and stuff; none where there is no data module to ask."""
    return getattr(_data(trainer), "categories", ()), getattr(_data(trainer), "stuff", ())
