"""COCO results files as others write them, whole and damaged."""

from __future__ import annotations

import json

import pytest

from wsis.errors import InputError
from wsis.metrics.results import read_results

IMAGES, CATEGORIES = [{"id": 7, "height": 6, "width": 8}], [{"id": 3}]
BOX = {"image_id": 7, "category_id": 3, "score": 0.5, "bbox": [1, 2, 3, 4]}
MASK = {"size": [6, 8], "counts": [8, 4, 36]}


def read(tmp_path, *results):
    (tmp_path / "r.json").write_text(json.dumps(results))
    return read_results(tmp_path / "r.json", IMAGES, CATEGORIES)[0]


def test_a_mask_that_is_null_is_none(tmp_path):
    found = read(
        tmp_path, {**BOX, "segmentation": None}, {**BOX, "score": 0.9, "segmentation": MASK}
    )
    assert found.boxes.tolist() == [[1, 2, 4, 6]] * 2
    assert found.masks == []


def test_a_mask_alone_has_its_box(tmp_path):
    """Pixels 8 to 11 down the columns: the lower four of column 1."""
    for box in (None, []):
        found = read(tmp_path, {**BOX, "bbox": box, "segmentation": MASK})
        assert found.boxes.tolist() == [[1, 2, 2, 6]]
        assert len(found.masks) == 1


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"bbox": 7}, "bbox must be"),
        ({"bbox": [1, 2, "3", 4]}, "bbox must be"),
        ({"bbox": [1, 2, 3]}, "bbox must be"),
        ({"bbox": None}, "bbox must be"),
        ({"bbox": 7, "segmentation": MASK}, "bbox must be"),
        ({"segmentation": {**MASK, "size": None}}, r"mask of size None on an image of \[6, 8\]"),
        ({"segmentation": {**MASK, "size": [8, 6]}}, "mask of size"),
        ({"segmentation": [[1, 2, 3, 4, 5, 6]]}, "polygons are for annotations"),
        ({"segmentation": {}}, "segmentation must be run lengths"),
        ({"score": "high"}, "a score is a number"),
        ({"image_id": [7]}, "not in this data set"),
    ],
)
def test_damaged_results_are_told_in_one_line(tmp_path, change, says):
    with pytest.raises(InputError, match=says) as error:
        read(tmp_path, BOX, {**BOX, **change})
    assert "r.json, result 2" in str(error.value)
    assert "\n" not in str(error.value)
