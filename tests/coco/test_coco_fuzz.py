"""Damaged COCO files: each is read into masks that decode, or refused in one line.

WSIS_FUZZ=100000 sets the number of files of each kind.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as rle

from wsis.data.index import read_coco, read_stuff, write_coco
from wsis.data.samples import truth_of
from wsis.errors import InputError
from wsis.metrics.results import read_results
from wsis.types import Index, class_of

pytestmark = pytest.mark.timeout(0 if "WSIS_FUZZ" in os.environ else 300)
MANY = settings(max_examples=int(os.environ.get("WSIS_FUZZ", 150)))

H, W = 6, 8
RUNS = {"size": [H, W], "counts": [9, 4, 2, 4, 29]}
PACKED = {"size": [H, W], "counts": rle.frPyObjects(RUNS, H, W)["counts"].decode()}
POLYGON = [[2, 1, 6.5, 1, 6, 4.25, 2, 4], [-1, -1, 1, -1, 1, 1]]
IMAGES = [{"id": k, "file_name": f"{k}.png", "height": H, "width": W} for k in (1, 2)]
CATEGORIES = [{"id": 3, "name": "cat"}, {"id": 5, "name": "dog"}]
PLACE = {"image_id": 1, "category_id": 3, "bbox": [1, 1, 4, 3]}
INSTANCES = {
    "images": IMAGES,
    "annotations": [
        {**PLACE, "id": 1, "segmentation": POLYGON, "area": 14.5, "iscrowd": 0},
        {**PLACE, "id": 2, "segmentation": RUNS, "area": 8, "iscrowd": 1},
        {**PLACE, "id": 3, "segmentation": PACKED, "score": 0.5, "source": "x", "ignore": 1},
        {"id": 4, "image_id": 2, "category_id": 5},
        {"id": 5, "image_id": 2, "category_id": 5, "points": [[2, 3.5, 1], [7, 1, 0]]},
        {**PLACE, "id": 6, "point": [2, 3], "point_coords": [[1, 1]], "point_labels": [0]},
    ],
    "categories": CATEGORIES,
}
RESULTS = [
    {**PLACE, "score": 0.5, "segmentation": RUNS},
    {**PLACE, "score": 0.9, "segmentation": PACKED, "image_id": 2},
    {**PLACE, "score": 0.1},
]
PANOPTIC = {
    "annotations": [
        {
            "image_id": k,
            "file_name": f"{k}.png",
            "segments_info": [
                {"id": 7, "category_id": 3, "iscrowd": 0, "area": 20},
                {"id": 300, "category_id": 9, "iscrowd": 0, "bbox": [0, 0, 4, 4]},
            ],
        }
        for k in (1, 2)
    ],
    "categories": [{**CATEGORIES[0], "isthing": 1}, {"id": 9, "name": "sky", "isthing": 0}],
}
ODD = [None, True, -1, 0, 0.5, 48, 2**31, 2**63, 2**64, 1e12, -1e300, float("nan"), float("inf")]
ODD += ["", "7", "0.5", "x", "\ud800", "a\nb", "a\0", "../1.png", "é" * 300, [], {}, [[]], [1, 2]]
ODD += [RUNS, PACKED, POLYGON, [6, 8], [8, 6], IMAGES[0], {"size": [H, W], "counts": "0"}]
INDEX = Index(name="good", root=Path(), images=IMAGES, categories=CATEGORIES)
VALUES = st.one_of(
    st.sampled_from(ODD),
    st.integers(),
    st.floats(),
    st.text(max_size=12),
    st.text("0123456789:;<=>?@ABCDEFGHIJKLMNOPQRSTUVWXYZ[]^_`abcdefghijklmno", max_size=12),
    st.lists(st.integers(-1, 50), max_size=8),
    st.lists(st.lists(st.floats(-20, 20) | st.floats(), max_size=8), max_size=3),
)


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container within a value, with each of its keys."""
    if isinstance(value, dict | list):
        for key in [*value] if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from places(value[key])


@st.composite
def damaged(draw: st.DrawFn, content: Any) -> bytes:
    """Json of `content` after a few changes of its values, and maybe of its bytes."""
    content = deepcopy(content)
    for _ in range(draw(st.integers(1, 3))):
        found = list(places(content))
        if not found:
            break
        container, key = found[draw(st.integers(0, len(found) - 1))]
        match draw(st.sampled_from(["set", "set", "set", "text", "delete", "repeat"])):
            case "set":
                container[key] = deepcopy(draw(VALUES))
            case "text":
                container[key] = str(container[key])
            case "delete":
                del container[key]
            case "repeat" if isinstance(container, list):
                container.insert(key, deepcopy(container[key]))
    text = json.dumps(content).encode()
    if draw(st.integers(0, 9)) == 0:
        start = draw(st.integers(0, len(text)))
        text = text[:start] + draw(st.binary(max_size=4)) + text[start + draw(st.integers(0, 4)) :]
    return text


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Any:
    root = tmp_path_factory.mktemp("fuzz")
    (root / "panoptic").mkdir()
    numbers = np.zeros((H, W, 3), np.uint8)
    numbers[2:, :4, 0], numbers[3:, 4:] = 7, (300 - 256, 1, 0)
    for k in (1, 2):
        Image.new("RGB", (W, H)).save(root / f"{k}.png")
        Image.fromarray(numbers).save(root / "panoptic" / f"{k}.png")
    return root


def check_masks(masks: list[Any], size: tuple[int, int]) -> None:
    for mask in masks:
        pixels = rle.decode(mask)
        assert pixels.shape == size
        assert pixels.max(initial=0) <= 1
    assert rle.iou(masks, masks, [0] * len(masks)) is not None


def in_one_line(error: InputError, name: str) -> None:
    assert len(str(error).splitlines()) == 1
    assert name in str(error)


@MANY
@given(damaged(INSTANCES))
@pytest.mark.filterwarnings("ignore")
def test_instances(root, text):
    (root / "x.json").write_bytes(text)
    try:
        index = read_coco(root / "x.json", root)
    except InputError as error:
        in_one_line(error, "x.json")
        return
    write_coco(root / "again.json", index)
    for read in (index, read_coco(root / "again.json", root)):
        for image in read.images:
            size = image["height"], image["width"]
            truth = truth_of(read.annotations[image["id"]], class_of(read.categories), size)
            assert truth.boxes.isfinite().all()
            check_masks(truth.masks, size)
            for annotation in read.annotations[image["id"]]:
                for x, y, label in annotation.get("points", []):
                    assert 0 <= x < size[1]
                    assert 0 <= y < size[0]
                    assert label in (0, 1)


@MANY
@given(damaged(RESULTS))
def test_results(root, text):
    (root / "x.json").write_bytes(text)
    try:
        predictions = read_results(root / "x.json", IMAGES, CATEGORIES)
    except InputError as error:
        in_one_line(error, "x.json")
        return
    for prediction in predictions:
        assert prediction.boxes.isfinite().all()
        assert prediction.scores.isfinite().all()
        check_masks(prediction.masks, (H, W))


@MANY
@given(damaged(PANOPTIC))
def test_panoptic(root, text):
    (root / "panoptic.json").write_bytes(text)
    try:
        index = read_stuff(root / "panoptic.json", INDEX)
        maps = [index.panoptic(image) for image in index.images]
    except InputError as error:
        in_one_line(error, "panoptic")
        return
    for found in maps:
        assert found is None or found.shape == (H, W, 2)
