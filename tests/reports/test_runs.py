"""What a run's row says of what it learnt from, and where its weights come from."""

from __future__ import annotations

import json

import pytest

from wsis.models.boxcaseg import BoxCaseg
from wsis.models.pdsl import PDSL
from wsis.reports.runs import _backbones, _listed, _supervision, _weights


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


def test_masks_and_salient_images_are_named_as_supervision(tmp_path):
    boxes = tmp_path / "pseudo.json"
    boxes.write_text(json.dumps({"annotations": [{"id": 1, "source": "CCGR, 1-boxes"}]}))
    assert _supervision(PDSL, {}, None) == "tags"
    assert _supervision(PDSL, {"evidence_masks": str(boxes)}, None) == "tags + masks by CCGR"
    assert _supervision(PDSL, {"evidence_masks": "gone.json"}, None) == "tags + masks by gone.json"
    assert _supervision(BoxCaseg, {"salient_fraction": 0.3}, None) == "boxes + salient masks"
    assert _supervision(PDSL, {}, boxes) == "labels by CCGR"
