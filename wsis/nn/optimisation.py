"""Optimiser and learning rate schedule of the weakly supervised methods.

Biases learn at twice the rate and without weight decay; the rate falls in steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import pytorch_lightning as pl
import torch

from wsis.values import FRACTION, NOT_NEGATIVE, POSITIVE, check_ranges

__all__ = ["Optimisation", "falling", "optimise", "rate"]

_RANGES = {
    POSITIVE: ("lr",),
    NOT_NEGATIVE: ("weight_decay",),
    FRACTION: ("warmup", "decay_at"),
}


@dataclass(frozen=True)
class Optimisation:
    """Settings of the optimiser and its schedule.

    Args:
        optimiser: SGD with momentum 0.9, as in the papers, or AdamW for short schedules.
        lr: Learning rate of weights; biases learn at twice the rate.
        warmup: Fraction of the schedule over which the learning rate rises from 0.
        weight_decay: Weight decay; biases have none.
        decay_at: Fractions of the schedule at which the learning rate falls to a tenth.
    """

    optimiser: Literal["sgd", "adamw"] = "sgd"
    lr: float = 0.01
    warmup: float = 0.0
    weight_decay: float = 5e-4
    decay_at: tuple[float, ...] = (0.7,)

    def __post_init__(self) -> None:
        """Raise InputError for impossible numbers."""
        check_ranges("optimisation", vars(self), _RANGES)


def optimise(module: pl.LightningModule, settings: Optimisation) -> Any:
    """Return the value of `configure_optimizers`, as in the authors' code of PDSL and JTSM.

    Frozen parameters are excluded.
    """
    lr, weight_decay = settings.lr, settings.weight_decay
    trained = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    weights = [p for name, p in trained if not name.endswith("bias")]
    biases = [p for name, p in trained if name.endswith("bias")]
    groups: list[dict[str, Any]] = [
        {"params": weights, "weight_decay": weight_decay},
        {"params": biases, "lr": 2 * lr, "weight_decay": 0.0},
    ]
    optimiser: torch.optim.Optimizer
    if settings.optimiser == "sgd":
        optimiser = torch.optim.SGD(groups, lr=lr, momentum=0.9)
    else:
        optimiser = torch.optim.AdamW(groups, lr=lr)
    steps = int(module.trainer.estimated_stepping_batches)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, partial(rate, steps=steps, warmup=settings.warmup, decay_at=settings.decay_at)
    )
    return [optimiser], [{"scheduler": schedule, "interval": "step"}]


def rate(step: int, steps: int, warmup: float, decay_at: Sequence[float]) -> float:
    """Return the factor on the learning rate at a step.

    It rises from 0 over a fraction `warmup` of `steps`, and falls to a tenth at each of `decay_at`.
    """
    rising = min(1.0, (step + 1) / (warmup * steps)) if warmup else 1.0
    return rising * 0.1 ** sum(step >= round(at * steps) for at in decay_at)


def falling(step: int, steps: int, warmup: float) -> float:
    """Return the factor that rises as in `rate`, and falls to 0 with a power of 0.9."""
    return rate(step, steps, warmup, ()) * max(0.0, 1 - step / steps) ** 0.9
