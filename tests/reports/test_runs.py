"""What a run's row says of where its weights come from."""

from __future__ import annotations

import pytest

from wsis.reports.runs import _backbones, _listed, _weights


@pytest.mark.parametrize(
    ("backbone", "told"),
    [
        ({"name": "resnet50", "weights": "imagenet"}, "a1_in1k (apache-2.0)"),
        ({"name": "vit_small_patch14_dinov2", "weights": "imagenet"}, "lvd142m (apache-2.0)"),
        (
            {"name": "vit_small_patch16_dinov3", "weights": "imagenet"},
            "lvd1689m (dinov3-license)",
        ),
        ({"name": "resnet18_ws", "weights": "imagenet"}, "ImageNet"),
        ({"name": "resnet18", "weights": "none"}, "random"),
        ({"name": "resnet18", "weights": "some/where/own.pth"}, "own.pth"),
        ({}, None),
    ],
)
def test_weights_have_weights_and_licence(backbone, told):
    assert _weights(backbone) == told


def test_a_run_lists_those_of_its_parts():
    first = {"name": "resnet18", "weights": "none"}
    given = {"backbone": first, "segmentor": {"backbone": {"name": "resnet50"}}, "steps": 3}
    assert _listed(b.get("name") for b in _backbones(given)) == "resnet18, resnet50"
    assert _listed(map(_weights, _backbones(given))) == "random"
    assert _listed([]) == "-"
