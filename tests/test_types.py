"""What can be asked of a prediction, against masks and pictures made by hand."""

from __future__ import annotations

import inspect
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from wsis.errors import InputError
from wsis.nn.masks import run_lengths
from wsis.types import Prediction

MASKS = np.zeros((2, 40, 60), bool)
MASKS[0, 5:20, 10:30] = MASKS[1, 25:35, 40:55] = True


def made(**changed) -> Prediction:
    boxes = torch.tensor([[10.0, 5, 30, 20], [40, 25, 55, 35]])
    scores, labels = torch.tensor([0.9, 0.2]), torch.tensor([1, 0])
    masks = [run_lengths(mask) for mask in MASKS]
    prediction = Prediction(7, (40, 60), boxes, scores, labels, masks, None, ("bird", "bus"))
    return prediction._replace(**changed)


def test_masks_are_those_that_were_encoded():
    found = made().binary_masks()
    assert found.dtype == bool
    assert np.array_equal(found, MASKS)
    assert not made(masks=[]).binary_masks().any()
    nothing = made().rows(torch.zeros(0, dtype=torch.int64))
    assert nothing.binary_masks().shape == (0, 40, 60)


def test_names_are_those_of_the_labels():
    assert made().names == ["bus", "bird"]
    assert made(class_names=()).names == ["class 1", "class 0"]


def test_above_leaves_out_low_scores():
    kept = made().above(0.5)
    assert kept.names == ["bus"]
    assert np.array_equal(kept.binary_masks(), MASKS[:1])


@pytest.mark.parametrize("kind", [np.asarray, Image.fromarray])
def test_plot_draws_on_the_objects(kind):
    """Away from masks and names the picture is the image, enlarged."""
    grey = np.full((40, 60, 3), 128, np.uint8)
    picture = made().plot(kind(grey), long_side=600)
    assert picture.size == (600, 400)
    changed = (np.asarray(picture) != 128).any(-1)[5::10, 5::10]
    assert changed[MASKS.any(0)].mean() > 0.95
    assert changed[~MASKS.any(0)].mean() < 0.1
    sure = (np.asarray(made().plot(kind(grey), 0.5, 600)) != 128).any(-1)[5::10, 5::10]
    assert sure[MASKS[0]].mean() > 0.95
    assert not sure[MASKS[1]].any()


def test_plot_wants_the_image_that_was_predicted():
    with pytest.raises(InputError, match="60 x 50 pixels and the prediction is of 60 x 40"):
        made().plot(np.zeros((50, 60, 3), np.uint8))
    with pytest.raises(InputError, match="not int"):
        made().plot(3)


def detections(xyxy, mask=None, confidence=None, class_id=None, tracker_id=None, data=None):
    """The documented constructor of `supervision.Detections`."""
    return SimpleNamespace(
        xyxy=xyxy, mask=mask, confidence=confidence, class_id=class_id, data=data
    )


def check_detections(found) -> None:
    assert np.array_equal(found.xyxy, [[10, 5, 30, 20], [40, 25, 55, 35]])
    assert np.array_equal(found.mask, MASKS)
    assert found.mask.dtype == bool
    assert np.allclose(found.confidence, [0.9, 0.2])
    assert found.class_id.tolist() == [1, 0]
    assert found.data["class_name"].tolist() == ["bus", "bird"]


def test_supervision_is_given_what_its_constructor_documents(monkeypatch):
    package = ModuleType("supervision")
    package.Detections = detections
    monkeypatch.setitem(sys.modules, "supervision", package)
    check_detections(made().to_supervision())
    assert made(masks=[]).to_supervision().mask is None


def test_supervision_itself():
    supervision = pytest.importorskip("supervision")
    check_detections(made().to_supervision())
    known = inspect.signature(supervision.Detections).parameters
    assert inspect.signature(detections).parameters.keys() <= known.keys()


def test_without_supervision_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(InputError, match="pip install supervision"):
        made().to_supervision()
