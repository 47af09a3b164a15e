import pytest
import pytorch_lightning as pl
import torch
from torchvision.ops import box_iou

from wsis.datasets.shapes import Shapes
from wsis.models.pdsl import PDSL, best_segments
from wsis.nn.detection import MaskSamples, nearest_seeds

SMALL = {
    "num_classes": 8,
    "backbone": {
        "name": "test_byobnet",
        "weights": "none",
        "output_stride": 32,
        "feature_level": 1,
    },
    "widths": {"hidden": 16, "features": 16, "mask": 8},
    "inference": {"short_sides": (), "flip": False},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Shapes:
    made = Shapes(root=tmp_path_factory.mktemp("shapes"), train=8, val=2, salient=2)
    made.prepare_data()
    return made


def batch_of(data: Shapes) -> list:
    samples = data.samples("train", train=True, supervision={"tags"}, segments=True)
    return [samples.sample(i, draw=3) for i in range(2)]


def step(data: Shapes, **settings) -> tuple[dict, PDSL]:
    pl.seed_everything(0, verbose=False)
    model, logged = PDSL(**{**SMALL, **settings}), {}
    model.log, model.log_dict = (
        (lambda name, value, **_: logged.update({name: value})),
        (lambda d, **_: logged.update(d)),
    )
    model.training_step(batch_of(data), 0).backward()
    return logged, model


@pytest.mark.slow
def test_the_loss_is_the_sum_of_its_parts(data):
    for weight in (0.0, 0.5, 1.0):
        logged, _ = step(data, correlation_weight=weight)
        parts = (
            logged["train/mil"]
            + logged["train/refinement"]
            + logged["train/box"]
            + logged["train/mask"]
        )
        assert torch.allclose(logged["train/loss"], parts + weight * logged["train/correlation"])


@pytest.mark.slow
def test_correlation_teaches_the_masks_and_not_the_detection(data):
    (_, without), (_, with_it) = (
        step(data, correlation_weight=0.0),
        step(data, correlation_weight=1.0),
    )
    for (name, a), b in zip(without.named_parameters(), with_it.parameters(), strict=True):
        if name.startswith("masks"):
            assert not torch.equal(a.grad, b.grad)
        elif a.requires_grad:
            assert torch.equal(a.grad, b.grad)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"refinements": 0},
        {"mask_heads": 0},
        {"seeds_per_class": 1},
        {"correlation_target": "own"},
        {"evidence": "segments", "mask_target": "soft"},
        {"mask_source": "pixels"},
    ],
)
def test_ablations_train_and_predict(data, settings):
    logged, model = step(data, **settings)
    assert all(torch.as_tensor(value).isfinite() for value in logged.values())
    assert len(model.detector.refinements) == settings.get("refinements", 4)
    assert len(model.masks.predictors) == 1 + settings.get("mask_heads", 4)
    sample = data.samples("val", train=False, supervision={"tags"}, segments=True).sample(0)
    with torch.no_grad():
        assert len(model.eval().predict(sample).boxes) > 0


def test_seed_masks_follow_a_flip(data):
    torch.manual_seed(0)
    model = PDSL(**SMALL)
    samples = data.samples("val", train=False, supervision={"tags"})
    sample = samples.sample(0)
    width = sample["size"][1]
    boxes = sample["truth"].boxes
    labels = sample["truth"].labels
    one = torch.ones(len(boxes))
    found = MaskSamples(boxes, torch.arange(len(boxes)), labels, one, torch.arange(len(boxes)), one)
    mirrored = boxes.clone()
    mirrored[:, 0], mirrored[:, 2] = width - boxes[:, 2], width - boxes[:, 0]
    flipped = {**sample, "view": sample["view"]._replace(flip=True)}
    plain = model.seed_masks([found], [sample])
    assert torch.equal(
        model.seed_masks([found._replace(boxes=mirrored)], [flipped]), plain.flip(-1)
    )
    assert 0.2 < plain.mean() < 0.98


def test_first_masks_may_be_the_segments_of_the_seeds(data):
    """Cell by cell: the pixel under its centre, of the nearest seed's segment."""
    sample = data.samples("val", train=False, supervision={"tags"}, segments=True).sample(0)
    proposals = sample["proposals"]
    chosen = torch.arange(6)
    boxes = proposals.boxes[chosen]
    labels, one = torch.tensor([0, 0, 0, 1, 1, 1]), torch.tensor([0.9, 0.8, 0.7, 0.9, 0.8, 0.7])
    found = MaskSamples(boxes, chosen, labels, one, labels, one)
    model = PDSL(**{**SMALL, "evidence": "segments", "seeds_per_class": 1})
    assert model.needs_segments
    assert not PDSL(**SMALL).needs_segments
    masks = model.seed_masks([found], [sample])
    assert masks.shape == (6, 28, 28)
    nearest = box_iou(boxes, boxes[nearest_seeds(found, 1)]).argmax(1)
    seeds = nearest_seeds(found, 1)[nearest]
    for mask, (x1, y1, x2, y2), seed in zip(masks, boxes.tolist(), seeds.tolist(), strict=True):
        members = set(proposals.members[seed].nonzero().flatten().tolist())
        for row, column in ((0, 0), (3, 20), (14, 14), (27, 5)):
            x = int(x1 + (column + 0.5) / 28 * (x2 - x1))
            y = int(y1 + (row + 0.5) / 28 * (y2 - y1))
            assert mask[row, column] == (int(proposals.labels[y, x]) in members)


def test_pixels_learn_the_segment_nearest_to_each_pseudo_label(data):
    """Cell by cell: the pixel under its centre."""
    sample = data.samples("val", train=False, supervision={"tags"}, segments=True).sample(0)
    proposals = sample["proposals"]
    chosen, labels = torch.tensor([3, 0, 5, 1]), torch.tensor([6, 2, 6, 2])
    pseudo, overlap = (labels == 6).long(), torch.tensor([0.8, 0.7, 0.9, 1.0])
    found = MaskSamples(proposals.boxes[chosen], chosen, labels, torch.ones(4), pseudo, overlap)
    known, segments = best_segments(found, proposals, (20, 30), 4.0)
    whole = proposals.members[:, proposals.labels.long()] & (proposals.labels >= 0)
    assert known.tolist() == [2, 6]
    assert torch.equal(segments, whole[[1, 5], 2 : 20 * 4 : 4, 2 : 30 * 4 : 4].float())


def test_predictions_average_over_views_in_the_images_frame(data):
    torch.manual_seed(0)
    model = PDSL(**SMALL | {"inference": {"short_sides": (256,), "flip": True}}).eval()
    sample = data.samples("val", train=False, supervision={"tags"}).sample(0)
    mirrored = {**sample, "image": sample["image"].flip(-1)}
    boxes = sample["proposals"].boxes.clone()
    boxes[:, 0], boxes[:, 2] = sample["size"][1] - boxes[:, 2], sample["size"][1] - boxes[:, 0]
    mirrored["proposals"] = sample["proposals"]._replace(boxes=boxes)
    with torch.no_grad():
        a, b = model.predict(sample), model.predict(mirrored)
    assert torch.allclose(a.scores, b.scores, atol=1e-5)  # the two views change places
