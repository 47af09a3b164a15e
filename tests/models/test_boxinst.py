"""BoxInst: cells, colours and the warm-up; its losses are tested beside the others."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from wsis.models.boxinst import BoxInst, boxes_alone

TINY = {"name": "test_byobnet", "weights": "none", "frozen_stages": 0}


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
    assert model.warmth() == 1, "outside training"
    model.trainer = SimpleNamespace(estimated_stepping_batches=100, global_step=step)
    model.configure_optimizers()
    assert model.warmth() == pytest.approx(factor)


def test_masks_are_learnt_in_images_with_and_without_objects():
    torch.manual_seed(0)
    model = BoxInst(2, TINY, {"features": 8, "hidden": 8, "mask_width": 8, "test_side": 0})
    logged = {}
    model.log_losses = lambda losses, *_: logged.update(losses)
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
