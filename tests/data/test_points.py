"""Points of objects: cropped and covered, compared with images that have a dot in their place."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from wsis.data.index import write_coco
from wsis.data.labels import relabel
from wsis.data.points import cover_points, cut_points, middle_points, stack_points
from wsis.data.records import unseen
from wsis.data.samples import Samples
from wsis.data.targets import cover_target, cut_target, join_targets, target_of_masks
from wsis.data.transforms import Augment, Cut, cut_maps
from wsis.datasets.shapes import Shapes
from wsis.types import Index

NAN = math.nan


def bits(tensor: Tensor) -> Any:
    """As lists, with None in place of NaN, which is not equal to itself."""
    return np.where(tensor.isnan().numpy(), None, tensor.numpy()).tolist()


def test_points_are_stacked():
    points, labels = stack_points([[[1, 2, 1], [3, 4, 0]], [], [[5, 6, 1]]])
    assert bits(points) == [[[1, 2], [3, 4]], [[None] * 2] * 2, [[5, 6], [None, None]]]
    assert labels.tolist() == [[1, 0], [-1, -1], [1, -1]]
    assert stack_points([])[0].shape == (0, 1, 2)
    assert stack_points([[]])[1].tolist() == [[-1]]


@pytest.mark.parametrize("flip", [False, True])
def test_points_move_with_the_image(flip):
    """Each pixel's centre in turn: seen in the crop of a map that is 1 there, or cut off."""
    cut = Cut(top=2, left=1, height=4, width=3, size=(8, 9), flip=flip)
    for y in range(8):
        for x in range(6):
            dot = torch.zeros(8, 6)
            dot[y, x] = 1
            seen = cut_maps(dot, cut)
            points, labels = cut_points(
                torch.tensor([[[x + 0.5, y + 0.5]]]), torch.ones(1, 1).long(), cut
            )
            assert (labels.item() == 1) == bool(seen.any())
            if labels.item() == 1:
                column, row = points[0, 0].floor().int().tolist()
                assert seen[row, column] == 1
            else:
                assert points.isnan().all()


def test_middle_points_are_pixels_of_the_mask():
    rng = np.random.default_rng(0)
    masks = torch.from_numpy(rng.random((20, 7, 9)) < rng.random((20, 1, 1)))
    masks[3] = False
    points, labels = middle_points(masks, 2)
    for mask, (point, _), (label, other) in zip(masks, points, labels.tolist(), strict=True):
        pixels = [(x + 0.5, y + 0.5) for y, x in mask.nonzero().tolist()]
        assert other == -1
        assert label == (1 if pixels else -1)
        if pixels:
            assert tuple(point.tolist()) == pixels[len(pixels) // 2]
    assert points[3].isnan().all()


def test_covered_points():
    points, labels = stack_points([[[1.5, 2.5, 1], [1.5, 2.5, 0], [4, 4, 1]], [[1.2, 2, 1]]])
    covered = torch.zeros(6, 6, dtype=torch.bool)
    covered[2, 1] = True
    left, signs = cover_points(points, labels, covered)
    assert signs.tolist() == [[-1, 0, 1], [-1, -1, -1]]
    assert bits(left[0]) == [[None, None], [1.5, 2.5], [4, 4]]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Shapes:
    return Shapes(tmp_path_factory.mktemp("shapes"), train=4, val=1, proposals="none")


def mixed(index: Index) -> Index:
    """The index of one image with four objects, known by points, box, mask, and all of these."""
    masks = torch.zeros(4, 256, 256, dtype=torch.bool)
    ways = [("points",), ("bbox",), ("bbox", "segmentation"), ("points", "bbox", "segmentation")]
    annotations = []
    for k, way in enumerate(ways):
        left, top = 20 + 60 * k, 100
        masks[k, top : top + 40, left : left + 40] = True
        corners = [left, top, left + 40, top, left + 40, top + 40, left, top + 40]
        full = {"bbox": [left, top, 40, 40], "segmentation": [corners]}
        full["points"] = [[left + 5.0, top + 5.0, 1], [left - 5.0, top, 0]]
        annotations.append({"category_id": k + 1, **{key: full[key] for key in way}})
    image = index.images[0]
    return index._replace(
        images=[image], annotations={image["id"]: annotations}, tags={image["id"]: [0, 1, 2, 3]}
    )


FIELDS = {"tags", "complete", "points", "boxes", "masks"}


def whole(index: Index, fields: set[str] = FIELDS) -> Any:
    return Samples(mixed(index), fields, Augment(flip=0)).sample(0)["target"]


def test_how_an_object_is_known_follows_from_its_tensors(data):
    target = whole(data.index("train"))
    assert target["ignore_mask"].tolist() == [True, True, False, False]
    assert target["boxes"].isnan().any(1).tolist() == [True, False, False, False]
    assert (target["point_labels"] >= 0).any(1).tolist() == [True, False, False, True]
    assert target["labels"].tolist() == [0, 1, 2, 3]
    assert target["complete"].all()


@pytest.mark.parametrize(
    ("left", "width", "seen", "complete"),
    [
        (0, 256, [0, 1, 2, 3], {0, 1, 2, 3}),
        (30, 226, [1, 2, 3], {1, 2, 3}),  # half of the first object is there, without its point
        (0, 24, [], {1, 2, 3}),
        (210, 46, [3], {1, 2, 3}),  # of the last object the point is cut off, but not the mask
        (130, 126, [2, 3], {1, 2, 3}),
    ],
)
def test_a_crop_keeps_what_it_shows(data, left, width, seen, complete):
    target: Any = cut_target(
        whole(data.index("train")), Cut(0, left, 256, width, (256, width), False)
    )
    assert target["labels"].tolist() == seen
    assert {c for c in range(4) if target["complete"][c]} == complete
    for name in ("points", "point_labels", "boxes", "crowd", "masks", "ignore_mask"):
        assert len(target[name]) == len(seen)
    if left == 210:
        assert target["point_labels"].tolist() == [[-1, -1]]
        assert not target["boxes"].isnan().any()


def test_a_method_for_points_loses_what_lost_its_point(data):
    target = whole(data.index("train"), {"tags", "complete", "points"})
    assert target["labels"].tolist() == [0, 3]
    assert {c for c in range(4) if not target["complete"][c]} == {1, 2}
    cut: Any = cut_target(target, Cut(0, 210, 256, 46, (256, 46), False))
    assert cut["labels"].tolist() == []
    assert {c for c in range(4) if not cut["complete"][c]} == {0, 1, 2, 3}
    assert torch.equal(cut["tags"], target["tags"])


def test_pasted_objects_have_a_point(data):
    target = whole(data.index("train"))
    pasted = target["masks"][3:]
    covered = cover_target(target, pasted[0])
    assert covered["point_labels"].tolist() == [[1, 0], [-1, -1], [-1, -1], [-1, 0]]
    both: Any = join_targets(covered, target_of_masks(target, pasted, torch.tensor([7])))
    x, y = both["points"][-1, 0].long().tolist()
    assert pasted[0, y, x]
    assert both["point_labels"][-1].tolist() == [1, -1]
    assert both["labels"].tolist() == [0, 1, 2, 3, 7]
    assert torch.equal(both["complete"], target["complete"])


def test_predictions_are_not_judged_by_points(data):
    index = data.index("val")
    assert "truth" in Samples(index, {"tags"}).sample(0)
    assert "truth" not in Samples(mixed(index), {"tags"}).sample(0)
    from wsis.reports.evaluation import has_truth

    assert has_truth(index)
    assert not has_truth(mixed(index))


def test_tags_without_objects_are_not_complete(data):
    index = mixed(data.index("train"))
    (image,) = index.images
    tagged = index._replace(tags={image["id"]: [0, 1, 2, 3, 5]})
    target: Any = Samples(tagged, FIELDS, Augment(flip=0)).sample(0)["target"]
    assert target["complete"].nonzero().flatten().tolist() == [0, 1, 2, 3, 4, 6, 7]


def test_points_as_labels_of_a_data_set(data, tmp_path):
    """Also those of a file, with what is complete."""
    own = data.index("train")
    few = mixed(own)
    (image,) = few.images
    few = few._replace(complete={image["id"]: [0, 1, 2]})
    write_coco(tmp_path / "points.json", few)
    found = relabel(own, Path(tmp_path / "points.json"))
    assert found.images == few.images
    assert found.complete == few.complete
    assert [a.get("points") for a in found.annotations[image["id"]]] == [
        a.get("points") for a in few.annotations[image["id"]]
    ]


@pytest.mark.parametrize(
    ("fields", "hidden"),
    [
        ({"tags"}, 0),
        ({"tags", "boxes"}, 1),
        ({"points"}, 2),
        ({"masks"}, 2),
        ({"points", "boxes"}, 0),
        ({"boxes", "complete"}, 0),
    ],
)
def test_objects_that_a_method_takes_as_background_are_counted(data, fields, hidden):
    assert unseen(mixed(data.index("train")), fields) == hidden
