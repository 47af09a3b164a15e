"""Description of all segments of the training images by a classifier, as files, for EM-Paste.

The first choice of each tagged class is among them (algorithm 1, step 1).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsis.errors import InputError
from wsis.evidence.em import (
    cam_centroid,
    eligible_segments,
    nearest_segments,
    segment_patches,
    segment_statistics,
)
from wsis.files import atomic_write, read_json
from wsis.machine import bar
from wsis.nn.checkpoint import load_model
from wsis.nn.masks import run_lengths, segments_of
from wsis.nn.regions import enlarge
from wsis.parts.classifier import Classifier, pool
from wsis.types import Sample

__all__ = ["Segments", "class_maps", "describe", "first_choice", "write_segments"]

_PATCHES = 64  # shown to the network at once
_REGION = 0.3  # of a class map's maximum, as the threshold of CAM
_ROWS = 1 << 14  # of features read at once


class Segments(NamedTuple):
    """All segments (T) of N images, and all pairs (M) of an image and a tagged class."""

    features: NDArray[np.float16]
    """(T,D) of all segments of tagged images, image by image; on disk."""
    eligible: NDArray[np.bool_]
    """(T,) whether a segment may be a first choice."""
    begin: NDArray[np.int64]
    """(N+1,) position of an image's first segment in `features`."""
    image: NDArray[np.int64]
    """(M,) position of a pair's image."""
    label: NDArray[np.int64]
    """(M,) class of a pair."""
    first: NDArray[np.int64]
    """(M,) the first choice among the image's segments; -1 if none is eligible."""
    probabilities: list[NDArray[np.float16]]
    """M of (m,), probability of the pair's class for each segment of the image; on disk."""
    regions: list[Any]
    """M run-length masks of high values in the class's map; None if no value is positive."""

    @classmethod
    def read(cls, folder: Path) -> Segments:
        """Read what `write_segments` wrote."""
        content = read_json(folder / "segments.json")
        counts = np.array([image["segments"] for image in content["images"]], np.int64)
        begin = np.concatenate([[0], counts.cumsum()])
        pairs = [(n, pair) for n, image in enumerate(content["images"]) for pair in image["pairs"]]
        image = np.array([n for n, _ in pairs], np.int64)
        probabilities = _numbers(folder / "probabilities.f16", (int(counts[image].sum()),))
        return cls(
            features=_numbers(folder / "features.f16", (int(begin[-1]), content["length"])),
            eligible=np.fromfile(folder / "eligible.u8", bool),
            begin=begin,
            image=image,
            label=np.array([pair["label"] for _, pair in pairs], np.int64),
            first=np.array([pair["first"] for _, pair in pairs], np.int64),
            probabilities=np.split(probabilities, counts[image].cumsum())[:-1],
            regions=[pair["region"] for _, pair in pairs],
        )

    def of(self, pair: int) -> slice:
        """Return the positions of the segments of a pair's image."""
        image = self.image[pair]
        return slice(self.begin[image], self.begin[image + 1])

    def mean(self) -> Tensor:
        """Return the mean features (D,) of the eligible segments of all tagged images."""
        total = np.zeros(self.features.shape[1])
        for i in range(0, len(self.features), _ROWS):
            rows = slice(i, i + _ROWS)
            total += self.features[rows][self.eligible[rows]].sum(0, dtype=np.float64)
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
    """Write features and probabilities of segments, and first choices of tagged classes.

    Images without a tag are left out.

    Args:
        folder: gets segments.json, features.f16, probabilities.f16 and eligible.u8: 2 D + 2 A + 1
            bytes per segment in an image tagged with A classes.
        checkpoint: of the classifier.
        data: the data module, with tags and segments.
        object_like: fraction of the segments of 1 to 80 % of an image, those of the highest scores,
            that may be chosen.
        candidates: number of segments nearest to a class map's centre, from which the classifier
            chooses.
        cam_fraction: fraction of a class map's cells, the highest, that make its centre.
        patch_size: side in pixels at which a segment is shown to the classifier.

    Raises:
        InputError: no image has a segment that may be chosen, or features are not finite.
    """
    net = _load_classifier(checkpoint)
    samples = data.samples("train", train=False, supervision={"tags"}, segments=True)
    images: list[dict[str, Any]] = []
    with (
        open(folder / "features.f16", "wb") as features,
        open(folder / "probabilities.f16", "wb") as probabilities,
        open(folder / "eligible.u8", "wb") as eligible,
    ):
        for i in bar(range(len(samples)), desc="segments", unit="image"):
            sample = samples.sample(i)
            labels = sample["target"]["tags"].nonzero()[:, 0]
            if not len(labels):  # nothing is cut from it; patches take seconds an image
                images.append({"segments": 0, "pairs": []})
                continue
            pooled, scores = describe(net, sample, patch_size)
            scores = scores[:, labels].T
            if not pooled.isfinite().all():
                raise InputError(
                    f"features of {sample['path']} hold NaN or infinity: the classifier has "
                    "diverged; lower its learning rate"
                )
            maps = class_maps(net, sample)[labels]
            centres = cam_centroid(maps, cam_fraction, net.backbone.stride)
            first, allowed = first_choice(centres, sample, scores, candidates, object_like)
            eligible.write(allowed.numpy().tobytes())
            features.write(pooled.half().numpy().tobytes())
            probabilities.write(scores.half().contiguous().numpy().tobytes())
            pairs = []
            for label, choice, activation in zip(
                labels.tolist(), first.tolist(), maps, strict=True
            ):
                region = _region(activation, net.backbone.stride, sample["size"])
                pairs.append({"label": label, "first": choice, "region": region})
            images.append({"segments": len(pooled), "pairs": pairs})
    if not any(pair["first"] >= 0 for image in images for pair in image["pairs"]):
        raise InputError(
            f"no training image of {data} has a segment between 1 % and 80 % of it; give other "
            "proposals"
        )
    with atomic_write(folder / "segments.json") as scratch:
        scratch.write_text(json.dumps({"length": net.backbone.channels, "images": images}))


def describe(net: Classifier, sample: Sample, side: int) -> tuple[Tensor, Tensor]:
    """Return pooled features (P,D) and class probabilities (P,C) of an image's segments.

    Args:
        net: the classifier.
        sample: with segments.
        side: side in pixels of the patch on which a segment is shown, on grey.
    """
    proposals = sample["proposals"]
    labels, members = segments_of(proposals)
    features = [torch.zeros(0, net.backbone.channels)]
    probabilities = [torch.zeros(0, net.head.out_channels)]
    for i in range(0, len(proposals.boxes), _PATCHES):
        some = slice(i, i + _PATCHES)
        boxes = proposals.boxes[some]
        patches = segment_patches(sample["image"], labels, members[some], boxes, side)
        maps = net.backbone(patches.to(net.device, memory_format=torch.channels_last))
        features.append(maps.mean((2, 3)).float().cpu())
        logits = pool(net.head(maps), net.hparams["pooling"], net.hparams["sharpness"])
        probabilities.append(logits.sigmoid().float().cpu())
    return torch.cat(features), torch.cat(probabilities)


def class_maps(net: Classifier, sample: Sample) -> Tensor:
    """Return the classifier's maps (C,h,w) of an image, without padding."""
    height, width = (-(-side // net.backbone.stride) for side in sample["size"])
    return net([sample["image"].to(net.device)])[0, :, :height, :width].float().cpu()


def first_choice(
    centres: Tensor,
    sample: Sample,
    probabilities: Tensor,
    candidates: int,
    object_like: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Choose, of the segments nearest to each map's centre, the most probable (alg. 1, step 1).

    Args:
        centres: (A,2) of the tagged classes' maps.
        sample: with segments.
        probabilities: (A,P) of those classes for each segment.
        candidates: number of nearest eligible segments to choose from.
        object_like: fraction of the eligible segments that stays eligible, those of the highest
            scores.

    Returns:
        The choices (A,) int64, -1 if no segment is eligible; and which are eligible (P,) bool.
    """
    proposals = sample["proposals"]
    if not len(proposals.boxes):
        return torch.full((len(centres),), -1), torch.zeros(0, dtype=torch.bool)
    statistics = segment_statistics(*segments_of(proposals), centres)
    eligible = eligible_segments(statistics.shares, proposals.boxes, sample["size"])
    if eligible.any():
        eligible &= proposals.scores >= proposals.scores[eligible].quantile(1 - object_like)
    nearest = nearest_segments(statistics.distances, eligible, candidates)
    scores = probabilities.gather(1, nearest.clamp(min=0)).masked_fill(nearest < 0, -1)
    return nearest.gather(1, scores.argmax(1, keepdim=True))[:, 0], eligible


def _load_classifier(checkpoint: Path) -> Classifier:
    net = load_model(Classifier, checkpoint)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return net.to(device, memory_format=torch.channels_last).eval()


def _numbers(path: Path, shape: tuple[int, ...]) -> Any:
    """Map a file of half-precision numbers into memory; an empty file cannot be mapped."""
    if not np.prod(shape):
        return np.zeros(shape, np.float16)
    try:
        return np.memmap(path, np.float16, "r", shape=shape)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} is missing or damaged; delete {path.parent} to make it again"
        ) from error


def _region(activation: Tensor, stride: int, size: tuple[int, int]) -> Any:
    """Return run lengths of the high values of a class map (h,w) in an image of `size`.

    None if no value is positive.
    """
    large = enlarge(activation[None, None].relu(), stride, size)[0, 0]
    if not large.max() > 0:
        return None
    mask = run_lengths(large >= _REGION * large.max())
    return {**mask, "counts": mask["counts"].decode()}
