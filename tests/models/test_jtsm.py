from __future__ import annotations

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pycocotools import mask as rle
from torchvision.ops import box_iou

from wsis.datasets.shapes import Shapes
from wsis.errors import InputError
from wsis.losses import image_loss, semantic_loss
from wsis.models.jtsm import JTSM
from wsis.models.jtsm._pseudo_masks import Mined, PseudoMasks, best_of_stuff, first_classes
from wsis.nn.detection import Detection, MaskSamples, refine
from wsis.nn.panoptic import best_as_sum
from wsis.nn.views import over_views

SMALL = {
    "num_classes": 8,
    "num_stuff": 3,
    "backbone": {
        "name": "test_byobnet",
        "weights": "none",
        "output_stride": 32,
        "feature_level": 1,
    },
    "widths": {"hidden": 16, "features": 16, "mask": 8},
    "inference": {"short_sides": (), "flip": False},
    "min_stuff_area": 100,
    "evidence": "fast",
}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Shapes:
    made = Shapes(
        root=tmp_path_factory.mktemp("shapes"), train=8, val=2, salient=2, max_proposals=200
    )
    made.prepare_data()
    return made


def samples_of(data: Shapes, split: str):
    samples = data.samples(
        split, train=split == "train", supervision={"tags", "stuff_tags"}, segments=True
    )
    return samples


def step(data: Shapes, drop: str | None = None, **settings) -> tuple[dict, JTSM]:
    pl.seed_everything(0, verbose=False)
    model, logged = JTSM(**{**SMALL, **settings}), {}
    model.log, model.log_dict = (
        (lambda name, value, **_: logged.update({name: value})),
        (lambda d, **_: logged.update(d)),
    )
    samples = samples_of(data, "train")
    batch = [samples.sample(i, draw=3) for i in range(2)]
    for sample in batch:
        sample["target"].pop(drop, None)
    model.training_step(batch, 0).backward()
    return logged, model


def evaluated(data: Shapes, i: int = 0):
    return samples_of(data, "val").sample(i)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "branches"),
    [
        ({}, {"instance", "semantic"}),
        ({"instances": False}, {"semantic"}),
        ({"semantics": False}, {"instance"}),
        ({"instances": False, "semantics": False}, set()),
        ({"reestimate": "none"}, {"instance", "semantic"}),
        ({"reestimate": "box"}, {"instance", "semantic"}),
        ({"evidence": "authors"}, {"instance", "semantic"}),
        ({"evidence": "segments"}, {"instance", "semantic"}),
        ({"things_class": True}, {"instance", "semantic"}),
        ({"refine_stuff": True}, {"instance", "semantic"}),
        ({"refine_stuff": True, "semantics": False}, {"instance"}),
        ({"window": "region"}, {"instance", "semantic"}),
        ({"stuff": False}, {"instance"}),
        ({"stuff": False, "instances": False}, set()),
        ({"refinements": 0}, {"instance", "semantic"}),
        ({"mask_heads": 1, "regression": False}, {"instance", "semantic"}),
        *(
            ({"pooling": how}, {"instance", "semantic"})
            for how in ("roi_pool", "roi_align", "moi_pool_interpolated")
        ),
        ({"compensation": "released"}, {"instance", "semantic"}),
    ],
)
def test_every_setting_of_the_paper_trains_and_predicts(data, settings, branches):
    logged, model = step(data, **settings)
    assert {name.removeprefix("train/") for name in logged} == {
        "loss",
        "mil",
        "refinement",
        "box",
        *branches,
    }
    assert torch.allclose(
        logged["train/loss"], sum(value for name, value in logged.items() if name != "train/loss")
    )
    sample = evaluated(data)
    with torch.no_grad():
        found = model.eval().predict(sample)
    assert len(found.boxes) == len(found.masks) > 0
    assert int(found.labels.max()) < 8
    if not settings.get("stuff", True):
        assert found.panoptic is None
        return
    classes = found.panoptic[..., 0]
    assert tuple(classes.shape) == sample["size"]
    assert set(classes.unique().tolist()) <= set(range(-1, 11))
    if settings.get("semantics", True) and not settings.get("things_class"):
        assert (classes >= 8).float().mean() > 0.5, (
            "an untrained model sees no things, and stuff nearly everywhere"
        )


@pytest.mark.slow
def test_both_branches_and_the_streams_learn(data):
    _, model = step(data)
    still = {
        name
        for name, p in model.named_parameters()
        if p.requires_grad and (p.grad is None or not p.grad.any())
    }
    assert not still


def test_images_of_which_no_stuff_is_known_teach_things(data):
    logged, model = step(data, drop="stuff_tags")
    assert logged["train/semantic"] == 0
    sample = evaluated(data)
    del sample["target"]["stuff_tags"]
    heads = model.mining(model.backbone([sample["image"]]), [sample["proposals"]])[0]
    things = image_loss(heads.mil[:, :8], sample["target"]["tags"])
    torch.testing.assert_close(model.mining_losses(heads, sample)[0]["mil"], things)


def test_data_without_stuff():
    with pytest.raises(InputError, match=r"no stuff classes; .* --model.stuff false"):
        JTSM(**{**SMALL, "num_stuff": 0})
    assert JTSM(**{**SMALL, "num_stuff": 0, "stuff": False}).semantic is None


def test_boxes_cannot_be_mined(data):
    model = JTSM(
        **{**SMALL, "pooling": "roi_pool", "instances": False, "semantics": False, "stuff": False}
    ).eval()
    sample = evaluated(data)
    sample["proposals"] = sample["proposals"]._replace(labels=None, members=None)
    with pytest.raises(InputError, match="segments are needed"):
        model.predict(sample)


def truly_mined(sample) -> Mined:
    """As if mining had found, for each object, the proposal whose segment fits it best."""
    proposals, truth = sample["proposals"], sample["truth"]
    masks = torch.from_numpy(np.stack([rle.decode(m) for m in truth.masks])).bool()
    segments = proposals.members[:, proposals.labels.long()] & (proposals.labels >= 0)
    both = (segments[:, None] & masks).flatten(2).sum(2)
    iou = both / (segments[:, None] | masks).flatten(2).sum(2)
    best = iou.argmax(0)
    one = torch.ones(len(best))
    found = MaskSamples(
        proposals.boxes[best], best, truth.labels, one, torch.arange(len(best)), one
    )
    none = torch.zeros(0, dtype=torch.int64)
    return Mined(found, best, best, none, none)


@pytest.mark.slow
@pytest.mark.parametrize("reestimate", ["none", "box", "segment"])
def test_mined_masks_lie_on_their_objects(data, reestimate):
    model, sample = JTSM(**SMALL, reestimate=reestimate), evaluated(data)
    mined = truly_mined(sample)
    masks = model.pseudo_masks.instances(mined, sample)
    assert masks.shape == (len(mined.best), 28, 28)
    assert set(masks.unique().tolist()) == {0.0, 1.0}
    segments = sample["proposals"].members[mined.best][:, sample["proposals"].labels.long()]
    for mask, segment, box in zip(masks, segments, mined.things.boxes.int().tolist(), strict=True):
        within = segment[box[1] : box[3], box[0] : box[2]].float()
        small = torch.nn.functional.interpolate(within[None, None], (28, 28), mode="nearest-exact")[
            0, 0
        ]
        iou = (mask * small).sum() / (mask + small).clamp(max=1).sum()
        assert iou > (0.9 if reestimate == "none" else 0.6)


@pytest.mark.slow
@pytest.mark.parametrize("reestimate", ["none", "box", "segment"])
def test_masks_and_canvas_follow_a_flip(data, reestimate):
    model, sample = JTSM(**SMALL, reestimate=reestimate), evaluated(data)
    mined = truly_mined(sample)
    mined = mined._replace(stuff=torch.tensor([2, 0]), stuff_best=mined.best[:2])
    width, proposals = sample["size"][1], sample["proposals"]
    boxes = proposals.boxes.clone()
    boxes[:, 0], boxes[:, 2] = width - proposals.boxes[:, 2], width - proposals.boxes[:, 0]
    mirrored = {**sample, "view": sample["view"]._replace(flip=True)}
    mirrored["proposals"] = proposals._replace(boxes=boxes, labels=proposals.labels.flip(1))
    there = mined._replace(things=mined.things._replace(boxes=boxes[mined.things.proposals]))
    plain, flipped = (
        model.pseudo_masks.instances(mined, sample),
        model.pseudo_masks.instances(there, mirrored).flip(-1),
    )
    assert (plain != flipped).float().mean() < 0.02, (
        "windows are rounded to whole pixels from the other side"
    )
    masks, stride = model.pseudo_masks, model.backbone.stride
    size = sample["size"][0] // stride, width // stride
    nothing = torch.zeros(0, dtype=torch.int64)
    plain, flipped = (
        masks.canvas(m._replace(objects=nothing), of, size, stride)
        for m, of in ((mined, sample), (there, mirrored))
    )
    flipped = flipped.flip(-1)
    assert {0, 255} <= set(plain.unique().tolist()) <= {0, 2, 255}
    assert (plain != flipped).float().mean() < 0.02


def test_higher_scores_are_painted_on_top(data):
    model, sample = JTSM(**SMALL), evaluated(data)
    proposals = sample["proposals"]
    heads = model.mining(model.backbone([sample["image"]]), [proposals])[0]
    mil = torch.zeros_like(heads.mil)
    mil[5, 8], mil[5, 10], mil[9, 9] = 0.3, 0.6, 0.1
    _, mined = model.mining_losses(
        heads._replace(mil=mil),
        {**sample, "target": {**sample["target"], "stuff_tags": torch.ones(3)}},
    )
    assert mined.stuff.tolist() == [1, 0, 2]
    assert mined.stuff_best.tolist() == [9, 5, 5]
    canvas = model.pseudo_masks.canvas(mined, sample, (32, 32), 8)
    assert 2 in canvas.unique()
    assert 0 not in canvas.unique(), "stuff 2 has the same segment and a higher score"


@pytest.mark.slow
@pytest.mark.parametrize("reestimate", ["box", "segment"])
@pytest.mark.parametrize("things_class", [False, True])
def test_mined_things_are_no_stuff(data, reestimate, things_class):
    """A segment of nearly the whole image is mined as stuff."""
    sample = evaluated(data)
    mined = truly_mined(sample)
    proposals, size = sample["proposals"], sample["size"]
    largest = (proposals.boxes[:, 2:] - proposals.boxes[:, :2]).prod(1).argmax()
    mined = mined._replace(stuff=torch.tensor([1]), stuff_best=largest[None])
    things = proposals.members[mined.objects].any(0)[proposals.labels.long()]
    make = PseudoMasks(reestimate, "fast", 10, 3 if things_class else None)
    canvas = make.canvas(mined, sample, size, 1)
    sure = segments(sample)[largest] & ~things
    assert set(canvas[things].unique().tolist()) <= ({3} if things_class else {1, 255})
    assert (canvas[things] == 1).float().mean() < 0.1, "cells are larger than pixels"
    if reestimate == "segment":
        assert (canvas[sure] == 1).float().mean() > 0.9


@pytest.mark.slow
def test_segments_as_evidence_are_those_of_the_nearest_seeds(data):
    sample = evaluated(data)
    mined = truly_mined(sample)
    order = torch.tensor([0, 0, 1])  # of two pseudo-labels; the second sample is no seed
    boxes, proposals = sample["proposals"].boxes, torch.tensor([3, 7, 11])
    overlap = torch.tensor([0.9, 0.8, 1.0])
    things = MaskSamples(boxes[proposals], proposals, order, overlap, order, overlap)
    mined = mined._replace(things=things, best=torch.tensor([4, 4, 11]))
    found = PseudoMasks("box", "segments", 1, None).instances(mined, sample)
    nearest = box_iou(boxes[[7]], boxes[[3, 11]])[0].argmax()
    for mask, segment, box in zip(found, [3, (3, 11)[nearest], 11], things.boxes, strict=True):
        x1, y1, x2, y2 = box.tolist()
        for row, column in [(0, 0), (5, 20), (14, 14), (27, 3), (20, 27)]:
            x, y = x1 + (column + 0.5) * (x2 - x1) / 28, y1 + (row + 0.5) * (y2 - y1) / 28
            assert mask[row, column] == segments(sample)[segment, int(y), int(x)]


def segments(sample) -> torch.Tensor:
    """The segments of all proposals as masks of the image."""
    labels, members = sample["proposals"].labels.long(), sample["proposals"].members
    return members[:, labels.clamp(min=0)] & (labels >= 0)


def mined_by(model: JTSM, sample):
    """Detections of the only view of an image, and all that `stuff_map` needs."""
    views, features, heads = over_views(sample, model.inference, model.backbone, model.mining)
    return features, views, heads, sample["proposals"], sample["size"]


def test_without_branch_the_best_segment_of_each_class_is_painted(data):
    model, sample = JTSM(**{**SMALL, "semantics": False}).eval(), evaluated(data)
    features, views, heads, *rest = mined_by(model, sample)
    mil = torch.zeros_like(heads[0].mil)
    mil[4, 8], mil[5, 8] = 0.4, 0.2  # y = .6: present, proposal 4
    mil[9, 9] = 0.49  # not present
    mil[20, 10], mil[21, 10] = 0.2, 0.31  # present with the lower score, proposal 21 below
    with torch.no_grad():
        found = model.stuff_map(features, views, [heads[0]._replace(mil=mil)], *rest)
    expected = torch.full(sample["size"], 255)
    expected[segments(sample)[21]] = 2
    expected[segments(sample)[4]] = 0
    assert torch.equal(found, expected)


def test_without_refinement_the_best_proposal_of_a_class_counts_as_its_sum(data):
    """S^MIL spreads y over proposals: none of them reaches the threshold of the panoptic map."""
    settings = {"refinements": 0, "instances": False, "semantics": False}
    model, sample = JTSM(**{**SMALL, **settings}).eval(), evaluated(data)
    (heads,) = model.mining(model.backbone([sample["image"]]), [sample["proposals"]])
    mil = torch.zeros_like(heads.mil)
    mil[7, 3], mil[20, 3], mil[30, 5] = 0.4, 0.3, 0.45
    model.mining = lambda *_: [heads._replace(mil=mil)]
    with torch.no_grad():
        found = model.predict(sample)
    assert found.scores.max() == pytest.approx(0.45)
    things = found.panoptic[found.panoptic[..., 0] < 8][:, 0]
    assert set(things.unique().tolist()) == {-1, 3}, "class 5 has y = .45"
    scaled = best_as_sum(found, mil)
    assert scaled[found.labels == 3].max() == pytest.approx(0.7)
    assert scaled[found.labels == 5].max() == pytest.approx(0.45)


@pytest.mark.parametrize("things_class", [False, True])
def test_one_stuff_class_teaches_no_branch(data, things_class):
    """As on VOC: the softmax over one class is 1, and the loss 0; stuff is where no thing is."""
    logged, model = step(data, num_stuff=1, things_class=things_class)
    assert ("train/semantic" in logged) == things_class
    assert (model.semantic is not None) == things_class
    with torch.no_grad():
        found = model.eval().stuff_map(*mined_by(model, evaluated(data)))
    assert set(found.unique().tolist()) <= ({0, 255} if things_class else {0})
    logits = torch.randn(2, 1, 4, 5)
    assert semantic_loss(logits, torch.zeros(2, 4, 5, dtype=torch.int64)) == 0


def test_refinement_heads_of_stuff(data):
    model, sample = JTSM(**{**SMALL, "refine_stuff": True}), evaluated(data)
    heads = model.mining(model.backbone([sample["image"]]), [sample["proposals"]])[0]
    count = len(sample["proposals"].boxes)
    assert [tuple(logits.shape) for logits in heads.logits] == [(count, 12)] * 4
    last = torch.full((count, 12), -5.0)
    last[7, 9], last[30, 10] = 5.0, 6.0
    heads = heads._replace(logits=[*heads.logits[:3], last])
    target = {**sample["target"], "stuff_tags": torch.tensor([0.0, 1, 1])}
    losses, mined = model.mining_losses(heads, {**sample, "target": target})
    assert (mined.stuff.tolist(), mined.stuff_best.tolist()) == ([1, 2], [7, 30])
    assert set(mined.things.labels.tolist()) <= set(
        sample["target"]["tags"].nonzero()[:, 0].tolist()
    )
    known = torch.cat([target["tags"], target["stuff_tags"]])
    size = tuple(sample["image"].shape[-2:])
    expected = refine(heads, known, sample["proposals"].boxes, size)
    torch.testing.assert_close(losses["refinement"], expected.refinement)


def test_first_classes_are_followed_by_background():
    heads = Detection(torch.rand(5, 4), [torch.rand(5, 5)], [torch.rand(5, 4, 4)])
    found = first_classes(heads, 2)
    assert torch.equal(found.mil, heads.mil[:, :2])
    assert torch.equal(found.logits[0], heads.logits[0][:, [0, 1, 4]])
    assert torch.equal(found.deltas[0], heads.deltas[0][:, :2])
    whole = first_classes(heads, 4)
    assert torch.equal(whole.logits[0], heads.logits[0])


def test_best_of_stuff():
    scores = torch.tensor([[0.1, 0.9, 0.3], [0.6, 0.2, 0.4]])
    labels, best = best_of_stuff(scores, torch.tensor([1, 0, 1]))
    assert (labels.tolist(), best.tolist()) == ([2, 0], [1, 1])
    assert not len(best_of_stuff(scores[:0], torch.ones(3))[0])


def test_semantic_loss_is_the_mean_over_what_is_known():
    logits, canvas = torch.randn(2, 3, 4, 5, requires_grad=True), torch.randint(0, 3, (2, 4, 5))
    canvas[0, :2] = 255
    known = canvas != 255
    picked = logits.log_softmax(1).gather(1, canvas.clamp(max=2)[:, None])[:, 0]
    torch.testing.assert_close(semantic_loss(logits, canvas), -picked[known].mean())
    nothing = semantic_loss(logits, torch.full_like(canvas, 255))
    nothing.backward()
    assert nothing == 0
    assert not logits.grad.any()
