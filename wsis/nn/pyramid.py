"""Feature pyramids on the maps of a backbone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from timm.layers.norm import LayerNorm2d
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool
from torchvision.ops.poolers import initLevelMapper

from wsis.errors import InputError
from wsis.nn.backbone import Backbone

__all__ = ["FeaturePyramid", "SimplePyramid", "level_pooler", "pyramid"]


class FeaturePyramid(nn.Module):
    """A feature pyramid (Lin et al., CVPR 2017) on a backbone's last map of each stride from 4 on.

    A coarser map, pooled from the coarsest, is added for large anchors.

    Args:
        backbone: the network that makes the maps.
        channels: of every map of the pyramid.

    Raises:
        InputError: the backbone has no such maps, or their strides do not double each time.
    """

    def __init__(self, backbone: Backbone, channels: int) -> None:
        super().__init__()
        last = {stride: level for level, stride in enumerate(backbone.strides) if stride >= 4}
        if not last or any(coarse != 2 * fine for fine, coarse in pairwise(last)):
            raise InputError(
                f"the backbone's maps have strides {backbone.strides}; a pyramid needs 4 or more, "
                "each twice the one before"
            )
        self.levels, self.strides = list(last.values()), [*last, 2 * max(last)]
        inputs = [backbone.widths[level] for level in self.levels]
        self.fpn = FeaturePyramidNetwork(inputs, channels, LastLevelMaxPool())

    def forward(self, maps: Sequence[Tensor]) -> dict[str, Tensor]:
        """The backbone's maps -> the pyramid's (N,channels,h,w): "0" (finest), "1", ..., "pool"."""
        return self.fpn({str(i): maps[level] for i, level in enumerate(self.levels)})


class SimplePyramid(nn.Module):
    """Maps of several strides from the last one of a plain transformer, without top-down paths.

    Li et al., Exploring Plain Vision Transformer Backbones for Object Detection, ECCV 2022, figure
    2c: the map of stride s is deconvolved to s / 4 and s / 2, kept, and pooled to 2 s; each passes
    a 1 x 1 and a 3 x 3 convolution. Strides that are no whole numbers are left out (patches of 14
    px have 7, 14 and 28), because anchors lie on whole pixels. A coarser map is added as in
    `FeaturePyramid`.

    Args:
        backbone: the network that makes the map.
        channels: of every map of the pyramid.
    """

    def __init__(self, backbone: Backbone, channels: int) -> None:
        super().__init__()
        width, stride = backbone.channels, backbone.stride
        fine = [factor for factor in (4, 2) if stride % factor == 0]
        scalers = [_deconvolutions(width, factor) for factor in fine]
        self.scalers = nn.ModuleList([*scalers, nn.Identity(), nn.MaxPool2d(2, ceil_mode=True)])
        widths = [width // factor for factor in fine] + [width, width]
        self.convolutions = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(before, channels, 1, bias=False),
                LayerNorm2d(channels),
                nn.Conv2d(channels, channels, 3, padding=1, bias=False),
                LayerNorm2d(channels),
            )
            for before in widths
        )
        self.coarsest = LastLevelMaxPool()
        self.strides = [stride // factor for factor in fine] + [stride, 2 * stride, 4 * stride]

    def forward(self, maps: Sequence[Tensor]) -> dict[str, Tensor]:
        """The backbone's maps -> the pyramid's (N,channels,h,w): "0" (finest), "1", ..., "pool"."""
        layers = zip(self.scalers, self.convolutions, strict=True)
        found = [convolve(scale(maps[-1])) for scale, convolve in layers]
        names = [str(i) for i in range(len(found))]
        found, names = self.coarsest(found, found, names)
        return dict(zip(names, found, strict=True))


def pyramid(backbone: Backbone, channels: int) -> FeaturePyramid | SimplePyramid:
    """Return the pyramid for a backbone: a simple one where its maps have one stride above 8."""
    if len(set(backbone.strides)) == 1 and backbone.stride > 8:
        return SimplePyramid(backbone, channels)
    return FeaturePyramid(backbone, channels)


def level_pooler(strides: Sequence[int], size: int) -> MultiScaleRoIAlign:
    """Return a layer that pools boxes from the maps of eq. (1) of the pyramid's paper.

    Args:
        strides: of the maps "0", "1", ..., without the one that is added for anchors.
        size: side of the pooled map.
    """
    pool = MultiScaleRoIAlign([str(i) for i in range(len(strides))], size, sampling_ratio=2)
    # torchvision guesses these from the first batch, wrongly if its images are tiny
    pool.scales = [1 / stride for stride in strides]
    finest, coarsest = round(math.log2(strides[0])), round(math.log2(strides[-1]))
    pool.map_levels = initLevelMapper(finest, coarsest)
    return pool


def _deconvolutions(width: int, factor: int) -> nn.Sequential:
    """Return layers that enlarge maps (N,width,h,w) by 2 or 4, with width / factor channels."""
    layers: list[nn.Module] = [nn.ConvTranspose2d(width, width // 2, 2, 2)]
    if factor == 4:
        more = nn.ConvTranspose2d(width // 2, width // 4, 2, 2)
        layers += [LayerNorm2d(width // 2), nn.GELU(), more]
    return nn.Sequential(*layers)
