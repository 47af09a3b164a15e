"""BoxInst: cells, colours and the warm-up; its losses are tested beside the others."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from skimage.color import rgb2lab

from wsis.models.boxinst import BoxInst, boxes_alone, cells_inside, lab, region_colours

TINY = {"name": "test_byobnet", "weights": "none", "frozen_stages": 0}


def test_colours_are_those_of_skimage():
    image = torch.randint(0, 256, (3, 20, 30), generator=torch.Generator().manual_seed(0))
    expected = rgb2lab(image.numpy().astype(np.uint8).transpose(1, 2, 0)).transpose(2, 0, 1)
    np.testing.assert_allclose(lab(image).numpy(), expected, atol=0.02)


def test_cells_are_inside_where_their_centres_are():
    boxes = torch.tensor([[10.0, 20, 30, 40], [0, 0, 9, 9]])
    regions = torch.tensor([[5.0, 10, 33, 38], [0, 0, 28, 28]])
    found = cells_inside(boxes, regions, 7)
    for n, row, column in np.ndindex(2, 7, 7):
        x = regions[n, 0] + (column + 0.5) / 7 * (regions[n, 2] - regions[n, 0])
        y = regions[n, 1] + (row + 0.5) / 7 * (regions[n, 3] - regions[n, 1])
        expected = boxes[n, 0] < x < boxes[n, 2] and boxes[n, 1] < y < boxes[n, 3]
        assert found[n, row, column] == expected


def test_a_region_has_the_colours_of_its_own_image():
    red, blue = torch.zeros(3, 32, 40), torch.zeros(3, 50, 20)
    red[0], blue[2] = 255, 255
    regions = [torch.tensor([[4.0, 4, 20, 20]]), torch.tensor([[2.0, 2, 16, 40], [0, 0, 8, 8]])]
    found = region_colours([red, blue], regions, 4)
    assert found.shape == (3, 3, 4, 4)
    for image, colours in ((red, found[:1]), (blue, found[1:])):
        torch.testing.assert_close(colours, lab(image)[None, :, :1, :1].expand_as(colours))


def test_crowds_are_skipped():
    target = {
        "boxes": torch.tensor([[0.0, 0, 9, 9], [5, 5, 20, 20]]),
        "labels": torch.tensor([1, 0]),
        "crowd": torch.tensor([False, True]),
        "tags": torch.ones(2),
    }
    found = boxes_alone(target)
    assert found["boxes"].tolist() == [[0, 0, 9, 9]]
    assert found["labels"].tolist() == [2], "background is class 0"
    assert found["skipped"].tolist() == [[5, 5, 20, 20]]


@pytest.mark.parametrize(("step", "factor"), [(0, 0.0), (5, 0.5), (10, 1.0), (90, 1.0)])
def test_the_pairwise_loss_grows(step, factor):
    model = BoxInst(2, TINY, {"features": 8, "hidden": 8, "mask_width": 8}, pairwise_warmup=0.1)
    loops = SimpleNamespace(estimated_stepping_batches=100, global_step=step)
    model.trainer = loops
    assert model.warmth() == pytest.approx(factor)
    model.hparams["pairwise_warmup"] = 0
    assert model.warmth() == 1


def test_masks_are_learnt_in_images_with_and_without_objects():
    torch.manual_seed(0)
    model = BoxInst(2, TINY, {"features": 8, "hidden": 8, "mask_width": 8, "test_side": 0})
    logged = {}
    model.log_losses = lambda losses, *_: logged.update(losses)
    model.trainer = SimpleNamespace(estimated_stepping_batches=10, global_step=10)
    image = torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8)
    target = {
        "boxes": torch.tensor([[10.0, 10, 50, 50]]),
        "labels": torch.tensor([1]),
        "crowd": torch.tensor([False]),
    }
    nothing = {name: value[:0] for name, value in target.items()}
    model.training_step(
        [{"image": image, "target": target}, {"image": image, "target": nothing}], 0
    )
    assert logged["projection"] > 0
    model.training_step([{"image": image, "target": nothing}], 0).backward()
    assert logged["projection"] == logged["pairwise"] == 0
