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
        ({"bbox": 7}, "bbox is 7; expected a list"),
        ({"bbox": [1, 2, "x", 4]}, r"bbox\[2\] is 'x'; expected a number"),
        ({"bbox": [1, 2, 3]}, "bbox must be"),
        ({"bbox": [1, 2, 1e9, 4]}, "bbox must be"),
        ({"bbox": None}, "bbox must be"),
        ({"bbox": 7, "segmentation": MASK}, "bbox is 7; expected a list"),
        ({"segmentation": {**MASK, "size": None}}, "segmentation.size is None; expected a list"),
        ({"segmentation": {**MASK, "size": [8, 6]}}, r"the mask is \[8, 6\], but its image"),
        ({"segmentation": {**MASK, "counts": [5, 6000]}}, "cover 6005 pixels, not 6 x 8"),
        ({"segmentation": [[1, 2, 3, 4, 5, 6]]}, "expected an object"),
        ({"segmentation": {}}, "segmentation has no size"),
        ({"score": "high"}, "score is 'high'; expected a number"),
        ({"score": float("nan")}, "score nan"),
        ({"score": -1e300}, r"score -1e\+300"),
        ({"image_id": [7]}, r"image_id is \[7\]; expected a whole number"),
        ({"image_id": 2**64}, "image_id is 18446744073709551616; expected a whole number <="),
    ],
)
def test_damaged_results_are_told_in_one_line(tmp_path, change, says):
    with pytest.raises(InputError, match=says) as error:
        read(tmp_path, BOX, {**BOX, **change})
    assert "r.json, result 2" in str(error.value)
    assert "\n" not in str(error.value)
