"""Points of COCO annotations: the forms in use, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from wsis.data.index import read_coco, write_coco
from wsis.errors import InputError
from wsis.types import Index

IMAGE = {"id": 7, "file_name": "a.jpg", "height": 6, "width": 8}
CATEGORIES = [{"id": n, "name": name} for n, name in ((3, "cat"), (5, "dog"), (9, "emu"))]


def read(folder: Path, *annotations: dict[str, Any], **image: Any) -> Index:
    of_image = [{"image_id": 7, "category_id": 3, **a} for a in annotations]
    content = {"images": [IMAGE | image], "annotations": of_image, "categories": CATEGORIES}
    (folder / "x.json").write_text(json.dumps(content))
    return read_coco(folder / "x.json", folder, check_images=False)


@pytest.mark.parametrize(
    ("given", "points"),
    [
        ({"points": [[2, 3], [4.5, 1, 0]]}, [[2, 3, 1], [4.5, 1, 0]]),
        ({"point": [2, 3]}, [[2, 3, 1]]),
        ({"point": ["2", 3.5], "points": None}, [[2, 3.5, 1]]),
        (
            {"point_coords": [[2, 3], [4, 1]], "point_labels": [1, 0], "bbox": [1, 1, 4, 3]},
            [[2, 3, 1], [4, 1, 0]],
        ),
        ({"points": [[8, 6]]}, [[7.5, 5.5, 1]]),  # on the border
        ({"points": [[-0.5, 6.9, 1]]}, [[0, 5.5, 1]]),
        ({"points": [[1, 1, 0]], "bbox": [1, 1, 4, 3]}, [[1, 1, 0]]),
    ],
)
def test_forms_of_points(tmp_path, given, points):
    index = read(tmp_path, given)
    (found,) = index.annotations[7]
    assert found["points"] == points
    assert found.keys() == {"image_id", "category_id", "points", *({"bbox"} & given.keys())}
    assert index.tags == {7: [0]}
    assert index.complete == {}


@pytest.mark.parametrize(
    "given",
    [
        {"keypoints": [2, 3, 2, 4, 5, 2], "num_keypoints": 2},  # of a person
        {"point_coords": [[2, 3]]},  # the prompt of Segment Anything
        {"points": []},
    ],
)
def test_what_is_no_point_of_an_object(tmp_path, given):
    index = read(tmp_path, given)
    assert index.annotations == {7: []}
    assert index.tags == {7: [0]}
    assert index.complete == {7: [1, 2]}  # where the cat is was not said


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"points": [[2]]}, r"a point is \[2.0\]; give \[x, y\]"),
        ({"point": [2, 3, 1, 4]}, "give"),
        ({"points": [[float("nan"), 3]]}, "a point is"),
        ({"points": [[2, 3, 2]]}, "has the label 2; give 1 in the object"),
        ({"points": [[9.5, 3]]}, "9.5, 3 is outside of its image of 8 x 6 pixels"),
        ({"points": [[2, 3, 0]]}, "outside of the object; add one in the object, or a box"),
        ({"points": [[0.5, 0.3]]}, "between 0 and 1; multiply"),
        ({"points": {"x": 2}}, "expected a list"),
    ],
)
def test_points_that_are_refused_in_one_line(tmp_path, given, says):
    with pytest.raises(InputError, match=says) as refused:
        read(tmp_path, given)
    assert "\n" not in str(refused.value)


BOX = {"bbox": [1, 1, 4, 3]}


@pytest.mark.parametrize(
    ("annotations", "fields", "complete"),
    [
        ([BOX], {}, None),
        ([BOX, {}], {}, [1, 2]),  # a second cat, somewhere
        ([BOX, {"category_id": 9}], {}, [0, 1]),
        ([BOX], {"not_exhaustive_category_ids": [3]}, [1, 2]),
        ([BOX], {"neg_category_ids": [5], "not_exhaustive_category_ids": []}, [0, 1]),
        ([BOX], {"neg_category_ids": [5], "not_exhaustive_category_ids": [3]}, [1]),
        ([], {"neg_category_ids": []}, []),
        ([BOX], {"neg_category_ids": [5, 9]}, None),
    ],
)
@pytest.mark.filterwarnings("ignore:.*are tags alone")
def test_complete_classes_survive_a_file(tmp_path, annotations, fields, complete):
    """A class is complete if LVIS calls it negative, or annotates it and does not list it."""
    index = read(tmp_path, *annotations, **fields)
    assert index.complete == ({} if complete is None else {7: complete})
    assert index.images == [IMAGE]
    write_coco(tmp_path / "y.json", index)
    again = read_coco(tmp_path / "y.json", tmp_path, check_images=False)
    assert again.complete == index.complete
    assert again.images == index.images


def test_points_survive_a_file(tmp_path):
    index = read(tmp_path, {"points": [[2, 3], [4, 1, 0]]}, {"point": [5, 5], **BOX})
    write_coco(tmp_path / "y.json", index)
    written = json.loads((tmp_path / "y.json").read_text())["annotations"]
    assert ["area" in annotation for annotation in written] == [False, True]
    again = read_coco(tmp_path / "y.json", tmp_path, check_images=False)
    assert [a["points"] for a in again.annotations[7]] == [[[2, 3, 1], [4, 1, 0]], [[5, 5, 1]]]
