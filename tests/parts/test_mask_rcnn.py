"""Mask R-CNN against torchvision's own, and what torchvision's does not know: ignore_mask masks, crowds, images without objects."""

from __future__ import annotations

import pytest
import pytorch_lightning as pl
import torch
from pycocotools import mask as rle
from torch import Tensor
from torchvision.models.detection import MaskRCNN as Peer
from torchvision.models.detection import maskrcnn_resnet50_fpn
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import project_masks_on_boxes
from torchvision.ops import box_iou

from wsis.datasets.shapes import Shapes
from wsis.errors import InputError
from wsis.metrics import InstanceAP
from wsis.nn.masks import paste
from wsis.nn.views import resize
from wsis.parts.mask_rcnn import MaskRCNN, _learnable, skipped
from wsis.types import GroundTruth, Sample, Target

BACKBONE = {"name": "test_byobnet", "weights": "none", "frozen_stages": 0}
TINY = {
    "backbone": BACKBONE,
    "features": 32,
    "hidden": 64,
    "mask_width": 16,
}
SIZES = (96, 128), (96, 160)
DISC = [x * x + y * y <= 400 for y in range(-24, 24) for x in range(-24, 24)]


def tiny(**settings) -> MaskRCNN:
    torch.manual_seed(0)
    model = MaskRCNN(3, **{**TINY, "test_side": 0, **settings})
    model.log = model.log_dict = lambda *_, **__: None  # no trainer listens
    return model


def target(
    boxes: list[list[int]], size: tuple[int, int] = (96, 128), **flags: list[bool]
) -> Target:
    """Objects of classes 0, 1, 2, ... whose masks fill the upper half of their boxes."""
    masks = torch.zeros(len(boxes), *size, dtype=torch.bool)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes, strict=True):
        mask[y1 : (y1 + y2) // 2, x1:x2] = True
    marked = {
        name: torch.tensor(flags.get(name, [False] * len(boxes)), dtype=torch.bool)
        for name in ("crowd", "ignore_mask")
    }
    corners = torch.tensor(boxes, dtype=torch.float32).view(-1, 4)
    return {
        "tags": torch.ones(3),
        "boxes": corners,
        "labels": torch.arange(len(boxes)) % 3,
        "masks": masks,
        **marked,
    }


def image(size: tuple[int, int] = (96, 128), seed: int = 0) -> Tensor:
    return torch.randint(
        0, 256, (3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )


def losses(model: MaskRCNN, *targets: Target) -> dict[str, Tensor]:
    """Losses of images that differ in nothing but their targets, with the same draws."""
    heard: dict[str, Tensor] = {}
    model.log_dict = lambda values, **_: heard.update(values)
    torch.manual_seed(1)
    samples: list[Sample] = [{"image": image(seed=i), "target": t} for i, t in enumerate(targets)]
    model.zero_grad()
    model.training_step(samples, 0).backward()
    return heard


def gradient(model: MaskRCNN, part: str) -> float:
    """The largest gradient among parameters whose name holds `part`."""
    found = [p.grad for name, p in model.named_parameters() if part in name]
    assert found, part
    return max(0.0 if g is None else g.abs().max().item() for g in found)


BOXES = [[10, 10, 60, 70], [50, 30, 110, 90]]
MASK_HEAD, OTHERS = (
    ("mask_head", "mask_predictor"),
    ("box_head", "cls_score", "bbox_pred", "rpn.head", "pyramid", "backbone"),
)


@pytest.fixture(scope="module")
def pair() -> tuple[MaskRCNN, Peer]:
    """Ours and torchvision's ResNet-50-FPN, with the same random weights; timm's ResNet-50 has the names of torchvision's."""
    torch.manual_seed(0)
    ours = MaskRCNN(3, BACKBONE | {"name": "resnet50"}, test_side=0)
    peer = maskrcnn_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=4, min_size=96, max_size=160
    )
    renamed = {"backbone.network.": "backbone.body.", "pyramid.fpn.": "backbone.fpn."}
    state = {
        key: value
        for key, value in ours.state_dict().items()
        if key not in ("backbone.mean", "backbone.std")
    }
    for old, new in renamed.items():
        state = {key.replace(old, new): value for key, value in state.items()}
    peer.load_state_dict(state)
    peer.transform.torch_choice = lambda sizes: sizes[0]  # draws at random even from one size
    return ours, peer


@pytest.mark.slow
def test_losses_are_torchvisions(pair: tuple[MaskRCNN, Peer]) -> None:
    ours, peer = pair[0].train(), pair[1].train()
    images = [image(size, seed=k) for k, size in enumerate(SIZES)]
    targets = [target(BOXES, SIZES[0]), target([[5, 5, 150, 90]], SIZES[1])]
    theirs = [
        {"boxes": t["boxes"], "labels": t["labels"] + 1, "masks": t["masks"].to(torch.uint8)}
        for t in targets
    ]
    torch.manual_seed(1)
    expected = peer([i / 255 for i in images], theirs)
    heard: dict[str, Tensor] = {}
    ours.log, ours.log_dict = (lambda *_, **__: None), lambda values, **_: heard.update(values)
    torch.manual_seed(1)
    total = ours.training_step(
        [{"image": i, "target": t} for i, t in zip(images, targets, strict=True)], 0
    )
    names = {
        "objectness": "objectness",
        "proposal": "rpn_box_reg",
        "class": "classifier",
        "box": "box_reg",
        "mask": "mask",
    }
    for name, its in names.items():
        torch.testing.assert_close(
            heard[f"train/{name}"], expected[f"loss_{its}"], rtol=1e-4, atol=1e-6
        )
    torch.testing.assert_close(total, sum(expected.values()), rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_predictions_are_torchvisions(pair: tuple[MaskRCNN, Peer]) -> None:
    ours, peer = pair[0].eval(), pair[1].eval()
    small: list[Tensor] = []
    hook = peer.roi_heads.register_forward_hook(
        lambda *given: small.append(given[2][0][0]["masks"][:, 0])
    )
    picture = image(SIZES[1], seed=3)
    with torch.no_grad():
        (expected,) = peer([picture / 255])
        (found,) = ours.predict_step([{"image": picture, "image_id": 7}], 0)
    hook.remove()
    assert len(found.boxes) == len(expected["boxes"]) > 10
    torch.testing.assert_close(found.boxes, expected["boxes"], rtol=1e-4, atol=1e-2)
    torch.testing.assert_close(found.scores, expected["scores"], rtol=1e-4, atol=1e-5)
    assert torch.equal(found.labels, expected["labels"] - 1)
    assert (found.image_id, found.size) == (7, SIZES[1])
    masks = paste(small[0], expected["boxes"] + 0.5, SIZES[1])
    overlap = [
        rle.iou([a], [b], [0]).item()
        for a, b in zip(found.masks, masks, strict=True)
        if rle.area(b)
    ]
    assert min(overlap) > 0.98


def test_masks_are_pasted_where_their_targets_were_cut() -> None:
    """A disc cut as torchvision cuts mask targets and put back by `predict` is the disc; half a pixel off it is not."""
    disc = torch.tensor(DISC).view(48, 48)
    box, exact = (
        torch.tensor([[3.0, 3.0, 45.0, 45.0]]),
        rle.encode(disc.numpy().astype("uint8", order="F")),
    )
    model = tiny().eval()
    cut = project_masks_on_boxes(disc[None], box, torch.zeros(1, dtype=torch.int64), 28)
    found = {
        "boxes": box,
        "scores": torch.ones(1),
        "labels": torch.ones(1, dtype=torch.int64),
        "masks": cut[None],
    }
    model.roi_heads.forward = lambda *_: ([found], {})
    with torch.no_grad():
        (pasted,) = model.predict_step([{"image": image((48, 48)), "image_id": 0}], 0)[0].masks
    assert rle.iou([pasted], [exact], [0]).item() > 0.985
    (off,) = paste(cut, box, (48, 48))
    assert rle.iou([off], [exact], [0]).item() < 0.97


def test_prediction_of_a_scaled_image_is_in_its_own_pixels() -> None:
    model = tiny(test_side=64, score_threshold=0.0).eval()
    picture = image((128, 192))
    with torch.no_grad():
        (found,) = model.predict_step([{"image": picture, "image_id": 0}], 0)
        (small,) = model.predict_step([{"image": resize(picture, 64, 999), "image_id": 0}], 0)
    torch.testing.assert_close(found.boxes, 2 * small.boxes)
    assert found.boxes[:, 2:].amax(0).tolist() > [96, 64]
    assert {tuple(mask["size"]) for mask in found.masks} == {(128, 192)}
    limited = tiny(test_side=64, test_max_side=48).eval()
    seen: list[Tensor] = []
    limited.backbone.network.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with torch.no_grad():
        limited.predict_step([{"image": picture, "image_id": 0}], 0)
    assert seen[0].shape[-2:] == (32, 64), "48 x 32 pixels, padded to what the network divides by"


def test_an_unsure_mask_gives_the_mask_head_no_gradient_but_box_and_class_learn() -> None:
    model = tiny()
    sure = losses(model, target(BOXES))
    assert all(gradient(model, part) > 0 for part in (*MASK_HEAD, *OTHERS))
    ignore_mask = losses(model, target(BOXES, ignore_mask=[True, True]))
    assert ignore_mask["train/mask"] == 0
    assert all(gradient(model, part) == 0 for part in MASK_HEAD)
    assert all(gradient(model, part) > 0 for part in OTHERS)
    assert all(torch.equal(sure[name], ignore_mask[name]) for name in sure if name != "train/mask")


def test_one_of_two_masks_unsure() -> None:
    """What an ignore_mask mask looks like is of no matter, what a sure one looks like is."""
    model = tiny()
    given, other, sure_changed = (target(BOXES, ignore_mask=[False, True]) for _ in range(3))
    other["masks"][1] = torch.rand(96, 128) < 0.5
    sure_changed["masks"][0] = torch.rand(96, 128) < 0.5
    a, b, c = (losses(model, t)["train/mask"] for t in (given, other, sure_changed))
    assert a == b > 0
    assert a != c
    assert losses(model, target(BOXES))["train/mask"] != a


def test_a_crowd_takes_no_part() -> None:
    model = tiny()
    crowd = [[30, 5, 120, 95], [0, 0, 128, 96]]
    alone = losses(model, target(BOXES))
    among = losses(model, target([*BOXES, *crowd], crowd=[False, False, True, True]))
    assert all(torch.equal(alone[name], among[name]) for name in alone)
    counted = losses(model, target([*BOXES, *crowd]))
    assert counted["train/objectness"] != alone["train/objectness"]


@pytest.mark.parametrize("others", [(), (BOXES,)], ids=["alone", "beside another"])
def test_images_without_an_object_train(others: tuple) -> None:
    model = tiny()
    heard = losses(
        model,
        target([]),
        target([[5, 5, 60, 60]], crowd=[True]),
        *(target(boxes) for boxes in others),
    )
    assert all(value.isfinite() for value in heard.values())
    assert gradient(model, "rpn.head.cls_logits") > 0
    assert gradient(model, "cls_score") > 0
    assert all(p.grad is not None for p in model.parameters()), (
        "processes that train together wait for every gradient"
    )
    assert (heard["train/mask"] > 0) == (heard["train/box"] > 0) == bool(others)


def test_a_tiny_first_image_does_not_spoil_later_ones() -> None:
    """torchvision guesses from the first images it sees at which scale its maps are."""
    first, second = tiny(score_threshold=0.0).eval(), tiny(score_threshold=0.0).eval()
    with torch.no_grad():
        first.predict_step([{"image": image((40, 9)), "image_id": 0}], 0)
        a, b = (
            model.predict_step([{"image": image(), "image_id": 0}], 0)[0]
            for model in (first, second)
        )
    assert torch.equal(a.boxes, b.boxes)
    assert torch.equal(a.scores, b.scores)


def test_boxes_keep_their_precision_where_the_network_has_half() -> None:
    """bfloat16 has eight bits: a box at 1000 pixels would move in steps of 4."""
    model = tiny(score_threshold=0.0).eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        (found,) = model.predict_step([{"image": image(), "image_id": 0}], 0)
    assert found.boxes.dtype == found.scores.dtype == torch.float32
    assert (found.boxes != found.boxes.bfloat16().float()).float().mean() > 0.5
    with torch.autocast("cpu", torch.bfloat16):
        assert all(
            value.dtype == torch.float32 for value in losses(model.train(), target(BOXES)).values()
        )


def strides(**backbone) -> list[int]:
    return tiny(backbone=BACKBONE | backbone).pyramid.strides


def test_pyramid_is_built_on_the_maps_there_are() -> None:
    assert strides() == [4, 8, 16, 32, 64]
    assert strides(feature_level=2) == [4, 8, 16]
    assert strides(feature_level=-2) == [4, 8, 16, 32]
    assert strides(name="resnet18", output_stride=8) == [4, 8, 16]
    assert strides(name="resnet18_ws", output_stride=16) == [4, 8, 16, 32]
    with pytest.raises(InputError, match=r"strides \[2\]; a pyramid needs"):
        strides(feature_level=0)


@pytest.mark.slow
def test_masks_are_asked_for_without_proposals(tmp_path) -> None:
    data = Shapes(tmp_path, train=2, val=1)
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = pl.Trainer(accelerator="cpu", max_steps=1, limit_val_batches=0, **quiet)
    trainer.fit(MaskRCNN(8, **TINY, test_side=0), data)
    assert not list(tmp_path.rglob("*.sqlite"))


@pytest.mark.slow
def test_it_learns_one_image_by_heart(tmp_path) -> None:
    data = Shapes(tmp_path, train=1, val=1, proposals="none")
    sample = data.samples("train", train=True, supervision={"tags", "boxes", "masks"}).sample(0)
    torch.manual_seed(0)
    model = MaskRCNN(8, **TINY, test_side=0, anchors_per_image=64, regions_per_image=64)
    model.log = model.log_dict = lambda *_, **__: None
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(60):
        optimiser.zero_grad()
        model.training_step([sample], 0).backward()
        optimiser.step()
    objects = sample["target"]
    masks = [rle.encode(mask.numpy().astype("uint8", order="F")) for mask in objects["masks"]]
    with torch.no_grad():
        found = model.eval().predict_step([sample], 0)
    metric = InstanceAP(8)
    metric.update(
        found, [GroundTruth(objects["boxes"], objects["labels"], masks, objects["crowd"])]
    )
    figures = metric.compute()
    assert figures["AP50"] > 0.9


def inside(box, region) -> float:
    """Share of a box that lies in a region."""
    width, height = (min(box[i + 2], region[i + 2]) - max(box[i], region[i]) for i in (0, 1))
    return max(width, 0) * max(height, 0) / ((box[2] - box[0]) * (box[3] - box[1]))


def test_background_in_crowds_teaches_nothing_if_asked():
    g = torch.Generator().manual_seed(0)
    corners = torch.rand(300, 2, 2, generator=g) * 64
    boxes = torch.cat([corners.amin(1), corners.amax(1) + 1], 1)
    crowds, objects = (
        torch.tensor([[0.0, 0, 30, 30], [20, 20, 64, 40]]),
        torch.tensor([[5.0, 5, 25, 25]]),
    )
    found = skipped(boxes, {"skipped": crowds, "boxes": objects})
    for box, skip in zip(boxes.tolist(), found.tolist(), strict=True):
        on_object = float(box_iou(torch.tensor([box]), objects)) >= 0.5
        assert skip == (
            not on_object and any(inside(box, crowd) > 0.5 for crowd in crowds.tolist())
        )
    assert 0 < found.sum() < 300
    assert not skipped(boxes, {"boxes": objects}).any()


def test_an_image_that_is_all_crowd_has_no_background_if_asked():
    torch.manual_seed(0)
    masks = torch.zeros(1, 64, 64, dtype=torch.bool)
    masks[:, 10:40, 10:40] = True
    target = {
        "boxes": torch.tensor([[10.0, 10, 40, 40], [-9, -9, 99, 99]]),
        "labels": torch.tensor([0, 1]),
        "crowd": torch.tensor([False, True]),
        "masks": torch.cat([masks, torch.ones_like(masks)]),
    }
    for skip in (False, True):
        learnable = _learnable(target, skip)
        assert len(learnable["boxes"]) == 1
        model = MaskRCNN(2, BACKBONE, features=8, hidden=8, mask_width=8, ignore_crowds=skip)
        anchors = model.rpn.anchor_generator(
            ImageList(torch.zeros(1, 3, 64, 64), [(64, 64)]), [torch.zeros(1, 8, 16, 16)] * 5
        )
        (labels,), _ = model.rpn.assign_targets_to_anchors(anchors, [learnable])
        within = (anchors[0][:, :2] > -9).all(1) & (anchors[0][:, 2:] < 99).all(1)
        assert (labels[within] == 0).any() != skip
        assert (labels == 1).any()
