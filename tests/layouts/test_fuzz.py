"""Whatever is in a label file, reading gives an index or one line.

WSIS_FUZZ=10000 sets the number of files of each kind.
"""

from __future__ import annotations

import json
import os
import string
import warnings
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from wsis.errors import InputError
from wsis.layouts.find import read_split
from wsis.types import Index

pytestmark = pytest.mark.timeout(0 if "WSIS_FUZZ" in os.environ else 300)

BOX = {"x": 25, "y": 32, "width": 30, "height": 24}
REGION = {
    "shape_attributes": {"name": "rect", **BOX},
    "region_attributes": {"type": "cat"},
}
POLYGON = [[1, 1], [9, 1], [9, 9]]
RESULT = {"original_width": 80, "original_height": 60}
VALUE = {**BOX, "rotation": 5, "rectanglelabels": ["cat"]}
BRUSH = {"format": "rle", "rle": [0, 0, 75, 0, 57, 1, 2], "brushlabels": ["cat"]}
DOT = {"x": 50, "y": 25, "width": 0.5, "keypointlabels": ["cat"]}
# fmt: off
JSONS = {
    "labels.json": [
        [{"image": "a.jpg", "annotations": [{"label": "cat", "coordinates": BOX}]}],
        {"a.jpg1": {"filename": "a.jpg", "size": 1, "regions": [REGION], "file_attributes": {}}},
        [{"id": 1, "annotations": [{"result": [{**RESULT, "value": VALUE}, {**RESULT, "value": BRUSH}]}], "data": {"image": "a.jpg"}}],
        [{"image": "a.jpg", "label": [{**VALUE, **RESULT}], "choice": "dog", "annotator": 1}],
        [{"id": 1, "annotations": [{"result": [{**RESULT, "value": DOT}]}], "data": {"image": "a.jpg"}}],
    ],
    "a.json": [
        {"shapes": [{"label": "cat", "shape_type": "polygon", "points": POLYGON, "group_id": None},
                    {"label": "cat", "shape_type": "circle", "points": POLYGON[:2], "group_id": 1},
                    {"label": "cat", "shape_type": "point", "points": POLYGON[:1], "group_id": 1}],
         "imagePath": "a.jpg", "imageHeight": 60, "imageWidth": 80, "flags": {"wet": True}},
    ],
    "metadata.jsonl": [{"file_name": "a.jpg", "label": "cat", "objects": {"bbox": [[1, 2, 3, 4]], "categories": [0]}}],
    "data.yaml": [{"train": "images", "names": ["cat", "dog"], "path": "."}],
}
TEXTS = {
    "labels.csv": ["file,tags\na.jpg,cat;dog\nb.jpg,\n", "filename,class,xmin,ymin,xmax,ymax\na.jpg,cat,1,2,3,4\n",
                   "file,class,x,y,label,object\na.jpg,cat,1,2,1,1\na.jpg,cat,30,4,0,\n",
                   "file,cat,dog\na.jpg,0,1\n", 'filename,region_shape_attributes,region_attributes,file_attributes\na.jpg,"{""name"":""rect""}","{}","{}"\n'],
    "a.xml": ["<annotation><filename>a.jpg</filename><size><width>80</width><height>60</height></size><object><name>cat</name>"
              "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object></annotation>"],
    "annotations.xml": ['<annotations><image name="a.jpg" width="80" height="60"><box label="cat" xtl="1" ytl="2" xbr="3" ybr="4"/><points label="cat" points="1,1;9,9"/>'
                        '<polygon label="cat" points="1,1;9,1;9,9"/><mask label="cat" rle="1,5" left="1" top="2" width="3" height="2"/></image></annotations>'],
    "images/a.txt": ["0 0.5 0.5 0.1 0.1\n1 0.1 0.1 0.2 0.1 0.2 0.2\n"],
}
# fmt: on
STRANGE = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**25), 10**25),
    st.floats(),
    st.text(max_size=5),
    st.just([]),
    st.just({}),
    st.just([[]]),
    st.just("../../a.jpg"),
    st.just("x" * 5000),
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz")
    for name in ("a.jpg", "b.jpg", "images/a.jpg"):
        (folder / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (80, 60)).save(folder / name)
    return folder


def check(root: Path, name: str, content: bytes) -> None:
    """Read a folder with one file more; it is an index with sound numbers, or one line."""
    path = root / name
    path.write_bytes(content)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            index = read_split(root, "train")
    except InputError as error:
        message = str(error)
        assert "\n" not in message
    else:
        assert isinstance(index, Index)
        classes = range(len(index.categories))
        assert all(tag in classes for tags in index.tags.values() for tag in tags)
        for found in index.annotations.values():
            boxes = [a["bbox"] for a in found if a.get("points") is None or "bbox" in a]
            assert all(len(box) == 4 and min(box[2:]) > 0 for box in boxes)
            points = [point for a in found for point in a.get("points") or ()]
            assert all(0 <= x < 80 and 0 <= y < 60 and label in (0, 1) for x, y, label in points)
    finally:
        path.unlink()


def changed(draw: st.DrawFn, value):
    """Replace or drop one value somewhere inside."""
    if not isinstance(value, list | dict) or not value or draw(st.integers(0, 4)) == 0:
        return draw(STRANGE)
    key = draw(st.sampled_from(sorted(value) if isinstance(value, dict) else range(len(value))))
    copied = value.copy()
    if draw(st.integers(0, 4)) == 0:
        del copied[key]
    else:
        copied[key] = changed(draw, value[key])
    return copied


@st.composite
def jsons(draw: st.DrawFn) -> tuple[str, bytes]:
    name = draw(st.sampled_from(sorted(JSONS)))
    value = draw(st.sampled_from(JSONS[name]))
    for _ in range(draw(st.integers(1, 2))):
        value = changed(draw, value)
    return name, json.dumps(value).encode()


@st.composite
def texts(draw: st.DrawFn) -> tuple[str, bytes]:
    name = draw(st.sampled_from(sorted(TEXTS)))
    content = draw(st.sampled_from(TEXTS[name]))
    start = draw(st.integers(0, len(content)))
    end = draw(st.integers(start, min(start + 9, len(content))))
    letters = string.printable + "\u00e9\u0301\u00a0\u2028\0\ufeff"
    inserted = draw(st.text(letters, max_size=6) | st.sampled_from(["nan", "1e999", "-1", "&x;"]))
    encoding = draw(st.sampled_from(["utf-8", "utf-8", "utf-16", "latin-1"]))
    return name, (content[:start] + inserted + content[end:]).encode(encoding, "replace")


FAST = settings(
    max_examples=int(os.environ.get("WSIS_FUZZ", 80)),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@FAST
@given(case=jsons())
def test_json(root, case):
    check(root, *case)


@FAST
@given(case=texts())
def test_text(root, case):
    name, content = case
    if name.endswith(".txt"):
        (root / "classes.txt").write_text("cat\ndog\n")
    try:
        check(root, name, content)
    finally:
        (root / "classes.txt").unlink(missing_ok=True)


@FAST
@given(
    name=st.sampled_from(sorted({*JSONS, *TEXTS})),
    content=st.binary(max_size=40),
)
def test_bytes(root, name, content):
    check(root, name, content)
