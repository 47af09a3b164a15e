"""The order of images, as a pure function of (seed, step): a resumed run repeats it exactly.

Both samplers derive from `DistributedSampler` only because Lightning does not replace such a
sampler under DDP.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from torch.utils.data import DistributedSampler

__all__ = ["Key", "OrderSampler", "StepSampler"]

Key = tuple[int, int]
"""Position of an image in its index, and the seed of all its random draws."""


class StepSampler(DistributedSampler[list[Key]]):
    """The batches of a training run: consecutive permutations of the images, cut into steps.

    A step takes `world * batch_size` images; rank r gets the r-th part of them.

    Args:
        images: number of images.
        batch_size: images per step and rank.
        seed: seed of the order and of the draws.
        steps: batches in the whole run.
        position: returns the number of batches already trained; called when iteration begins.
        rank: rank of this process.
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
        """Return the number of batches of the whole run, as Lightning expects when resuming."""
        return self.steps

    def __iter__(self) -> Iterator[list[Key]]:
        done = self.position()
        # there are several passes when the run is counted in epochs
        last = (done // self.steps + 1) * self.steps
        for step in range(done, last):
            yield self.batch(step)

    def batch(self, step: int) -> list[Key]:
        """Return the keys of one step on this rank."""
        first = (step * self.world + self.rank) * self.batch_size
        return [self._key(place) for place in range(first, first + self.batch_size)]

    def set_epoch(self, epoch: int) -> None:
        """Ignore Lightning's epoch: the step decides the order."""

    def _key(self, place: int) -> Key:
        passed, position = divmod(place, self.images)
        if passed != self._pass:
            self._pass = passed
            self._order = np.random.default_rng([self.seed, passed]).permutation(self.images)
        draw = np.random.SeedSequence([self.seed, 1, place]).generate_state(1)[0]
        return int(self._order[position]), int(draw)


class OrderSampler(DistributedSampler[list[Key]]):
    """Every image once and in order, divided among the ranks; seeds are 0, as nothing is drawn.

    A rank without images gets the first one, since Lightning rejects an empty loader; metrics count
    it once.

    Args:
        images: number of images.
        batch_size: images per batch.
        rank: rank of this process.
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
