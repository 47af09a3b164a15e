"""What the result of a stage depends on besides the stages before: model, data, trainer."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import pytorch_lightning as pl

from wsis.method import Method
from wsis.registry import path_of

__all__ = ["SHAPING", "describe", "shaping"]

SHAPING = (
    "max_epochs",
    "accumulate_grad_batches",
    "gradient_clip_val",
    "gradient_clip_algorithm",
    "precision",
    "limit_train_batches",
    "overfit_batches",
)
"""Settings of a Trainer that influence the weights. The number of steps is not among them, since a
stage can be prolonged."""


def describe(
    model: Method, data: pl.LightningDataModule, left_out: Collection[str] = ()
) -> dict[str, Any]:
    """Return the settings of model and data that the result of a stage depends on.

    Args:
        model: of the stage.
        data: of the stage.
        left_out: settings of the model that only other stages read.
    """
    content = data.fingerprint() if hasattr(data, "fingerprint") else dict(data.hparams)
    unread = {*left_out, *model.data_settings}
    hparams = {name: value for name, value in model.hparams.items() if name not in unread}
    return {"model": path_of(model), "hparams": hparams, "data": [path_of(data), content]}


def shaping(trainer: pl.Trainer) -> dict[str, Any]:
    """Return the trainer's settings that influence the weights.

    The number of processes is one of them, as each has its own batch.
    """
    settings: dict[str, Any] = {name: getattr(trainer, name, None) for name in SHAPING}
    processes = trainer.num_devices * trainer.num_nodes
    return {"trainer": settings} | ({"processes": processes} if processes > 1 else {})
