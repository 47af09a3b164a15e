"""Training images and salient images in the same batches (BoxCaseg, section 3.3)."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

from torch.utils.data import Dataset, DistributedSampler

from wsis.data.samplers import Key, StepSampler
from wsis.data.samples import Samples
from wsis.types import Batch

__all__ = ["JointSampler", "JointSamples"]


class JointSamples(Dataset[Batch]):
    """Two sets as one; positions of the second follow those of the first.

    Args:
        first: one set.
        second: the other.
    """

    def __init__(self, first: Samples, second: Samples) -> None:
        self.first, self.second = first, second

    def __getitem__(self, keys: list[Key]) -> Batch:
        count = len(self.first)
        return [
            self.first.sample(position, draw)
            if position < count
            else self.second.sample(position - count, draw)
            for position, draw in keys
        ]


class JointSampler(DistributedSampler[list[Key]]):
    """A batch of each of two samplers, one behind the other, as one batch.

    Args:
        first: of the first set.
        second: of the second, with as many steps.
    """

    def __init__(self, first: StepSampler, second: StepSampler) -> None:
        self.first, self.second = first, second

    def __len__(self) -> int:
        return len(self.first)

    def __iter__(self) -> Iterator[list[Key]]:
        count = self.first.images
        for one, other in zip(self.first, self.second, strict=True):
            yield list(chain(one, ((count + position, draw) for position, draw in other)))

    def set_epoch(self, epoch: int) -> None:
        """Ignore the epoch: the step says all."""
