"""First masks of PDSL's mask branch (section 3.3), and where they come from.

The proposals nearest to each pseudo-label, the seeds, get masks by bottom-up evidence, from their
own segments or from the detector; every other proposal takes that of its nearest seed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pycocotools import mask as rle
from torch import Tensor
from torchvision.ops import box_convert, box_iou

from wsis.coco.masks import run_length
from wsis.errors import InputError
from wsis.evidence.grabcut import SIZE, clip, resample, sample_masks
from wsis.evidence.seed_masks import Evidence, Request
from wsis.images.read import read_image
from wsis.nn.detection import MaskSamples
from wsis.nn.masks import segments_in
from wsis.types import Batch, Index, Proposals, Record

__all__ = [
    "FirstMasks",
    "GivenMasks",
    "Source",
    "masks_of_activations",
    "masks_of_cues",
    "masks_of_segments",
]

_SIDE = 28
_HOT = 0.3
"""Lowest activation of a mask cell, as a fraction of the highest in its region."""

Source = Literal["authors", "fast", "segments", "detector"]
Cues = Callable[[Sequence[Request]], list[tuple[Tensor, Tensor]]]
"""Returns windows (K,4) in original pixels and masks (K,m,m) over them for each request."""


class FirstMasks:
    """First masks from one source.

    Args:
        source: "authors" or "fast", as in `wsis.evidence.seed_masks.Evidence`; "segments" for the
            proposals' own; "detector" for the gradient of its scores.
        file: COCO file of masks, which are taken instead; "" for none.
    """

    def __init__(self, source: Source, file: str = "") -> None:
        self.file, self.source = file, "given" if file else source
        self.needs_segments = self.source == "segments"
        self.cues: Cues | None = Evidence(source) if self.source in ("authors", "fast") else None

    def read(self, data: Any) -> None:
        """Read the file of masks, if there is one.

        Raises:
            InputError: images, sizes or classes differ from those of the data set.
        """
        if self.file:
            self.cues = GivenMasks(data.variant(labels=Path(self.file)).index("train"))

    def __call__(
        self,
        samples: Sequence[MaskSamples],
        seeds: Sequence[Tensor],
        batch: Batch,
        activations: Callable[[Sequence[MaskSamples]], Sequence[Tensor]],
    ) -> Tensor:
        """Return masks (K,28,28) in 0 and 1 of the boxes of all samples.

        Args:
            samples: of each image, K in all.
            seeds: (S,) int64, positions in the samples of each image.
            batch: the images.
            activations: function from the seeds of each image to their activations (S,h,w).
        """
        if self.source == "segments":
            rows = zip(samples, seeds, [s["proposals"] for s in batch], strict=True)
            return torch.cat([masks_of_segments(*row) for row in rows])
        if self.source == "detector":
            pairs = zip(samples, seeds, strict=True)
            active = activations([MaskSamples(*(part[i] for part in m)) for m, i in pairs])
            of_image = zip(samples, seeds, active, strict=True)
            return torch.cat([masks_of_activations(*row) for row in of_image])
        if self.cues is None:
            raise InputError(f"the masks of {self.file} are not read yet; read them for the data")
        return masks_of_cues(self.cues, samples, seeds, batch)


class GivenMasks:
    """Masks of a file as evidence (section 4.5); called like `wsis.evidence.seed_masks.Evidence`.

    Each box takes the mask whose box overlaps it most. Boxes that match none (IoU below 0.5) are
    filled, as GrabCut leaves those in which it finds nothing.

    Args:
        index: images with annotations; crowds and masks marked `ignore` are left out.
    """

    def __init__(self, index: Index) -> None:
        self.annotations = index.annotations
        self.sizes = {image["id"]: (image["height"], image["width"]) for image in index.images}

    def __call__(self, requests: Sequence[Request]) -> list[tuple[Tensor, Tensor]]:
        """Return windows (K,4) in original pixels and masks (K,SIZE,SIZE) bool for each request."""
        return [self._cut(request) for request in requests]

    def _cut(self, request: Request) -> tuple[Tensor, Tensor]:
        boxes = request.boxes.detach().cpu()
        masks = torch.ones(len(boxes), SIZE, SIZE, dtype=torch.bool)
        found = [a for a in self.annotations.get(request.image_id, ()) if _is_mask(a)]
        if not (found and len(boxes)):
            return boxes, masks
        height, width = self.sizes[request.image_id]
        windows = clip(boxes.double().numpy(), height, width)
        known = torch.tensor([a["bbox"] for a in found], dtype=boxes.dtype)
        overlap, best = box_iou(boxes, box_convert(known, "xywh", "xyxy")).max(1)
        lines = [run_length(found[i]["segmentation"], (height, width)) for i in best.tolist()]
        cut = sample_masks(rle.decode(lines).transpose(2, 0, 1), windows).astype(bool)
        masks = torch.where((overlap >= 0.5)[:, None, None], torch.from_numpy(cut), masks)
        return torch.from_numpy(windows.astype(np.float32)), masks


def _is_mask(annotation: Record) -> bool:
    unusable = annotation.get("iscrowd") or annotation.get("ignore")
    return bool(annotation.get("segmentation") and not unusable)


def masks_of_cues(
    cues: Cues, samples: Sequence[MaskSamples], seeds: Sequence[Tensor], batch: Batch
) -> Tensor:
    """Return first masks (K,28,28) in 0 and 1, from masks of the seeds in the original images.

    Args:
        cues: makes or looks up masks of boxes.
        samples: of each image, K in all.
        seeds: (S,) int64, positions in the samples of each image.
        batch: the images.
    """
    boxes = [s["view"].to_original(m.boxes) for m, s in zip(samples, batch, strict=True)]
    chosen = [b[index] for b, index in zip(boxes, seeds, strict=True)]
    requests = [
        Request(s["image_id"], partial(read_image, s["path"], s["size"]), c)
        for s, c in zip(batch, chosen, strict=True)
    ]
    masks = []
    for (windows, found), b, c, s in zip(cues(requests), boxes, chosen, batch, strict=True):
        target = resample(windows.to(b.device), found.to(b.device), _nearest(b, c), b, _SIDE)
        masks.append(target.flip(-1) if s["view"].flip else target)
    return torch.cat(masks).round()


def masks_of_segments(samples: MaskSamples, seeds: Tensor, proposals: Proposals) -> Tensor:
    """Return first masks (K,28,28): in each box, the segment of its nearest seed.

    Args:
        samples: K proposals that train masks.
        seeds: (S,) int64, positions in `samples`.
        proposals: of the image, with segments.
    """
    nearest = _nearest(samples.boxes, samples.boxes[seeds])
    index = samples.proposals[seeds[nearest]]
    found = segments_in(proposals, index, samples.boxes, (_SIDE, _SIDE))
    return found.to(samples.boxes.dtype)


def masks_of_activations(samples: MaskSamples, seeds: Tensor, activations: Tensor) -> Tensor:
    """Return first masks (K,28,28): in each box, where its nearest seed is active.

    Args:
        samples: K proposals that train masks.
        seeds: (S,) int64, positions in `samples`.
        activations: (S,h,w) of the seeds, 1 at most, as `Detector.activations` returns them.
    """
    boxes = samples.boxes[seeds]
    nearest = _nearest(samples.boxes, boxes)
    found = resample(boxes, activations, nearest, samples.boxes, _SIDE)
    return (found >= _HOT).to(samples.boxes.dtype)


def _nearest(boxes: Tensor, seeds: Tensor) -> Tensor:
    """Return the seed (R,) that each box (R,4) overlaps most; there is none without boxes."""
    return box_iou(boxes, seeds).argmax(1) if len(seeds) else boxes.new_zeros(0).long()
