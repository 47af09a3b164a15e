"""Mask heads on region features, and their masks resampled to run lengths of the image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pycocotools import mask as rle
from torch import Tensor, nn

from wsis.errors import InputError
from wsis.ops import segment_windows, superpixel_windows
from wsis.types import RLE, Proposals

__all__ = [
    "MaskHeads",
    "MaskTarget",
    "PixelHead",
    "along_segments",
    "enlarge",
    "next_target",
    "of_class",
    "paste",
    "pointwise",
    "run_lengths",
    "segment_masks",
    "segments_in",
    "segments_of",
    "tight_boxes",
]

MaskTarget = Literal["soft", "cut"]


class MaskHeads(nn.Module):
    """A convolutional trunk with several 1 x 1 predictors (PDSL section 3.3).

    Args:
        inputs: channels of the region features.
        outputs: channels of each predictor's masks.
        width: channels of the trunk; the papers take 256.
    """

    def __init__(self, inputs: int, outputs: list[int], width: int = 256) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for channels in (inputs, width, width, width):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
        self.trunk = nn.Sequential(
            *layers, nn.ConvTranspose2d(width, width, 2, stride=2), nn.ReLU()
        )
        self.predictors = nn.ModuleList(nn.Conv2d(width, channels, 1) for channels in outputs)
        for module in self.trunk:
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        for predictor in self.predictors:
            nn.init.normal_(predictor.weight, std=0.001)  # type: ignore[arg-type]
            nn.init.zeros_(predictor.bias)  # type: ignore[arg-type]

    def forward(self, regions: Tensor) -> list[Tensor]:
        """(K,D,14,14) -> logits (K,outputs_m,28,28) of each predictor."""
        shared = self.trunk(regions)
        return [predictor(shared) for predictor in self.predictors]


class PixelHead(nn.Module):
    """Two 1 x 1 convolutions with normalisation between them, enlarged by a factor of four.

    Args:
        channels: of the features.
        width: hidden channels.
        classes: number of maps.
    """

    def __init__(self, channels: int, width: int, classes: int = 1) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(channels, width, 1), nn.BatchNorm2d(width, momentum=0.01)
        self.last = nn.Conv2d(width, classes, 1)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Maps, the finest (N,D,h,w) first -> logits (N,classes,4h,4w)."""
        return enlarge(self.logits(features))

    def logits(self, features: Sequence[Tensor]) -> Tensor:
        """Maps, the finest (N,D,h,w) first -> logits (N,classes,h,w)."""
        hidden = pointwise(features, self.first.weight, self.first.bias)
        result: Tensor = self.last(self.norm(hidden).relu())
        return result


def enlarge(logits: Tensor) -> Tensor:
    """Enlarge logits (N,M,h,w) to (N,M,4h,4w)."""
    return F.interpolate(logits, scale_factor=4, mode="bilinear")


def of_class(masks: Tensor, labels: Tensor) -> Tensor:
    """Select each region's mask of its class: (K,C,h,w), labels (K,) -> (K,h,w).

    A single channel is class-agnostic and selected for every label.
    """
    if masks.shape[1] == 1:
        return masks[:, 0]
    return masks[torch.arange(len(masks), device=masks.device), labels]


def pointwise(maps: Sequence[Tensor], weight: Tensor, bias: Tensor | None) -> Tensor:
    """Apply a 1 x 1 convolution to maps (N,D_i,h_i,w_i) enlarged to the size of the first.

    `weight` is (O,sum D_i,1,1). Maps are enlarged after the convolution: the same result with an
    eighth of the multiplications for 720 channels.
    """
    parts = torch.split(weight, [m.shape[1] for m in maps], 1)
    total = F.conv2d(maps[0], parts[0], bias)
    for m, part in zip(maps[1:], parts[1:], strict=True):
        total += F.interpolate(F.conv2d(m, part), size=total.shape[-2:], mode="bilinear")
    return total


def paste(
    probabilities: Tensor, boxes: Tensor, size: tuple[int, int], threshold: float = 0.5
) -> list[RLE]:
    """Resample masks over their boxes, threshold and encode them, one at a time.

    Args:
        probabilities: (N,h,w) in [0, 1]; or logits, with a threshold of 0.
        boxes: (N,4) image pixels.
        size: (H, W) of the image.
        threshold: lowest probability of a mask pixel.

    Returns:
        N run-length masks; bilinear between the centres of the small mask's pixels, 0 outside.
    """
    small, at = probabilities.float().cpu().numpy(), boxes.float().cpu().numpy()
    canvas = np.zeros(size, np.uint8, order="F")  # the encoder reads column by column
    masks = []
    for mask, box in zip(small, at, strict=True):
        (x1, y1), (x2, y2) = np.floor(box[:2]).astype(int), np.ceil(box[2:]).astype(int)
        x1, y1, x2, y2 = max(x1, 0), max(y1, 0), min(x2, size[1]), min(y2, size[0])
        if x2 > x1 and y2 > y1:
            canvas[y1:y2, x1:x2] = _stretch(mask, box, (x1, y1, x2, y2)) >= threshold
        masks.append(rle.encode(canvas))
        canvas[y1:y2, x1:x2] = 0
    return masks


def segments_of(proposals: Proposals) -> tuple[Tensor, Tensor]:
    """Return the label map (H,W) and members (P,S) of an image's proposals.

    Raises:
        InputError: the proposals are boxes alone.
    """
    if proposals.labels is None or proposals.members is None:
        raise InputError(
            "these proposals are boxes alone, and segments are needed: use --data.proposals "
            "segments, or a file that has masks"
        )
    return proposals.labels, proposals.members


def segment_masks(proposals: Proposals, index: Tensor) -> list[RLE]:
    """Return segments (N,) of an image's proposals as run-length masks, made one at a time."""
    label_map, members = segments_of(proposals)
    labels, chosen = label_map.cpu().numpy(), members[index].cpu().numpy()
    return [run_lengths(row[labels] & (labels >= 0)) for row in chosen]


def run_lengths(mask: Tensor | NDArray[np.bool_]) -> RLE:
    """Encode a mask (H,W) bool as run lengths."""
    pixels = mask.cpu().numpy() if isinstance(mask, Tensor) else mask
    return rle.encode(np.asfortranarray(pixels, np.uint8))


def tight_boxes(masks: Tensor) -> Tensor:
    """Return the tight boxes (K,4) float32 xyxy of masks (K,H,W) bool; zeros for an empty mask."""
    pixels, ends = masks.view(torch.uint8), []  # 60 times faster to reduce than bool
    for lines in (pixels.amax(1), pixels.amax(2)):  # columns, rows
        first, last = lines.argmax(1), lines.shape[1] - lines.flip(1).argmax(1)
        ends.append(torch.stack([first, last], 1) * lines.amax(1, keepdim=True))
    return torch.stack(ends, 2).flatten(1).float()


def _stretch(mask: np.ndarray, box: np.ndarray, window: tuple[int, int, int, int]) -> np.ndarray:
    """Sample the mask over its box (x1, y1, x2, y2) at the pixel centres of an integer window."""
    x1, y1, x2, y2 = window
    scale = np.array(mask.shape[::-1]) / np.maximum(box[2:] - box[:2], 1e-3)
    offset = (np.array([x1, y1]) + 0.5 - box[:2]) * scale - 0.5
    inverse = np.array([[scale[0], 0, offset[0]], [0, scale[1], offset[1]]], np.float32)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    window_size, zero = (x2 - x1, y2 - y1), cv2.BORDER_CONSTANT
    return cv2.warpAffine(mask, inverse, window_size, flags=flags, borderMode=zero, borderValue=0)


def segments_in(
    proposals: Proposals, index: Tensor, boxes: Tensor, size: tuple[int, int]
) -> Tensor:
    """Return the segments of proposals (B,) in boxes (B,4) as masks (B,h,w) bool."""
    labels, members = segments_of(proposals)
    return segment_windows(labels, members[index], boxes, size)


def along_segments(masks: Tensor, boxes: Tensor, proposals: Proposals) -> Tensor:
    """Move the edges of masks to those of an image's segments.

    The result is the mean of two: the mask averaged over each superpixel, and the segments averaged
    by the fourth power of their soft IoU with the mask. On photos of horses, the first alone had a
    mask AP50 of 77 and AP75 of 1, with segments 66 and 15; with the eighth power 56 and 15.

    Args:
        masks: (N,h,w) in [0, 1], over the boxes.
        boxes: (N,4) in pixels of the image.
        proposals: of the image, with segments; without any, the masks stay.

    Returns:
        (N,h,w) in [0, 1].
    """
    labels, members = segments_of(proposals)
    if not len(members):
        return masks
    belongs, count = members.to(masks.dtype), members.shape[1]
    found = superpixel_windows(labels, boxes, (masks.shape[1], masks.shape[2]))
    cells = torch.where(found < 0, count, found).flatten(1)  # (N,hw); `count` for no superpixel
    empty, values = masks.new_zeros(len(masks), count + 1), masks.flatten(1)
    sums = empty.scatter_add(1, cells, values)[:, :count]
    numbers = empty.scatter_add(1, cells, torch.ones_like(values))[:, :count]
    pixels = (boxes[:, 2:] - boxes[:, :2]).prod(1, keepdim=True) / values.shape[1]  # of a cell
    sizes = labels[labels >= 0].flatten().long().bincount(minlength=count)[:count]
    overlap = pixels * sums @ belongs.T  # (N,P)
    total = belongs @ sizes.to(masks.dtype) + pixels * values.sum(1, keepdim=True) - overlap
    alike = overlap / total.clamp(min=1e-6)
    weights = (alike / alike.amax(1, keepdim=True).clamp(min=1e-6)) ** 4
    segments = weights / weights.sum(1, keepdim=True).clamp(min=1e-6) @ belongs  # (N,S)
    value = (sums / numbers.clamp(min=1) + segments) / 2
    return F.pad(value, (0, 1)).gather(1, cells).view_as(masks)


def next_target(logits: Tensor, how: MaskTarget) -> Tensor:
    """Return what a mask head teaches the next one, without gradient.

    Args:
        logits: (K,h,w).
        how: "soft" for probabilities, as PDSL's text has it in eq. (5); "cut" for 0 and 1.
    """
    known = logits.detach()
    return known.sigmoid() if how == "soft" else (known > 0).to(known.dtype)
