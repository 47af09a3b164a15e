"""PDSL's settings for a few hundred images: heads on mean and contrast, started from a classifier."""

import pytest
import pytorch_lightning as pl
import torch

from wsis.errors import InputError
from wsis.models.pdsl import PDSL
from wsis.parts.classifier import Classifier
from wsis.types import Proposals

SMALL = {
    "num_classes": 5,
    "backbone": {
        "name": "test_byobnet",
        "weights": "none",
        "output_stride": 32,
        "feature_level": 2,
    },
    "widths": {"mask": 8},
    "inference": {"short_sides": ()},
    "refinements": 2,
    "regression": False,
    "context": 1.8,
}
BOXES = torch.tensor([[0.0, 0, 40, 40], [10, 10, 60, 60], [12, 12, 62, 58], [30, 0, 64, 64]])


def build(**settings):
    torch.manual_seed(0)
    return PDSL(**SMALL, **settings)


class Stages:
    """Stands for a run: the classifier's checkpoint is written untrained."""

    def __init__(self, folder):
        self.folder, self.made = folder, []

    def fit(self, name, model, data, **_):
        self.made.append(name)
        trainer = pl.Trainer(
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            default_root_dir=self.folder,
        )
        trainer.strategy.connect(model)
        trainer.save_checkpoint(self.folder / f"{name}.ckpt", weights_only=True)
        return self.folder / f"{name}.ckpt"


def test_begins_as_its_classifier(tmp_path):
    model, run = (
        build(pretraining={"steps": 3, "backbone": {"feature_level": 2}}).eval(),
        Stages(tmp_path),
    )
    model.stages(run, None)
    assert run.made == ["1-classifier", "2-pdsl"]
    classifier = Classifier.load_from_checkpoint(tmp_path / "1-classifier.ckpt", weights_only=True)
    image = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)
    whole = torch.tensor([[0.0, 0, 64, 64]])
    with torch.no_grad():
        features = classifier.backbone.eval()([image])
        (found,) = model.detection(model.backbone([image]), [Proposals(whole, torch.zeros(1))])
        expected = classifier.head(features.mean((2, 3), keepdim=True)).flatten().softmax(0)
    assert torch.allclose(found.mil[0], expected, atol=0.02), (
        "one proposal, the whole image: the classifier's own opinion"
    )
    assert torch.allclose(found.logits[0], torch.zeros(1, 6), atol=1e-5), (
        "nothing around the image to contrast it with"
    )


@pytest.mark.parametrize(
    ("context", "level", "error"),
    [
        (1.8, 3, "heads of model.context.* give both backbones the same feature_level"),
        (0.0, 1, "with 2 feature maps.* with 3; give both the same name and feature_level"),
    ],
)
def test_a_classifier_that_does_not_fit_is_refused_before_it_trains(
    context, level, error, tmp_path
):
    pretraining = {"steps": 3, "backbone": {"feature_level": level}}
    settings = {**SMALL, "context": context, "pretraining": pretraining}
    model, run = PDSL(**settings), Stages(tmp_path)
    with pytest.raises(InputError, match=error):
        model.stages(run, None)
    assert run.made == []


@pytest.mark.parametrize("background", [0.0, 1.0])
def test_background_weight_decides_whether_background_teaches(background):
    model = build(background_weight=background)
    image = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)
    tags = torch.tensor([0.0, 0, 1, 0, 0])
    far = torch.tensor([[0.0, 0, 4, 4], [60, 60, 64, 64]])
    proposals = Proposals(torch.cat([BOXES[:1], far]), torch.tensor([1.0, 0, 0]))
    model.hparams["objectness_power"] = 1.0  # only the first can be the pseudo-label
    (heads,) = model.detection(model.backbone([image]), [proposals])
    losses, _ = model.detection_losses(
        heads, {"image": image, "proposals": proposals, "target": {"tags": tags}}
    )
    (slope,) = torch.autograd.grad(losses["refinement"], heads.logits[0])
    assert slope[0].abs().sum() > 0
    assert bool(slope[1:].abs().sum() > 0) == bool(background)
