"""Settings of the data loader."""

from __future__ import annotations

from dataclasses import dataclass

from wsis.errors import InputError

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
        if self.batch_size < 1 or self.workers < 0 or self.seed < 0:
            raise InputError(
                f"{self}: batch_size must be at least 1, workers and seed not negative"
            )
