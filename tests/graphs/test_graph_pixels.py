"""Images and maps, scaled by tensors alone, against what scales them elsewhere in the library."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as rle
from toy_networks import differ_at_edges_alone

from wsis.graphs.pixels import best, resample, scale, tight
from wsis.nn.backbone import Backbone, BackboneSettings
from wsis.nn.masks import paste
from wsis.nn.views import Inference, image_views

SIZES = [(97, 131), (300, 427), (37, 53), (400, 120), (1, 1), (3, 400), (200, 200)]


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return Backbone(BackboneSettings("test_byobnet", weights="none", mean=(0.2, 0.4, 0.6)))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("side", "longest"), [(200, 300), (0, 1333), (0, 150)])
def test_images_are_those_of_predict(backbone, size, side, longest):
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=generator)
    inference = Inference((side,) if side else (), flip=False)
    (view,) = image_views(image, inference, longest)
    scaled = scale(image, backbone, side, longest)
    wanted = backbone.normalise([view.image])
    levels = ((scaled.batch - wanted) * backbone.std).abs()
    assert levels.max() < 1.01  # a value that lies between two may be rounded to the other
    assert (levels > 0.01).float().mean() < 1e-3
    assert scaled.size.tolist() == list(view.image.shape[1:])
    whole = torch.tensor([[0.0, 0.0, *view.image.shape[:0:-1]]])
    torch.testing.assert_close(whole * scaled.factor, view.view.to_original(whole))


def test_a_map_of_the_whole_image_is_interpolated():
    maps, size = torch.randn(2, 5, 7), (33, 50)
    boxes = torch.tensor([[0.0, 0.0, 50.0, 33.0]])
    found = resample(maps, boxes, size, torch.tensor([4.0, 6.0]))
    torch.testing.assert_close(found, F.interpolate(maps[None], size=size, mode="bilinear")[0])


def test_small_masks_are_pasted():
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(20, 2, 2, generator=generator) * 140 - 20  # also beyond the image
    boxes = torch.cat([corners.amin(1), corners.amax(1) + 2], 1)
    rough = torch.rand(20, 1, 4, 4, generator=generator)
    small = F.interpolate(rough, size=28, mode="bilinear")[:, 0]
    found = resample(small, boxes, (90, 110)) >= 0.5
    for mask, wanted in zip(found.numpy(), paste(small, boxes, (90, 110)), strict=True):
        assert differ_at_edges_alone(mask, rle.decode(wanted).astype(bool))
    assert found.flatten(1).any(1).sum() > 10


def test_tight_boxes():
    masks = F.interpolate(torch.rand(9, 1, 6, 6), size=(40, 31))[:, 0] > 0.9
    masks = masks[masks.flatten(1).any(1)]
    corners = rle.toBbox(rle.encode(np.asfortranarray(masks.numpy().transpose(1, 2, 0), np.uint8)))
    corners[:, 2:] += corners[:, :2]
    assert tight(masks).tolist() == corners.tolist()
    assert tight(masks[:0]).shape == (0, 4)


@given(st.lists(st.integers(0, 9), max_size=12), st.integers(1, 15))
def test_the_best(scores, most):
    values, index = best(torch.tensor(scores, dtype=torch.float32), most)
    assert values.tolist() == sorted(scores, reverse=True)[:most]
    assert [scores[i] for i in index.tolist()] == values.tolist()
    assert len(set(index.tolist())) == len(index)
