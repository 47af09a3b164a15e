"""The contract of a method: its defaults, its groups of settings, and what labels and tables make of it."""

from __future__ import annotations

import inspect
from dataclasses import dataclass

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from wsis.errors import InputError
from wsis.method import Method, describe_supervision, filled, tagged
from wsis.metrics import Evaluation
from wsis.nn.backbone import Backbone, BackboneSettings
from wsis.parts.classifier import Classifier
from wsis.runs.labels import Labeller
from wsis.types import Prediction


@dataclass(frozen=True)
class Widths:
    hidden: int = 8
    features: int = 4
    sides: tuple[int, ...] = (2, 3)


class Bare(Method):
    """Sets nothing."""


class Grouped(Method):
    """Has a group of settings."""

    def __init__(self, widths: Widths = Widths(features=5), rate: float = 0.1) -> None:
        super().__init__()
        self.widths = widths = filled(Widths(features=5), widths)
        self.save_hyperparameters()
        self.layer = nn.Linear(self.widths.hidden, self.widths.features)


class Predicting(Method):
    """Predicts."""

    needs_proposals = False

    def predict(self, sample):
        return sample


class Stepping(Method):
    """Predicts by Lightning's own hook."""

    def predict_step(self, batch, batch_idx):
        return batch


def test_a_method_that_sets_nothing_learns_from_tags_and_proposals():
    model = Bare()
    assert model.supervision == {"tags"}
    assert (model.needs_proposals, model.needs_segments, model.needs_boxes) == (True, False, False)
    assert (model.panoptic, model.min_mask_score) == (False, 0)
    assert model.label_settings == model.later_settings == ()


def test_what_is_predicted_is_evaluated():
    assert not Bare.predicts()
    assert not Bare.validates()
    assert Bare().configure_callbacks() == []
    assert Bare().validation_step([1]) is None
    for cls in (Predicting, Stepping):
        assert cls.predicts()
        assert cls.validates()
        assert [type(callback) for callback in cls().configure_callbacks()] == [Evaluation]
        assert cls().validation_step([1, 2], 0) == cls().test_step([1, 2], 0) == [1, 2]


def test_a_group_is_given_whole_or_where_it_differs():
    default = Widths(features=5)
    assert filled(default, {}) == default
    assert filled(default, {"hidden": 9}) == Widths(9, 5)
    assert filled(default, Widths(1)) == Widths(1, 4), "a whole group takes nothing from defaults"
    with pytest.raises(InputError, match="Widths has no setting 'hiden'; did you mean 'hidden'"):
        filled(default, {"hiden": 9})


@pytest.mark.parametrize("given", [Widths(6, 7), {"hidden": 6, "features": 7}])
def test_checkpoints_hold_groups_as_plain_dictionaries(given, tmp_path):
    model = Grouped(given, rate=0.5)
    assert type(model.hparams["widths"]) is dict
    assert model.hparams == {"widths": {"hidden": 6, "features": 7, "sides": (2, 3)}, "rate": 0.5}
    assert model.hparams_initial == model.hparams
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.strategy.connect(model)
    trainer.save_checkpoint(tmp_path / "model.ckpt", weights_only=True)
    again = Grouped.load_from_checkpoint(tmp_path / "model.ckpt", weights_only=True)
    assert again.widths == Widths(6, 7)
    assert torch.equal(again.layer.weight, model.layer.weight)


def test_hparams_of_a_group_left_out_are_the_methods_defaults():
    assert Grouped().hparams["widths"] == {"hidden": 8, "features": 5, "sides": (2, 3)}
    backbone = Classifier(backbone={"name": "test_byobnet", "weights": "none"}).hparams["backbone"]
    assert (backbone["name"], backbone["output_stride"]) == ("test_byobnet", 16)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"tags"}, "tags"),
        ({"tags", "stuff_tags"}, "tags + stuff tags"),
        ({"tags", "boxes"}, "boxes"),
        ({"tags", "boxes", "masks"}, "masks"),
        ({"tags", "stuff_tags", "boxes"}, "stuff tags + boxes"),
        ({"tags", "points"}, "points"),
        ({"tags", "complete", "points", "boxes", "masks"}, "points + masks"),
    ],
)
def test_supervision_is_described_by_its_strongest_fields(fields, text):
    assert describe_supervision(frozenset(fields)) == text


def found(labels: list[int], scores: list[float], masks: bool = True) -> Prediction:
    boxes = torch.arange(4.0 * len(labels)).view(-1, 4)
    names = [{"size": [9, 9], "counts": str(i)} for i in range(len(labels))] if masks else []
    return Prediction(1, (9, 9), boxes, torch.tensor(scores), torch.tensor(labels).long(), names)


@pytest.mark.parametrize("masks", [True, False])
def test_labels_are_detections_of_tagged_classes(masks):
    given = found([0, 2, 0, 1, 0, 2], [0.9, 0.8, 0.6, 0.55, 0.3, 0.2], masks)
    kept = tagged(given, torch.tensor([1.0, 0, 1]), 0.5)
    assert kept.labels.tolist() == [0, 2, 0], "class 1 is not tagged"
    assert torch.equal(kept.boxes, given.boxes[[0, 1, 2]])
    assert torch.equal(kept.scores, given.scores[[0, 1, 2]])
    assert kept.masks == given.masks[:3]


def test_the_best_of_a_class_is_a_label_whatever_its_score_and_one_of_equals_is():
    kept = tagged(found([1, 0, 1, 0], [0.2, 0.1, 0.2, 0.1]), torch.ones(2), 0.5)
    assert kept.boxes[:, 0].tolist() == [0, 4]
    assert len(tagged(found([], []), torch.ones(2), 0.5).boxes) == 0


OTHER = {  # `ranges` are of the model's own arguments
    "supervision": frozenset({"tags", "boxes"}),
    "needs_every_field": False,
    "needs_proposals": False,
    "needs_segments": True,
    "needs_boxes": True,
    "panoptic": True,
    "class_names": ("bird", "bus"),
    "stuff_names": ("sky",),
    "main_metrics": ("PQ",),
    "min_mask_score": 0.25,
    "label_settings": ("merge",),
    "data_settings": ("salient",),
    "later_settings": ("segmentor",),
}


@pytest.mark.parametrize("name", sorted({*inspect.get_annotations(Method)} - {"ranges"}))
def test_data_treat_a_labeller_as_they_treat_its_model(name):
    model = Bare()
    assert getattr(model, name) != OTHER[name]
    setattr(model, name, OTHER[name])
    assert getattr(Labeller(model), name) == OTHER[name]


class Sees(Method):
    """Has a backbone."""

    def __init__(self, **backbone) -> None:
        super().__init__()
        self.backbone = Backbone(BackboneSettings("test_byobnet", output_stride=32, **backbone))


def test_features_that_are_random_and_stay_so_are_refused():
    Sees(weights="none", frozen_stages=0).on_fit_start()
    model = Sees(weights="none", frozen_stages=5)
    with pytest.raises(InputError, match="Sees would learn from random features"):
        model.on_fit_start()
    model.on_load_checkpoint({"state_dict": {}})
    model.on_fit_start()


def test_class_names_come_with_a_checkpoint():
    model = Bare()
    assert model.class_names == ()
    categories = [{"id": 4, "name": "bird"}, {"id": 9, "name": "bus"}]
    model.on_load_checkpoint({"epoch": 0, "Data": {"categories": categories, "stuff": []}})
    assert model.class_names == ("bird", "bus")


def test_a_module_is_the_network_of_a_backbone_and_its_class_is_saved():
    network = nn.Conv2d(3, 4, 2, 2)
    settings = filled(BackboneSettings(output_stride=16), network)
    assert settings.name is network
    assert settings.output_stride == 16
    model = Classifier(2, {"name": network, "weights": "none", "frozen_stages": 0})
    assert model.hparams["backbone"]["name"] == "torch.nn.modules.conv.Conv2d"


def test_proposals_that_are_asked_for_and_missing_are_told():
    class Sees(Method):
        def predict(self, sample):
            return sample

    with pytest.raises(InputError, match="Sees needs proposals to predict; leave out"):
        Sees().predict_step([{"image_id": 1}])
    assert Sees().predict_step([{"proposals": None}]) == [{"proposals": None}]
