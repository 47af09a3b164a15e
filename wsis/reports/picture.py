"""One picture of all methods side by side, for a README."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from wsis.files import whole
from wsis.images.draw import grid, jpeg, overlay
from wsis.images.read import read_image
from wsis.reports.gallery import Objects, Source
from wsis.types import Index, Truth

__all__ = ["write_picture"]

IMAGES, SIDE = 4, 240


def write_picture(path: Path, index: Index, sources: Sequence[Source]) -> None:
    """Draw what is sure of truth and methods on four images that lie evenly apart in the data, so that nobody has chosen them.

    Args:
        path: of a JPEG: a row for each image, a column for each source.
        index: the images.
        sources: truth, methods, and others that are not drawn.
    """
    shown = [source for source in sources if source.role in ("truth", "method")]
    chosen = (
        np.linspace(0, len(index.images) - 1, min(IMAGES, len(index.images))).round().astype(int)
    )
    names = [category["name"] for category in index.categories]
    pictures = []
    for i in chosen:
        record = index.images[i]
        image = read_image(index.root / record["file_name"], (record["height"], record["width"]))
        pictures += [
            overlay(image, _sure(source.objects[i]), names, long_side=SIDE) for source in shown
        ]
    with whole(path) as scratch:
        scratch.write_bytes(
            jpeg(grid(pictures, len(shown), [source.name for source in shown] * len(chosen)), 80)
        )


def _sure(objects: Objects) -> Truth:
    """What a source is sure of in an image."""
    boxes = torch.tensor(objects.boxes[: objects.sure], dtype=torch.float32).reshape(-1, 4)
    labels = torch.tensor(objects.labels[: objects.sure], dtype=torch.int64)
    return Truth(
        boxes,
        labels,
        list(objects.masks[: objects.sure]),
        torch.zeros(len(labels), dtype=torch.bool),
    )
