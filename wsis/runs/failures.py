"""Batches of images in which one that fails does not end the work on the others."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from pytorch_lightning.callbacks import Callback

from wsis.errors import InputError
from wsis.method import Method
from wsis.metrics.evaluation import Evaluation
from wsis.types import Batch, Prediction, Sample

__all__ = ["Tolerant", "TolerantReader", "refuse_failed"]

_LISTED = 20
"""Failed images that the last line names."""


class Tolerant(Method):
    """Wrap a model so that an image on which it fails has no detections and ends nothing.

    With `WSIS_TRACEBACK=1` in the environment, the first failure ends the work as it is.

    Args:
        model: predicts the images; data modules treat the wrapper as they treat this model.
    """

    def __init__(self, model: Method) -> None:
        super().__init__()
        self.model = model
        self.failed: dict[int, str] = {}
        """Why the model failed, by the image's id; of all ranks once the prediction has ended."""
        self.treat_as(model)

    def configure_callbacks(self) -> list[Callback]:
        """Store what is predicted."""
        return [Evaluation([])]

    def predict_step(self, batch: Batch, batch_idx: int = 0) -> list[Prediction]:
        """Predict a batch; if that fails, each of its images alone."""
        try:
            for sample in batch:
                if isinstance(failure := sample.get("proposals"), Exception):
                    raise failure
            return self.model.predict_step(batch, batch_idx)
        except InputError as error:
            reason = str(error)
        except Exception as error:  # a model can raise anything, such as out of memory
            if os.environ.get("WSIS_TRACEBACK"):
                raise
            reason = f"{type(error).__name__}: {error}"
        if len(batch) > 1:
            return [self.predict_step([sample], batch_idx)[0] for sample in batch]
        self.failed[batch[0]["image_id"]] = " ".join(reason.split())[:300]
        return [_nothing(batch[0])]

    def on_predict_end(self) -> None:
        """Tell all ranks which images failed."""
        if dist.is_initialized():
            parts: list[dict[int, str]] = [{} for _ in range(dist.get_world_size())]
            dist.all_gather_object(parts, self.failed)
            for part in parts:
                self.failed |= part


class TolerantReader:
    """Reads proposals; an error takes the place of those of an image, for `Tolerant` to tell.

    Args:
        proposals: has the method `read` of `ProposalFile`.
    """

    def __init__(self, proposals: Any) -> None:
        self.proposals = proposals

    def read(self, *image: Any) -> Any:
        """Read the proposals of an image; the arguments are those of `ProposalFile.read`."""
        try:
            return self.proposals.read(*image)
        except InputError as error:
            return error


def _nothing(sample: Sample) -> Prediction:
    none = torch.zeros(0)
    return Prediction(sample["image_id"], sample["size"], none.view(0, 4), none, none.long(), [])


def refuse_failed(failed: Mapping[str, str], images: int, done: str) -> None:
    """Raise InputError if any images failed, after the others are done.

    Args:
        failed: why images failed, by their names.
        images: number of all images.
        done: where the results of the others are.
    """
    if not failed:
        return
    named = ", ".join(list(failed)[:_LISTED])
    more = f" and {len(failed) - _LISTED} more" if len(failed) > _LISTED else ""
    if len(failed) == images:
        raise InputError(
            f"all {images} images failed, the first with {next(iter(failed.values()))}"
        )
    raise InputError(
        f"{len(failed)} of {images} images failed: {named}{more}; the lines above say why, the "
        f"results of the others are in {done}"
    )
