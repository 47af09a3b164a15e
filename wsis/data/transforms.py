"""Random crops, scales, flips and colours of training images, their boxes, proposals and masks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional

from wsis.errors import InputError
from wsis.types import Proposals, View
from wsis.values import COUNT, FRACTION, NOT_NEGATIVE, PART, POSITIVE, Range, check_ranges

__all__ = [
    "PHOTOGRAPHS",
    "Augment",
    "Cut",
    "cut_image",
    "cut_maps",
    "cut_proposals",
    "draw_cut",
    "jitter_colours",
    "recolour",
    "visible",
]

_RANGES = {
    COUNT: ("short_sides", "max_side"),
    PART: ("crop",),
    FRACTION: ("flip", "recoloured"),
    POSITIVE: ("scales", "brightness", "contrast"),
    NOT_NEGATIVE: ("min_proposal_side",),
    Range(1): ("jitter",),
}


@dataclass(frozen=True)
class Augment:
    """Augmentation of training images.

    Args:
        short_sides: Lengths of the short side in pixels, one drawn per image; empty keeps the size.
        max_side: Maximum length of the long side in pixels.
        crop: Side of a random crop as a fraction of the image's side; 1 keeps the whole image.
        scales: Range of the factor on max_side for large-scale jitter; empty turns it off.
        flip: Probability of a horizontal flip.
        jitter: Maximum factor (or divisor) on exposure and saturation; 1 keeps the colours.
        brightness: Range of the factor on all channels, as in EM-Paste; empty keeps them.
        contrast: Range of the factor on the difference to the image's mean grey, likewise.
        recoloured: Probability of changing brightness and, drawn apart, contrast.
        min_proposal_side: Minimum width and height of a proposal in pixels of the network's input.
    """

    short_sides: tuple[int, ...] = ()
    max_side: int = 2000
    crop: float = 1.0
    scales: tuple[float, ...] = ()
    flip: float = 0.5
    jitter: float = 1.0
    brightness: tuple[float, ...] = ()
    contrast: tuple[float, ...] = ()
    recoloured: float = 0.5
    min_proposal_side: float = 0.0

    def __post_init__(self) -> None:
        """Raise InputError for impossible values."""
        check_ranges("augment", vars(self), _RANGES)
        for name in ("scales", "brightness", "contrast"):
            span = getattr(self, name)
            if span and not (len(span) == 2 and span[0] <= span[1]):
                raise InputError(
                    f"augment: {name} {list(span)}: give two factors, the least and the largest, "
                    "such as [0.5, 1.5]"
                )

    def idle(self) -> dict[str, str]:
        """Return the settings that have no effect beside the others, each with the reason."""
        found: dict[str, str] = {}
        if self.scales:
            found |= dict.fromkeys(("short_sides", "crop"), "with augment.scales")
        if not self.brightness and not self.contrast:
            found["recoloured"] = "without augment.brightness or augment.contrast"
        return found

    @property
    def only_flips(self) -> bool:
        """Whether an image looks the same in every epoch, but for flips."""
        same_colours = self.jitter == 1 and not self.brightness and not self.contrast
        same_size = self.crop == 1 and not self.scales and len(self.short_sides) <= 1
        return same_colours and same_size


PHOTOGRAPHS = Augment(short_sides=tuple(range(480, 1217, 32)), max_side=2000, crop=0.9, jitter=1.5)
"""The default augmentation of photographs."""


class Cut(NamedTuple):
    """A crop of an image, the size it is scaled to, and a flip."""

    top: int
    left: int
    height: int
    width: int
    size: tuple[int, int]
    """(H, W) of the result."""
    flip: bool

    @property
    def view(self) -> View:
        """The cut as a map of coordinates."""
        height, width = self.size
        return View(
            (width / self.width, height / self.height), (self.left, self.top), width, self.flip
        )


def draw_cut(rng: np.random.Generator, size: tuple[int, int], augment: Augment) -> Cut:
    """Draw a crop, a scale and a flip for an image of `size` (H, W)."""
    if augment.scales:
        return _draw_jittered(rng, size, augment)
    height, width = (max(1, round(side * augment.crop)) for side in size)
    top, left = int(rng.integers(size[0] - height + 1)), int(rng.integers(size[1] - width + 1))
    short, long = sorted((height, width))
    wanted = float(rng.choice(augment.short_sides)) if augment.short_sides else short
    scale = min(wanted / short, augment.max_side / long)
    scaled = (max(1, round(height * scale)), max(1, round(width * scale)))
    return Cut(top, left, height, width, scaled, bool(rng.random() < augment.flip))


def _draw_jittered(rng: np.random.Generator, size: tuple[int, int], augment: Augment) -> Cut:
    """Draw large-scale jitter (Ghiasi et al., CVPR 2021).

    The long side becomes `max_side` times a factor; a larger result is cropped to `max_side`.
    """
    least, largest = augment.scales
    factor = float(rng.uniform(least, largest))
    scale = factor * augment.max_side / max(size)
    height, width = (max(1, min(side, round(augment.max_side / scale))) for side in size)
    top, left = int(rng.integers(size[0] - height + 1)), int(rng.integers(size[1] - width + 1))
    scaled = (
        max(1, min(augment.max_side, round(height * scale))),
        max(1, min(augment.max_side, round(width * scale))),
    )
    return Cut(top, left, height, width, scaled, bool(rng.random() < augment.flip))


def cut_image(image: Tensor, cut: Cut) -> Tensor:
    """Cut an image (3,H,W) uint8."""
    image = functional.crop(image, cut.top, cut.left, cut.height, cut.width)
    if image.shape[-2:] != cut.size:
        image = functional.resize(image, list(cut.size), antialias=True)
    return (functional.horizontal_flip(image) if cut.flip else image).contiguous()


def cut_maps(maps: Tensor, cut: Cut) -> Tensor:
    """Cut label maps or masks (...,H,W) by nearest-neighbour sampling at pixel centres."""
    rows, columns = (
        start + ((torch.arange(to) + 0.5) * (side / to)).long().clamp(max=side - 1)
        for start, side, to in (
            (cut.top, cut.height, cut.size[0]),
            (cut.left, cut.width, cut.size[1]),
        )
    )
    return maps[..., rows[:, None], columns.flip(0) if cut.flip else columns]


def cut_proposals(proposals: Proposals, cut: Cut, min_side: float = 0.0) -> Proposals:
    """Clip proposals to a cut.

    Proposals whose sides are below one pixel or `min_side`, or without a remaining superpixel, are
    dropped.
    """
    boxes, keep = visible(cut.view.to_input(proposals.boxes), cut.size, max(min_side, 1.0))
    if proposals.labels is None or proposals.members is None:
        return Proposals(boxes[keep], proposals.scores[keep])
    labels = cut_maps(proposals.labels, cut)
    present = (
        torch.bincount(labels[labels >= 0].flatten(), minlength=proposals.members.shape[1]) > 0
    )
    keep &= (proposals.members & present).any(1)
    return Proposals(boxes[keep], proposals.scores[keep], labels, proposals.members[keep])


def visible(boxes: Tensor, size: tuple[int, int], min_side: float = 1.0) -> tuple[Tensor, Tensor]:
    """Clip boxes (N,4) to `size` (H, W); also return (N,) whether both sides are >= `min_side`."""
    limit = torch.tensor([size[1], size[0]], dtype=boxes.dtype)
    boxes = boxes.view(-1, 2, 2).clamp(min=0).minimum(limit).flatten(1)
    return boxes, (boxes[:, 2:] - boxes[:, :2] >= min_side).all(1)


def jitter_colours(image: Tensor, exposure: float, saturation: float) -> Tensor:
    """Multiply value and saturation of an image (3,H,W) uint8 in HSV, clipped to their maxima.

    With V the largest channel, multiplying saturation by f gives V - f (V - channel), with f
    limited by S <= 1; multiplying value by e scales all channels by e, limited by V <= 255. Hue is
    kept.
    """
    channels = image.float()
    value = channels.amax(0)
    factor = torch.minimum(
        value / (value - channels.amin(0)).clamp(min=1e-6), torch.tensor(saturation)
    )
    coloured = value - factor * (value - channels)
    brighter = coloured * torch.clamp(255 / value.clamp(min=1e-6), max=exposure)
    return brighter.round().clamp(0, 255).to(torch.uint8)


def recolour(image: Tensor, rng: np.random.Generator, augment: Augment) -> Tensor:
    """Change the colours of an image (3,H,W) uint8 at random, as `augment` asks."""
    exposure, saturation = draw_factor(rng, augment.jitter), draw_factor(rng, augment.jitter)
    if augment.jitter > 1:
        image = jitter_colours(image, exposure, saturation)
    if augment.brightness and rng.random() < augment.recoloured:
        low, high = augment.brightness
        image = functional.adjust_brightness(image, float(rng.uniform(low, high)))
    if augment.contrast and rng.random() < augment.recoloured:
        low, high = augment.contrast
        image = functional.adjust_contrast(image, float(rng.uniform(low, high)))
    return image


def draw_factor(rng: np.random.Generator, jitter: float) -> float:
    """Draw a factor in [1 / jitter, jitter], with equal probability below and above one."""
    factor = float(rng.uniform(1, jitter))
    return factor if rng.random() < 0.5 else 1 / factor
