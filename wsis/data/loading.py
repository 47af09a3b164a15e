"""Settings of the data loader."""

from __future__ import annotations

from dataclasses import dataclass

from wsis.values import COUNT, WHOLE, check_ranges

__all__ = ["Loading"]


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
