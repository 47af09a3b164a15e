"""Networks of later stages: which one a setting names, what it takes over, and what is refused."""

from __future__ import annotations

import pytest

from wsis.errors import InputError
from wsis.method import Method
from wsis.models.ccgr.branches import BagDetector
from wsis.nn.backbone import BackboneSettings
from wsis.parts.classifier import Classifier
from wsis.parts.mask_rcnn import MaskRCNN
from wsis.runs.stage import Stage

TINY = {"name": "test_byobnet", "weights": "none"}
SMALL = {"steps": 3, "features": 8, "hidden": 8, "mask_width": 4, "backbone": TINY}


def test_a_setting_may_name_its_network():
    by_default = Stage.of("segmentor", SMALL, "mask_rcnn", num_classes=3)
    named = Stage.of("segmentor", SMALL | {"model": "mask_rcnn"}, Classifier, num_classes=3)
    for stage in (by_default, named):
        assert isinstance(stage.model, MaskRCNN)
        assert (stage.steps, stage.model.hparams["num_classes"]) == (3, 3)
    plain = Stage.of("segmentor", {"steps": 1, "backbone": TINY}, Classifier)
    assert isinstance(plain.model, Classifier)
    assert (plain.augment, plain.batch_size, plain.accumulate) == (None, None, None)


def test_how_a_stage_is_trained_is_no_argument_of_its_network():
    more = {"batch_size": 2, "accumulate": 4, "augment": {"flip": 0.0}}
    stage = Stage.of("pretraining", {"steps": 1, "backbone": TINY, **more}, Classifier)
    assert (stage.batch_size, stage.accumulate, stage.augment.flip) == (2, 4, 0)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"steps": 1, "model": "mask_rcn"}, "mask_rcn.*did you mean 'mask_rcnn'"),
        ({"steps": 1, "hiden": 8}, r"'model\.segmentor\.hiden'; did you mean 'hidden'"),
        ({"steps": 1, "augment": {"flop": 1}}, r"'model\.segmentor\.augment\.flop'; did you mean 'flip'"),
        ({"steps": 1, "backbone": {"nam": "x"}}, r"'model\.segmentor\.backbone\.nam'; did you mean 'name'"),
        ({}, r"model\.segmentor needs `steps`"),
        ({"steps": 0}, r"model\.segmentor: steps 0: give a whole number"),
        ({"steps": True}, r"model\.segmentor: steps True"),
        ({"steps": 1, "batch_size": 0}, r"model\.segmentor: batch_size 0"),
        ({"steps": 1, "accumulate": "x"}, r"model\.segmentor: accumulate x"),
        ({"steps": 1, "model": 5}, r"model\.segmentor\.model 5: give the name"),
        ({"steps": 1, "features": "x"}, r"model\.segmentor\.features x: expected 'int'"),
        ({"steps": 1, "features": 0}, r"model\.segmentor: MaskRCNN: features 0"),
        ({"steps": 1, "backbone": "resnet18"}, r"model\.segmentor\.backbone"),
        ({"steps": 1, "optimisation": {"lr": "x"}}, r"model\.segmentor\.optimisation\.lr"),
        ({"steps": 1, "augment": {"flip": 3}}, r"augment: flip 3: give a number of at least 0"),
    ],
)  # fmt: skip
def test_a_stage_that_cannot_be_made_is_told(given, message):
    with pytest.raises(InputError, match=message) as error:
        Stage.of("segmentor", given, "mask_rcnn")
    assert "\n" not in str(error.value)


class Clicked(Classifier):
    """A network that learns from labels that no run makes."""

    supervision = frozenset({"masks", "points"})


class Silent(Classifier):
    supervision = frozenset({"masks"})
    predict_step = Method.predict_step


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("cam", "CAM does not learn from masks; choose a network that does, such as MaskRCNN"),
        (Clicked, "Clicked learns from points, and the labels that a run makes have boxes, masks"),
        (Silent, "Silent makes no predictions"),
    ],
)
def test_a_network_that_does_not_fit_its_labels_is_refused(model, message):
    """Before anything is trained: the labels of the last stage exist after hours only."""
    given = {"steps": 1, "backbone": TINY, "model": model}
    with pytest.raises(InputError, match=rf"model\.segmentor: {message}"):
        Stage.of("segmentor", given, "mask_rcnn", num_classes=3)


def of(shared: BackboneSettings, **backbone) -> BackboneSettings:
    """Settings of a detector's backbone, for a method whose own are `shared`."""
    settings = {"steps": 1, "features": 8, "hidden": 8, "backbone": backbone}
    stage = Stage.of("detector", settings, BagDetector, backbone=shared.shared("output_stride"))
    return stage.model.backbone.settings


def test_a_network_starts_from_its_methods_backbone():
    own = BackboneSettings(
        "test_byobnet", "none", 32, 1, 3, mean=(0.1, 0.2, 0.3), std=(0.5, 0.5, 0.5)
    )
    taken = of(own)
    assert (taken.name, taken.weights, taken.output_stride) == ("test_byobnet", "none", 32)
    assert (taken.mean, taken.std) == (own.mean, own.std)
    assert (taken.feature_level, taken.frozen_stages) == (-1, 1), "BagDetector's own"
    changed = of(own, feature_level=2, mean=(0.5, 0.5, 0.5))
    assert (changed.feature_level, changed.mean, changed.std) == (2, (0.5,) * 3, own.std)
    assert of(own, name="test_byobnet").mean == own.mean


def test_another_network_takes_nothing_from_its_methods_backbone():
    own = BackboneSettings(
        "test_byobnet", "none", 32, model_args={"act_layer": "silu"}, mean=(0.1, 0.2, 0.3)
    )
    other = of(own, name="resnet10t", weights="none")
    assert (other.name, other.output_stride) == ("resnet10t", 16)
    assert (other.model_args, other.mean, other.std) == (None, None, None)


def test_a_network_without_the_argument_is_not_given_it():
    shared = {"num_classes": 4, "pooling": "max", "no_argument": 1}
    stage = Stage.of("pretraining", {"steps": 1, "backbone": TINY}, Classifier, **shared)
    assert stage.model.hparams["pooling"] == "max"
    given = Stage.of(
        "pretraining", {"steps": 1, "backbone": TINY, "pooling": "lse"}, Classifier, **shared
    )
    assert given.model.hparams["pooling"] == "lse", "what is given takes precedence"


def test_given_settings_without_effect_are_noted(capsys):
    given = {"steps": 1, "backbone": TINY, "pooling": "max", "sharpness": 2.0}
    Stage.of("pretraining", given | {"augment": {"scales": [0.5, 2], "crop": 0.5}}, Classifier)
    notes = capsys.readouterr().out
    assert "note: model.pretraining.sharpness has no effect with" in notes
    assert "note: model.pretraining.augment.crop has no effect with augment.scales" in notes


class Unnamed(MaskRCNN):
    """A network whose stages nobody can name before they are done."""

    def stages(self, run, data):
        raise AssertionError("trained")


def test_a_network_of_several_stages_must_name_them():
    stage = Stage.of("segmentor", SMALL, Unnamed)
    with pytest.raises(InputError, match=r"model\.segmentor: Unnamed does not name its stages"):
        stage.work(None, None)
