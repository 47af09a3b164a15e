from __future__ import annotations

import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from wsis.errors import InputError
from wsis.evidence.grabcut import SIZE, crops, foreground, resample, spread_masks
from wsis.evidence.seed_masks import Evidence, Request

COCO = Path(os.environ.get("WSIS_SHARED", Path(__file__).parents[3] / "shared")) / "data/coco"


def disc_image(
    height=120, width=160, centre=(70, 60), radius=30
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A noisy reddish disc on noisy green, its mask and its box."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width] + 0.5
    mask = (x - centre[0]) ** 2 + (y - centre[1]) ** 2 < radius**2
    image = np.where(mask[..., None], (180, 60, 50), (60, 150, 70)) + rng.normal(
        0, 15, (height, width, 3)
    )
    box = np.array(
        [centre[0] - radius, centre[1] - radius, centre[0] + radius, centre[1] + radius],
        dtype=np.float32,
    )
    return image.clip(0, 255).astype(np.uint8), mask, box


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return (a & b).sum() / (a | b).sum()


@pytest.mark.parametrize("setting", ["fast", "authors"])
def test_finds_a_disc_that_does_not_follow_the_prior(setting):
    image, mask, box = disc_image()
    assert iou(foreground(image, box[None], setting=setting)[0], mask) > 0.9
    x1, y1, x2, y2 = wide = box + np.array([-30, -8, 10, 8])
    y, x = np.mgrid[:120, :160] + 0.5
    ellipse = ((2 * x - x1 - x2) / (x2 - x1)) ** 2 + ((2 * y - y1 - y2) / (y2 - y1)) ** 2 < 1
    found = foreground(image, wide[None], setting=setting)[0]
    assert iou(found, mask) > 0.5 > iou(ellipse, mask)
    assert iou(found, mask) > iou(found, ellipse)


@pytest.mark.parametrize("setting", ["fast", "authors"])
def test_any_box_is_answered_inside_the_box(setting):
    image, _, _ = disc_image()
    boxes = np.array(
        [
            [0, 0, 160, 120],
            [10, 10, 11, 11],
            [-30, -20, 40, 50],
            [150, 100, 400, 300],
            [20, 30, 20, 30],
        ],
        np.float32,
    )
    masks = foreground(image, boxes, setting=setting)
    assert masks.shape == (5, 120, 160)
    assert masks.dtype == bool
    assert masks[0].any()
    for mask, (x1, y1, x2, y2) in zip(masks, boxes, strict=True):
        ys, xs = np.nonzero(mask)
        if len(xs):
            assert xs.min() >= x1 - 1
            assert ys.min() >= y1 - 1
            assert xs.max() <= max(x2, x1 + 1)
            assert ys.max() <= max(y2, y1 + 1)
    assert foreground(image, np.zeros((0, 4)), setting=setting).shape == (0, 120, 160)


def test_tensors_in_tensor_out():
    image, _, box = disc_image()
    mask = foreground(torch.from_numpy(image), torch.from_numpy(box)[None])
    assert isinstance(mask, torch.Tensor)
    np.testing.assert_array_equal(mask.numpy(), foreground(image, box[None]))


def test_unknown_setting():
    with pytest.raises(InputError, match="authors"):
        foreground(disc_image()[0], np.zeros((0, 4)), setting="quick")
    with pytest.raises(InputError, match="authors"):
        Evidence("quick")


@pytest.mark.parametrize("setting", ["fast", "authors"])
def test_sure_pixels_teach_what_foreground_looks_like(setting):
    """Half of the box is red, half is green as its surroundings: sure green pixels bring the green half in."""
    image, disc, box = disc_image()
    box = box + np.array([-25, 0, 25, 0])
    sure = np.zeros((1, *image.shape[:2]), dtype=bool)
    sure[0, 40:80, 22:36] = True  # green, left of the disc
    plain = foreground(image, box[None], setting=setting)[0]
    taught = foreground(image, box[None], sure, setting)[0]
    green = ~disc
    green[:, 70:] = False
    assert taught[sure[0]].mean() > 0.95
    assert (taught & green & ~sure[0]).sum() > (plain & green & ~sure[0]).sum()


def test_authors_setting_is_opencvs():
    image, _, box = disc_image()
    expected = np.zeros(image.shape[:2], np.uint8)
    x1, y1, x2, y2 = (int(v) for v in box)
    cv2.setRNGSeed(0)
    cv2.grabCut(
        image,
        expected,
        (x1, y1, x2 - x1, y2 - y1),
        np.zeros((1, 65)),
        np.zeros((1, 65)),
        5,
        cv2.GC_INIT_WITH_RECT,
    )
    np.testing.assert_array_equal(
        foreground(image, box[None], setting="authors")[0], np.isin(expected, [1, 3])
    )


def opencv(image, box, sure, background) -> np.ndarray:
    """cv2.grabCut itself: a box, and pixels known to be in or out."""
    state = np.full(image.shape[:2], cv2.GC_BGD, np.uint8)
    x1, y1, x2, y2 = (int(v) for v in box)
    state[y1:y2, x1:x2] = cv2.GC_PR_FGD
    state[sure] = cv2.GC_FGD
    state[background] = cv2.GC_BGD
    cv2.setRNGSeed(0)
    models = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.grabCut(image, state, (0, 0, 1, 1), *models, 5, cv2.GC_INIT_WITH_MASK)
    return np.isin(state, [cv2.GC_FGD, cv2.GC_PR_FGD])


def test_authors_setting_is_opencvs_with_known_pixels_too():
    image, disc, box = disc_image()
    box = box + np.array([-20, -20, 20, 20])
    sure, background = np.zeros_like(disc), np.zeros_like(disc)
    sure[50:70, 60:80], background[30:60, 40:65] = True, True
    found = foreground(image, box[None], sure[None], "authors", background[None])[0]
    np.testing.assert_array_equal(found, opencv(image, box, sure & ~background, background))
    assert not found[background].any()
    assert found[sure & ~background].all()


def test_a_segment_that_overshoots_is_corrected_from_the_box_alone():
    """Sure pixels stay, in ours as in OpenCV's, so that what is mined too large stays too large."""
    image, disc, box = disc_image()
    segment = cv2.dilate(disc.astype(np.uint8), np.ones((7, 7))) > 0
    box = box + np.array([-6, -6, 6, 6])
    nothing = np.zeros_like(disc)
    from_box, from_segment = (
        foreground(image, box[None], sure)[0] for sure in (None, segment[None])
    )
    for found, sure in ((from_box, nothing), (from_segment, segment)):
        theirs = opencv(image, box, sure, nothing)
        assert iou(found, theirs) > 0.85
    assert from_segment[segment].all()
    assert iou(from_segment, disc) <= iou(segment, disc) < 0.85
    assert iou(from_box, disc) > 0.9


def ground() -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """A thing on grass under a sky, each of its own colour."""
    image, thing, _ = disc_image(centre=(70, 70), radius=25)
    y, _ = np.mgrid[:120, :160]
    sky = (y < 50) & ~thing
    noise = np.random.default_rng(1).normal(0, 15, image.shape)
    image[sky] = (np.array([120, 170, 220]) + noise).clip(0, 255)[sky]
    return image, {"thing": thing, "sky": sky, "grass": ~sky & ~thing}


WHOLE = np.array([[0.0, 0, 160, 120]])


@pytest.mark.parametrize("stuff", ["grass", "sky"])
def test_stuff_is_completed_and_swallows_nothing(stuff):
    """The box is the whole image; a part of the stuff is mined, and the thing on it is known."""
    image, truth = ground()
    mined = truth[stuff].copy()
    mined[:, 80:] = False
    thing = truth["thing"][None]
    found = foreground(image, WHOLE, mined[None], "fast", thing, centred=False)[0]
    assert iou(mined, truth[stuff]) < 0.6
    assert iou(found, truth[stuff]) > 0.9
    assert not found[truth["thing"]].any()
    centred = foreground(image, WHOLE, mined[None], "fast", thing)[0]
    assert iou(centred, truth[stuff]) < iou(found, truth[stuff])
    theirs = opencv(image, WHOLE[0], mined, thing[0])
    assert iou(theirs, truth[stuff]) < iou(found, truth[stuff]), "what is outside is missing"


def test_stuff_from_its_box_alone():
    image, truth = ground()
    low = np.array([[0.0, 50, 160, 120]])
    thing, nothing = truth["thing"], np.zeros_like(truth["thing"])
    found = foreground(image, low, None, "fast", thing[None], centred=False)[0]
    assert iou(found, truth["grass"]) > 0.9
    assert iou(found, opencv(image, low[0], nothing, thing)) > 0.9
    assert foreground(image, WHOLE, centred=False)[0].all(), "nothing is known to be outside"


@pytest.mark.parametrize("setting", ["fast", "authors"])
def test_everything_known_to_be_background(setting):
    image, _, box = disc_image()
    everything = np.ones((1, 120, 160), bool)
    assert not foreground(image, box[None], everything, setting, everything).any()


def test_spread_masks_against_a_loop():
    boxes = np.array([[10.0, 20, 91, 100], [100, 20, 103, 61]])
    grids = np.random.default_rng(0).random((2, SIZE, SIZE)) < 0.5
    spread = spread_masks(grids, boxes, 120, 160)
    for mask, grid, (x1, y1, x2, y2) in zip(spread, grids, boxes, strict=True):
        for y in range(120):
            for x in range(160):
                inside = x1 < x + 0.5 < x2 and y1 < y + 0.5 < y2
                row, column = ((y + 0.5 - y1) / (y2 - y1), (x + 0.5 - x1) / (x2 - x1))
                expected = inside and grid[int(row * SIZE), int(column * SIZE)]
                assert mask[y, x] == expected


def test_authors_setting_falls_back_to_the_rectangle(monkeypatch):
    def finds_eight_pixels(image, state, *_):
        state[:] = cv2.GC_BGD
        state[0, :8] = cv2.GC_FGD

    monkeypatch.setattr(cv2, "grabCut", finds_eight_pixels)
    image, _, box = disc_image()
    mask = foreground(image, box[None], setting="authors")[0]
    assert mask.sum() == 60 * 60
    assert mask[30:90, 40:100].all()


def scene(seed: int) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)
    return torch.from_numpy(cv2.resize(coarse, (160, 120), interpolation=cv2.INTER_CUBIC)).permute(
        2, 0, 1
    )


BOXES = torch.tensor(
    [
        [10.2, 20.0, 90.7, 100.0],
        [0, 0, 160, 120],
        [50, 60, 58, 119],
        [-5, 3, 44, 90],
        [100, 20, 159.6, 61.3],
    ]
)


def test_a_boxs_crop_does_not_depend_on_its_company():
    image = np.ascontiguousarray(scene(0).permute(1, 2, 0).numpy())
    windows, together = crops(image, BOXES.numpy())
    assert 0.05 < together.mean() < 0.95
    for i, box in enumerate(BOXES.numpy()):
        window, alone = crops(image, box[None])
        np.testing.assert_array_equal(alone[0], together[i])
        np.testing.assert_array_equal(window[0], windows[i])
    many = crops(image, np.tile(BOXES.numpy(), (20, 1)))[1]
    np.testing.assert_array_equal(many, np.tile(together, (20, 1, 1)))


def requests(*which: tuple[int, list[int]], looks: list[int] | None = None) -> list[Request]:
    def look(seed: int) -> torch.Tensor:
        if looks is not None:
            looks.append(seed)
        return scene(seed)

    return [Request(seed, lambda seed=seed: look(seed), BOXES[boxes]) for seed, boxes in which]


def same(
    a: list[tuple[torch.Tensor, torch.Tensor]], b: list[tuple[torch.Tensor, torch.Tensor]]
) -> bool:
    return all(
        torch.equal(x, y)
        for one, other in zip(a, b, strict=True)
        for x, y in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("megabytes", [0, 0.003, 100])
def test_evidence_is_the_same_whatever_is_remembered(megabytes):
    evidence = Evidence(megabytes=megabytes)
    rounds = [
        [(0, [0, 1]), (1, [2])],
        [(0, [1, 3, 1]), (2, [])],
        [(0, [0, 1, 2, 3, 4]), (1, [2, 0])],
    ]
    for which in [*rounds, *rounds]:
        expected = Evidence(megabytes=100)(requests(*which))
        assert same(evidence(requests(*which)), expected)
        assert evidence.used <= evidence.limit


def test_evidence_looks_only_at_what_it_does_not_know():
    evidence, looks = Evidence(), []
    evidence(requests((0, [0, 1]), (1, [2]), looks=looks))
    assert sorted(looks) == [0, 1]
    evidence(requests((0, [1]), (1, [2]), looks=looks))
    assert len(looks) == 2
    evidence(requests((0, [1]), (1, [2, 3]), looks=looks))
    assert looks[2:] == [1]
    assert len(evidence) == 4


def test_the_least_recently_used_goes_first():
    evidence, looks = Evidence(), []
    evidence(requests((0, [0, 1])))
    evidence.limit = evidence.used
    evidence(requests((0, [0])))
    evidence(requests((0, [2])))  # pushes box 1 out
    evidence(requests((0, [0]), looks=looks))
    assert not looks
    evidence(requests((0, [1]), looks=looks))
    assert looks


def test_evidence_is_that_of_the_rounded_box():
    (windows, masks), *_ = Evidence()(requests((0, [0, 4])))
    image = np.ascontiguousarray(scene(0).permute(1, 2, 0).numpy())
    expected = crops(image, np.array([[10, 20, 91, 100], [100, 20, 160, 61]]))
    np.testing.assert_array_equal(windows.numpy(), expected[0])
    np.testing.assert_array_equal(masks.numpy(), expected[1])


def test_evidence_as_the_authors_make_it_is_their_mask_at_the_cells_centres():
    (windows, masks), *_ = Evidence("authors")(requests((0, [0, 1, 2, 4])))
    image = np.ascontiguousarray(scene(0).permute(1, 2, 0).numpy())
    for window, mask, full in zip(
        windows, masks, foreground(image, windows.numpy(), setting="authors"), strict=True
    ):
        x1, y1, x2, y2 = window.tolist()
        for row, column in [(0, 0), (10, 30), (24, 24), (47, 5), (40, 47)]:
            x, y = x1 + (column + 0.5) * (x2 - x1) / SIZE, y1 + (row + 0.5) * (y2 - y1) / SIZE
            assert mask[row, column] == full[int(y), int(x)]
    assert 0 < masks.float().mean() < 1


def test_sure_cells_are_part_of_what_is_remembered():
    evidence = Evidence()
    sure = torch.zeros(1, SIZE, SIZE, dtype=torch.bool)
    sure[0, :4] = True
    plain = Request(0, lambda: scene(0), BOXES[:1])
    (_, before), (_, taught) = evidence([plain, plain._replace(sure=sure)])
    assert taught[sure].all()
    assert not before[sure].all()


@pytest.mark.parametrize("setting", ["fast", "authors"])
def test_evidence_uses_and_remembers_what_is_known(setting):
    image, _, box = disc_image()
    pixels = torch.from_numpy(image).permute(2, 0, 1)
    wide = torch.from_numpy(box + np.array([-25, 0, 25, 0]))[None]
    left, right = torch.zeros(2, 1, SIZE, SIZE, dtype=torch.bool)
    left[..., 10:38, 2:9] = True  # green, as what surrounds the disc
    right[..., 24:] = True
    plain = Request(0, lambda: pixels, wide)
    known = plain._replace(sure=left, background=right)
    (_, before), (window, after) = Evidence(setting)([plain, known])
    assert after[left].all()
    assert not after[right].any()
    assert not before[left].all()
    assert before[right].any()
    size = image.shape[:2]
    sure, background = (spread_masks(m.numpy(), window.numpy(), *size) for m in (left, right))
    full = foreground(image, window.numpy(), sure, setting, background)
    x, y = (
        (
            window[0, i] + (torch.arange(SIZE) + 0.5) * (window[0, i + 2] - window[0, i]) / SIZE
        ).long()
        for i in (0, 1)
    )
    agree = full[0][y[:, None], x] == after[0].numpy()
    assert agree.mean() > (0.98 if setting == "fast" else 0.999), "fast: pixels round cells"


def test_evidence_of_stuff_is_remembered_apart():
    evidence = Evidence()
    plain = Request(0, lambda: scene(0), BOXES[:1])
    (_, centred), (_, anywhere) = evidence([plain, plain._replace(centred=False)])
    assert (centred != anywhere).any()
    (_, again), (_, there) = evidence([plain._replace(centred=False), plain])
    assert torch.equal(again, anywhere)
    assert torch.equal(there, centred)


def bilinear(mask: np.ndarray, x: float, y: float) -> float:
    """At cell coordinates (0.5 is the first cell's centre), edge cells extended."""
    m, total = mask.shape[0], 0.0
    x, y = x - 0.5, y - 0.5
    for j in (int(np.floor(y)), int(np.floor(y)) + 1):
        for i in (int(np.floor(x)), int(np.floor(x)) + 1):
            weight = max(0, 1 - abs(x - i)) * max(0, 1 - abs(y - j))
            total += weight * mask[min(max(j, 0), m - 1), min(max(i, 0), m - 1)]
    return total


def test_resample_against_a_loop():
    rng = np.random.default_rng(0)
    windows = torch.tensor([[10.0, 20, 58, 44], [0, 0, 7, 9]], dtype=torch.double)
    masks = torch.from_numpy(rng.random((2, 6, 6)) < 0.5)
    which = torch.tensor([0, 1, 0, 1, 0])
    boxes = torch.tensor(
        [
            [10, 20, 58, 44],
            [-3, 2, 5, 30],
            [30, 10, 40.5, 33],
            [100, 100, 120, 120],
            [0, 0, 90, 90.0],
        ]
    ).double()
    result = resample(windows, masks, which, boxes, size=5)
    for r, k in enumerate(which.tolist()):
        (x1, y1, x2, y2), (u1, v1, u2, v2) = boxes[r].tolist(), windows[k].tolist()
        for row in range(5):
            for column in range(5):
                x, y = x1 + (column + 0.5) / 5 * (x2 - x1), y1 + (row + 0.5) / 5 * (y2 - y1)
                inside = u1 <= x <= u2 and v1 <= y <= v2
                cell = ((x - u1) / (u2 - u1) * 6, (y - v1) / (v2 - v1) * 6)
                expected = bilinear(masks[k].numpy(), *cell) if inside else 0.0
                assert result[r, row, column].item() == pytest.approx(expected, abs=1e-9)


def test_resample_of_nothing():
    assert resample(
        torch.zeros(0, 4), torch.zeros(0, 6, 6), torch.zeros(0).long(), torch.zeros(0, 4)
    ).shape == (0, 28, 28)


@pytest.mark.skipif(not COCO.is_dir(), reason="real images are not here")
def test_on_real_instances_it_improves_on_the_filled_box():
    from pycocotools import mask as rle

    data = json.loads((COCO / "annotations/instances_val2017.json").read_text())
    images = {image["id"]: image for image in data["images"]}
    chosen = [a for a in data["annotations"] if a["area"] > 32**2 and not a["iscrowd"]][::5][:40]
    scores = []
    for annotation in chosen:
        record, shape = images[annotation["image_id"]], annotation["segmentation"]
        size = record["height"], record["width"]
        truth = rle.decode(
            shape if isinstance(shape, dict) else rle.merge(rle.frPyObjects(shape, *size))
        ).astype(bool)
        x, y, w, h = annotation["bbox"]
        box = np.array([[x, y, x + w, y + h]])
        image = cv2.imread(str(COCO / "val2017" / record["file_name"]))[..., ::-1].copy()
        filled = np.zeros(size, dtype=bool)
        filled[round(y) : round(y + h), round(x) : round(x + w)] = True
        masks = [foreground(image, box)[0], filled]
        scores.append([iou(mask, truth) for mask in masks])
    found, filled = np.mean(scores, 0)
    assert found > filled
