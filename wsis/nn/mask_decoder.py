"""A decoder of plain transformer blocks: queries and tokens of a map -> classes and masks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from timm.layers.norm import LayerNorm2d
from torch import Tensor, nn

from wsis.errors import InputError
from wsis.nn.backbone import Backbone

__all__ = ["Found", "MaskDecoder", "Upscaler", "inside", "mask_share", "place", "visible"]


class Found(NamedTuple):
    """What the queries have found after some block."""

    classes: Tensor
    """(N,Q,C+1) logits, "no object" last."""
    masks: Tensor
    """(N,Q,h,w) logits."""


class MaskDecoder(nn.Module):
    """Learned queries join the tokens of a backbone's last map, and pass plain blocks with them.

    A query starts at a fixed point of the image, as the sum of a learned vector, the place and the
    token there. Masks are the dot products of queries with an enlarged map of pixels; the part of
    it that comes from the tokens is enlarged after the product, which is linear.

    Args:
        backbone: the network that makes the maps.
        num_classes: number of classes.
        width: channels of tokens, queries and pixels.
        queries: number of queries, the largest number of objects in an image.
        blocks: number of transformer blocks.
        heads: attention heads of a block.

    Raises:
        InputError: the width cannot be divided among heads and places.
    """

    progress: Tensor
    points: Tensor

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        width: int = 256,
        queries: int = 200,
        blocks: int = 4,
        heads: int = 8,
    ) -> None:
        super().__init__()
        if width % heads or width % 4:
            raise InputError(
                f"a mask transformer of width {width} with {heads} heads: the width must be a "
                "multiple of 4 and of the heads"
            )
        self.level, self.stride = backbone.feature_level, backbone.stride
        self.tokens = nn.Sequential(nn.Conv2d(backbone.channels, width, 1), LayerNorm2d(width))
        self.places = nn.Linear(width, width)
        self.upscale = Upscaler(backbone, width)
        self.queries = nn.Parameter(0.02 * torch.randn(queries, width))
        self.register_buffer("points", _spread(queries))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)
        self.classes = nn.Linear(width, num_classes + 1)
        hidden = (nn.Linear(width, width), nn.GELU(), nn.Linear(width, width), nn.GELU())
        self.masks = nn.Sequential(*hidden, nn.Linear(width, width))
        self.register_buffer("progress", torch.zeros(()))
        """Share of the training that is over, which anneals masked attention away."""

    def forward(self, maps: Sequence[Tensor], sizes: Sequence[tuple[int, int]]) -> list[Found]:
        """Return what is found before the first and after each block; in evaluation the last alone.

        Args:
            maps: of the backbone.
            sizes: (H, W) of each image without padding; what is found beyond is meaningless.
        """
        state, pixels, grid, known = self.begin(maps, sizes)
        found: list[Found] = []
        for i, block in enumerate(self.blocks):
            share = self._share(i)
            if self.training or share:
                found.append(self.find(state, pixels, grid))
            looked = found[-1].masks if share else None
            state = block(state, _attended(looked, known, len(self.queries), share))
        found.append(self.find(state, pixels, grid))
        return found if self.training else found[-1:]

    def begin(
        self, maps: Sequence[Tensor], sizes: Sequence[tuple[int, int]] | Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return what the blocks start from.

        Args:
            maps: of the backbone.
            sizes: (H, W) of each image without padding, or a tensor (N,2) of them.

        Returns:
            queries and tokens (N,Q+hw,D), pixels (N,D,h',w'), the tokens as a map (N,D,h,w), and
            which of them are not padding (N,1,h,w) bool.
        """
        maps = maps[: self.level + 1 or None]
        grid, at = _to_edges(self.tokens(maps[-1]).float(), sizes, self.stride)
        known = inside(sizes, self.stride, grid)
        pixels = self.upscale(grid, maps, sizes)
        tokens = grid.flatten(2).transpose(1, 2) + self.places(place(at, grid.shape[1]))
        return torch.cat([self._first(grid, sizes), tokens], 1), pixels, grid, known

    @property
    def is_masked(self) -> bool:
        """Whether attention is masked in evaluation, as it is until training is nearly over."""
        return any(round(self._share(i)) for i in range(len(self.blocks)))

    def _share(self, block: int) -> float:
        share = mask_share(self.progress.item(), block, len(self.blocks))
        return share if self.training else round(share)

    def _first(self, grid: Tensor, sizes: Sequence[tuple[int, int]] | Tensor) -> Tensor:
        """Return the queries (N,Q,D) of images, from tokens (N,D,h,w)."""
        # torch.export follows new_full, not new_tensor
        side = torch.stack([grid.new_full((), cells) for cells in (grid.shape[3], grid.shape[2])])
        cells = self.points * _ends(sizes, self.stride, grid)[:, None]
        there = F.grid_sample(
            grid, (2 * cells / side - 1)[:, None], padding_mode="border", align_corners=False
        )
        located = self.places(place(self.points, grid.shape[1]))
        return there[:, :, 0].transpose(1, 2) + located + self.queries

    def find(self, state: Tensor, pixels: Tensor, grid: Tensor) -> Found:
        """Predict from queries and tokens (N,Q+hw,D); see `begin`."""
        state = self.norm(state)
        queries, tokens = state[:, : len(self.queries)], state[:, len(self.queries) :]
        looked = self.masks(queries)
        coarse = (looked @ tokens.transpose(1, 2)).unflatten(2, grid.shape[2:])
        fine = (looked @ pixels.flatten(2)).unflatten(2, pixels.shape[2:])
        masks = fine + _enlarged(coarse, pixels)
        return Found(self.classes(queries), masks)


class Block(nn.Module):
    """A plain transformer block, with norms before attention and before the two layers.

    Args:
        width: channels.
        heads: of the attention.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.inputs, self.output = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.layers = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, state: Tensor, allowed: Tensor | None) -> Tensor:
        """(N,L,D) -> (N,L,D); `allowed` (N,1,L,L) bool says what attends to what, None all."""
        parts = self.inputs(self.before(state)).unflatten(2, (3, self.heads, -1))
        queries, keys, values = parts.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(queries, keys, values, attn_mask=allowed)
        state = state + self.output(attended.transpose(1, 2).flatten(2))
        return state + self.layers(self.between(state))


class Upscaler(nn.Module):
    """Enlarge a backbone's last map twofold until its stride is 4 or less.

    A step is EoMT's: a transposed convolution, GELU, a depthwise convolution and a norm. The
    backbone's own map of that stride is added, if there is one, as in a feature pyramid.

    Args:
        backbone: the network that makes the maps.
        width: channels of the map to enlarge, and of the result.
    """

    def __init__(self, backbone: Backbone, width: int) -> None:
        super().__init__()
        stride: float = backbone.stride
        level_of = {stride: level for level, stride in enumerate(backbone.strides)}
        self.levels: list[int | None] = []
        self.strides: list[float] = []
        enlarge, smooth, laterals = [], [], []
        while stride > 4:
            stride /= 2
            level = level_of.get(stride)
            self.levels.append(level)
            self.strides.append(stride)
            channels = 0 if level is None else backbone.widths[level]
            laterals.append(nn.Conv2d(channels, width, 1) if channels else nn.Identity())
            enlarge.append(nn.ConvTranspose2d(width, width, 2, 2))
            depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
            smooth.append(nn.Sequential(depthwise, LayerNorm2d(width)))
        self.stride, self.laterals = stride, nn.ModuleList(laterals)
        self.enlarge, self.smooth = nn.ModuleList(enlarge), nn.ModuleList(smooth)

    def forward(
        self,
        grid: Tensor,
        maps: Sequence[Tensor],
        sizes: Sequence[tuple[int, int]] | Tensor,
    ) -> Tensor:
        """The map to enlarge (N,D,h,w), all maps, and sizes of images -> pixels (N,D,h',w')."""
        layers = zip(self.enlarge, self.laterals, self.smooth, strict=True)
        for i, (enlarge, lateral, smooth) in enumerate(layers):
            grid, level = enlarge(grid), self.levels[i]
            if level is not None:
                grid = grid + lateral(maps[level])
            # padding is 0, as it is beyond the map of an image alone
            grid = smooth(F.gelu(grid) * inside(sizes, self.strides[i], grid))
        return grid


def mask_share(progress: float, block: int, blocks: int) -> float:
    """Return the share of queries whose attention is masked in a block, EoMT's mask annealing.

    Blocks are freed in order, each over an equal part of the training, after one such part in which
    all are masked and before one in which none is. The share falls as (1 - t)^0.9.

    Args:
        progress: share of the training that is over.
        block: index of the block.
        blocks: number of blocks.
    """
    over = progress * (blocks + 2) - (block + 1)
    return (1 - min(max(over, 0.0), 1.0)) ** 0.9


def place(points: Tensor, width: int) -> Tensor:
    """Encode points (...,2) from 0 to 1 as sines and cosines (...,width).

    A quarter of the channels each; wavelengths fall from 2 image sides to 1/16 in equal ratios.
    """
    number = width // 4
    waves = math.pi * 32 ** (torch.arange(number, device=points.device) / max(number - 1, 1))
    angles = (points[..., None] * waves).flatten(-2)
    return torch.cat([angles.sin(), angles.cos()], -1)


def inside(sizes: Sequence[tuple[int, int]] | Tensor, stride: float, like: Tensor) -> Tensor:
    """Return which cells of a map begin in its image and not in padding, (N,1,h,w) bool.

    Args:
        sizes: (H, W) of each image, or a tensor (N,2) of them.
        stride: pixels per cell.
        like: a map (N,D,h,w).
    """
    width, height = _ends(sizes, stride, like).unbind(1)
    rows, columns = (torch.arange(side, device=like.device) for side in like.shape[2:])
    known = (rows < height[:, None])[:, :, None] & (columns < width[:, None])[:, None]
    return known[:, None]


def _ends(sizes: Sequence[tuple[int, int]] | Tensor, stride: float, like: Tensor) -> Tensor:
    """Return the width and height of images in cells, (N,2) float."""
    if isinstance(sizes, Tensor):
        return sizes.flip(1) / stride
    return torch.tensor([[w, h] for h, w in sizes], device=like.device) / stride


def _to_edges(
    grid: Tensor, sizes: Sequence[tuple[int, int]] | Tensor, stride: float
) -> tuple[Tensor, Tensor]:
    """Replace the cells of padding by the nearest cell of their image.

    They then pass through the blocks as that cell does, so that what is interpolated near an edge
    is what an image without padding has there.

    Returns:
        the map (N,D,h,w), and the centres of its cells as shares of their image (N,hw,2).
    """
    ends = _ends(sizes, stride, grid)
    rows, columns = (torch.arange(side, device=grid.device) for side in grid.shape[2:])
    x = columns.minimum(ends[:, :1].ceil().long() - 1)
    y = rows.minimum(ends[:, 1:].ceil().long() - 1)
    x = x[:, None].expand(-1, grid.shape[2], -1).flatten(1)
    y = y[:, :, None].expand(-1, -1, grid.shape[3]).flatten(1)
    index = y * grid.shape[3] + x
    edged = grid.flatten(2).gather(2, index[:, None].expand(-1, grid.shape[1], -1))
    cells = torch.stack([x, y], -1)
    return edged.view_as(grid), (cells + 0.5) / ends[:, None]


def _attended(masks: Tensor | None, known: Tensor, queries: int, share: float) -> Tensor | None:
    """Return what each query and token may attend to (N,1,Q+hw,Q+hw) bool; None for all.

    Tokens of padding are hidden from all. Of the queries, a `share` drawn at random sees only
    tokens of its mask, eqs. (2)-(3) of Mask2Former.

    Args:
        masks: (N,Q,h',w') logits of the queries; None if no attention is masked.
        known: (N,1,h,w) bool, tokens that are not padding.
        queries: Q.
        share: from 0 to 1.
    """
    if masks is None and known.all():
        return None
    allowed = visible(known, queries)
    if masks is not None:
        small = F.interpolate(masks.detach(), size=known.shape[2:], mode="area")
        free = torch.rand(masks.shape[:2], device=masks.device) >= share
        allowed[:, 0, :queries, queries:] &= (small > 0).flatten(2) | free[:, :, None]
    return allowed


def visible(known: Tensor, queries: int) -> Tensor:
    """Return that all may attend to the queries and to tokens (N,1,h,w) that are `known`, bool.

    The result is (N,1,Q+hw,Q+hw).
    """
    keys = F.pad(known.flatten(1), (queries, 0), value=True)
    return keys[:, None, None].repeat(1, 1, keys.shape[1], 1)


def _enlarged(coarse: Tensor, like: Tensor) -> Tensor:
    """Enlarge maps (N,Q,h,w) to the size of `like`."""
    if coarse.shape[2:] == like.shape[2:]:
        return coarse
    return F.interpolate(coarse, size=like.shape[2:], mode="bilinear")


def _spread(count: int) -> Tensor:
    """Return points (count,2) that fill the unit square evenly, however many they are.

    Those of Roberts' R2 sequence: multiples of the inverse powers of the plastic number, modulo 1.
    """
    ratios = torch.tensor([0.7548776662466927, 0.5698402909980532], dtype=torch.float64)
    return (torch.arange(1, count + 1)[:, None] * ratios % 1).float()
