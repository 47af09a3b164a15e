"""Points in tables, and in COCO files of a folder."""

from __future__ import annotations

import json

import pytest
from labelled import incomplete, objects, points, tags

from wsis.errors import InputError


@pytest.mark.parametrize(
    ("heading", "rows"),
    [
        ("file,class,x,y", ["a.jpg,cat,10,20", "a.jpg,dog,30.5,40", "b.jpg,,,"]),
        ("x;y;label;filename", ["10;20;cat;a.jpg", "30.5;40;dog;a.jpg", ";;;b.jpg"]),
        ("file,class,x,y", ["a.jpg,cat,.125,.33333333", "a.jpg,dog,.38125,.66666667", "b.jpg,,,"]),
        (
            "Image Name,category,X,Y,label",
            ["a.jpg,cat,10,20,1", "a.jpg,dog,30.5,40,1.0", "b.jpg,,,,"],
        ),
    ],
)
def test_a_line_is_an_object(photos, read, heading, rows):
    root = photos("a.jpg", "b.jpg")
    (root / "labels.csv").write_text("\n".join([heading, *rows]))
    index = read(root)
    found = points(index)
    assert [name for name, _ in found["a.jpg"]] == ["cat", "dog"]
    assert [point for _, point in found["a.jpg"]] == [
        pytest.approx((10, 20, 1), abs=1e-5),
        pytest.approx((30.5, 40, 1), abs=1e-5),
    ]
    assert found["b.jpg"] == []
    assert tags(index) == {"a.jpg": ["cat", "dog"], "b.jpg": []}
    assert index.notes[0] == "labels: 2 images in point table format, labels.csv"


def table(root, *rows, heading="file,class,x,y,label,object"):
    (root / "labels.csv").write_text("\n".join([heading, *rows]))


def test_points_of_one_object(photos, read):
    root = photos("a.jpg")
    rows = ["a.jpg,cat,1,2,1,1", "a.jpg,cat,3,4,1,2", "a.jpg,cat,5,6,1,1", "a.jpg,cat,7,8,0,2"]
    table(root, *rows, "a.jpg,cat,9,10,0,", "a.jpg,dog,11,12,1,1")
    assert points(read(root)) == {
        "a.jpg": [
            ("cat", (1, 2, 1), (5, 6, 1), (9, 10, 0)),
            ("cat", (3, 4, 1), (7, 8, 0), (9, 10, 0)),
            ("dog", (11, 12, 1)),
        ]
    }


def test_a_class_without_a_point_is_a_tag(photos, read):
    root = photos("a.jpg")
    table(root, "a.jpg,cat,1,2", "a.jpg,dog,,", heading="file,class,x,y")
    index = read(root)
    assert tags(index) == {"a.jpg": ["cat", "dog"]}
    assert incomplete(index) == {"a.jpg": ["dog"]}


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("a.jpg,dog,7,8,0,", 'csv:3: a point outside of "dog" and none inside; add one inside'),
        ("a.jpg,cat,7,8,0,9", 'a point outside of "cat" and none inside'),
        ("a.jpg,cat,82,8,1,", "the point 82, 8 is outside of its image of 80 x 60 pixels"),
        ("a.jpg,cat,7,8,5,", "has the label 5; give 1 in the object, 0 outside of it"),
        ("a.jpg,cat,7,,1,", "could not convert string to float"),
    ],
)
def test_lines_that_are_refused(photos, read, row, says):
    root = photos("a.jpg")
    table(root, "a.jpg,cat,1,2,1,1", row)
    with pytest.raises(InputError, match=says) as refused:
        read(root)
    assert "\n" not in str(refused.value)


def test_boxes_by_corner_and_size_are_no_points(photos, read):
    root = photos("a.jpg")
    table(root, "a.jpg,cat,1,2,3,4", heading="file,class,x,y,width,height")
    assert points(read(root)) == {"a.jpg": []}


def test_labels_of_all_kinds_in_a_json(photos, read):
    root = photos("a.jpg", "b.jpg")
    images = [{"id": n, "file_name": f"{'ab'[n]}.jpg", "width": 80, "height": 60} for n in (0, 1)]
    images[1] |= {"not_exhaustive_category_ids": [2], "neg_category_ids": [3]}
    known = [
        {"category_id": 1, "bbox": [10, 20, 30, 24]},
        {"category_id": 2, "segmentation": [[10, 20, 40, 20, 40, 44, 10, 44]]},
        {"category_id": 2, "points": [[5, 6], [70, 8, 0]]},
        {"category_id": 3},
    ]
    annotations = [{"id": n, "image_id": 0, **a} for n, a in enumerate(known)]
    annotations += [{"id": 9, "image_id": 1, "category_id": 2, "point": [1, 2]}]
    categories = [{"id": n, "name": name} for n, name in enumerate(["cat", "dog", "emu"], 1)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / "labels.json").write_text(json.dumps(content))
    with pytest.warns(UserWarning, match="1 annotations have neither a box, a mask nor points"):
        index = read(root)
    assert objects(index) == {
        "a.jpg": [(name, 10, 20, 30, 24) for name in ("cat", "dog")],
        "b.jpg": [],
    }
    assert points(index) == {
        "a.jpg": [("dog", (5, 6, 1), (70, 8, 0))],
        "b.jpg": [("dog", (1, 2, 1))],
    }
    assert tags(index) == {"a.jpg": ["cat", "dog", "emu"], "b.jpg": ["dog"]}
    assert incomplete(index) == {"a.jpg": ["emu"], "b.jpg": ["cat", "dog"]}
