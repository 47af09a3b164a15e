"""The simulated annotator on two squares, one of which a model finds."""

from __future__ import annotations

import numpy as np
import pytest
from pycocotools import mask as rle

from wsis.serve.annotator import annotate
from wsis.serve.order import Seconds

CLASSES = ["cat", "dog", "bird"]
COSTS = Seconds(tag=1, point=2, box=7, answer=0.5)


def square(name: str, x: int, y: int, side: int, score: float = 1) -> dict:
    mask = np.zeros((50, 50), np.uint8, order="F")
    mask[y : y + side, x : x + side] = 1
    packed = rle.encode(mask)
    counts = packed["counts"].decode()
    return {
        "name": name,
        "score": score,
        "bbox": [float(x), float(y), float(side), float(side)],
        "segmentation": {"size": [50, 50], "counts": counts},
    }


TRUTH = [square("cat", 5, 5, 10), square("dog", 30, 30, 11)]
FOUND = [
    square("cat", 6, 5, 10),  # IoU 9 / 11
    square("cat", 5, 5, 10),  # the same cat again
    square("cat", 30, 30, 11),  # a dog
    square("dog", 38, 30, 10),  # not enough of it
]


def test_tags():
    label, seconds = annotate(TRUTH, FOUND, CLASSES, "tag", COSTS)
    assert (label["tags"], label["objects"], label["done"]) == (["cat", "dog"], [], True)
    assert seconds == 3


@pytest.mark.parametrize(("way", "cost"), [("box", 7), ("point", 2)])
def test_the_found_cat_is_accepted_and_the_missed_dog_drawn(way, cost):
    label, seconds = annotate(TRUTH, FOUND, CLASSES, way, COSTS)
    cat, dog = label["objects"]
    assert cat == {key: FOUND[0][key] for key in ("name", "bbox", "segmentation")}
    drawn = {"bbox": [30, 30, 11, 11]} if way == "box" else {"points": [[35.5, 35.5, 1]]}
    assert dog == {"name": "dog", **drawn}
    assert [refusal["name"] for refusal in label["refused"]] == ["cat", "cat", "dog"]
    assert seconds == 3 + 4 * 0.5 + cost


def test_an_empty_image_has_no_tags():
    label, seconds = annotate([], [], CLASSES, "box", COSTS)
    assert label == {"done": True, "tags": [], "objects": [], "refused": []}
    assert seconds == 3
