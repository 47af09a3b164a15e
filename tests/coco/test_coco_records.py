"""COCO files as others write them: what is accepted, and what is said of the rest."""

from __future__ import annotations

import json
from typing import Any

import pytest

from wsis.coco.records import Captions, Detections, Instances, Sources, instances_with, read_records
from wsis.errors import InputError

ANNOTATION = {"id": 1, "image_id": 7, "category_id": 3, "bbox": [1, 2, 3, 4]}
CONTENT = {
    "info": {"year": 2017},
    "images": [{"id": 7, "file_name": "a.jpg", "height": 6, "width": 8, "license": 2}],
    "annotations": [ANNOTATION],
    "categories": [{"id": 3, "name": "cat", "supercategory": "animal"}],
}


def read(folder, content, schema: Any = Instances):
    path = folder / "x.json"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return read_records(path, schema)


def changed(**fields):
    return {**CONTENT, "annotations": [ANNOTATION, {**ANNOTATION, **fields}]}


def test_records_are_dicts_of_known_fields(tmp_path):
    found = read(tmp_path, CONTENT)
    assert found["annotations"] == [ANNOTATION]
    assert found["images"] == [{"id": 7, "file_name": "a.jpg", "height": 6, "width": 8}]
    assert found["categories"] == [{"id": 3, "name": "cat"}]
    assert "info" not in found


def test_fields_of_other_packages_are_kept(tmp_path):
    content = changed(scribble=[1, "x"], area=3)
    assert read(tmp_path, content, instances_with(frozenset({"scribble", "bbox"})))["annotations"][
        1
    ] == {
        **ANNOTATION,
        "scribble": [1, "x"],
        "area": 3,
    }


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"image_id": "7", "id": "a-1"}, {"image_id": 7, "id": "a-1"}),
        ({"image_id": 7.0}, {"image_id": 7}),
        ({"bbox": ["1", "2.5", 3, 4]}, {"bbox": [1, 2.5, 3, 4]}),
        ({"iscrowd": True, "ignore": None}, {"iscrowd": 1, "ignore": None}),
        ({"segmentation": {"size": ["6", 8.0], "counts": ["48"]}},) * 2,
    ],
)
def test_numbers_may_be_written_in_any_way(tmp_path, fields, expected):
    if "segmentation" in expected:
        expected = {"segmentation": {"size": [6, 8], "counts": [48]}}
    assert read(tmp_path, changed(**fields))["annotations"][1] == {**ANNOTATION, **expected}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_text_of_any_json_encoding(tmp_path, encoding):
    content = {**CONTENT, "categories": [{"id": 3, "name": "Kätzchen"}]}
    text = json.dumps(content, ensure_ascii=False).encode(encoding)
    assert read(tmp_path, text)["categories"][0]["name"] == "Kätzchen"


def test_nan_is_taken_where_any_number_may_be(tmp_path):
    """As pandas writes a table with gaps; it is a fault where whole numbers belong."""
    found = read(tmp_path, changed(area=float("nan"), score=float("inf")))["annotations"][1]
    assert found["area"] != found["area"]
    with pytest.raises(InputError, match=r"annotations\[1\]\.image_id is nan; expected a whole"):
        read(tmp_path, changed(image_id=float("nan")))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"<html>", "is not a whole json file"),
        (b'{"images": [', "is not a whole json file"),
        (b"", "is not a whole json file"),
        (b'{"images": "\xff"}', "is not a whole json file"),
        ([], "is a json list; expected an object with images, annotations, categories"),
        ({**CONTENT, "images": None}, "images is None; expected a list"),
        (changed(image_id=None), r"annotations\[1\]\.image_id is None; expected a whole number"),
        (changed(image_id=True), r"annotations\[1\]\.image_id is True; expected a whole number"),
        (changed(image_id=2**63), "image_id is 9223372036854775808; expected a whole number <="),
        (changed(bbox=[1, 2, {}, 4]), r"annotations\[1\]\.bbox\[2\] is \{\}; expected a number"),
        (changed(segmentation=[[1, 2, "a"]]), r"segmentation\[0\]\[2\] is 'a'; expected a number"),
        (changed(segmentation=7), r"annotations\[1\]\.segmentation is 7; expected"),
        (changed(area=10**400), r"annotations\[1\]\.area is 1000.*0; number out of range"),
        (changed(scribble=json.loads("[" * 400 + "]" * 400)), None),
        (b'{"images": ' + b"[" * 10**5 + b"]" * 10**5 + b"}", "nested too deeply"),
        (b'{"more": ' + b"[" * 10**5 + b"]" * 10**5 + b"}", "nested too deeply"),
        ({**CONTENT, "categories": [{"id": 3}]}, r"categories\[0\] has no name: \{'id': 3\}; add"),
        ({**CONTENT, "categories": [{"id": 3, "name": "a\nb"}]}, "without control characters"),
        ({**CONTENT, "categories": [{"id": 3, "name": "\ud800"}]}, "without control characters"),
        ({**CONTENT, "images": [{"id": 1, "file_name": "a\0"}]}, "without control characters"),
    ],
)
def test_faults_are_one_line_with_place_and_value(tmp_path, content, says):
    if says is None:
        assert read(tmp_path, content)
        return
    with pytest.raises(InputError, match=rf"x\.json.*{says}") as error:
        read(tmp_path, content)
    assert len(str(error.value).splitlines()) == 1


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match=r"cannot read .*none\.json: No such file"):
        read_records(tmp_path / "none.json", Detections)


def test_captions_and_sources(tmp_path):
    captions = {"annotations": [{"image_id": 7, "id": 1, "caption": "a cat"}]}
    assert read(tmp_path, captions, Captions)["annotations"][0]["caption"] == "a cat"
    sources = {"annotations": [{**ANNOTATION, "source": "PDSL"}, ANNOTATION]}
    assert read(tmp_path, sources, Sources) == {"annotations": [{"source": "PDSL"}, {}]}
