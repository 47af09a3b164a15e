"""EM-Paste's foregrounds as files: the segments that EM chooses, as cut-outs and as labels."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools import mask as rle
from torch import Tensor

from wsis.data.index import write_coco
from wsis.errors import InputError
from wsis.evidence.em import Distance, foreground_em
from wsis.files import atomic_write
from wsis.images.draw import grid, jpeg
from wsis.images.scale import resize_long_side
from wsis.machine import bar
from wsis.models.em_paste.segments import Segments
from wsis.nn.masks import run_lengths, segments_of
from wsis.pasting.pool import Foreground, write_pool
from wsis.types import Index, Record, Sample

__all__ = ["choose", "write_foregrounds"]

_SHOWN = 24  # foregrounds on the sheet of a class


def choose(
    segments: Segments,
    rounds: int,
    keep: float,
    distance: Distance,
    centre: bool = True,
    every_segment: bool = False,
) -> NDArray[np.int64]:
    """Choose a segment for each pair by EM over the images of its class.

    Args:
        segments: of all images.
        rounds: of EM; 0 takes the first choices.
        keep: fraction of a class's images whose choices make the next mean.
        distance: "cosine" or "mahalanobis".
        centre: subtract the mean of all eligible segments, so that features common to all classes
            do not count.
        every_segment: rounds may choose any segment, not only an eligible one.

    Returns:
        Position (M,) among the image's segments, -1 for none.
    """
    chosen = segments.first.copy()
    mean = segments.mean() if centre else torch.zeros(segments.features.shape[1])
    for label in np.unique(segments.label):
        pairs = np.flatnonzero(segments.label == label)
        places = [segments.of(int(pair)) for pair in pairs]
        # positions of each image's candidates, among which EM counts
        allowed = [np.flatnonzero(segments.eligible[place] | every_segment) for place in places]
        features, first = [], []
        for place, candidates, choice in zip(places, allowed, segments.first[pairs], strict=True):
            of_image = torch.from_numpy(segments.features[place][candidates]).float()
            features.append(of_image - mean)
            first.append(np.searchsorted(candidates, choice) if choice >= 0 else -1)
        choices = foreground_em(features, torch.tensor(first), rounds, keep, distance).tolist()
        for pair, candidates, choice in zip(pairs, allowed, choices, strict=True):
            chosen[pair] = candidates[choice] if choice >= 0 else -1
    return chosen


def write_foregrounds(
    folder: Path,
    segments: Path,
    data: Any,
    rounds: int,
    keep: float,
    distance: Distance,
    centre: bool,
    every_segment: bool,
    min_probability: float,
) -> None:
    """Write the chosen segments as a pool of cut-outs, as labels, and on a sheet per class.

    Args:
        folder: gets foregrounds.json with a folder of cut-outs per class, labels.json with labels
            of the training images, and sheets/.
        segments: folder that `write_segments` wrote.
        data: the data module, with tags and segments.
        rounds: as in `choose`.
        keep: as in `choose`.
        distance: as in `choose`.
        centre: as in `choose`.
        every_segment: as in `choose`.
        min_probability: choices of a lower class probability are dropped.

    Raises:
        InputError: no choice is left.
    """
    described, index = Segments.read(segments), data.index("train")
    settings: dict[str, Any] = {
        "rounds": rounds,
        "keep": keep,
        "distance": distance,
        "centre": centre,
        "every_segment": every_segment,
    }
    chosen = choose(described, **settings)
    for pair, choice in enumerate(chosen):
        if choice >= 0 and not described.probabilities[pair][choice] >= min_probability:
            chosen[pair] = -1
    if not (chosen >= 0).any():
        raise InputError(
            f"no foreground reaches a probability of {min_probability:g}: lower "
            "model.min_probability, or train the classifier longer"
        )
    cutter = _Cutter(described, chosen, data)
    proposals = data.proposal_file("train")
    settings |= {"min_probability": min_probability, "supervision": "tags"}
    settings["proposals"] = None if proposals is None else proposals.provenance
    write_pool(folder, data.class_names, cutter, settings)
    write_coco(folder / "labels.json", index._replace(annotations=cutter.labels))
    for label, pictures in cutter.pictures.items():
        with atomic_write(folder / "sheets" / f"{label:03d}.jpg") as scratch:
            scratch.write_bytes(jpeg(grid(pictures, 6)))


class _Cutter:
    """Iterates over cut-outs of the chosen segments, image by image.

    Afterwards `labels` holds the annotations of each image, and `pictures` thumbnails per class.

    Args:
        segments: of all images.
        chosen: (M,) segment of each pair, -1 for none.
        data: the data module, with segments.
    """

    def __init__(self, segments: Segments, chosen: NDArray[np.int64], data: Any) -> None:
        self.segments, self.chosen = segments, chosen
        self.index: Index = data.index("train")
        self.samples = data.samples("train", train=False, supervision={"tags"}, segments=True)
        self.labels: dict[int, list[Record]] = {image["id"]: [] for image in self.index.images}
        self.pictures: dict[int, list[NDArray[np.uint8]]] = {}
        self.shown = set()
        for label in np.unique(segments.label):
            pairs = np.flatnonzero((segments.label == label) & (chosen >= 0))
            spaced = np.linspace(0, len(pairs) - 1, min(_SHOWN, len(pairs)))
            self.shown |= set(pairs[np.unique(spaced.astype(int))])

    def __iter__(self) -> Iterator[Foreground]:
        order = np.searchsorted(self.segments.image, np.arange(len(self.samples) + 1))
        for i in bar(range(len(self.samples)), desc="foregrounds", unit="image"):
            pairs = range(order[i], order[i + 1])
            records = self.labels[self.index.images[i]["id"]]
            for pair in pairs:
                if self.segments.regions[pair]:
                    records.append(self._record(pair, self.segments.regions[pair], iscrowd=1))
            chosen = [pair for pair in pairs if self.chosen[pair] >= 0]
            if chosen:
                yield from self._cut(self.samples.sample(i), chosen, records)

    def _cut(self, sample: Sample, pairs: list[int], records: list[Record]) -> Iterator[Foreground]:
        """Yield cut-outs of an image's pairs, and append their annotations to `records`."""
        image, (labels, members) = sample["image"], segments_of(sample["proposals"])
        for pair in pairs:
            segment, label = self.chosen[pair], int(self.segments.label[pair])
            mask = members[segment][labels.clamp(min=0).long()] & (labels >= 0)
            probability = float(self.segments.probabilities[pair][segment])
            about = {"score": probability, "source": "EM-Paste from tags"}
            records.append(self._record(pair, run_lengths(mask), **about))
            if pair in self.shown:
                self.pictures.setdefault(label, []).append(_thumbnail(image, mask))
            eroded = _eroded(mask)
            if eroded.any():  # not of a segment that is only a thin line
                yield Foreground(image, eroded, label, sample["path"].name)

    def _record(self, pair: int, mask: Any, **more: Any) -> Record:
        """Return an annotation of a pair's class."""
        category = self.index.categories[self.segments.label[pair]]["id"]
        return {
            "bbox": rle.toBbox(mask).tolist(),
            "category_id": category,
            "segmentation": mask,
            **more,
        }


def _eroded(mask: Tensor) -> Tensor:
    """Return a mask (H,W) eroded by 3 x 3, as in the authors' code."""
    eroded = cv2.erode(mask.byte().numpy(), np.ones((3, 3), np.uint8), borderValue=0)
    return torch.from_numpy(eroded).bool()


def _thumbnail(image: Tensor, mask: Tensor, side: int = 160) -> NDArray[np.uint8]:
    """Return a thumbnail (h,w,3) in which pixels outside the mask are darkened."""
    pixels = torch.where(mask, image, image // 3).permute(1, 2, 0).numpy()
    return resize_long_side(pixels, side, enlarge=cv2.INTER_AREA)
