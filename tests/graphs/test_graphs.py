"""Networks in tensors alone find what predict finds, before anything is exported."""

from __future__ import annotations

import pytest
import torch
from toy_networks import SCORE, SIZES, check_maps, check_objects, image, network

from wsis.errors import InputError
from wsis.export import graph_of
from wsis.graphs.mask_transformer import MaskTransformerGraph
from wsis.method import Method

FINDERS = ("mask_rcnn", "boxinst", "mixed", "mask_transformer")


@pytest.mark.parametrize("name", FINDERS)
@torch.no_grad()
def test_objects_are_those_of_predict(name):
    model, least = network(name), SCORE[name]
    graph = graph_of(model, least)
    counts = [check_objects(graph(image(size)), model, image(size), least) for size in SIZES]
    assert min(counts) > 2
    assert check_objects(graph_of(model, 1.0)(image(SIZES[0])), model, image(SIZES[0]), 1.0) == 0


@pytest.mark.parametrize("pooling", ["lse", "average", "max"])
@torch.no_grad()
def test_class_maps_are_those_of_cam(pooling):
    model = network("cam")
    model.classifier.hparams["pooling"] = pooling
    for size in SIZES:
        check_maps(graph_of(model, 0.0)(image(size)), model, image(size))


def test_masked_attention_is_refused():
    model = network("mask_transformer")
    model.decoder.progress.fill_(0.5)
    with pytest.raises(InputError, match="before training was over"):
        MaskTransformerGraph(model, 0.5)


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ({"needs_boxes": True, "needs_proposals": False}, "leave out --stage"),
        ({}, "among proposals, which no exported network makes"),
        ({"needs_proposals": False}, "is not known to wsis.export, which has MaskRCNN, "),
    ],
)
def test_what_needs_more_than_an_image_is_refused(flags, told):
    model = type("Other", (Method,), flags)()
    with pytest.raises(InputError, match=told) as caught:
        graph_of(model, 0.5)
    assert "\n" not in str(caught.value)
