"""The fast masks of `wsis.evidence.grabcut` in torch, for the boxes of a batch at once.

On a GPU the histograms of a step's boxes would otherwise wait for the CPU. Steps, constants and
priors are those of `grabcut`; sums are in float32, so that about one cell in a thousand differs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from wsis.evidence.grabcut import (
    BINS,
    EDGE,
    MARGIN,
    RADIUS,
    ROUNDS,
    SIZE,
    inner,
    place_prior,
)

__all__ = ["crops_on_device", "eight_bit_lab"]

_CHUNK = 256  # boxes at a time: their histograms take 14 MB
_XYZ = (1777, 1541, 778), (871, 2929, 296), (73, 448, 3575)
"""Linear RGB to XYZ over the white of daylight (D65), in 12 bits."""
Known = Sequence[Tensor] | None


def crops_on_device(
    images: Sequence[Tensor],
    boxes: Sequence[Tensor],
    sure: Known = None,
    background: Known = None,
    centred: bool = True,
) -> list[tuple[Tensor, Tensor]]:
    """Return foreground masks on a small grid over each box, as `grabcut.crops` does.

    Args:
        images: (3,H,W) uint8 RGB each, on one device.
        boxes: (K,4) xyxy in pixels, of each image.
        sure: (K,SIZE,SIZE) bool for each image, cells known to be foreground.
        background: (K,SIZE,SIZE) bool for each image, cells known to be background, even where
            `sure` says otherwise.
        centred: whether foreground is expected at the centre, as in `grabcut.foreground`.

    Returns:
        For each image windows (K,4) float32, the boxes, at least one pixel wide and high, and masks
        (K,SIZE,SIZE) bool over them, False outside the image.
    """
    counts = [len(of_image) for of_image in boxes]
    windows = [
        torch.cat([b[:, :2], torch.maximum(b[:, 2:], b[:, :2] + 1)], 1).float() for b in boxes
    ]
    grids = [_sample(image, w) for image, w in zip(images, windows, strict=True)]
    pixels, valid = (torch.cat(parts) for parts in zip(*grids, strict=True))
    never = _on_grids(background, valid)
    known = _on_grids(sure, valid) & ~never
    inside = 0.0 if sure is not None else 1.0
    masks = []
    for start in range(0, len(valid), _CHUNK):
        part = slice(start, start + _CHUNK)
        prior = _prior(valid[part], inside, centred)
        logits = _separate(pixels[part], valid[part], known[part], never[part], prior)
        found = (logits > 0) | inner(known[part])
        masks.append(found & ~inner(never[part]) & inner(valid[part]))
    every = torch.cat(masks) if masks else inner(valid)
    return list(zip(windows, torch.split(every, counts), strict=True))


def _sample(image: Tensor, windows: Tensor) -> tuple[Tensor, Tensor]:
    """Return pixels (K,3,M,M) on grids over windows with margin; True (K,M,M) inside the image."""
    height, width = image.shape[-2:]
    steps = (torch.arange(-MARGIN, SIZE + MARGIN, device=windows.device) + 0.5) / SIZE
    x = windows[:, 0, None] + (windows[:, 2] - windows[:, 0])[:, None] * steps
    y = windows[:, 1, None] + (windows[:, 3] - windows[:, 1])[:, None] * steps
    valid = ((y >= 0) & (y < height))[:, :, None] & ((x >= 0) & (x < width))[:, None]
    places = torch.stack([x[:, None].expand(valid.shape), y[:, :, None].expand(valid.shape)], -1)
    grid = 2 * places / places.new_tensor([width, height]) - 1
    rows = F.grid_sample(
        image[None].float(), grid.flatten(0, 1)[None], padding_mode="border", align_corners=False
    )[0]
    pixels = rows.view(3, *valid.shape).movedim(0, 1)
    return pixels.round(), valid


def _on_grids(cells: Known, valid: Tensor) -> Tensor:
    """Return known cells (K,SIZE,SIZE) of all images on grids with margin (K,M,M)."""
    grid = torch.zeros_like(valid)
    if cells is not None:
        inner(grid)[:] = torch.cat(list(cells))
    return grid


def _prior(valid: Tensor, inside: float, centred: bool) -> Tensor:
    """Return the prior log odds of places, (M,M) or (K,M,M)."""
    if centred:
        return torch.from_numpy(place_prior()).to(valid.device, torch.float32)
    prior = torch.where(valid, -30.0, inside)
    inner(prior)[:] = inside
    return prior


def _separate(pixels: Tensor, valid: Tensor, known: Tensor, never: Tensor, prior: Tensor) -> Tensor:
    """Return the log odds of foreground (K,SIZE,SIZE), smoothed within edges."""
    colours = _colour_bins(pixels).flatten(1)
    logits = prior.expand(valid.shape)
    for _ in range(ROUNDS):
        probability = logits.clamp(-30, 30).sigmoid().where(~known, 1.0).where(~never, 0.0)
        inside = _histogram(colours, (probability * valid).flatten(1))
        outside = _histogram(colours, ((1 - probability) * valid).flatten(1))
        evidence = (inside.log() - outside.log()).gather(1, colours)
        logits = prior + evidence.view_as(logits)
    grey = (pixels * pixels.new_tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1).round()
    return inner(_guided(logits.clamp(-4, 4), grey / 255))


def _colour_bins(pixels: Tensor) -> Tensor:
    """Return the bin (K,M,M) of each pixel (K,3,M,M), as `lab_bins` of OpenCV's 8-bit Lab."""
    scaled = (eight_bit_lab(pixels) - _column([0, 64, 64], pixels)) * _column(
        [BINS, 2 * BINS, 2 * BINS], pixels
    )
    bins = (scaled >> 8).clamp(0, BINS - 1)
    return (bins[:, 0] * BINS + bins[:, 1]) * BINS + bins[:, 2]


def eight_bit_lab(pixels: Tensor) -> Tensor:
    """Return OpenCV's 8-bit Lab of pixels (K,3,M,M) from 0 to 255, as int64.

    It rounds to 11 bits after removing gamma and to 15 after the cube root, which decides the bin
    of one pixel in fifteen.
    """
    levels = torch.arange(256, device=pixels.device, dtype=torch.float64) / 255
    curved = ((levels + 0.055) / 1.055) ** 2.4
    linear = (2040 * curved.where(levels > 0.04045, levels / 12.92)).round().long()
    xyz = torch.arange(3072, device=pixels.device, dtype=torch.float64) / 2040
    root = xyz ** (1 / 3)
    root = (2**15 * root.where(xyz >= 0.008856, 7.787 * xyz + 0.13793)).round().long()
    red, green, blue = linear[pixels.long()].unbind(1)
    x, y, z = (root[(red * r + green * g + blue * b + 2048) >> 12] for r, g, b in _XYZ)
    lightness = 296 * y - (16 * 255 * 2**15 + 50) // 100
    colour = torch.stack([lightness, 500 * (x - y) + 2**22, 200 * (y - z) + 2**22], 1)
    return ((colour + 2**14) >> 15).clamp(0, 255)


def _column(values: list[int], like: Tensor) -> Tensor:
    """Return a value per channel (3,1,1)."""
    return torch.tensor(values, device=like.device)[:, None, None]


def _histogram(colours: Tensor, weight: Tensor) -> Tensor:
    """Return smoothed and normalised densities (K,bins) of colours (K,pixels)."""
    count, bins = len(colours), BINS**3
    places = colours + bins * torch.arange(count, device=colours.device)[:, None]
    counts = weight.new_zeros(count * bins).index_add_(0, places.flatten(), weight.flatten())
    cube = counts.view(count, 1, BINS, BINS, BINS)
    for axis in (2, 3, 4):
        first, last = cube.narrow(axis, 0, 1), cube.narrow(axis, BINS - 1, 1)
        longer = torch.cat([first, cube, last], axis)
        before, after = longer.narrow(axis, 0, BINS), longer.narrow(axis, 2, BINS)
        cube = (before + 2 * cube + after) / 4
    density = cube.reshape(count, bins)
    return density / density.sum(1, keepdim=True).clamp(min=1e-6) + 0.1 / bins


def _guided(values: Tensor, guide: Tensor) -> Tensor:
    """Filter values (K,M,M) guided by grey pixels (K,M,M); He et al., ECCV 2010, eqs. 5-8."""

    def mean(v: Tensor) -> Tensor:
        padded = F.pad(v[:, None], (RADIUS,) * 4, "reflect")
        return F.avg_pool2d(padded, 2 * RADIUS + 1, 1)[:, 0]

    mean_guide, mean_values = mean(guide), mean(values)
    slope = (mean(guide * values) - mean_guide * mean_values) / (
        mean(guide * guide) - mean_guide**2 + EDGE
    )
    return mean(slope) * guide + mean(mean_values - slope * mean_guide)
