"""Pixel affinities learnt from class activation maps, and the maps carried along them to objects' edges.

Ahn and Kwak, CVPR 2018 (PSA, "AffinityNet"). Cells whose class the maps are sure of teach which neighbours belong together;
a random walk then spreads the maps among cells that do. Two things are as in its successor, IRN (Ahn et al., CVPR 2019):
features come from a frozen network, and background is what the maps leave below a threshold. There is no dense CRF, without
which PSA's two background scores (1 - max)^4 and (1 - max)^32 are just the thresholds .28 and .08 on the maps. The maps are a
classifier's logits, bias included: without it they fire on everything that its bias outweighs.

N images, C classes, h x w cells; K = 34 offsets for a radius of 5, one of each opposite pair.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsis.errors import InputError
from wsis.evidence.cam import average_over_scales, finite, inside, normalise
from wsis.method import Method, filled
from wsis.nn.backbone import Backbone, BackboneSettings
from wsis.nn.regions import enlarge
from wsis.types import Batch, size_of

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
    """Learn from tags which neighbouring cells belong together, on the frozen features of a classifier.

    Args:
        num_classes: Number of thing classes.
        backbone: The classifier's; its weights are read by `start` and stay fixed.
        min_stride: Smallest stride of the feature maps that are used; affinities are between cells of the finest of them.
        width: Channels taken from each map, and of the features that are compared; a multiple of 4.
        radius: Cells this far apart or farther have no affinity; at least 2.
        foreground_threshold: Value above which the map of a tagged class is certain to show it.
        background_threshold: Value below which all maps are certain to show background.
        lr: Peak learning rate of AdamW, reached after a tenth of the steps.
        weight_decay: Weight decay of AdamW.
    """

    needs_proposals = False

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
        if radius < 2:
            raise InputError(
                f"radius {radius}: no cell has a neighbour nearer than that; give at least 2"
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
        """Take backbone and last layer from a checkpoint of `wsis.parts.classifier`, whose maps and features are used.

        Raises:
            InputError: it is one of another model or another number of classes.
        """
        self.backbone.load(classifier)
        state = torch.load(classifier, map_location="cpu", weights_only=True)["state_dict"]
        try:
            self.head.load_state_dict({name: state[f"head.{name}"] for name in ("weight", "bias")})
        except (KeyError, RuntimeError) as error:
            wanted = f"a classifier with {self.head.out_channels} classes on {self.head.in_channels} channels"
            raise InputError(
                f"{classifier} is not the checkpoint of {wanted}; train one with --model classifier"
            ) from error

    def forward(self, images: Sequence[Tensor] | Tensor) -> tuple[Tensor, Tensor]:
        """Images (3,H,W) -> features (N,D,h,w) to compare, and the classifier's logits (N,C,h',w'), padding included."""
        with torch.no_grad():
            maps = self.backbone.network(self.backbone.normalise(images))
        return self.embed([maps[level] for level in self.levels]), self.head(
            maps[self.backbone.feature_level]
        )

    def training_step(self, batch: Batch, _: int) -> Tensor:
        """Compare affinities with what the class activation maps are sure of."""
        features, logits = self([sample["image"] for sample in batch])
        sizes = [size_of(sample["image"]) for sample in batch]
        maps = normalise(logits * inside(sizes, logits, self.backbone.stride)[:, None])
        maps = F.interpolate(maps, size=features.shape[-2:], mode="bilinear")
        tags = torch.stack([sample["target"]["tags"] for sample in batch])
        labels = sure_labels(
            maps, tags, self.hparams["foreground_threshold"], self.hparams["background_threshold"]
        )
        labels = labels.where(inside(sizes, features, self.stride), _UNKNOWN)
        loss = affinity_loss(
            affinities(features, self.hparams["radius"]),
            labels,
            self.hparams["radius"],
            tags.shape[1],
        )
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
        """Class activation maps of an image (3,H,W), averaged over scales and carried along the affinities.

        Args:
            image: uint8 or float RGB.
            tags: (C,) 0 or 1; other classes' maps are 0.
            scales: factors on the image's size.
            power: as in `random_walk`.
            steps: as in `random_walk`.

        Returns:
            (C,h,w), the cells of `stride` pixels that the image reaches; for `pixel_labels`.
        """
        labels = (tags > 0).nonzero().flatten()
        height, width = -(-image.shape[-2] // self.stride), -(-image.shape[-1] // self.stride)
        refined = torch.zeros(len(tags), height, width, device=image.device)
        if len(labels):
            maps = average_over_scales(image, lambda images: self._raw_maps(images, labels), scales)
            maps = F.avg_pool2d(maps, self.stride, ceil_mode=True)
            features, radius = self([image])[0][..., :height, :width], self.hparams["radius"]
            refined[labels] = random_walk(
                maps[None], affinities(features, radius), radius, power, steps
            )[0]
        return refined

    def _raw_maps(self, images: Tensor, labels: Tensor) -> Tensor:
        """Positive evidence (N,T,H,W) for some classes, at the images' size: cut from the padded size, so nothing shifts."""
        maps, (height, width) = (
            self.head(self.backbone(images))[:, labels].relu(),
            images.shape[-2:],
        )
        return enlarge(maps, self.backbone.stride, (height, width))

    def configure_optimizers(self) -> Any:
        """AdamW under one cycle."""
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
    """Several feature maps, the finest first, to one at the size of the first.

    Args:
        channels: of the maps.
        width: channels taken from each map, and of the result; a multiple of 4.
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
    """Affinity of each cell with those in half the disc around it: exp of minus the mean absolute difference (PSA section 3.2).

    Args:
        features: (N,D,h,w).
        radius: in cells, at least 2; the rim of the disc is left out, as in the code.

    Returns:
        (N,K,h,w) in (0, 1], 0 where the other cell would lie beyond the map.
    """
    features = features.to(
        torch.promote_types(features.dtype, torch.float32)
    )  # in bfloat16 the loss's 1 + 1e-5 is 1
    others = _neighbours(features, radius, torch.inf)  # infinitely far beyond the map
    return torch.stack([(features - other).abs().mean(1).neg().exp() for other in others], 1)


def sure_labels(
    maps: Tensor, tags: Tensor, foreground: float = 0.28, background: float = 0.08
) -> Tensor:
    """What class activation maps are sure of.

    Args:
        maps: (N,C,h,w) in [0, 1].
        tags: (N,C) 0 or 1.
        foreground: the highest map of a tagged class names a cell where it is above this.
        background: background is where it is below this.

    Returns:
        (N,h,w) int64: class, C for background, -1 for neither.

    Raises:
        InputError: maps hold NaN.
    """
    score, label = (finite(maps) * tags[..., None, None]).max(1)
    label = label.masked_fill(score <= foreground, _UNKNOWN)
    return label.masked_fill(score < background, maps.shape[1])


def affinity_loss(affinities: Tensor, labels: Tensor, radius: int, background: int) -> Tensor:
    """Pairs of one label should have affinity 1, other pairs 0 (PSA section 3.2, weighted as in the code).

    A quarter of the mean over pairs of background, a quarter of that over pairs of one class, half of that over the others.

    Args:
        affinities: (N,K,h,w) from the function of this name.
        labels: (N,h,w) int64; pairs with a negative one teach nothing.
        radius: that of `affinities`.
        background: its label.
    """
    here, there = labels[:, None], torch.stack(_neighbours(labels, radius, _UNKNOWN), 1)
    known, same = (here >= 0) & (there >= 0), here == there
    attract, repel = -(affinities + 1e-5).log(), -(1 + 1e-5 - affinities).log()

    def mean(values: Tensor, pairs: Tensor) -> Tensor:
        return (values * pairs).sum() / pairs.sum().clamp(min=1)

    ground, thing = (
        mean(attract, known & same & (here == background)),
        mean(attract, known & same & (here != background)),
    )
    return (ground + thing + 2 * mean(repel, known & ~same)) / 4


@torch.no_grad()
def random_walk(
    maps: Tensor, affinities: Tensor, radius: int = 5, power: float = 8.0, steps: int = 256
) -> Tensor:
    """Let each cell take the mean of its neighbours' scores, weighted by affinity, again and again (PSA section 3.3).

    The transition matrix is sparse and stays so: at 64 x 64 cells 256 steps take 0.2 s on a CPU core, where squaring the dense
    matrix 8 times, as the code does, takes 20 s. Images of one call do not see each other.

    Args:
        maps: (N,C,h,w).
        affinities: (N,K,h,w) between the same cells; those of a padded image would see its padding.
        radius: that of `affinities`.
        power: of the affinities; the higher, the fewer edges are crossed (PSA's beta).
        steps: of the walk.

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
    """What each pixel of an image shows."""

    labels: Tensor
    """(H,W) int64: class, or C for background; targets of `F.cross_entropy` with C + 1 channels. No pixel is unknown."""
    foreground: Tensor
    """(H,W) float in [0, 1], how likely a tagged class is there."""


def pixel_labels(
    scores: Tensor, tags: Tensor, stride: int, size: tuple[int, int], background: float = 0.25
) -> PixelLabels:
    """Label pixels by the highest map, or as background.

    Args:
        scores: (C,h,w) from 0; each map is divided by its maximum.
        tags: (C,) 0 or 1.
        stride: pixels per cell.
        size: (H, W) of the image; the last cells may reach beyond it.
        background: its score; IRN's.

    Raises:
        InputError: scores hold NaN.
    """
    tagged = (tags > 0).nonzero().flatten()
    if not len(tagged):
        return PixelLabels(
            tags.new_full(size, len(tags), dtype=torch.int64), scores.new_zeros(size)
        )
    maps = enlarge(finite(scores)[None, tagged], stride, size)[0]
    peak = maps.amax((1, 2), keepdim=True)
    foreground, best = (maps / peak.where(peak > 0, 1)).max(0)
    return PixelLabels(tagged[best].where(foreground > background, len(tags)), foreground)


def _neighbours(values: Tensor, radius: int, beyond: float) -> list[Tensor]:
    """K tensors like (...,h,w) `values`: the neighbours of each cell in half the disc without its rim, as in PSA's code."""
    reach, (height, width) = radius - 1, values.shape[-2:]
    padded = F.pad(values, (reach, reach, 0, reach), value=beyond)
    offsets = [
        (y, x)
        for y in range(radius)
        for x in range(-reach, radius)
        if 0 < x * x + y * y < radius * radius
    ]
    return [
        padded[..., y : y + height, x + reach : x + reach + width]
        for y, x in offsets
        if y > 0 or x > 0
    ]


def _weights(affinities: Tensor, radius: int) -> Tensor:
    """Sparse symmetric (N h w, N h w) from affinities (N,K,h,w); each cell has weight 1 to itself."""
    count, _, height, width = affinities.shape
    cells = torch.arange(count * height * width, device=affinities.device).view(
        count, height, width
    )
    there = torch.stack(_neighbours(cells, radius, -1), 1)
    met = there >= 0
    here, there, values = cells[:, None].expand_as(there)[met], there[met], affinities[met]
    rows, columns = (
        torch.cat([here, there, cells.flatten()]),
        torch.cat([there, here, cells.flatten()]),
    )
    values = torch.cat([values, values, values.new_ones(cells.numel())])
    size = (cells.numel(), cells.numel())
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
        matrix = torch.sparse_coo_tensor(
            torch.stack([rows, columns]), values, size, check_invariants=False
        )
        return matrix.to_sparse_csr()  # a step takes a tenth of the time that it takes as COO
