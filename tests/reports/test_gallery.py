"""Outlines against masks, agreement against what it should be, and pictures that stay small."""

from __future__ import annotations

import base64

import cv2
import numpy as np
import pytest
import torch
from pycocotools import mask as rle_masks

from wsis.proposals.file import ProposalFile, write
from wsis.reports.gallery import (
    GRID,
    Objects,
    Source,
    agreement,
    make_gallery,
    outline,
    outlines,
    rank_images,
    write_picture,
)
from wsis.reports.panels import objects_of_map, objects_of_prediction, objects_of_proposals
from wsis.types import Index, Prediction, Proposals


def rle(mask):
    return rle_masks.encode(np.asfortranarray(mask, np.uint8))


def blank(size=(60, 80)):
    return np.zeros(size, np.uint8)


def things(*found, sure=None, size=(60, 80)) -> Objects:
    """Objects from (class, box)."""
    masks = []
    for _, (x1, y1, x2, y2) in found:
        mask = blank(size)
        mask[y1:y2, x1:x2] = 1
        masks.append(rle(mask))
    count = len(found)
    boxes = [list(map(float, b)) for _, b in found]
    return Objects(
        [c for c, _ in found],
        [0.5] * count,
        [-1] * count,
        count if sure is None else sure,
        masks,
        boxes,
    )


def painted(rings, size):
    """Rings filled with even-odd rule, in image pixels."""
    canvas = blank(size)
    scale = max(size) / GRID
    cv2.fillPoly(canvas, [np.floor(ring * scale).astype(np.int32) for ring in rings], 1)
    return canvas.astype(bool)


@pytest.mark.parametrize("size", [(60, 80), (200, 150), (480, 640), (900, 1200)])
def test_an_outline_filled_is_the_mask(size):
    height, width = size
    mask = blank(size)
    cv2.ellipse(mask, (width // 2, height // 3), (width // 3, height // 4), 30, 0, 360, 1, -1)
    cv2.circle(mask, (width // 2, height // 3), height // 12, 0, -1)  # a hole
    cv2.rectangle(
        mask, (0, height - height // 6), (width // 5, height - 1), 1, -1
    )  # a second piece, on the border
    rings = outline(rle(mask), GRID / max(size))
    assert len(rings) == 3
    assert all(ring.dtype == np.uint8 for ring in rings)
    found, true = painted(rings, size), mask.astype(bool)
    assert (found & true).sum() / (found | true).sum() > 0.9
    assert sum(map(len, rings)) < 80


def test_outlines_of_small_empty_and_full_masks():
    one = blank()
    one[10, 20] = 1
    (ring,) = outline(rle(one), GRID / 80)
    assert abs(ring.astype(float).mean(0) / GRID * 80 - (20.5, 10.5)).max() < 0.5
    assert outline(rle(blank()), GRID / 80) == []
    (ring,) = outline(rle(1 - blank()), GRID / 80)
    assert (ring.max(0) >= (250, 185)).all()
    assert outline(rle(1 - blank((1, 1))), GRID)


def test_boxes_are_outlined_where_there_are_no_masks():
    (rings,) = outlines(things((0, (20, 0, 80, 60)))._replace(masks=[]), (60, 80))
    assert rings[0].tolist() == [[64, 0], [255, 0], [255, 191], [64, 191]]


def test_agreement_is_the_mean_of_nearest_overlaps():
    a = things((0, (0, 0, 10, 10)), (1, (20, 20, 30, 30)))
    half = things((0, (0, 0, 10, 5)))
    renamed = things((2, (0, 0, 10, 10)), (1, (20, 20, 30, 30)))
    unsure = things((0, (0, 0, 10, 10)), sure=0)
    found = agreement([a, a, half, renamed, unsure, things()])
    assert np.allclose(found, found.T)
    # a and half: .5 from either side, and an object of a that nothing is near: (.5 + 0 + .5) / 3
    expected = [
        [1, 1, 1 / 3, 2 / 4, 0, 0],
        [1, 1, 1 / 3, 2 / 4, 0, 0],
        [1 / 3, 1 / 3, 1, 0, 0, 0],
        [0.5, 0.5, 0, 1, 0, 0],
    ]
    assert np.allclose(found[:4], expected)
    assert (found[4:, 4:] == 1).all()  # two that say nothing say the same
    assert (agreement([things(), things()]) == 1).all()


def test_surest_detections_are_kept():
    count = 40
    scores = torch.linspace(0.99, 0.2, count)
    boxes = torch.zeros(count, 4)
    prediction = Prediction(
        1, (9, 9), boxes, scores, torch.arange(count), [rle(blank((9, 9)))] * count
    )
    few = objects_of_prediction(prediction, np.arange(count), 0.95)
    assert few.labels == list(range(6))
    assert few.sure == int((scores >= 0.95).sum()) < 6
    many = objects_of_prediction(prediction, None, 0.3)
    assert (len(many.labels), many.sure, set(many.kinds)) == (25, 25, {-1})


@pytest.fixture
def index(tmp_path):
    rng = np.random.default_rng(0)
    images = []
    for number in range(1, 6):
        noise = rng.integers(
            0, 255, (600, 800, 3), dtype=np.uint8
        )  # the worst that a JPEG can meet
        cv2.imwrite(str(tmp_path / f"{number}.jpg"), noise)
        images.append({"id": number, "file_name": f"{number}.jpg", "height": 600, "width": 800})
    return Index(name="x", root=tmp_path, images=images, categories=[{"id": 1, "name": "a"}])


def test_gallery_has_the_images_that_methods_disagree_on(index):
    box, size = (100, 100, 300, 300), (600, 800)
    truth = [things((0, box), size=size)] * 5
    one = [things((0, (100, 100, 300, 300 - 40 * k)), size=size) for k in range(5)]
    sources = [
        Source("truth", "truth", -1, truth),
        Source("a", "method", 0, truth),
        Source("b", "method", 1, one),
    ]
    gallery = make_gallery(index, sources, rank_images(sources, 5, 3))
    assert [image["name"] for image in gallery["images"]] == ["5.jpg", "4.jpg", "3.jpg"]
    assert [image["apart"] for image in gallery["images"]] == pytest.approx(
        [0.8, 0.6, 0.4], abs=1e-3
    )
    assert [image["wrong"] for image in gallery["images"]] == pytest.approx(
        [0.4, 0.3, 0.2], abs=1e-3
    )
    points = base64.b64decode(gallery["points"])
    counts = [
        sum(sum(thing[4:]) for part in image["objects"] for thing in part)
        for image in gallery["images"]
    ]
    assert len(points) == 2 * sum(counts)
    assert [image["at"] for image in gallery["images"]] == [0, counts[0], counts[0] + counts[1]]
    for image in gallery["images"]:
        data = base64.b64decode(image["jpeg"])
        assert len(data) < 80_000
        assert cv2.imdecode(np.frombuffer(data, np.uint8), 1).shape == (480, 640, 3)
    assert make_gallery(index, sources, rank_images(sources, 5, 0))["images"] == []


def test_many_pictures_are_small(index, monkeypatch):
    monkeypatch.setattr("wsis.reports.gallery.FEW", 0)
    sources = [Source("truth", "truth", -1, [things()] * 5)]
    (image,) = make_gallery(index, sources, {0: (0, 0)})["images"]
    data = base64.b64decode(image["jpeg"])
    assert len(data) < 40_000
    assert cv2.imdecode(np.frombuffer(data, np.uint8), 1).shape == (240, 320, 3)


def test_a_method_that_finds_nothing_does_not_decide_the_order():
    """Of two others that differ on the second image alone, and miss the third."""
    here, there = things((0, (5, 5, 20, 20))), things((0, (5, 5, 20, 15)))
    truth = Source("truth", "truth", -1, [here, here, here, here])
    a = Source("a", "method", 0, [here, here, things(), here])
    b = Source("b", "method", 1, [here, there, things(), here])
    silent = Source("c", "method", 2, [things()] * 4)
    ranked = rank_images([truth, a, b, silent], 4, 4)
    assert list(ranked) == [1, 2, 0, 3]
    assert [apart for apart, _ in ranked.values()] == pytest.approx([1 / 3, 0, 0, 0])
    ranked = rank_images([truth, b, silent], 4, 4)
    assert list(ranked) == [2, 1, 0, 3], "one that finds something: by its distance from the truth"


def test_without_truth_tags_say_which_images_are_wrong():
    """No dog found, a cat too many, nothing to find."""
    found = [things((0, (5, 5, 20, 20))), things((0, (5, 5, 20, 20)), (1, (0, 0, 9, 9))), things()]
    ranked = rank_images([Source("a", "method", 0, found)], 3, 3, [[0, 1, 2], [1], []])
    assert ranked == {0: pytest.approx((2 / 3, 2 / 3)), 1: (0.5, 0.5), 2: (0, 0)}


def test_one_method_is_sorted_by_its_distance_from_the_truth(index):
    size = (600, 800)
    truth = [things((0, (100, 100, 300, 300)), size=size)] * 5
    found = [truth[0], things(), truth[0], truth[0], truth[0]]
    sources = [Source("truth", "truth", -1, truth), Source("a", "method", 0, found)]
    gallery = make_gallery(index, sources, rank_images(sources, 5, 1))
    assert gallery["images"][0]["name"] == "2.jpg"


def test_proposals_are_drawn_as_segments_or_boxes(tmp_path):
    labels = torch.zeros(20, 30, dtype=torch.int32)
    labels[:, 15:] = 1
    labels[0] = -1
    members = torch.tensor([[True, False], [False, True], [True, True]])
    boxes = torch.tensor([[0, 1, 15, 20], [15, 1, 30, 20], [0, 1, 30, 20]]).float()
    with write(tmp_path / "p.sqlite", {"supervision": "none"}) as file:
        file.add(
            "a.jpg", (20, 30), Proposals(boxes, torch.tensor([0.9, 0.8, 0.7]), labels, members)
        )
        file.add("b.jpg", (20, 30), Proposals(boxes, torch.tensor([0.9, 0.8, 0.7])))
    opened = ProposalFile(tmp_path / "p.sqlite")
    found = objects_of_proposals(opened, {"file_name": "a.jpg", "height": 20, "width": 30})
    assert [int(area) for area in rle_masks.area(found.masks)] == [15 * 19, 15 * 19, 30 * 19]
    found = objects_of_proposals(opened, {"file_name": "b.jpg", "height": 20, "width": 30})
    assert (found.masks, found.boxes[1]) == ([], [15, 1, 30, 20])
    assert (
        objects_of_proposals(opened, {"file_name": "c.jpg", "height": 20, "width": 30}).boxes == []
    )


def test_segments_of_a_panoptic_map_are_objects():
    panoptic = torch.full((4, 6, 2), -1)
    panoptic[:, :2] = torch.tensor([0, 1])
    panoptic[:2, 2:4] = torch.tensor([0, 2])
    panoptic[2:, 2:4] = torch.tensor([3, 0])
    found = objects_of_map(panoptic)
    assert (found.labels, found.sure) == ([0, 0, 3], 3)
    assert [int(area) for area in rle_masks.area(found.masks)] == [8, 4, 4]
    assert objects_of_map(None).labels == []


def test_picture_shows_what_is_sure_of_truth_and_methods(index, tmp_path):
    size, box = (600, 800), (100, 100, 700, 500)
    for number in range(1, 6):
        cv2.imwrite(str(tmp_path / f"{number}.jpg"), np.full((*size, 3), 40 * number, np.uint8))
    sure, unsure = things((0, box), size=size), things((0, box), size=size)._replace(sure=0)
    sources = [
        Source("truth", "truth", -1, [sure] * 5),
        Source("proposals", "proposals", -1, [sure] * 5),
        Source("a", "method", 0, [unsure] * 5),
    ]
    write_picture(tmp_path / "x.jpg", index, sources)
    picture = cv2.imread(str(tmp_path / "x.jpg")).astype(int)
    gap, width, height, line = 12, 240, 180, 30
    assert picture.shape[:2] == (4 * (height + gap + line) + gap, 2 * (width + gap) + gap)
    for row, number in enumerate((1, 2, 4, 5)):  # evenly apart
        y = gap + row * (height + gap + line)
        told, silent = (
            abs(picture[y : y + height, x : x + width] - 40 * number)
            for x in (gap, 2 * gap + width)
        )
        assert silent[5:-5, 5:-5].max() < 5
        assert told[158:-5, 5:-5].max() < 5  # below the object
        assert told[60:130, 60:190].mean() > 20
