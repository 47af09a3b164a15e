"""Which images come when: a pure function of (seed, step), so that a resumed run goes on where it stopped, to the bit.

Both samplers derive from `DistributedSampler` for one reason: Lightning leaves such a sampler in place under DDP.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from torch.utils.data import DistributedSampler

__all__ = ["Key", "OrderSampler", "StepSampler"]

Key = tuple[int, int]
"""Position of an image in its index, and the seed of everything drawn for it."""


class StepSampler(DistributedSampler[list[Key]]):
    """The batches of a training run: image orders without replacement, one after the other, cut into steps.

    A step takes `world * batch_size` images; rank r has the r-th part of them.

    Args:
        images: number of images.
        batch_size: images per step and rank.
        seed: of the order and of the draws.
        steps: batches in the whole run.
        position: gives the number of batches already trained; asked when iteration begins.
        rank: of this process.
        world: number of processes.
    """

    def __init__(
        self,
        images: int,
        batch_size: int,
        seed: int,
        steps: int,
        position: Callable[[], int] = lambda: 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.images, self.batch_size, self.seed, self.steps = images, batch_size, seed, steps
        self.position, self.rank, self.world = position, rank, world
        self._pass, self._order = -1, np.empty(0, int)

    def __len__(self) -> int:
        """Batches of the whole run, whether or not some are already trained: what Lightning counts against."""
        return self.steps

    def __iter__(self) -> Iterator[list[Key]]:
        done = self.position()
        last = (
            done // self.steps + 1
        ) * self.steps  # several passes when the run is counted in epochs
        for step in range(done, last):
            yield self.batch(step)

    def batch(self, step: int) -> list[Key]:
        """Give the keys of one step on this rank."""
        first = (step * self.world + self.rank) * self.batch_size
        return [self._key(place) for place in range(first, first + self.batch_size)]

    def set_epoch(self, epoch: int) -> None:
        """Ignore Lightning's epoch: the step says all."""

    def _key(self, place: int) -> Key:
        passed, position = divmod(place, self.images)
        if passed != self._pass:
            self._pass, self._order = (
                passed,
                np.random.default_rng([self.seed, passed]).permutation(self.images),
            )
        draw = np.random.SeedSequence([self.seed, 1, place]).generate_state(1)[0]
        return int(self._order[position]), int(draw)


class OrderSampler(DistributedSampler[list[Key]]):
    """Every image once, in order, never twice across ranks; draws are zero since nothing is drawn.

    A rank for which no image is left gets the first, since Lightning refuses an empty loader; metrics count it once.

    Args:
        images: number of images.
        batch_size: images per batch.
        rank: of this process.
        world: number of processes.
    """

    def __init__(self, images: int, batch_size: int, rank: int = 0, world: int = 1) -> None:
        self.batch_size, self._own = batch_size, range(rank, images, world) or range(min(images, 1))

    def __len__(self) -> int:
        return -(-len(self._own) // self.batch_size)

    def __iter__(self) -> Iterator[list[Key]]:
        for first in range(0, len(self._own), self.batch_size):
            yield [(image, 0) for image in self._own[first : first + self.batch_size]]

    def set_epoch(self, epoch: int) -> None:
        """Ignore the epoch: the order is always the same."""
