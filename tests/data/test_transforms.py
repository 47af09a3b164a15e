from __future__ import annotations

import colorsys
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms.v2 import ScaleJitter

from wsis.data.targets import cut_target
from wsis.data.transforms import (
    Augment,
    Cut,
    cut_image,
    cut_maps,
    cut_proposals,
    draw_cut,
    draw_factor,
    jitter_colours,
    recolour,
)
from wsis.errors import InputError
from wsis.types import Proposals, Target

CUTS = st.builds(
    lambda top, left, height, width, h, w, flip: Cut(top, left, height, width, (h, w), flip),
    *(st.integers(0, 9), st.integers(0, 9), st.integers(8, 30), st.integers(8, 30)),
    *(st.integers(6, 60), st.integers(6, 60), st.booleans()),
)


@given(CUTS, st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_boxes_masks_and_labels_stay_in_step(cut: Cut, seed: int) -> None:
    """A rectangle's mask, cut, covers the pixels whose centres the cut box covers."""
    rng = np.random.default_rng(seed)
    (x1, x2), (y1, y2) = np.sort(rng.integers(0, 40, (2, 2)), 1)
    mask = torch.zeros(1, 40, 40, dtype=torch.bool)
    mask[0, y1:y2, x1:x2] = True
    box = torch.tensor([[x1, y1, x2, y2]], dtype=torch.float32)
    a, b, c, d = cut.view.to_input(box)[0].tolist()
    xs, ys = torch.arange(cut.size[1]) + 0.5, torch.arange(cut.size[0]) + 0.5
    exact = ((ys >= b) & (ys < d))[:, None] & ((xs >= a) & (xs < c))
    # centres that fall on an edge to rounding may go either way
    near = (
        ((ys - b).abs() < 1e-3)[:, None]
        | ((ys - d).abs() < 1e-3)[:, None]
        | ((xs - a).abs() < 1e-3)
        | ((xs - c).abs() < 1e-3)
    )
    assert ((cut_maps(mask, cut)[0] == exact) | near).all()


@given(CUTS)
@settings(max_examples=30, deadline=None)
def test_boxes_come_back(cut: Cut) -> None:
    boxes = torch.rand(5, 4) * 40
    torch.testing.assert_close(
        cut.view.to_original(cut.view.to_input(boxes)), boxes, atol=1e-3, rtol=1e-4
    )


def test_image_is_cut_like_its_maps() -> None:
    image = torch.randint(0, 256, (3, 20, 30), dtype=torch.uint8)
    cut = Cut(3, 5, 12, 18, (12, 18), True)
    expected = image[:, 3:15, 5:23].flip(-1)
    assert torch.equal(cut_image(image, cut), expected)
    assert torch.equal(cut_maps(image, cut), expected)


def test_scaled_image_agrees_with_scaled_map() -> None:
    """A smooth ramp scaled bilinearly equals the ramp read at the pixel centres that `cut_maps` reads."""
    ramp = torch.arange(0, 200, 2, dtype=torch.uint8).expand(3, 40, 100).contiguous()
    cut = Cut(0, 10, 40, 80, (80, 160), False)
    difference = cut_image(ramp, cut).int() - cut_maps(ramp, cut).int()
    assert difference.abs().max() <= 1


def test_draw_cut_obeys_its_settings() -> None:
    rng = np.random.default_rng(0)
    augment = Augment(short_sides=(60, 90), max_side=150, crop=0.9, flip=0.5)
    cuts = [draw_cut(rng, (100, 200), augment) for _ in range(200)]
    assert {(c.height, c.width) for c in cuts} == {(90, 180)}
    # 90 px would make the long side 180 > 150, so it is scaled by 150 / 180 instead
    assert {c.size for c in cuts} == {(60, 120), (75, 150)}
    assert {c.top for c in cuts} == set(range(11))
    assert max(c.left for c in cuts) == 20
    assert 70 < sum(c.flip for c in cuts) < 130
    whole = draw_cut(rng, (33, 21), Augment(flip=0.0))
    assert whole == Cut(0, 0, 33, 21, (33, 21), False)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(20, 90), st.integers(20, 90))
def test_large_scale_jitter_is_torchvisions(seed: int, height: int, width: int) -> None:
    """The whole image, scaled as torchvision scales it by the same factor, then a window of at most `max_side`."""
    augment = Augment(max_side=64, scales=(0.25, 2.0), flip=0.0)
    cut = draw_cut(np.random.default_rng(seed), (height, width), augment)
    factor = np.random.default_rng(seed).uniform(0.25, 2.0)
    scaler = ScaleJitter((64, 64), (factor, factor + 1e-9))
    whole = scaler(torch.zeros(3, height, width, dtype=torch.uint8)).shape[-2:]
    assert max(cut.size) <= 64
    for now, full, taken, side in zip(
        cut.size, whole, (cut.height, cut.width), (height, width), strict=True
    ):
        pixel = (
            factor * 64 / max(height, width)
        )  # of the original, in the result: cuts end on the original's pixels
        assert abs(now - min(full, 64)) <= max(1, pixel)
        assert taken == side if full < 64 else taken <= side
    assert 0 <= cut.top <= height - cut.height
    assert 0 <= cut.left <= width - cut.width


def test_large_scale_jitter_draws_every_factor() -> None:
    rng = np.random.default_rng(0)
    augment = Augment(max_side=100, scales=(0.1, 2.0))
    cuts = [draw_cut(rng, (500, 1000), augment) for _ in range(400)]
    scales = np.array([c.view.scale[0] for c in cuts]) * 10
    assert np.abs(np.quantile(scales, [0.0, 0.5, 1.0]) - [0.1, 1.05, 2.0]).max() < 0.15
    assert 150 < sum(c.flip for c in cuts) < 250


@pytest.mark.parametrize("scales", [(1.0,), (2.0, 1.0), (0.5, 1.0, 2.0)])
def test_impossible_scales(scales: tuple[float, ...]) -> None:
    with pytest.raises(InputError, match=r"scales .* give two factors"):
        Augment(scales=scales)


def test_scales_are_above_zero() -> None:
    with pytest.raises(InputError, match=r"scales \[0\.0, 1\.0\]: give a number above 0"):
        Augment(scales=(0.0, 1.0))


def test_unsure_masks_need_not_be_seen() -> None:
    box = torch.tensor([[0.0, 0.0, 10.0, 10.0]]).repeat(2, 1)
    target: Target = {
        **{"tags": torch.ones(1), "boxes": box, "labels": torch.zeros(2, dtype=torch.int64)},
        **{
            "crowd": torch.zeros(2).bool(),
            "masks": torch.zeros(2, 20, 20).bool(),
            "ignore_mask": torch.tensor([True, False]),
        },
    }
    result = cut_target(target, Cut(0, 0, 20, 20, (20, 20), False))
    assert len(result["boxes"]) == len(result["masks"]) == 1
    assert result["ignore_mask"].tolist() == [True]


@pytest.mark.parametrize(
    "wrong",
    [
        {"crop": 0.0},
        {"crop": 1.1},
        {"flip": -0.1},
        {"jitter": 0.5},
        {"short_sides": (0,)},
        {"max_side": 0},
        {"brightness": (1.2, 0.8)},
        {"contrast": (0.5,)},
        {"recoloured": 1.5},
    ],
)
def test_impossible_settings(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        Augment(**wrong)


def test_one_pixel_image() -> None:
    cut = draw_cut(np.random.default_rng(0), (1, 1), Augment(short_sides=(8,), crop=0.9))
    assert cut_image(torch.zeros(3, 1, 1, dtype=torch.uint8), cut).shape == (3, 8, 8)


def proposals() -> Proposals:
    labels = torch.full((20, 20), -1, dtype=torch.int32)
    labels[:10, :10], labels[:10, 10:], labels[10:, :10] = 0, 1, 2
    boxes = torch.tensor(
        [[0, 0, 10, 10], [0, 0, 20, 10], [0, 10, 10, 20], [10, 10, 20, 20]], dtype=torch.float32
    )
    members = torch.tensor([[1, 0, 0], [1, 1, 0], [0, 0, 1], [0, 1, 0]], dtype=torch.bool)
    return Proposals(boxes, torch.tensor([0.9, 0.8, 0.7, 0.6]), labels, members)


def test_proposals_outside_the_crop_are_dropped_and_the_rest_clipped() -> None:
    cut = Cut(0, 5, 10, 15, (10, 15), False)
    result = cut_proposals(proposals(), cut)
    assert result.boxes.tolist() == [[0, 0, 5, 10], [0, 0, 15, 10]]
    assert result.scores.tolist() == pytest.approx([0.9, 0.8])
    assert result.labels is not None
    assert result.members is not None
    assert result.labels.shape == (10, 15)
    assert result.members.tolist() == [[True, False, False], [True, True, False]]
    assert result.labels[0].tolist() == [0] * 5 + [1] * 10


def test_a_proposal_whose_superpixels_vanish_is_dropped() -> None:
    # the fourth proposal's box is inside this crop, its only superpixel is not
    result = cut_proposals(proposals(), Cut(12, 0, 8, 20, (8, 20), False))
    assert result.scores.tolist() == pytest.approx([0.7])


def test_small_proposals_are_left_out() -> None:
    result = cut_proposals(proposals(), Cut(0, 0, 20, 20, (40, 40), False), min_side=30)
    assert len(result.boxes) == 0
    assert result.members is not None
    assert result.members.shape == (0, 3)
    assert cut_proposals(
        proposals(), Cut(0, 0, 20, 20, (40, 40), False), min_side=20
    ).boxes.shape == (4, 4)


def test_no_proposals_are_legal() -> None:
    none = Proposals(torch.zeros(0, 4), torch.zeros(0))
    assert cut_proposals(none, Cut(0, 0, 5, 5, (9, 9), True)).boxes.shape == (0, 4)


def test_target_keeps_tags_and_drops_what_vanishes() -> None:
    masks = torch.zeros(2, 20, 20, dtype=torch.bool)
    masks[0, :5, :5], masks[1, 10:, 10:] = True, True
    target: Target = {
        "tags": torch.tensor([1.0, 1.0]),
        "boxes": torch.tensor([[0.0, 0, 5, 5], [10, 10, 20, 20]]),
        "labels": torch.tensor([0, 1]),
        "crowd": torch.tensor([False, True]),
        "masks": masks,
    }
    result = cut_target(target, Cut(8, 8, 12, 12, (24, 24), True))
    assert result["tags"].tolist() == [1, 1]
    assert result["boxes"].tolist() == [[0, 4, 20, 24]]
    assert result["labels"].tolist() == [1]
    assert result["crowd"].tolist() == [True]
    assert result["masks"].sum() == 20 * 20


def test_colours_agree_with_hsv() -> None:
    rng = np.random.default_rng(0)
    image = torch.from_numpy(rng.integers(0, 256, (3, 8, 8), np.uint8))
    for exposure, saturation in [(1.4, 1.3), (0.7, 0.8), (1.5, 0.67), (0.67, 1.5), (1, 1)]:
        expected = np.empty((3, 8, 8))
        for y, x in np.ndindex(8, 8):
            h, s, v = colorsys.rgb_to_hsv(*(image[:, y, x].double() / 255).tolist())
            expected[:, y, x] = colorsys.hsv_to_rgb(h, min(1, s * saturation), min(1, v * exposure))
        np.testing.assert_allclose(
            jitter_colours(image, exposure, saturation).numpy(), expected * 255, atol=0.51
        )


def test_brightness_and_contrast_by_closed_form() -> None:
    """Blends with black and with the mean grey, each in about half of the images."""
    image = torch.from_numpy(np.random.default_rng(0).integers(90, 160, (3, 9, 7), np.uint8))
    grey = (torch.tensor([0.2989, 0.587, 0.114])[:, None, None] * image).sum(0).floor().mean()
    for name, centre in (("brightness", torch.tensor(0.0)), ("contrast", grey)):
        augment, factors = Augment(**{name: (0.6, 1.2)}), []
        for seed in range(300):
            seen = recolour(image, np.random.default_rng(seed), augment).float()
            shift = image.float() - centre
            factors.append(float(((seen - centre) * shift).sum() / shift.square().sum()))
            assert (seen - centre - factors[-1] * shift).abs().max() < 1.5
        changed = [f for f in factors if abs(f - 1) > 0.02]
        assert 0.4 < len(changed) / 300 < 0.55
        assert 0.58 < min(changed) < 0.65
        assert 1.15 < max(changed) < 1.22
        always = Augment(**{name: (0.5, 0.5)}, recoloured=1.0)
        seen = recolour(image, np.random.default_rng(0), always)
        assert torch.allclose(seen.float(), (image + centre) / 2, atol=1.1)


def test_colours_are_kept_by_default() -> None:
    image = torch.arange(300, dtype=torch.int64).fmod(256).byte().view(3, 10, 10)
    rng = np.random.default_rng(0)
    assert torch.equal(recolour(image, rng, Augment()), image)
    never = Augment(brightness=(0.5, 0.6), contrast=(0.5, 0.6), recoloured=0.0)
    assert torch.equal(recolour(image, rng, never), image)


def test_factors_lie_in_range_on_both_sides() -> None:
    rng = np.random.default_rng(0)
    factors = np.array([draw_factor(rng, 1.5) for _ in range(2000)])
    assert factors.min() > 1 / 1.5 - 1e-9
    assert factors.max() < 1.5
    assert 0.45 < (factors < 1).mean() < 0.55
    assert draw_factor(rng, 1.0) == 1.0
