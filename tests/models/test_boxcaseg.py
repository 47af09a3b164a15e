from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pycocotools import mask as rle
from torchvision.ops import box_iou, masks_to_boxes

from wsis.data.salient import Salient
from wsis.datasets.shapes import Shapes
from wsis.errors import InputError
from wsis.models.boxcaseg import (
    BoxCaseg,
    TransferredHead,
    jitter,
    lines,
    look,
    merge_masks,
    proxy_box_agreement,
)
from wsis.nn.masks import PixelHead

SMALL = {
    "num_classes": 8,
    "backbone": {"name": "test_byobnet", "weights": "none"},
    "crop": 64,
    "proxy_crop": 64,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Shapes:
    made = Shapes(root=tmp_path_factory.mktemp("shapes"), train=6, val=2, salient=6)
    made.prepare_data()
    return made


def batch_of(data: Shapes) -> list:
    weak = data.samples("train", train=True, supervision={"tags", "boxes"})
    salient = Salient(data.salient_folder()).samples("train", train=True)
    return [*(weak.sample(i, 1) for i in range(3)), *(salient.sample(i, 1) for i in range(2))]


def step(batch: list, **settings) -> tuple[dict, BoxCaseg]:
    pl.seed_everything(0, verbose=False)
    model, logged = BoxCaseg(**{**SMALL, **settings}), {}
    model.log, model.log_dict = (
        (lambda name, value, **_: logged.update({name: value})),
        (lambda d, **_: logged.update(d)),
    )
    model.training_step(batch, 0).backward()
    return logged, model


def learns(module: torch.nn.Module) -> bool:
    return any(p.grad is not None and bool(p.grad.any()) for p in module.parameters())


@pytest.mark.slow
@pytest.mark.parametrize(
    "heads",
    [
        ("weak",),
        ("salient",),
        ("weak", "salient"),
        ("weak", "transferred"),
        ("weak", "salient", "transferred"),
    ],
    ids="+".join,
)
def test_heads_learn_what_is_theirs(data, heads):
    logged, model = step(batch_of(data), heads=heads)
    for name in ("weak", "salient", "transferred"):
        assert (getattr(model, name) is not None) == (name in heads)
        assert name not in heads or learns(getattr(model, name))
    assert ("train/tightness" in logged) == ("weak" in heads)
    assert ("train/pixel" in logged) == bool({"salient", "transferred"} & {*heads})
    parts = [value for name, value in logged.items() if name != "train/loss"]
    assert torch.allclose(logged["train/loss"], sum(parts))


@pytest.mark.parametrize("heads", [(), ("transferred",), ("salient", "transferred")])
def test_heads_that_cannot_be(heads):
    with pytest.raises(InputError, match="weak head to transfer from"):
        BoxCaseg(**SMALL, heads=heads)


def test_sides_that_the_backbone_would_pad():
    with pytest.raises(InputError, match="give multiples of 32"):
        BoxCaseg(**SMALL | {"proxy_crop": 72})


@pytest.mark.slow
def test_a_batch_without_salient_images_is_no_error_for_a_head_that_needs_masks(data):
    logged, _ = step(batch_of(data)[:3], heads=("salient",))
    assert logged["train/loss"] == 0


@pytest.mark.slow
def test_boxes_alone_teach_the_weak_head_alone(data):
    logged, model = step(batch_of(data)[:3])
    assert logged["train/pixel"] == 0
    assert learns(model.weak)
    assert not learns(model.salient)
    assert not learns(model.transferred)


def test_the_weak_head_learns_nothing_from_its_transfer():
    weak, transferred = PixelHead(6, 5), TransferredHead(6, 5)
    transferred([torch.randn(2, 6, 4, 4)], weak).sum().backward()
    assert not learns(weak)
    assert learns(transferred)
    with torch.no_grad():
        weak.last.bias += 3
        weight, bias = transferred.last(weak.last)
    assert weight.shape == (1, 5, 1, 1)
    assert torch.equal(bias, weak.last.bias), "slope 1 and shift 0 at the start"


def test_alpha_mixes_logits(data):
    model = BoxCaseg(**SMALL, alpha=0.3).eval()
    features = model.features(torch.rand(2, 3, 32, 32))
    mixed = 0.3 * model.salient(features)[:, 0] + 0.7 * model.transferred(features, model.weak)
    torch.testing.assert_close(model.fuse(features), mixed)


def test_lines_cross_the_box_that_is_left():
    rows, columns = lines(torch.tensor([10.0, 20, 30, 60]), torch.tensor([20.0, 0, 60, 40]), 40)
    assert rows.tolist() == [y + 0.5 >= 20 for y in range(40)]
    assert columns.tolist() == [20 + x + 0.5 < 30 for x in range(40)]


def test_jitter_stays_in_the_image_and_in_its_range():
    torch.manual_seed(0)
    box, whole = torch.tensor([40.0, 30, 60, 90]), torch.tensor([0.0, 0, 200, 100])
    windows = torch.stack([jitter(box, 0.25, 0.5, whole) for _ in range(500)])
    assert (windows[:, :2] >= 0).all()
    assert (windows[:, 2:] <= whole[2:]).all()
    width = windows[:, 2] - windows[:, 0]
    centre = (windows[:, 2] + windows[:, 0]) / 2
    assert 10 <= width.min() < 11 < 29 < width.max() <= 30
    assert 47.5 <= centre.min() < 48 < 52 < centre.max() <= 52.5
    assert torch.equal(jitter(box, 0.0, 0.0, whole), box)


def test_look_is_the_crop_when_sizes_agree():
    image = torch.randint(0, 255, (3, 50, 60), dtype=torch.uint8)
    seen = look(image, torch.tensor([[10.0, 5, 42, 37]]), 32)
    assert torch.equal(seen[0], image[:, 5:37, 10:42].float())


def discs(count: int = 12, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(80.0), torch.arange(90.0), indexing="ij")
    centre, radius = (
        20 + 45 * torch.rand(count, 2, generator=g),
        3 + 15 * torch.rand(count, generator=g),
    )
    masks = (y - centre[:, :1, None]).square() + (x - centre[:, 1:, None]).square() <= radius[
        :, None, None
    ] ** 2
    boxes = masks_to_boxes(masks) + torch.tensor([0, 0, 1, 1])
    return masks, boxes


def test_merge_gives_pixels_to_the_smallest_box():
    masks, boxes = discs()
    merged = merge_masks(masks, boxes)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    for y in range(80):
        for x in range(90):
            claims = masks[:, y, x].nonzero().flatten().tolist()
            expected = min(claims, key=lambda k: (area[k], k)) if claims else None
            assert merged[:, y, x].nonzero().flatten().tolist() == (
                [] if expected is None else [expected]
            )


def test_agreement_is_the_iou_of_whole_pixel_boxes():
    masks, tight = discs()
    shift = torch.randint(-2, 3, tight.shape, generator=torch.Generator().manual_seed(1))
    boxes = tight + shift
    torch.testing.assert_close(proxy_box_agreement(masks, boxes), box_iou(tight, boxes).diagonal())
    assert proxy_box_agreement(masks, tight).min() == 1
    assert (
        proxy_box_agreement(torch.zeros(1, 8, 8, dtype=torch.bool), torch.tensor([[1.0, 1, 4, 4]]))
        == 0
    )


def test_a_mask_of_all_pixels_in_its_box_agrees_with_it():
    """Boxes are drawn between pixels: small ones would be rejected at any threshold."""
    g = torch.Generator().manual_seed(0)
    corner, sides = 20 * torch.rand(400, 2, generator=g), 1.1 + 15 * torch.rand(400, 2, generator=g)
    boxes = torch.cat([corner, corner + sides], 1)
    centres = torch.arange(40) + 0.5
    columns, rows = ((centres >= boxes[:, [i]]) & (centres < boxes[:, [i + 2]]) for i in (0, 1))
    masks = rows[:, :, None] & columns[:, None]
    assert proxy_box_agreement(masks, boxes).min() == 1
    assert box_iou(masks_to_boxes(masks) + torch.tensor([0, 0, 1, 1]), boxes).diagonal().min() < 0.8
    thin = torch.tensor([[3.6, 4, 4.4, 9]])  # holds no centre
    masks = torch.zeros(1, 12, 12, dtype=torch.bool)
    masks[0, 4:9, 4] = True
    assert proxy_box_agreement(masks, thin) == 1


@pytest.mark.parametrize("optimiser", ["sgd", "adamw"])
def test_the_rate_rises_and_decays_and_the_backbone_has_its_own(optimiser):
    model = BoxCaseg(**SMALL, optimiser=optimiser, lr=0.2, backbone_lr=0.1, warmup=0.25)
    model.trainer = SimpleNamespace(estimated_stepping_batches=8)
    (made,), (schedule,) = model.configure_optimizers()
    rates = []
    for _ in range(8):
        rates.append([group["lr"] for group in made.param_groups])
        made.step()
        schedule["scheduler"].step()
    wanted = [0.2 * min(1, (i + 1) / 2) * (1 - i / 8) ** 0.9 for i in range(8)]
    assert [heads for heads, _ in rates] == pytest.approx(wanted)
    assert [backbone for _, backbone in rates] == pytest.approx([0.1 * rate for rate in wanted])
    heads, backbone = ({id(p) for p in group["params"]} for group in made.param_groups)
    assert backbone == {id(p) for p in model.backbone.parameters() if p.requires_grad}
    assert heads | backbone == {id(p) for p in model.parameters() if p.requires_grad}


@pytest.mark.slow
def test_predictions_are_masks_in_the_given_boxes(data):
    model = BoxCaseg(**SMALL).eval()
    samples = data.samples("val", train=False, supervision={"tags", "boxes"})
    with torch.no_grad():
        found = model.predict(samples.sample(0))
        one = model.segment(samples.sample(0)["image"], found.boxes[1:2])
        assert torch.allclose(
            one[0], model.segment(samples.sample(0)["image"], found.boxes)[1], atol=1e-4
        )
    assert torch.equal(found.boxes, samples.sample(0)["target"]["boxes"])
    for mask, (x1, y1, x2, y2) in zip(found.masks, found.boxes.tolist(), strict=True):
        pixels = rle.decode(mask)
        pixels[int(y1) : int(np.ceil(y2)), int(x1) : int(np.ceil(x2))] = 0
        assert not pixels.any()
    sample = samples.sample(0)
    del sample["target"]["boxes"]
    with pytest.raises(InputError, match="has none; give boxes"):
        model.predict(sample)


@pytest.mark.slow
def test_batches_hold_both_kinds_in_the_ratio_asked_for(data, tmp_path):
    data.loading = type(data.loading)(batch_size=8)
    model, seen = BoxCaseg(**SMALL, salient_fraction=0.375), []
    learn = model.training_step

    def watched(batch, batch_idx):
        seen.append(batch)
        return learn(batch, batch_idx)

    model.training_step = watched
    settings = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    pl.Trainer(
        accelerator="cpu", max_steps=2, limit_val_batches=0, default_root_dir=tmp_path, **settings
    ).fit(model, datamodule=model.training_data(data))
    for batch in seen:
        assert ["masks" in sample["target"] for sample in batch["images"]] == [False] * 5
        assert ["masks" in sample["target"] for sample in batch["salient"]] == [True] * 3
    assert len(seen) == 2


def test_images_alone_are_refused_where_salient_ones_are_learned_from(data, tmp_path):
    quiet = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    trainer = pl.Trainer(accelerator="cpu", max_steps=1, default_root_dir=tmp_path, **quiet)
    with pytest.raises(InputError, match=r"model.training_data\(data\)"):
        trainer.fit(BoxCaseg(**SMALL), datamodule=data)


def test_an_image_of_crowded_objects_is_no_background(data):
    model, (sample, *_) = BoxCaseg(**SMALL, crowded=1.0), batch_of(data)
    box = sample["target"]["boxes"][:1]
    sample["target"] = {
        **sample["target"],
        "boxes": box.repeat(2, 1),
        "crowd": torch.zeros(2, dtype=torch.bool),
    }
    for _ in range(5):
        crop = model.draw(sample)
        assert crop.rows.any()
        assert crop.columns.any()


def test_heads_that_need_salient_images():
    with pytest.raises(InputError, match="learns from salient images"):
        BoxCaseg(**SMALL, salient_fraction=0.0)
    assert BoxCaseg(**SMALL, salient_fraction=0.0, heads=("weak",)).salient is None
