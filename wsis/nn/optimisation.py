"""How the weakly supervised methods are optimised: biases learn at twice the rate without decay, the rate falls in steps."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import pytorch_lightning as pl
import torch

__all__ = ["Optimiser", "optimise", "rate"]

Optimiser = Literal["sgd", "adamw"]


def optimise(module: pl.LightningModule) -> Any:
    """Give what `configure_optimizers` returns, as the code of PDSL and JTSM has it.

    Args:
        module: what is trained, frozen parameters left out. Its settings say how: `optimiser`, SGD with momentum 0.9 or AdamW;
            `lr` and `weight_decay` of weights; `warmup` and `decay_at`, as in `rate`, of the trainer's schedule.
    """
    how, lr, weight_decay, warmup, decay_at = (
        module.hparams[name] for name in ("optimiser", "lr", "weight_decay", "warmup", "decay_at")
    )
    trained = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    groups = [
        {
            "params": [p for name, p in trained if not name.endswith("bias")],
            "weight_decay": weight_decay,
        },
        {
            "params": [p for name, p in trained if name.endswith("bias")],
            "lr": 2 * lr,
            "weight_decay": 0.0,
        },
    ]
    optimiser = (
        torch.optim.SGD(groups, lr=lr, momentum=0.9)
        if how == "sgd"
        else torch.optim.AdamW(groups, lr=lr)
    )
    steps = int(module.trainer.estimated_stepping_batches)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, partial(rate, steps=steps, warmup=warmup, decay_at=decay_at)
    )
    return [optimiser], [{"scheduler": schedule, "interval": "step"}]


def rate(step: int, steps: int, warmup: float, decay_at: Sequence[float]) -> float:
    """Factor of the learning rate: up from nothing over a fraction `warmup` of `steps`, to a tenth at each of `decay_at`."""
    rising = min(1.0, (step + 1) / (warmup * steps)) if warmup else 1.0
    return rising * 0.1 ** sum(step >= round(at * steps) for at in decay_at)
