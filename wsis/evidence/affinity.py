"""Pixel affinities learnt from class activation maps, and maps propagated along them.

Ahn and Kwak, CVPR 2018 (PSA, "AffinityNet"). Cells to which the maps assign a class with confidence
supervise the affinities of neighbours; a random walk then propagates the maps between cells of high
affinity, up to the edges of objects. As in the successor IRN (Ahn et al., CVPR 2019), features come
from a frozen network, and cells where all maps are below a threshold are background. There is no
dense CRF; without it, PSA's two background scores (1 - max)^4 and (1 - max)^32 are equivalent to
thresholds of .28 and .08 on the maps. The maps are a classifier's logits including the bias;
without it they respond to everything that a negative bias would suppress.

N images, C classes, h x w cells; K = 34 offsets for a radius of 5, one of each opposite pair.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsis.errors import InputError
from wsis.evidence.cam import average_over_scales, finite, inside, normalise
from wsis.method import Method, filled
from wsis.nn.backbone import Backbone, BackboneSettings
from wsis.nn.checkpoint import read_checkpoint
from wsis.nn.regions import enlarge
from wsis.types import Batch, size_of
from wsis.values import COUNT, FRACTION, NOT_NEGATIVE, POSITIVE, Range, Ranges

__all__ = [
    "AffinityNet",
    "PixelLabels",
    "affinities",
    "affinity_loss",
    "pixel_labels",
    "random_walk",
    "sure_labels",
]

_UNKNOWN = -1
_BACKBONE = BackboneSettings("resnet50", "none", output_stride=16)


class AffinityNet(Method):
    """A network that learns from tags which neighbouring cells belong to the same class.

    It is trained on the frozen features of a classifier.

    Args:
        num_classes: Number of thing classes.
        backbone: Backbone of the classifier; `start` loads its weights, which stay fixed.
        min_stride: Lowest stride of the feature maps to use; affinities are those of the finest.
        width: Channels of each projected map and of the compared features; a multiple of 4.
        radius: Distance in cells from which cells have no affinity; at least 2.
        foreground_threshold: Map value above which a cell is labelled with a tagged class.
        background_threshold: Value of all maps below which a cell is labelled background.
        lr: Peak learning rate of AdamW, reached after a tenth of the steps.
        weight_decay: Weight decay of AdamW.
    """

    needs_proposals = False
    ranges: ClassVar[Ranges] = {
        COUNT: ("min_stride",),
        Range(4, whole=True): ("width",),
        Range(2, whole=True): ("radius",),
        FRACTION: ("foreground_threshold", "background_threshold"),
        POSITIVE: ("lr",),
        NOT_NEGATIVE: ("weight_decay",),
    }

    def __init__(
        self,
        num_classes: int = 20,
        backbone: BackboneSettings = _BACKBONE,
        min_stride: int = 8,
        width: int = 64,
        radius: int = 5,
        foreground_threshold: float = 0.28,
        background_threshold: float = 0.08,
        lr: float = 1e-2,
        weight_decay: float = 1e-4,
    ) -> None:
        super().__init__()
        backbone = replace(filled(_BACKBONE, backbone), weights="none", frozen_stages=5)
        self.save_hyperparameters()
        if width % 4:
            raise InputError(f"width {width}: give a multiple of 4")
        if background_threshold > foreground_threshold:
            raise InputError(
                f"background_threshold {background_threshold}: above foreground_threshold "
                f"{foreground_threshold}; give a smaller one"
            )
        self.backbone = Backbone(backbone)
        self.head = nn.Conv2d(self.backbone.channels, num_classes, 1).requires_grad_(False)
        self.levels = [
            level for level, stride in enumerate(self.backbone.strides) if stride >= min_stride
        ]
        if not self.levels:
            raise InputError(
                f"backbone {backbone.name} has no map of stride {min_stride} or more; "
                "choose a smaller min_stride"
            )
        self.stride = self.backbone.strides[self.levels[0]]
        self.embed = Embedding([self.backbone.widths[level] for level in self.levels], width)

    def start(self, classifier: Path) -> None:
        """Load backbone and last layer from a checkpoint of `wsis.parts.classifier`.

        Raises:
            InputError: it is a checkpoint of another model or another number of classes.
        """
        self.backbone.load(classifier)
        state = read_checkpoint(classifier)["state_dict"]
        try:
            self.head.load_state_dict({name: state[f"head.{name}"] for name in ("weight", "bias")})
        except (KeyError, RuntimeError) as error:
            raise InputError(
                f"{classifier} is not the checkpoint of a classifier with "
                f"{self.head.out_channels} classes on {self.head.in_channels} channels; train one "
                "with --model classifier"
            ) from error

    def forward(self, images: Sequence[Tensor] | Tensor) -> tuple[Tensor, Tensor]:
        """Images (3,H,W) -> features (N,D,h,w) to compare, classifier logits (N,C,h',w').

        Both include the padding of the images.
        """
        with torch.no_grad():
            maps = self.backbone.network(self.backbone.normalise(images))
        features = self.embed([maps[level] for level in self.levels])
        return features, self.head(maps[self.backbone.feature_level])

    def training_step(self, batch: Batch, _: int) -> Tensor:
        """Compute the loss of the affinities under labels of confident cells."""
        features, logits = self([sample["image"] for sample in batch])
        sizes = [size_of(sample["image"]) for sample in batch]
        maps = normalise(logits * inside(sizes, logits, self.backbone.stride)[:, None])
        maps = F.interpolate(maps, size=features.shape[-2:], mode="bilinear")
        tags = torch.stack([sample["target"]["tags"] for sample in batch])
        settings, radius = self.hparams, self.hparams["radius"]
        labels = sure_labels(
            maps, tags, settings["foreground_threshold"], settings["background_threshold"]
        )
        labels = labels.where(inside(sizes, features, self.stride), _UNKNOWN)
        loss = affinity_loss(affinities(features, radius), labels, radius, tags.shape[1])
        self.log_losses({}, loss, len(batch))
        return loss

    @torch.no_grad()
    def refine(
        self,
        image: Tensor,
        tags: Tensor,
        scales: tuple[float, ...] = (0.5, 1.0, 1.5, 2.0),
        power: float = 8.0,
        steps: int = 256,
    ) -> Tensor:
        """Return class activation maps of an image, averaged over scales, then propagated.

        Args:
            image: (3,H,W) uint8 or float RGB.
            tags: (C,) 0 or 1; maps of untagged classes are 0.
            scales: factors on the image's size.
            power: as in `random_walk`.
            steps: as in `random_walk`.

        Returns:
            (C,h,w) on cells of `stride` pixels that cover the image, for `pixel_labels`.
        """
        labels = (tags > 0).nonzero().flatten()
        height, width = -(-image.shape[-2] // self.stride), -(-image.shape[-1] // self.stride)
        refined = torch.zeros(len(tags), height, width, device=image.device)
        if len(labels):
            maps = average_over_scales(image, lambda images: self._raw_maps(images, labels), scales)
            maps = F.avg_pool2d(maps, self.stride, ceil_mode=True)
            features, radius = self([image])[0][..., :height, :width], self.hparams["radius"]
            weights = affinities(features, radius)
            refined[labels] = random_walk(maps[None], weights, radius, power, steps)[0]
        return refined

    def _raw_maps(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return positive logits (N,T,H,W) of some classes at the images' size."""
        maps = self.head(self.backbone(images))[:, labels].relu()
        return enlarge(maps, self.backbone.stride, size_of(images))

    def configure_optimizers(self) -> Any:
        """Return AdamW and its one-cycle schedule."""
        optimiser = torch.optim.AdamW(
            self.embed.parameters(),
            lr=self.hparams["lr"],
            weight_decay=self.hparams["weight_decay"],
        )
        steps = max(int(self.trainer.estimated_stepping_batches), 1)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimiser, self.hparams["lr"], total_steps=steps, pct_start=0.1
        )
        return [optimiser], [{"scheduler": schedule, "interval": "step"}]


class Embedding(nn.Module):
    """Layers that combine several feature maps, finest first, into one of the finest size.

    Args:
        channels: channels of each map.
        width: channels of each projected map and of the result; a multiple of 4.
    """

    def __init__(self, channels: list[int], width: int) -> None:
        super().__init__()
        self.each = nn.ModuleList(
            nn.Sequential(nn.Conv2d(inputs, width, 1, bias=False), nn.GroupNorm(4, width), nn.ELU())
            for inputs in channels
        )
        self.last = nn.Conv2d(width * len(channels), width, 1, bias=False)

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Maps (N,D_i,h_i,w_i) -> (N,width,h_0,w_0)."""
        size = maps[0].shape[-2:]
        parts = [
            F.interpolate(layer(m), size, mode="bilinear")
            for layer, m in zip(self.each, maps, strict=True)
        ]
        return self.last(torch.cat(parts, 1))


def affinities(features: Tensor, radius: int = 5) -> Tensor:
    """Return the affinity of each cell with those in half the disc around it (PSA section 3.2).

    It is the exponential of minus the mean absolute difference of features.

    Args:
        features: (N,D,h,w).
        radius: radius of the disc in cells, at least 2; its rim is excluded, as in the code.

    Returns:
        (N,K,h,w) in (0, 1], 0 if the other cell is outside the map.
    """
    # not in bfloat16, where the loss's 1 + 1e-5 is 1
    features = features.to(torch.promote_types(features.dtype, torch.float32))
    others = _neighbours(features, radius, torch.inf)  # infinite outside the map
    return torch.stack([(features - other).abs().mean(1).neg().exp() for other in others], 1)


def sure_labels(
    maps: Tensor, tags: Tensor, foreground: float = 0.28, background: float = 0.08
) -> Tensor:
    """Return labels of the cells for which class activation maps are confident.

    Args:
        maps: (N,C,h,w) in [0, 1].
        tags: (N,C) 0 or 1.
        foreground: a cell gets the tagged class of the highest map if that is above this value.
        background: a cell is background if the highest map is below this value.

    Returns:
        (N,h,w) int64: class, C for background, -1 for unknown.

    Raises:
        InputError: maps hold NaN.
    """
    score, label = (finite(maps) * tags[..., None, None]).max(1)
    label = label.masked_fill(score <= foreground, _UNKNOWN)
    return label.masked_fill(score < background, maps.shape[1])


def affinity_loss(affinities: Tensor, labels: Tensor, radius: int, background: int) -> Tensor:
    """Return the cross-entropy of affinities, 1 for pairs of one label and 0 for others.

    PSA section 3.2, weighted as in the code: a quarter of the mean over pairs of background, a
    quarter of the mean over pairs of one class, half of the mean over other pairs.

    Args:
        affinities: (N,K,h,w), from the function of this name.
        labels: (N,h,w) int64; pairs with a negative label are excluded from the loss.
        radius: radius of `affinities`.
        background: label of background.
    """
    first, second = labels[:, None], torch.stack(_neighbours(labels, radius, _UNKNOWN), 1)
    known, same = (first >= 0) & (second >= 0), first == second
    attract, repel = -(affinities + 1e-5).log(), -(1 + 1e-5 - affinities).log()

    def mean(values: Tensor, pairs: Tensor) -> Tensor:
        return (values * pairs).sum() / pairs.sum().clamp(min=1)

    ground = mean(attract, known & same & (first == background))
    thing = mean(attract, known & same & (first != background))
    return (ground + thing + 2 * mean(repel, known & ~same)) / 4


@torch.no_grad()
def random_walk(
    maps: Tensor, affinities: Tensor, radius: int = 5, power: float = 8.0, steps: int = 256
) -> Tensor:
    """Propagate scores along affinities by a random walk (PSA section 3.3).

    In each step every cell takes the mean of its neighbours' scores, weighted by affinity. The
    transition matrix is sparse: at 64 x 64 cells 256 steps take 0.2 s on a CPU core; squaring the
    dense matrix 8 times, as the code does, takes 20 s. Images of one call are independent.

    Args:
        maps: (N,C,h,w).
        affinities: (N,K,h,w) between the same cells, without padding.
        radius: radius of `affinities`.
        power: exponent of the affinities (PSA's beta); a higher one crosses fewer edges.
        steps: number of steps.

    Returns:
        (N,C,h,w).

    Raises:
        InputError: maps or affinities hold NaN.
    """
    values = finite(maps).double().permute(0, 2, 3, 1).flatten(0, 2)
    weights = _weights(finite(affinities, "affinities").double() ** power, radius)
    degrees = weights @ torch.ones_like(values[:, :1])
    for _ in range(steps):
        values = (weights @ values) / degrees
    return values.view(len(maps), *maps.shape[2:], -1).permute(0, 3, 1, 2).to(maps.dtype)


class PixelLabels(NamedTuple):
    """Label of each pixel of an image."""

    labels: Tensor
    """(H,W) int64, class or C for background: targets of `F.cross_entropy` with C + 1 channels.

    No pixel is unknown.
    """
    foreground: Tensor
    """(H,W) float in [0, 1], highest map of a tagged class."""


def pixel_labels(
    scores: Tensor, tags: Tensor, stride: int, size: tuple[int, int], background: float = 0.25
) -> PixelLabels:
    """Label each pixel with the class of the highest map, or as background.

    Args:
        scores: (C,h,w), at least 0; each map is divided by its maximum.
        tags: (C,) 0 or 1.
        stride: pixels per cell.
        size: (H, W) of the image; the last cells may extend beyond it.
        background: score of background; the default is IRN's.

    Raises:
        InputError: scores hold NaN.
    """
    tagged = (tags > 0).nonzero().flatten()
    if not len(tagged):
        labels = tags.new_full(size, len(tags), dtype=torch.int64)
        return PixelLabels(labels, scores.new_zeros(size))
    maps = enlarge(finite(scores)[None, tagged], stride, size)[0]
    peak = maps.amax((1, 2), keepdim=True)
    foreground, best = (maps / peak.where(peak > 0, 1)).max(0)
    return PixelLabels(tagged[best].where(foreground > background, len(tags)), foreground)


def _neighbours(values: Tensor, radius: int, beyond: float) -> list[Tensor]:
    """Return values (...,h,w) shifted by K offsets: neighbours in half the disc without its rim."""
    reach, (height, width) = radius - 1, values.shape[-2:]
    padded = F.pad(values, (reach, reach, 0, reach), value=beyond)
    shifted = []
    for y in range(radius):
        for x in range(-reach, radius):
            if (y > 0 or x > 0) and x * x + y * y < radius * radius:
                shifted.append(padded[..., y : y + height, x + reach : x + reach + width])
    return shifted


def _weights(affinities: Tensor, radius: int) -> Tensor:
    """Return sparse symmetric weights (N h w, N h w), 1 between each cell and itself."""
    count, _, height, width = affinities.shape
    number = count * height * width
    cells = torch.arange(number, device=affinities.device).view(count, height, width)
    neighbours = torch.stack(_neighbours(cells, radius, -1), 1)
    valid = neighbours >= 0
    first, second = cells[:, None].expand_as(neighbours)[valid], neighbours[valid]
    rows = torch.cat([first, second, cells.flatten()])
    columns = torch.cat([second, first, cells.flatten()])
    weights = affinities[valid]
    values = torch.cat([weights, weights, weights.new_ones(number)])
    index, size = torch.stack([rows, columns]), (number, number)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
        matrix = torch.sparse_coo_tensor(index, values, size, check_invariants=False)
        return matrix.to_sparse_csr()  # a step takes a tenth of the time of COO
