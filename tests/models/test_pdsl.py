import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pycocotools import mask as rle
from torchvision.ops import box_iou, masks_to_boxes

from wsis.data.index import write_coco
from wsis.datasets.shapes import Shapes
from wsis.errors import InputError
from wsis.evidence.grabcut import crops, resample
from wsis.evidence.seed_masks import Request
from wsis.losses import mask_loss
from wsis.models.pdsl import PDSL, target_scores
from wsis.models.pdsl.first_masks import GivenMasks, masks_of_activations
from wsis.models.pdsl.pixels import best_segments
from wsis.nn.backbone import Backbone, BackboneSettings
from wsis.nn.detection import Detection, MaskSamples, nearest_seeds, refine
from wsis.nn.masks import MaskHeads, next_target, of_class
from wsis.nn.regions import pool
from wsis.types import Index

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
    "evidence": "fast",
}


NO_FEATURES = torch.zeros(1, 0, 0, 0)


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
        assert ("train/correlation" in logged) == bool(weight)
        parts = (
            logged["train/mil"]
            + logged["train/refinement"]
            + logged["train/box"]
            + logged["train/mask"]
        )
        assert torch.allclose(
            logged["train/loss"], parts + weight * logged.get("train/correlation", 0.0)
        )


@pytest.mark.slow
@pytest.mark.parametrize("gradient", ["masks", "both"])
def test_correlation_teaches_the_masks_and_detection_where_asked(data, gradient):
    """The last refinement head alone says the scores; the hidden layers are under it."""
    (_, without), (_, with_it) = (
        step(data, correlation_weight=0.0),
        step(data, correlation_weight=1.0, correlation_gradient=gradient),
    )
    taught = {"masks": ("masks.",)}
    taught["both"] = ("masks.", "detector.trunk.", "detector.refinements.3.logits.")
    for (name, a), b in zip(without.named_parameters(), with_it.parameters(), strict=True):
        if a.requires_grad:
            assert torch.equal(a.grad, b.grad) != name.startswith(taught[gradient]), name


@pytest.mark.parametrize("heads", [0, 2])
def test_scores_that_activations_should_equal(heads):
    """One by one: the best proposal's score in the class, y without heads, or the sample's own."""
    torch.manual_seed(0)
    corner = torch.rand(40, 2) * 60
    proposals = torch.cat([corner, corner + 20 + torch.rand(40, 2) * 40], 1)
    logits = [torch.randn(40, 6, requires_grad=True) for _ in range(heads)]
    mil = torch.rand(40, 5) / 40
    detection = Detection(mil, logits, [None] * heads)
    learnt = refine(detection, torch.tensor([1.0, 0, 1, 0, 0]), proposals, (120, 150))
    index = learnt.matched.foreground.nonzero().flatten()
    labels, none = learnt.matched.labels[index], torch.zeros(len(index))
    pseudo = learnt.matched.pseudo[index]
    samples = MaskSamples(proposals[index], index, labels, none, pseudo, none)
    scores = logits[-1].softmax(1) if heads else mil
    own, given = (target_scores(detection, learnt, samples, w) for w in ("own", "pseudo"))
    for k, (p, label) in enumerate(zip(index.tolist(), labels.tolist(), strict=True)):
        assert own[k] == scores[p, label]
        expected = scores[:, label].max() if heads else mil[:, label].sum()
        torch.testing.assert_close(given[k], expected)
    assert own.requires_grad == given.requires_grad == bool(heads)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"refinements": 0},
        {"mask_heads": 0},
        {"seeds_per_class": 1},
        {"correlation_target": "own", "correlation_gradient": "both"},
        {"refinements": 0, "correlation_gradient": "both"},
        {"evidence": "authors", "mask_target": "cut", "roi_samples": 2},
        {"evidence": "detector"},
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


@pytest.mark.slow
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
    plain = model.seed_masks(NO_FEATURES, [found], [sample])
    there = model.seed_masks(NO_FEATURES, [found._replace(boxes=mirrored)], [flipped])
    assert torch.equal(there, plain.flip(-1))
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
    masks = model.seed_masks(NO_FEATURES, [found], [sample])
    assert masks.shape == (6, 28, 28)
    nearest = box_iou(boxes, boxes[nearest_seeds(found, 1)]).argmax(1)
    seeds = nearest_seeds(found, 1)[nearest]
    for mask, (x1, y1, x2, y2), seed in zip(masks, boxes.tolist(), seeds.tolist(), strict=True):
        members = set(proposals.members[seed].nonzero().flatten().tolist())
        for row, column in ((0, 0), (3, 20), (14, 14), (27, 5)):
            x = int(x1 + (column + 0.5) / 28 * (x2 - x1))
            y = int(y1 + (row + 0.5) / 28 * (y2 - y1))
            assert mask[row, column] == (int(proposals.labels[y, x]) in members)


def test_given_masks_are_those_of_the_nearest_objects():
    """Pixel by pixel; a box that matches no mask is filled, and crowds are no masks."""
    truth = torch.zeros(3, 80, 100, dtype=torch.bool)
    truth[0, 10:40, 20:60], truth[1, 30:70, 50:90], truth[2, :, :] = True, True, True
    truth[0, 10:20, 20:40] = truth[1, 60:70, 50:60] = False
    boxes, annotations = masks_to_boxes(truth) + torch.tensor([0, 0, 1, 1]), []
    for mask, (x1, y1, x2, y2) in zip(truth, boxes.tolist(), strict=True):
        lines = rle.encode(np.asfortranarray(mask.numpy(), np.uint8))
        annotations.append({"segmentation": lines, "bbox": [x1, y1, x2 - x1, y2 - y1]})
    annotations[2]["iscrowd"] = 1
    image = {"id": 7, "height": 80, "width": 100}
    masks = GivenMasks(
        Index("toy", None, images=[image], categories=[], annotations={7: annotations})
    )
    asked = torch.tensor([[20.0, 10, 60, 40], [48, 28, 92, 70], [0, 0, 100, 80], [0, 60, 9, 80]])
    none = torch.zeros(0, 4)
    (windows, found), (_, empty), (_, unknown) = masks(
        [Request(7, None, asked), Request(7, None, none), Request(8, None, asked)]
    )
    assert empty.shape == (0, 48, 48)
    assert unknown.all()
    assert found[2:].all()
    for k in (0, 1):
        x1, y1, x2, y2 = windows[k].tolist()
        for row, column in ((0, 0), (3, 20), (24, 24), (40, 11), (47, 47)):
            x = int(x1 + (column + 0.5) / 48 * (x2 - x1))
            y = int(y1 + (row + 0.5) / 48 * (y2 - y1))
            assert found[k, row, column] == truth[k, y, x]
        assert 0.3 < found[k].float().mean() < 1


@pytest.mark.slow
def test_masks_of_a_file_are_evidence(data, tmp_path):
    """Those of the data set itself: seeds at the objects learn them, whatever their class."""
    index = data.index("train")
    write_coco(tmp_path / "masks.json", index)
    model = PDSL(**SMALL, evidence_masks=str(tmp_path / "masks.json"))
    sample = data.samples("train", train=False, supervision={"tags"}).sample(0)
    boxes, one = sample["truth"].boxes, torch.ones(len(sample["truth"].boxes))
    labels, each = sample["truth"].labels, torch.arange(len(boxes))
    found = MaskSamples(boxes, each, labels, one, each, one)
    with pytest.raises(InputError, match=r"masks\.json are not read yet"):
        model.seed_masks(NO_FEATURES, [found], [sample])
    model.evidence.read(data)
    masks = model.seed_masks(NO_FEATURES, [found], [sample])
    for mask, truth, box in zip(masks, sample["truth"].masks, boxes.int().tolist(), strict=True):
        whole = torch.from_numpy(rle.decode(truth))[box[1] : box[3], box[0] : box[2]]
        assert mask.mean().item() == pytest.approx(whole.float().mean().item(), abs=0.05)
    images = [{**image, "file_name": "other.png"} for image in index.images[:1]]
    write_coco(tmp_path / "masks.json", index._replace(images=images))
    with pytest.raises(InputError, match=r"labels other\.png, not a training image"):
        model.stages(None, data)


def test_masks_of_activations_cover_what_is_active():
    """A seed that is active on its left half, and a box that is the seed's right half."""
    boxes = torch.tensor([[0.0, 0, 40, 20], [20, 0, 40, 20], [0, 0, 20, 20]])
    each, one = torch.arange(3), torch.ones(3)
    samples = MaskSamples(boxes, each, each, one, torch.zeros(3).long(), one)
    active = torch.zeros(1, 7, 8)
    active[..., :4], active[..., 6] = 1.0, 0.1
    masks = masks_of_activations(samples, torch.tensor([0]), active)
    assert masks.mean((1, 2)).tolist() == pytest.approx([0.5, 0.0, 1.0], abs=0.1)
    assert set(masks.unique().tolist()) == {0.0, 1.0}


def test_the_detectors_activations_need_a_grid():
    with pytest.raises(InputError, match=r"model\.context 0"):
        PDSL(**SMALL | {"evidence": "detector", "context": 1.8})


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


@pytest.fixture(scope="module")
def objects(tmp_path_factory) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Features (K,D,14,14), evidence (K,28,28) and classes (K,) of true boxes of 40 scenes."""
    made = Shapes(root=tmp_path_factory.mktemp("shapes"), train=40, val=2, salient=2)
    made.proposals = "none"
    made.prepare_data()
    samples = made.samples("train", train=False, supervision={"tags"})
    torch.manual_seed(0)
    settings = BackboneSettings("test_byobnet", "none", output_stride=32, feature_level=1)
    backbone, found = Backbone(settings).eval(), []
    for sample in map(samples.sample, range(len(samples))):
        boxes, pixels = sample["truth"].boxes, sample["image"].permute(1, 2, 0)
        with torch.no_grad():
            features = backbone([sample["image"]])
        regions = pool(features, [boxes], backbone.stride, 14, "roi_align")
        windows, masks = map(torch.from_numpy, crops(pixels.contiguous().numpy(), boxes.numpy()))
        evidence = resample(windows, masks, torch.arange(len(boxes)), boxes, 28).round()
        found.append((regions, evidence, sample["truth"].labels))
    regions, evidence, labels = (torch.cat(part) for part in zip(*found, strict=True))
    return regions, evidence, labels


@pytest.mark.slow
@pytest.mark.parametrize("how", ["soft", "cut"])
def test_no_mask_head_says_everywhere_with_soft_targets(objects, how):
    """After 100 steps all heads leave something out; with cut targets the last ones fill boxes."""
    regions, evidence, labels = objects
    torch.manual_seed(0)
    heads = MaskHeads(regions.shape[1], [1] + [8] * 4, 16)
    optimiser = torch.optim.AdamW(heads.parameters(), lr=0.003)
    for _ in range(100):
        drawn = torch.randperm(len(regions))[:16]
        target, loss = evidence[drawn], torch.zeros(())
        for channels in heads(regions[drawn]):
            logits = of_class(channels, labels[drawn])
            loss = loss + mask_loss(logits, target)
            target = next_target(logits, how)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    with torch.no_grad():
        filled = [(of_class(c, labels) > 0).float().mean().item() for c in heads(regions)]
    assert max(filled) < 0.97 if how == "soft" else min(filled[2:]) > 0.99, filled
