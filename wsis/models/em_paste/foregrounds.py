"""EM-Paste's foregrounds as files: what every segment looks like, then the segments that EM chooses, cut out and as labels."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools import mask as rle
from torch import Tensor
from tqdm import tqdm

from wsis.data.index import write_coco
from wsis.errors import InputError
from wsis.evidence.em import (
    Distance,
    cam_centroid,
    eligible_segments,
    foreground_em,
    nearest_segments,
    segment_patches,
    segment_statistics,
)
from wsis.files import read_json, whole
from wsis.images.draw import grid, jpeg
from wsis.images.scale import resize_long_side
from wsis.nn.backbone import weights_follow
from wsis.nn.masks import run_lengths, segments_of
from wsis.nn.regions import enlarge
from wsis.parts.classifier import Classifier, pool
from wsis.pasting.pool import Foreground, write_pool
from wsis.types import Index, Record, Sample

__all__ = ["Segments", "choose", "write_foregrounds", "write_segments"]

_PATCHES = 64  # shown to the network at a time
_REGION = 0.3  # of a class map's maximum: where CAM is cut, too
_ROWS = 1 << 14  # of features that are read at a time
_SHOWN = 24  # foregrounds of a class on its sheet


class Segments(NamedTuple):
    """All segments of N images, as `write_segments` left them; the tagged classes of an image are its pairs, M in all."""

    features: NDArray[np.float16]
    """(T,D) of all segments, an image's after the other; on disk."""
    eligible: NDArray[np.bool_]
    """(T,) whether a segment may be a first choice."""
    begin: NDArray[np.int64]
    """(N+1,) where an image's segments begin in `features`."""
    image: NDArray[np.int64]
    """(M,) position of a pair's image."""
    label: NDArray[np.int64]
    """(M,) its class."""
    first: NDArray[np.int64]
    """(M,) the first choice among the image's segments; -1 where none is eligible."""
    probabilities: list[NDArray[np.float16]]
    """M of (m,), the classifier's probability of the pair's class for each of the image's segments; on disk."""
    regions: list[Any]
    """M run-length masks: where the class's map is high."""

    @classmethod
    def read(cls, folder: Path) -> Segments:
        """Read what `write_segments` wrote."""
        content = read_json(folder / "segments.json")
        counts = np.array([image["segments"] for image in content["images"]], np.int64)
        begin = np.concatenate([[0], counts.cumsum()])
        pairs = [(n, pair) for n, image in enumerate(content["images"]) for pair in image["pairs"]]
        image, label, first = (
            np.array(column, np.int64)
            for column in (
                [n for n, _ in pairs],
                [p["label"] for _, p in pairs],
                [p["first"] for _, p in pairs],
            )
        )
        features = _numbers(folder / "features.f16", (int(begin[-1]), content["length"]))
        eligible = np.fromfile(folder / "eligible.u8", bool)
        probabilities = np.split(
            _numbers(folder / "probabilities.f16", (int(counts[image].sum()),)),
            counts[image].cumsum(),
        )
        return cls(
            features,
            eligible,
            begin,
            image,
            label,
            first,
            probabilities[:-1],
            [p["region"] for _, p in pairs],
        )

    def of(self, pair: int) -> slice:
        """Where the segments of a pair's image are."""
        image = self.image[pair]
        return slice(self.begin[image], self.begin[image + 1])

    def mean(self) -> Tensor:
        """Mean features (D,) of the eligible segments of all images."""
        total = np.zeros(self.features.shape[1])
        for i in range(0, len(self.features), _ROWS):
            total += self.features[i : i + _ROWS][self.eligible[i : i + _ROWS]].sum(
                0, dtype=np.float64
            )
        return torch.from_numpy(total / max(self.eligible.sum(), 1)).float()


@torch.no_grad()
def write_segments(
    folder: Path,
    checkpoint: Path,
    data: Any,
    object_like: float,
    candidates: int,
    cam_fraction: float,
    patch_size: int,
) -> None:
    """Write what a classifier says of every segment of the training images, and each tagged class's first choice.

    Args:
        folder: gets segments.json, features.f16, probabilities.f16 and eligible.u8: 2 D + 2 A + 1 bytes a segment in an image
            tagged with A classes.
        checkpoint: of the classifier.
        data: with tags and segments.
        object_like: share of the segments of 1 to 80 % of an image, those of the highest scores, that may be chosen.
        candidates: segments nearest to a class map's centre, from which the classifier chooses.
        cam_fraction: of a class map's cells whose centre counts.
        patch_size: side in pixels at which a segment is shown to the classifier.

    Raises:
        InputError: no image has a segment that may be chosen, or features are not finite.
    """
    with weights_follow():
        net = Classifier.load_from_checkpoint(checkpoint, map_location="cpu", weights_only=True)
    net = net.to(
        "cuda" if torch.cuda.is_available() else "cpu", memory_format=torch.channels_last
    ).eval()
    samples = data.samples("train", train=False, supervision={"tags"})
    samples.segments = True
    images, found = [], 0
    with (
        open(folder / "features.f16", "wb") as features,
        open(folder / "probabilities.f16", "wb") as probabilities,
        open(folder / "eligible.u8", "wb") as eligible,
    ):
        for i in tqdm(range(len(samples)), desc="segments", unit="image"):
            sample = samples.sample(i)
            labels = sample["target"]["tags"].nonzero()[:, 0]
            looks, seen = describe(net, sample, patch_size)
            if not looks.isfinite().all():
                raise InputError(
                    f"features of {sample['path']} hold NaN or infinity: the classifier has diverged; lower its learning rate"
                )
            maps = class_maps(net, sample)[labels]
            centres = cam_centroid(maps, cam_fraction, net.backbone.stride)
            first, may_be = first_choice(
                centres, sample, seen[:, labels].T, candidates, object_like
            )
            eligible.write(may_be.numpy().tobytes())
            features.write(looks.half().numpy().tobytes())
            probabilities.write(seen[:, labels].T.half().contiguous().numpy().tobytes())
            found += int((first >= 0).sum())
            regions = [_region(map_, net.backbone.stride, sample["size"]) for map_ in maps]
            pairs = zip(labels.tolist(), first.tolist(), regions, strict=True)
            images.append(
                {
                    "segments": len(looks),
                    "pairs": [{"label": c, "first": f, "region": r} for c, f, r in pairs],
                }
            )
    if not found:
        raise InputError(
            f"no training image of {data} has a segment between 1 % and 80 % of it; give other proposals"
        )
    with whole(folder / "segments.json") as scratch:
        scratch.write_text(json.dumps({"length": net.backbone.channels, "images": images}))


def describe(net: Classifier, sample: Sample, side: int) -> tuple[Tensor, Tensor]:
    """Pooled features (P,D) and class probabilities (P,C) of an image's segments, each shown on grey."""
    proposals = sample["proposals"]
    labels, members = segments_of(proposals)
    looks, seen = [torch.zeros(0, net.backbone.channels)], [torch.zeros(0, net.head.out_channels)]
    for i in range(0, len(proposals.boxes), _PATCHES):
        some = slice(i, i + _PATCHES)
        patches = segment_patches(
            sample["image"], labels, members[some], proposals.boxes[some], side
        )
        maps = net.backbone(patches.to(net.device, memory_format=torch.channels_last))
        looks.append(maps.mean((2, 3)).float().cpu())
        seen.append(
            pool(net.head(maps), net.hparams["pooling"], net.hparams["sharpness"])
            .sigmoid()
            .float()
            .cpu()
        )
    return torch.cat(looks), torch.cat(seen)


def class_maps(net: Classifier, sample: Sample) -> Tensor:
    """The classifier's maps (C,h,w) of an image, without padding."""
    height, width = (-(-side // net.backbone.stride) for side in sample["size"])
    return net([sample["image"].to(net.device)])[0, :, :height, :width].float().cpu()


def first_choice(
    centres: Tensor,
    sample: Sample,
    probabilities: Tensor,
    candidates: int,
    object_like: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Algorithm 1, step 1: of the eligible segments nearest to each map's centre that which the classifier is surest of.

    Args:
        centres: (A,2) of the tagged classes' maps.
        sample: with segments.
        probabilities: (A,P) of those classes for each segment.
        candidates: how many are nearest.
        object_like: share of the eligible segments that stays eligible, those of the highest scores.

    Returns:
        (A,) int64, -1 where no segment is eligible; and (P,) bool, which are.
    """
    proposals = sample["proposals"]
    if not len(proposals.boxes):
        return torch.full((len(centres),), -1), torch.zeros(0, dtype=torch.bool)
    found = segment_statistics(*segments_of(proposals), centres)
    eligible = eligible_segments(found.shares, proposals.boxes, sample["size"])
    if eligible.any():
        eligible &= proposals.scores >= proposals.scores[eligible].quantile(1 - object_like)
    nearest = nearest_segments(found.distances, eligible, candidates)
    scores = probabilities.gather(1, nearest.clamp(min=0)).masked_fill(nearest < 0, -1)
    return nearest.gather(1, scores.argmax(1, keepdim=True))[:, 0], eligible


def choose(
    segments: Segments,
    rounds: int,
    keep: float,
    distance: Distance,
    centre: bool = True,
    every_segment: bool = False,
) -> NDArray[np.int64]:
    """The segment of each pair (M,) by EM over the images of its class, -1 where there is none; without rounds the first.

    Args:
        segments: of all images.
        rounds: of EM.
        keep: share of a class's images whose choices make the next mean.
        distance: "cosine" or "mahalanobis".
        centre: subtract the mean of all eligible segments, so that what segments of all classes share does not count.
        every_segment: rounds may choose any segment, not only an eligible one.
    """
    chosen = segments.first.copy()
    mean = segments.mean() if centre else torch.zeros(segments.features.shape[1])
    for label in np.unique(segments.label):
        pairs = np.flatnonzero(segments.label == label)
        places = [segments.of(int(pair)) for pair in pairs]
        may_be = [np.flatnonzero(segments.eligible[place] | every_segment) for place in places]
        features = [
            torch.from_numpy(segments.features[p][own]).float() - mean
            for p, own in zip(places, may_be, strict=True)
        ]
        first = [
            np.searchsorted(own, f) if f >= 0 else -1
            for own, f in zip(may_be, segments.first[pairs], strict=True)
        ]
        found = foreground_em(features, torch.tensor(first), rounds, keep, distance).tolist()
        chosen[pairs] = [own[f] if f >= 0 else -1 for own, f in zip(may_be, found, strict=True)]
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
    """Write the chosen segments as a pool, as the images' own labels (labels.json), and on a sheet for each class.

    Args:
        folder: gets foregrounds.json and a folder of cut-outs per class, labels.json and sheets/.
        segments: folder of `write_segments`.
        data: with tags and segments.
        rounds: as `choose` has it.
        keep: as `choose` has it.
        distance: as `choose` has it.
        centre: as `choose` has it.
        every_segment: as `choose` has it.
        min_probability: choices that the classifier is less sure of are dropped.

    Raises:
        InputError: none is left.
    """
    found, index = Segments.read(segments), data.index("train")
    how: dict[str, Any] = {
        "rounds": rounds,
        "keep": keep,
        "distance": distance,
        "centre": centre,
        "every_segment": every_segment,
    }
    chosen = choose(found, **how)
    sure = np.array(
        [
            c >= 0 and p[c] >= min_probability
            for c, p in zip(chosen, found.probabilities, strict=True)
        ],
        bool,
    )
    if not sure.any():
        raise InputError(
            f"no foreground reaches a probability of {min_probability:g}: lower model.min_probability, or train the "
            "classifier longer"
        )
    cut = _Cutter(found, np.where(sure, chosen, -1), data)
    proposals = data.proposal_file("train")
    how |= {"min_probability": min_probability, "supervision": "tags"}
    how["proposals"] = None if proposals is None else proposals.provenance
    write_pool(folder, data.class_names, cut, how)
    write_coco(folder / "labels.json", index._replace(annotations=cut.labels))
    for label, pictures in cut.pictures.items():
        with whole(folder / "sheets" / f"{label:03d}.jpg") as scratch:
            scratch.write_bytes(jpeg(grid(pictures, 6)))


class _Cutter:
    """Cuts the chosen segments out, image by image; afterwards `labels` and `pictures` hold what else was made of them.

    Args:
        segments: of all images.
        chosen: (M,) each pair's segment, -1 for none.
        data: with segments.
    """

    def __init__(self, segments: Segments, chosen: NDArray[np.int64], data: Any) -> None:
        self.segments, self.chosen = segments, chosen
        self.index: Index = data.index("train")
        self.samples = data.samples("train", train=False, supervision={"tags"})
        self.samples.segments = True
        self.labels: dict[int, list[Record]] = {image["id"]: [] for image in self.index.images}
        self.pictures: dict[int, list[NDArray[np.uint8]]] = {}
        self.shown = set()
        for label in np.unique(segments.label):
            pairs = np.flatnonzero((segments.label == label) & (chosen >= 0))
            self.shown |= set(
                pairs[
                    np.unique(np.linspace(0, len(pairs) - 1, min(_SHOWN, len(pairs))).astype(int))
                ]
            )

    def __iter__(self) -> Iterator[Foreground]:
        order = np.searchsorted(self.segments.image, np.arange(len(self.samples) + 1))
        for i in tqdm(range(len(self.samples)), desc="foregrounds", unit="image"):
            pairs = range(order[i], order[i + 1])
            own = self.labels[self.index.images[i]["id"]]
            own += [
                self._record(pair, self.segments.regions[pair], iscrowd=1)
                for pair in pairs
                if self.segments.regions[pair]
            ]
            if any(self.chosen[pair] >= 0 for pair in pairs):
                yield from self._cut(
                    self.samples.sample(i), [pair for pair in pairs if self.chosen[pair] >= 0], own
                )

    def _cut(self, sample: Sample, pairs: list[int], own: list[Record]) -> Iterator[Foreground]:
        labels, members = segments_of(sample["proposals"])
        for pair in pairs:
            mask = members[self.chosen[pair]][labels.clamp(min=0).long()] & (labels >= 0)
            probability = float(self.segments.probabilities[pair][self.chosen[pair]])
            own.append(
                self._record(
                    pair, run_lengths(mask), score=probability, source="EM-Paste from tags"
                )
            )
            if pair in self.shown:
                self.pictures.setdefault(int(self.segments.label[pair]), []).append(
                    _picture(sample["image"], mask)
                )
            eroded = _eroded(mask)
            if eroded.any():  # a thread of a segment is no foreground
                yield Foreground(
                    sample["image"], eroded, int(self.segments.label[pair]), sample["path"].name
                )

    def _record(self, pair: int, mask: Any, **more: Any) -> Record:
        category = self.index.categories[self.segments.label[pair]]["id"]
        return {
            "bbox": rle.toBbox(mask).tolist(),
            "category_id": category,
            "segmentation": mask,
            **more,
        }


def _numbers(path: Path, shape: tuple[int, ...]) -> Any:
    """A file of half-precision numbers, read as it is used; an empty file cannot be mapped."""
    return (
        np.memmap(path, np.float16, "r", shape=shape)
        if np.prod(shape)
        else np.zeros(shape, np.float16)
    )


def _region(map_: Tensor, stride: int, size: tuple[int, int]) -> Any:
    """Where a class map (h,w) is high, as run lengths in an image of `size`; None where it is nowhere positive."""
    large = enlarge(map_[None, None].relu(), stride, size)[0, 0]
    if not large.max() > 0:
        return None
    mask = run_lengths(large >= _REGION * large.max())
    return {**mask, "counts": mask["counts"].decode()}


def _eroded(mask: Tensor) -> Tensor:
    """A mask (H,W) less its outermost pixels, 3 x 3 as in the authors' code."""
    return torch.from_numpy(
        cv2.erode(mask.byte().numpy(), np.ones((3, 3), np.uint8), borderValue=0)
    ).bool()


def _picture(image: Tensor, mask: Tensor, side: int = 160) -> NDArray[np.uint8]:
    """A thumbnail in which all but the mask is dark."""
    pixels = torch.where(mask, image, image // 3).permute(1, 2, 0).numpy()
    return resize_long_side(pixels, side, enlarge=cv2.INTER_AREA)
