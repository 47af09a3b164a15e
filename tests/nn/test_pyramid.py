"""Pyramids on maps of several strides and on the map of a plain transformer."""

from __future__ import annotations

import pytest
import torch
from torchvision.ops import roi_align

from wsis.nn.backbone import Backbone, BackboneSettings
from wsis.nn.pyramid import FeaturePyramid, SimplePyramid, level_pooler, pyramid

SMALL = {"depth": 2, "embed_dim": 32, "num_heads": 2}


def backbone(name: str, **settings) -> Backbone:
    return Backbone(BackboneSettings(name, "none", output_stride=32, frozen_stages=0, **settings))


@pytest.mark.parametrize(
    ("name", "kind", "strides"),
    [
        ("test_byobnet", FeaturePyramid, [4, 8, 16, 32, 64]),
        ("vit_tiny_patch16_224", SimplePyramid, [4, 8, 16, 32, 64]),
        ("vit_small_patch14_dinov2", SimplePyramid, [7, 14, 28, 56]),
    ],
)
def test_maps_have_their_strides(name, kind, strides):
    settings = {"model_args": SMALL} if kind is SimplePyramid else {}
    network = backbone(name, **settings)
    layers = pyramid(network, 8)
    assert isinstance(layers, kind)
    assert layers.strides == strides
    padded = network.normalise([torch.zeros(3, 100, 150, dtype=torch.uint8)])
    maps = layers(network.network(padded))
    assert list(maps) == [*map(str, range(len(strides) - 1)), "pool"]
    for stride, found in zip(strides, maps.values(), strict=True):
        sides = (-(-side // stride) for side in padded.shape[-2:])
        assert found.shape == (1, 8, *sides)


def test_each_map_of_a_simple_pyramid_sees_its_own_surroundings():
    """A change of one cell of the transformer's map changes each map around that cell alone."""
    torch.manual_seed(0)
    layers = SimplePyramid(backbone("vit_tiny_patch16_224", model_args=SMALL), 8)
    map_ = torch.randn(1, 32, 12, 12)
    other = map_.clone()
    other[:, :, 6, 6] += 1
    for stride, before, after in zip(
        layers.strides, layers([map_]).values(), layers([other]).values(), strict=True
    ):
        rows, columns = (before != after).any(1)[0].nonzero().T
        first, last = rows.min() * stride, (rows.max() + 1) * stride
        assert first >= 6 * 16 - 3 * max(stride, 16)
        assert last <= 7 * 16 + 3 * max(stride, 16)
        assert (rows.min(), rows.max()) == (columns.min(), columns.max())


def test_boxes_are_pooled_from_the_map_of_their_size():
    maps = {str(i): torch.rand(1, 2, 56 // 2**i, 56 // 2**i) for i in range(4)}
    boxes = torch.tensor([[10.0, 10, 60, 60], [0, 0, 224, 224]])
    pooled = level_pooler([4, 8, 16, 32], 7)(maps, [boxes], [(224, 224)])
    for box, level, found in zip(boxes, (0, 2), pooled, strict=True):
        expected = roi_align(
            maps[str(level)], [box[None]], 7, 1 / 2 ** (level + 2), sampling_ratio=2
        )[0]
        torch.testing.assert_close(found, expected)
