from __future__ import annotations

import numpy as np
import pytest
import torch
from pycocotools import mask as rle_masks

from wsis.images import draw
from wsis.types import GroundTruth, Prediction


def square(x1: int, y1: int, x2: int, y2: int, size=(60, 80)) -> dict:
    mask = np.zeros(size, np.uint8, order="F")
    mask[y1:y2, x1:x2] = 1
    return rle_masks.encode(mask)


def prediction(boxes, labels, scores, masks=True) -> Prediction:
    rles = [square(*box) for box in boxes] if masks else []
    return Prediction(
        1,
        (60, 80),
        torch.tensor(boxes).float().reshape(-1, 4),
        torch.tensor(scores),
        torch.tensor(labels).long(),
        rles,
    )


IMAGE = np.full((60, 80, 3), 128, np.uint8)


def test_a_mask_is_tinted_inside_and_nowhere_else():
    one = prediction([[20, 24, 60, 50]], [0], [0.9])
    drawn = draw.overlay(IMAGE, one, ["thing"], long_side=800)
    assert drawn.shape == (600, 800, 3)
    assert drawn.dtype == np.uint8
    inside, outside = drawn[450, 400].astype(int), drawn[560, 100]
    np.testing.assert_allclose(inside, 0.55 * 128 + 0.45 * np.array(draw.colour(0)), atol=1)
    assert (outside == 128).all()
    assert (IMAGE == 128).all()  # the given picture is left alone


def test_small_objects_lie_on_top():
    both = prediction([[30, 25, 40, 35], [10, 10, 70, 55]], [0, 1], [0.2, 0.9])
    drawn = draw.overlay(IMAGE, both, long_side=800)
    under = 0.55 * 128 + 0.45 * np.array(draw.colour(1))
    np.testing.assert_allclose(
        drawn[320, 350].astype(int), 0.55 * under + 0.45 * np.array(draw.colour(0)), atol=2
    )


def test_low_scores_and_nan_are_left_out():
    boxes = [[20, 24, 60, 50], [5, 5, 9, 9], [5, 40, 9, 44]]
    mixed = prediction(boxes, [0, 1, 2], [0.4, float("nan"), 0.2])
    alone = prediction(boxes[:1], [0], [0.4])
    drawn = draw.overlay(IMAGE, mixed, score_threshold=0.3)
    assert (drawn == draw.overlay(IMAGE, alone, score_threshold=0.3)).all()
    assert (draw.overlay(IMAGE, mixed) != drawn).any()


@pytest.mark.parametrize("threshold", [0.5, float("inf"), float("nan")])
def test_the_best_is_drawn_with_a_mark_if_nothing_is_sure(threshold):
    boxes = [[20, 24, 60, 50], [5, 5, 9, 9], [5, 40, 9, 44]]
    low = prediction(boxes, [0, 1, 2], [0.4, float("nan"), 0.2])
    alone = prediction(boxes[:1], [0], [0.4])
    guess = draw.overlay(IMAGE, low, score_threshold=threshold)
    sure = draw.overlay(IMAGE, alone)
    assert (guess != sure).any(), "the question mark"
    assert (guess != sure).mean() < 0.02
    unknown = prediction(boxes[:1], [0], [float("nan")])
    assert (draw.overlay(IMAGE, unknown, score_threshold=threshold) == 128).all()


def test_boxes_are_drawn_where_there_are_no_masks():
    box = prediction([[20, 24, 60, 50]], [3], [0.9], masks=False)
    drawn = draw.overlay(IMAGE, box, long_side=800)
    assert tuple(drawn[240, 300]) == draw.colour(3)
    assert (drawn[400, 400] == 128).all()


def test_odd_objects_do_no_harm():
    """Outside the image, empty, of one pixel; a crowd; a tensor as image; a picture of one pixel."""
    boxes = [[-20, -20, -5, -5], [79, 59, 80, 60], [0, 0, 0, 0]]
    masks = [square(0, 0, 0, 0), square(79, 59, 80, 60), square(0, 0, 0, 0)]
    truth = GroundTruth(
        torch.tensor(boxes).float(),
        torch.tensor([0, 1, 30]),
        masks,
        torch.tensor([False, False, True]),
    )
    image = torch.full((3, 60, 80), 128, dtype=torch.uint8)
    assert draw.overlay(
        image, truth, ["a very long name of a class that is wider than the picture" * 3]
    ).shape == (600, 800, 3)
    nothing = prediction([], [], [])
    assert draw.overlay(np.zeros((1, 1, 3), np.uint8), nothing, long_side=5).shape == (5, 5, 3)
    assert draw.overlay(np.zeros((2, 2000, 3), np.uint8), nothing, long_side=100).shape == (
        1,
        100,
        3,
    )


def test_a_panoptic_map_shows_things_stuff_and_void():
    panoptic = torch.tensor([1, 0], dtype=torch.int32).repeat(
        60, 80, 1
    )  # one thing class: class 1 is stuff
    panoptic[5:25, 5:35], panoptic[5:25, 35:65] = torch.tensor([0, 1]), torch.tensor([0, 2])
    panoptic[40:, 60:] = torch.tensor([-1, 0])
    picture = np.full((60, 80, 3), (200, 100, 50), np.uint8)
    drawn = draw.overlay_panoptic(picture, panoptic, ["thing"], ["ground"], long_side=800)
    assert drawn.shape == (600, 800, 3)
    for (y, x), tint in (
        ((200, 120), draw.colour(0, 0)),
        ((200, 560), draw.colour(0, 1)),
        ((560, 20), draw.stuff_colour(0)),
    ):
        np.testing.assert_allclose(
            drawn[y, x], 0.45 * picture[0, 0] + 0.55 * np.array(tint), atol=1
        )
    grey = drawn[560, 780]
    assert len(set(grey.tolist())) == 1
    assert grey[0] < 100
    rim = drawn[150].min(-1) > 150  # a white rim at each thing, none at the edges of stuff and void
    assert rim[40:60].any()
    assert rim[340:360].any()
    assert drawn[500].min(-1).max() < 150
    assert (picture == (200, 100, 50)).all()


def test_odd_panoptic_maps_do_no_harm():
    void = torch.full((60, 80, 2), -1)
    assert draw.overlay_panoptic(IMAGE, void, [], [], long_side=100).shape == (75, 100, 3)
    one = torch.zeros(1, 1, 2, dtype=torch.int32)
    for things in ([], ["a"]):
        assert draw.overlay_panoptic(
            np.zeros((1, 1, 3), np.uint8), one, things, long_side=5
        ).shape == (5, 5, 3)


def test_stuff_is_calmer_than_things():
    def saturation(tint):
        return (max(tint) - min(tint)) / max(tint)

    assert max(saturation(draw.stuff_colour(k)) for k in range(60)) < min(
        saturation(draw.colour(k)) for k in range(20)
    )
    assert len({draw.stuff_colour(k) for k in range(53)}) == 53


def test_names_do_not_cover_each_other_where_there_is_room():
    placed: list = []
    for _ in range(4):
        box = (100, 100, 300, 300)
        spot, hidden = draw._place(box, (200, 100), (80, 20), (800, 600), placed, [box])
        assert hidden <= draw.MAX_HIDDEN
        placed.append(spot)
    assert all(draw._common(a, b) == 0 for i, a in enumerate(placed) for b in placed[:i])


def test_names_do_not_hide_small_objects(monkeypatch):
    """Twenty-five objects in a tile: some are named, some without the score, some not at all."""
    texts = []
    write = draw.ImageDraw.ImageDraw.text
    monkeypatch.setattr(
        draw.ImageDraw.ImageDraw,
        "text",
        lambda self, place, text, *more: texts.append(text) or write(self, place, text, *more),
    )
    boxes = [[16 * i, 12 * k, 16 * i + 6, 12 * k + 6] for i in range(5) for k in range(5)]
    shown = prediction(boxes, [0] * 25, torch.linspace(0.9, 0.1, 25).tolist())
    named = draw.overlay(IMAGE, shown, ["elephant"], long_side=240)
    monkeypatch.setattr(draw, "_write", lambda canvas, *_: canvas)
    changed = (named != draw.overlay(IMAGE, shown, ["elephant"], long_side=240)).any(-1)
    fractions = [changed[y1:y2, x1:x2].mean() for x1, y1, x2, y2 in 3 * np.array(boxes)]
    assert max(fractions) < 0.6, "half, and the rounding of a plate to pixels"
    assert texts[0] == "elephant 0.90"
    assert "elephant" in texts
    assert len(texts) < 25


def test_colours_of_classes_and_of_neighbours_differ():
    def distance(a, b):
        return np.abs(np.subtract(a, b)).sum()

    classes = [draw.colour(c) for c in range(20)]
    assert min(distance(a, b) for i, a in enumerate(classes) for b in classes[:i]) > 25
    assert (
        min(distance(draw.colour(c, i), draw.colour(c, i + 1)) for c in range(20) for i in range(5))
        > 40
    )


def test_grid_holds_every_picture_and_its_caption():
    pictures = [np.full((20, 30, 3), 10 * k, np.uint8) for k in range(5)]
    sheet = draw.grid(pictures, 2, gap=4)
    assert sheet.shape == (3 * 24 + 4, 2 * 34 + 4, 3)
    assert [sheet[4 + 24 * (k // 2) + 10, 4 + 34 * (k % 2) + 15, 0] for k in range(5)] == [
        0,
        10,
        20,
        30,
        40,
    ]
    captioned = draw.grid(pictures, 2, ["a"] * 5, gap=4)
    assert captioned.shape[0] == 3 * (24 + 30) + 4
    assert draw.grid(
        [np.zeros((10, 40, 3), np.uint8), np.zeros((40, 10, 3), np.uint8)], 2
    ).shape == (64, 116, 3)
    with pytest.raises(ValueError, match="at least one"):
        draw.grid([])


def test_grid_keeps_long_lines_in_their_cells():
    pictures = [np.zeros((20, 60, 3), np.uint8)] * 2
    long, two = draw.grid(pictures, 2, ["n" * 300]), draw.grid(pictures, 2, ["a\nb", "a"])
    below = long[32:]
    assert (below[:, 12:72] < 100).any(), "something of it is there"
    assert (below[:, 72 + 6 :] == draw.PAPER).all()
    assert two.shape[0] == long.shape[0] + draw.LINE
    headed = draw.grid(pictures, 2, heading="h" * 300)
    assert headed.shape[0] > draw.grid(pictures, 2).shape[0]
    assert (headed[:, :6] == draw.PAPER).all()
    assert (headed[:, -6:] == draw.PAPER).all()


def test_jpeg_is_near_the_picture():
    import cv2

    picture = draw.overlay(IMAGE, prediction([[20, 24, 60, 50]], [0], [0.9]))
    back = cv2.imdecode(np.frombuffer(draw.jpeg(picture), np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    assert np.abs(back.astype(int) - picture).mean() < 2
