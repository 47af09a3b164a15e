from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from labelled import objects, points, tags
from pycocotools import mask as rle

from wsis.errors import InputError
from wsis.layouts.brush import decode_brush

URL = "/data/upload/1/3f2a1b9c-a.jpg"
RECTANGLE = {"x": 12.5, "y": 100 / 3, "width": 37.5, "height": 40, "rotation": 0}
TRIANGLE = {"points": [[12.5, 50], [50, 50], [12.5, 90]]}
SIZE = {"original_width": 80, "original_height": 60, "image_rotation": 0}


def pack(alpha: np.ndarray, literal: bool = False) -> list[int]:
    """Encode a mask as the format says, in runs of at most 8 values or all values apart."""
    values = np.repeat(alpha.astype(np.uint8).ravel() * 255, 4)
    bits = f"{len(values):032b}" + f"{7:05b}" + "".join(f"{n - 1:04b}" for n in (3, 4, 9, 16))
    for start in range(0, len(values), 8):
        part = values[start : start + 8]
        is_run = (part == part[0]).all() and not literal
        bits += f"{int(is_run)}00{len(part) - 1:03b}"
        bits += "".join(f"{value:08b}" for value in (part[:1] if is_run else part))
    bits += "0" * (-len(bits) % 8)
    return [int(bits[n : n + 8], 2) for n in range(0, len(bits), 8)]


@pytest.fixture
def alpha() -> np.ndarray:
    return np.random.default_rng(0).random((60, 80)) > 0.4


@pytest.mark.parametrize("literal", [False, True])
def test_brush(alpha, literal):
    packed = pack(alpha, literal)
    assert (decode_brush(packed, (60, 80)) == alpha).all()
    with pytest.raises(ValueError, match="not of an image of 61 x 80 pixels"):
        decode_brush(packed, (80, 60 + 1))
    with pytest.raises(ValueError):  # noqa: PT011  numpy's or int's
        decode_brush(packed[:100], (60, 80))


def test_brush_as_the_reference_packs_it(alpha):
    brush = pytest.importorskip("label_studio_converter.brush")
    pixels = np.repeat(alpha.astype(np.uint8).ravel() * 255, 4)
    assert (decode_brush(brush.encode_rle(pixels), (60, 80)) == alpha).all()


def results(alpha: np.ndarray) -> list[dict]:
    values = [
        ("rectanglelabels", {**RECTANGLE, "rectanglelabels": ["cat"]}),
        ("polygonlabels", {**TRIANGLE, "closed": True, "polygonlabels": ["dog"]}),
        ("brushlabels", {"format": "rle", "rle": pack(alpha), "brushlabels": ["dog"]}),
        ("ellipselabels", {"x": 50, "y": 50, "radiusX": 25, "radiusY": 10, "rotation": 90, "ellipselabels": ["cat"]}),
        ("choices", {"choices": ["wet", "dark"]}),
        ("textarea", {"text": ["a remark"]}),
    ]  # fmt: skip
    return [{**SIZE, "type": kind, "from_name": "x", "value": value} for kind, value in values]


def check(index, alpha: np.ndarray, name: str) -> None:
    found = objects(index)[name]
    assert found[0] == ("cat", 10, 20, 30, 24)
    assert found[1] == ("dog", 10, 30, 30, 24)
    assert found[3] == pytest.approx(("cat", 34, 10, 12, 40), abs=0.1)  # of 20 x 6 px, upright
    assert tags(index)[name] == ["cat", "dark", "dog", "wet"]
    masks = index.annotations[index.images[0]["id"]]
    assert (rle.decode(masks[2]["segmentation"]).astype(bool) == alpha).all()


@pytest.mark.parametrize(
    "image",
    [URL, "/data/local-files/?d=my/a.jpg", "s3://bucket/my%20a/a.jpg", "https://x.org/a.jpg?key=1"],
)
def test_json(photos, read, alpha, image):
    root = photos("a.jpg", "b.jpg")
    done = {"id": 1, "result": results(alpha), "was_cancelled": False}
    skipped = {"id": 2, "result": results(alpha), "was_cancelled": True}
    tasks = [
        {"id": 1, "annotations": [skipped, done], "data": {"image": image}, "file_upload": "3f2a1b9c-a.jpg"},
        {"id": 2, "annotations": [], "data": {"image": "b.jpg"}},
    ]  # fmt: skip
    (root / "project-1-at-2026.json").write_text(json.dumps(tasks))
    index = read(root)
    check(index, alpha, "a.jpg")
    assert tags(index)["b.jpg"] == []


def row(alpha: np.ndarray) -> dict:
    shapes = [{**r["value"], **SIZE} for r in results(alpha) if "choices" not in r["value"]]
    return {"image": URL, "id": 1, "label": shapes[:4], "choice": {"choices": ["wet", "dark"]},
            "remark": "a remark", "annotator": 1, "annotation_id": 1, "lead_time": 3.2}  # fmt: skip


def test_json_min(photos, read, alpha):
    root = photos("a.jpg", "b.jpg")
    rows = [row(alpha), {"image": "b.jpg", "id": 2, "annotator": 1}]
    (root / "project-1.json").write_text(json.dumps(rows))
    check(read(root), alpha, "a.jpg")


def test_csv(photos, read, alpha):
    root = photos("a.jpg")
    write_csv(root, [row(alpha)])
    check(read(root), alpha, "a.jpg")


def write_csv(root: Path, rows: list[dict]) -> None:
    with (root / "project-1.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        for values in rows:
            cells = {k: v if isinstance(v, str) else json.dumps(v) for k, v in values.items()}
            writer.writerow(cells)


def test_choices_alone(photos, read):
    root = photos("a.jpg", "b.jpg")
    rows = [{"image": URL, "id": 1, "choice": "wet", "annotator": 1, "annotation_id": 1},
            {"image": "b.jpg", "id": 2, "choice": '{"choices": ["wet", "dark"]}', "annotator": 1, "annotation_id": 2}]  # fmt: skip
    write_csv(root, rows)
    assert tags(read(root)) == {"a.jpg": ["wet"], "b.jpg": ["dark", "wet"]}
    write_csv(
        root, [{"image": URL, "mood": "wet", "site": "north", "annotator": 1, "annotation_id": 1}]
    )
    with pytest.raises(InputError, match="fields mood, site, any of which may be the class"):
        read(root)


def test_a_turned_rectangle_is_held_by_its_box(photos, read):
    root = photos("a.jpg")
    turned = {**RECTANGLE, "rotation": 90, "rectanglelabels": ["cat"]}
    task = {
        "id": 1,
        "annotations": [{"result": [{**SIZE, "value": turned}]}],
        "data": {"image": URL},
    }
    (root / "labels.json").write_text(json.dumps([task]))
    # 30 x 24 px from (10, 20) on, clockwise around that corner: 24 px to the left, 30 down
    assert objects(read(root)) == {"a.jpg": [("cat", -14, 20, 24, 30)]}


def region(**fields):
    place = {"x": 10, "y": 10, "width": 20, "height": 20, "rotation": 0}
    value = {**place, "rectanglelabels": ["cat"]}
    return {"id": "r1", "type": "rectanglelabels", "value": value, **fields}


def task(*results):
    return [{"id": 1, "data": {"image": "a.jpg"}, "annotations": [{"result": [*results]}]}]


def test_choices_of_a_region_are_no_class(photos, read):
    root = photos("a.jpg")
    remark = {"id": "r1", "type": "choices", "value": {"choices": ["occluded"]}}
    (root / "labels.json").write_text(json.dumps(task(region(), remark)))
    assert objects(read(root)) == {"a.jpg": [("cat", 8, 6, 16, 12)]}
    assert tags(read(root)) == {"a.jpg": ["cat"]}


def dot(x, y, name, **fields):
    value = {"x": x, "y": y, "width": 0.5, "keypointlabels": [name]}
    return {**SIZE, "type": "keypointlabels", "value": value, **fields}


def test_points_are_objects_unless_they_are_parts(photos, read):
    root = photos("a.jpg")
    results = [
        region(),
        dot(50, 25, "dog", id="d1"),
        dot(1.25, 90, "dog", id="d2"),
        dot(12, 12, "nose", id="n1", parentID="r1"),
    ]
    (root / "labels.json").write_text(json.dumps(task(*results)))
    index = read(root)
    assert objects(index) == {"a.jpg": [("cat", 8, 6, 16, 12)]}
    assert points(index) == {"a.jpg": [("dog", (40, 15, 1)), ("dog", (1, 54, 1))]}
    assert tags(index) == {"a.jpg": ["cat", "dog"]}
    rows = [{"id": 1, "image": "a.jpg", "annotator": 1, "kp": [{**dot(50, 25, "dog")["value"]}]}]
    (root / "labels.json").write_text(json.dumps(rows))  # JSON-MIN
    assert points(read(root)) == {"a.jpg": [("dog", (40, 15, 1))]}


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"image_rotation": 90}, "turned by 90 degrees in Label Studio; turn the photo itself"),
        ({"value": {"x": 1, "y": 1, "width": 2, "height": 2}}, "rectanglelabels has no class"),
    ],
)
def test_regions_that_cannot_be_placed_or_named(photos, read, fields, error):
    root = photos("a.jpg")
    (root / "labels.json").write_text(json.dumps(task(region(**fields))))
    with pytest.raises(InputError, match=error):
        read(root)


def test_the_first_annotator_of_a_task_counts_in_rows(photos, read):
    root = photos("a.jpg", "b.jpg")
    label = {"x": 10, "y": 10, "width": 20, "height": 20, "rectanglelabels": ["cat"]}
    label |= {"original_width": 80, "original_height": 60}
    rows = [
        {"id": number, "image": image, "label": [label], "annotator": annotator}
        for number, image, annotator in ((1, "a.jpg", 1), (1, "a.jpg", 2), (2, "b.jpg", 2))
    ]
    (root / "labels.json").write_text(json.dumps(rows))
    one = [("cat", 8, 6, 16, 12)]
    assert objects(read(root)) == {"a.jpg": one, "b.jpg": one}
