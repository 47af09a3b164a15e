"""What PDSL's classifier of pixels learns: the segments of the best proposals, on whole images."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from wsis.nn.detection import MaskSamples, nearest_seeds
from wsis.nn.masks import segments_in
from wsis.nn.pixels import PixelClassifier
from wsis.types import Batch, Proposals, size_of

__all__ = ["best_segments", "pixels_loss"]


def pixels_loss(
    pixels: PixelClassifier,
    features: Tensor,
    samples: Sequence[MaskSamples],
    batch: Batch,
    cell: float,
) -> Tensor:
    """Learn the segments of the best proposals.

    Args:
        pixels: the classifier.
        features: (N,D,H,W) of whole images.
        samples: proposals of each image that train masks.
        batch: the N images.
        cell: side in pixels of one element of the classifier's maps.
    """
    for maps, found, sample in zip(features, samples, batch, strict=True):
        height, width = (round(side / cell) for side in size_of(sample["image"]))
        labels, segments = best_segments(found, sample["proposals"], (height, width), cell)
        absent = (sample["target"]["tags"] == 0).nonzero().flatten()
        pixels.remember(maps, labels, segments, absent)
    return pixels.loss()


def best_segments(
    samples: MaskSamples, proposals: Proposals, size: tuple[int, int], cell: float
) -> tuple[Tensor, Tensor]:
    """Return the classes (G,) of pseudo-labels, and the segment (G,h,w) of each in 0 and 1.

    It is that of the proposal nearest to the pseudo-label.

    Args:
        samples: K proposals that train masks.
        proposals: of the image, with segments.
        size: (h, w) of the segments, which begin at the image's top left corner.
        cell: side in pixels of one element.
    """
    best = nearest_seeds(samples, 1)
    area = samples.boxes.new_tensor([0, 0, size[1] * cell, size[0] * cell])
    masks = segments_in(proposals, samples.proposals[best], area.expand(len(best), 4), size)
    return samples.labels[best], masks.to(area.dtype)
