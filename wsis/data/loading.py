"""The data loader: its settings, and batches of samples in an order that a resumed run repeats."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import cv2
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from wsis.data.samplers import OrderSampler, StepSampler
from wsis.data.samples import Samples
from wsis.types import Batch
from wsis.values import COUNT, WHOLE, check_ranges

__all__ = ["Loading", "batches"]


@dataclass(frozen=True)
class Loading:
    """Settings of the data loader.

    Args:
        batch_size: Images per step and process.
        workers: Loader processes; 0 loads the same batches in the training process.
        seed: Seed of the order of images and of all augmentation.
    """

    batch_size: int = 4
    workers: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        """Raise InputError for impossible counts."""
        check_ranges("loading", vars(self), {COUNT: ("batch_size",), WHOLE: ("workers", "seed")})


def batches(
    samples: Samples, loading: Loading, trainer: pl.Trainer | None, train: bool, steps: int = 0
) -> DataLoader[Batch]:
    """Return batches of samples: in (seed, step) order for training, else every image once.

    Args:
        samples: of a split.
        loading: settings.
        trainer: says which part of the images is this process's, and where a resumed run is.
        train: whether the batches are for training.
        steps: batches per epoch if the trainer counts epochs; 0 shows each image once.
    """
    rank, world = (trainer.global_rank, trainer.world_size) if trainer else (0, 1)
    if loading.workers:
        cv2.setNumThreads(0)  # here, because a forked child that touches OpenCV's threads hangs
    sampler: StepSampler | OrderSampler
    sampler = OrderSampler(len(samples), loading.batch_size, rank, world)
    if train:
        sampler = _step_sampler(len(samples), loading, trainer, steps)
    return DataLoader(
        samples,
        batch_size=None,  # a key of the sampler is already a batch
        sampler=cast(Any, sampler),
        collate_fn=_as_is,  # the default turns tuples into lists
        num_workers=loading.workers,
        worker_init_fn=_begin_worker,
        # without one the loader draws from the model's generator
        generator=torch.Generator().manual_seed(loading.seed),
        pin_memory=torch.cuda.is_available(),
    )


def _step_sampler(
    images: int, loading: Loading, trainer: pl.Trainer | None, steps: int
) -> StepSampler:
    """Return the training sampler; `steps` is the batches per epoch, 0 for the default."""
    seed, batch_size = loading.seed, loading.batch_size
    if trainer is None:
        return StepSampler(images, batch_size, seed, steps or -(-images // batch_size))
    rank, world, accumulate = (
        trainer.global_rank,
        trainer.world_size,
        trainer.accumulate_grad_batches,
    )
    one_pass = steps or -(-images // (batch_size * world))
    steps = trainer.max_steps * accumulate if trainer.max_steps > 0 else one_pass

    def position() -> int:
        # an optimiser step never spans two passes
        passes, rest = divmod(trainer.global_step, -(-steps // accumulate))
        return passes * steps + rest * accumulate

    return StepSampler(images, batch_size, seed, steps, position, rank, world)


def _as_is(batch: Batch) -> Batch:
    return batch


def _begin_worker(_: int) -> None:
    torch.set_num_threads(1)
