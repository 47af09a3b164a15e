"""The mask transformer as a method: what it learns of whom, and masks in the pixels of their image."""

from __future__ import annotations

import math

import pytest
import torch
from pycocotools import mask as rle
from torch import Tensor, nn

from wsis.datasets.shapes import Shapes
from wsis.metrics import InstanceAP
from wsis.nn.mask_decoder import Found
from wsis.parts.mask_rcnn import MaskRCNN
from wsis.parts.mask_transformer import MaskTransformer, _objects
from wsis.runs.stage import Stage
from wsis.types import GroundTruth, Sample, Target

BACKBONE = {"name": "test_byobnet", "weights": "none", "feature_level": 3, "frozen_stages": 0}
TINY = {
    "backbone": BACKBONE,
    "features": 32,
    "queries": 12,
    "blocks": 2,
    "heads": 4,
    "points": 200,
    "test_side": 0,
}
BOXES = [[10, 10, 60, 70], [50, 30, 110, 90]]
SIZE = (96, 128)


def tiny(**settings) -> MaskTransformer:
    torch.manual_seed(0)
    model = MaskTransformer(3, **{**TINY, **settings})
    model.log = model.log_dict = lambda *_, **__: None  # no trainer listens
    return model


def target(boxes: list[list[int]], **flags: list[bool]) -> Target:
    """Objects of classes 0, 1, 2, ... whose masks fill the upper half of their boxes."""
    masks = torch.zeros(len(boxes), *SIZE, dtype=torch.bool)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes, strict=True):
        mask[y1 : (y1 + y2) // 2, x1:x2] = True
    marked = {
        name: torch.tensor(flags.get(name, [False] * len(boxes)), dtype=torch.bool)
        for name in ("crowd", "ignore_mask")
    }
    corners = torch.tensor(boxes, dtype=torch.float32).view(-1, 4)
    labels = torch.arange(len(boxes)) % 3
    return {"tags": torch.ones(3), "boxes": corners, "labels": labels, "masks": masks, **marked}


def image(size: tuple[int, int] = SIZE, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=g)


def losses(model: MaskTransformer, *targets: Target) -> dict[str, Tensor]:
    """Losses of images that differ in nothing but their targets, with the same draws."""
    heard: dict[str, Tensor] = {}
    model.log_dict = lambda values, **_: heard.update(values)
    torch.manual_seed(1)
    samples: list[Sample] = [{"image": image(seed=i), "target": t} for i, t in enumerate(targets)]
    model.zero_grad()
    model.training_step(samples, 0).backward()
    return heard


def gradient(model: MaskTransformer, part: str) -> float:
    """The largest gradient among parameters whose name holds `part`."""
    found = [p.grad for name, p in model.named_parameters() if part in name]
    assert found, part
    return max(0.0 if g is None else g.abs().max().item() for g in found)


OTHERS = ("backbone", "tokens", "places", "queries", "blocks", "classes")


def test_an_unsure_mask_gives_masks_no_gradient_but_classes_learn():
    model = tiny()
    losses(model, target(BOXES))
    assert all(gradient(model, part) > 0 for part in ("decoder.masks", "upscale", *OTHERS))
    unsure = losses(model, target(BOXES, ignore_mask=[True, True]))
    assert unsure["train/mask"] == unsure["train/dice"] == 0 < unsure["train/class"]
    assert gradient(model, "decoder.masks") == gradient(model, "upscale") == 0
    assert all(gradient(model, part) > 0 for part in OTHERS)


def test_what_an_unsure_mask_looks_like_is_of_no_matter():
    model = tiny()
    given, other, changed = (target(BOXES, ignore_mask=[False, True]) for _ in range(3))
    other["masks"][1] = torch.rand(SIZE) < 0.5
    changed["masks"][0] = torch.rand(SIZE) < 0.5
    a, b, c = (losses(model, t) for t in (given, other, changed))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert a["train/dice"] != c["train/dice"]
    assert losses(model, target(BOXES))["train/dice"] != a["train/dice"]


def test_an_unsure_object_is_sought_in_its_box():
    found = _objects(target(BOXES, ignore_mask=[False, True]))["masks"]
    assert found.flatten(1).sum(1).tolist() == [30 * 50, 60 * 60]
    assert found[1, 30:90, 50:110].all()


def test_a_crowd_takes_no_part():
    model = tiny()
    crowd = [[30, 5, 120, 95], [0, 0, 128, 96]]
    alone = losses(model, target(BOXES))
    among = losses(model, target([*BOXES, *crowd], crowd=[False, False, True, True]))
    assert all(torch.equal(alone[name], among[name]) for name in alone)


def test_queries_in_crowds_teach_nothing_if_asked():
    """Of three queries, one is on an object, one in the crowd and one on background."""
    model = tiny(ignore_crowds=True, queries=3)
    masks = torch.full((1, 3, 24, 32), -9.0)
    for query, columns in enumerate((slice(0, 6), slice(12, 20), slice(24, 32))):
        masks[0, query, :, columns] = 9
    learnt = _objects(target([[0, 0, 24, 96], [40, 0, 88, 96]], crowd=[False, True]))
    assert learnt["crowds"].tolist() == [[40, 0, 88, 96]]
    seen = {}
    for ignore in (True, False):
        model.hparams["ignore_crowds"] = ignore
        logits = torch.zeros(1, 3, 4, requires_grad=True)
        model._losses_of(Found(logits, masks), [SIZE], [learnt])["class"].backward()
        seen[ignore] = logits.grad[0].abs().sum(1) > 0
    assert seen[True].tolist() == [True, False, True]
    assert seen[False].all()


@pytest.mark.parametrize("others", [(), (BOXES,)], ids=["alone", "beside another"])
def test_images_without_an_object_train(others):
    model = tiny(ignore_crowds=True)
    heard = losses(
        model,
        target([]),
        target([[0, 0, 128, 96]], crowd=[True]),
        *(target(boxes) for boxes in others),
    )
    assert all(value.isfinite() for value in heard.values())
    assert gradient(model, "classes") > 0
    assert all(p.grad is not None for p in model.parameters()), (
        "processes that train together wait for every gradient"
    )
    assert (heard["train/mask"] > 0) == (heard["train/dice"] > 0) == bool(others)


def test_more_objects_than_queries():
    heard = losses(tiny(queries=1), target(BOXES))
    assert all(value > 0 and value.isfinite() for value in heard.values())


def test_the_order_of_objects_is_of_no_matter():
    model, given = tiny(), target([*BOXES, [5, 5, 30, 90]])
    turned: Target = {key: rows.flip(0) if key != "tags" else rows for key, rows in given.items()}
    a, b = losses(model, given), losses(model, turned)
    assert all(a[name].item() == pytest.approx(b[name].item(), rel=1e-5) for name in a)


def test_a_perfect_answer_costs_nothing_and_its_contrary_much():
    """One object fills the image, so that no point lies on an edge."""
    model = tiny(queries=2)
    whole = target([[0, 0, 128, 96]])
    whole["masks"][:] = True
    learnt = _objects(whole)
    classes = torch.tensor([[[-30.0, -30, -30, 30], [30, -30, -30, -30]]])
    masks = torch.stack([torch.full((24, 32), -30.0), torch.full((24, 32), 30.0)])[None]
    right = model._losses_of(Found(classes, masks), [SIZE], [learnt])
    assert all(value.item() == pytest.approx(0, abs=1e-6) for value in right.values())
    wrong = model._losses_of(Found(-classes, -masks[:, :1].expand(1, 2, 24, 32)), [SIZE], [learnt])
    assert wrong["dice"].item() == pytest.approx(0, abs=1e-6)
    assert wrong["class"].item() == pytest.approx(math.log(3)), "three classes are as likely"
    off = model._losses_of(Found(classes, -masks[:, 1:].expand(1, 2, 24, 32)), [SIZE], [learnt])
    assert off["mask"].item() == pytest.approx(30, rel=1e-4)
    assert off["dice"].item() == pytest.approx(1 - 1 / 201, rel=1e-3)


def test_masks_are_in_the_pixels_of_their_image():
    """A ramp of logits that is 0 at x = 50 of the input gives the columns from 50 on, of a larger image those from 100 on."""
    for size, factor in ((SIZE, 1), ((192, 256), 2)):
        model = tiny(test_side=96, queries=1).eval()
        ramp = (torch.arange(32) + 0.5) * 4 - 50
        logits = torch.full((1, 1, 4), -9.0)
        logits[..., 1] = 9
        model._found = lambda *_, r=ramp, c=logits: [Found(c, r.expand(1, 1, 24, 32))]
        with torch.no_grad():
            (found,) = model.predict_step([{"image": image(size), "image_id": 7}], 0)
        expected = torch.zeros(size, dtype=torch.bool)
        expected[:, 50 * factor :] = True
        assert torch.equal(torch.from_numpy(found.binary_masks()[0]), expected)
        assert found.boxes.tolist() == [[50 * factor, 0, 128 * factor, 96 * factor]]
        assert found.labels.tolist() == [1]
        certainty = ramp[ramp > 0].sigmoid().mean()
        torch.testing.assert_close(found.scores[0], logits.softmax(2)[0, 0, 1] * certainty)
        assert (found.image_id, found.size) == (7, size)


@pytest.mark.parametrize("size", [(96, 128), (70, 45), (33, 150)])
def test_images_of_any_size(size):
    model = tiny(score_threshold=0.0, test_side=48, test_max_side=64).eval()
    with torch.no_grad():
        (found,) = model.predict_step([{"image": image(size), "image_id": 0}], 0)
    assert {tuple(mask["size"]) for mask in found.masks} <= {size}
    assert (found.scores[:-1] >= found.scores[1:]).all()
    assert (found.boxes[:, 2:] <= torch.tensor([size[1], size[0]])).all()


def test_an_image_in_which_nothing_is_found():
    model = tiny(score_threshold=0.0).eval()
    model.decoder.classes.bias.data[-1] = 999
    with torch.no_grad():
        (found,) = model.predict_step([{"image": image(), "image_id": 0}], 0)
    assert found.boxes.shape == (0, 4)
    assert len(found.masks) == len(found.scores) == 0


def test_images_of_a_batch_are_predicted_as_alone():
    """On a backbone of patches, which sees nothing of its neighbours."""
    patches = nn.Conv2d(3, 8, 16, 16)
    model = tiny(backbone={"name": patches, "weights": "none"}).eval()
    small, large = image((50, 100)), image((96, 80), 1)
    with torch.no_grad():
        (both,) = model._found([small, large])
        for i, alone in enumerate((small, large)):
            (found,) = model._found([alone])
            torch.testing.assert_close(both.classes[i], found.classes[0], atol=1e-5, rtol=1e-4)


def test_a_plain_transformer_of_frozen_weights():
    model = tiny(backbone={"name": "test_vit", "weights": "none", "frozen_stages": 5})
    heard = losses(model, target(BOXES))
    assert all(value.isfinite() for value in heard.values())
    assert all(p.grad is None for p in model.backbone.parameters())
    assert all(p.grad is not None for p in model.decoder.parameters())


def test_scores_keep_their_precision_where_the_network_has_half():
    model = tiny(score_threshold=0.0).eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        (found,) = model.predict_step([{"image": image(), "image_id": 0}], 0)
    assert found.boxes.dtype == found.scores.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        heard = losses(model.train(), target(BOXES))
    assert all(value.dtype == torch.float32 for value in heard.values())


def test_it_takes_the_place_of_mask_rcnn_by_name():
    settings = {"model": "mask_transformer", "steps": 3, **TINY}
    stage = Stage.of("segmentor", settings, "mask_rcnn", num_classes=3, ignore_crowds=True)
    assert isinstance(stage.model, MaskTransformer)
    assert stage.model.hparams["ignore_crowds"]
    assert MaskTransformer.supervision == MaskRCNN.supervision


@pytest.mark.slow
def test_it_learns_one_image_by_heart(tmp_path):
    data = Shapes(tmp_path, train=1, val=1, proposals="none")
    sample = data.samples("train", train=True, supervision={"tags", "boxes", "masks"}).sample(0)
    torch.manual_seed(0)
    model = MaskTransformer(8, **{**TINY, "features": 64, "queries": 32, "points": 1024})
    model.log = model.log_dict = lambda *_, **__: None
    optimiser, steps = torch.optim.AdamW(model.parameters(), lr=2e-3), 60
    for step in range(steps):
        model.decoder.progress.fill_(step / steps)
        optimiser.zero_grad()
        model.training_step([sample], 0).backward()
        optimiser.step()
    objects = sample["target"]
    masks = [rle.encode(mask.numpy().astype("uint8", order="F")) for mask in objects["masks"]]
    with torch.no_grad():
        found = model.eval().predict_step([sample], 0)
    metric = InstanceAP(8)
    truth = GroundTruth(objects["boxes"], objects["labels"], masks, objects["crowd"])
    metric.update(found, [truth])
    assert metric.compute()["AP50"] > 0.9
