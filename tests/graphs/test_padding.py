"""Fixed padding is that of timm's "same" on sides that the stride divides."""

from __future__ import annotations

import pytest
import timm
import torch
from timm.layers.pool2d_same import MaxPool2dSame
from torch import nn

from wsis.graphs.padding import with_fixed_padding


@pytest.mark.parametrize("stride", [8, 32])
def test_a_network_of_timm(stride):
    torch.manual_seed(0)
    network = timm.create_model(
        "test_efficientnet", pad_type="same", features_only=True, output_stride=stride
    ).eval()
    fixed = with_fixed_padding(network)
    assert any("Fixed" in type(layer).__name__ for layer in fixed.modules())
    assert not any("Fixed" in type(layer).__name__ for layer in network.modules())
    with torch.no_grad():
        image = torch.randn(1, 3, 96, 160)
        for one, two in zip(network(image), fixed(image), strict=True):
            torch.testing.assert_close(one, two)


@pytest.mark.parametrize(("kernel", "stride"), [(2, 2), (3, 2), (5, 1)])
def test_pooling(kernel, stride):
    network = nn.Sequential(MaxPool2dSame(kernel, stride=stride))
    maps = torch.randn(2, 3, 8, 12)
    assert torch.equal(with_fixed_padding(network)(maps), network(maps))
