"""Worth, by hand: bits of questions, seconds of answers, and which image comes first."""

from __future__ import annotations

import math
import random
from collections import Counter
from pathlib import Path

import pytest

from wsis.serve.labels import EMPTY
from wsis.serve.order import Seconds, Told, bits_of, by_worth, next_images, seconds_of
from wsis.serve.suggestions import Found


def entropy(*chances: float) -> float:
    return sum(-p * math.log2(p) - (1 - p) * math.log2(1 - p) for p in chances)


def test_a_detection_at_the_threshold_is_one_bit():
    assert bits_of([("cat", 0.3)], 0.3, EMPTY) == pytest.approx({"cat": 1})
    assert bits_of([("cat", 0.5)], 0.5, EMPTY) == pytest.approx({"cat": 1})
    assert bits_of([("cat", 1.0), ("cat", 0.0)], 0.3, EMPTY) == {"cat": 0}


def test_bits_are_entropies_at_shifted_odds():
    # a threshold of 0.2 is even odds, so 0.5 has the odds of 4 to 1, and 0.9 of 36 to 1
    found = [("cat", 0.5), ("dog", 0.9), ("cat", 0.2)]
    expected = {"cat": entropy(4 / 5) + 1, "dog": entropy(36 / 37)}
    assert bits_of(found, 0.2, EMPTY) == pytest.approx(expected)


def test_tags_without_an_object_are_a_bit_each():
    label = {
        **EMPTY,
        "tags": ["cat", "dog", "bird"],
        "objects": [{"name": "dog", "bbox": [0, 0, 1, 1]}],
    }
    assert bits_of([("cat", 1.0)], 0.5, label) == {"cat": 0, "bird": 1}
    assert bits_of([], 0.5, label) == {"cat": 1, "bird": 1}
    done = {**label, "done": True}
    assert bits_of([("horse", 0.5)], 0.5, done) == {"cat": 1, "bird": 1}  # there is no horse


def test_seconds():
    costs = Seconds(tag=1, point=2.4, box=7, answer=3)
    found = [("cat", 0.9), ("cat", 0.6), ("dog", 0.1)]
    assert seconds_of(found, 0.5, EMPTY, 20, costs) == 20 + 2 * 3
    tagged = {**EMPTY, "done": True, "tags": ["dog"]}
    assert seconds_of([], 0.5, tagged, 20, costs) == 3  # never free
    assert seconds_of(found, 0.5, tagged, 20, costs) == pytest.approx(2 * 3 + 2.4)


NAMES = ["a", "b", "c", "d"]


def found(**scores: list[float]) -> Found:
    box, mask = [0.0, 0.0, 1.0, 1.0], None
    return Found(
        Path("run"),
        0.5,
        {
            name: [{"name": "cat", "score": s, "bbox": box, "segmentation": mask} for s in each]
            for name, each in scores.items()
        },
    )


def test_the_least_sure_image_comes_first():
    labels = dict.fromkeys(NAMES, EMPTY)
    sure = found(a=[0.99], b=[0.55], c=[0.8], d=[])
    assert next_images(NAMES, labels, sure, 1) == ["b", "c", "a", "d"]
    assert next_images(NAMES, labels, sure, 1, shown={"b"}) == ["c", "a", "d", "b"]
    assert next_images(NAMES, labels, sure, 1, "name") == NAMES


def test_what_is_done_comes_back_for_a_tag_of_which_nothing_is_found():
    done = {**EMPTY, "done": True, "tags": ["cat"]}
    labels = {"a": done, "b": done, "c": EMPTY, "d": {**EMPTY, "done": True}}
    assert next_images(NAMES, labels, found(a=[0.9], b=[0.1], c=[0.99], d=[0.5]), 9) == ["b", "c"]
    assert next_images(NAMES, labels, found(c=[0.9]), 9, "random") == ["c"]
    assert next_images(NAMES, labels, None, 9) == ["c"]


def test_random_is_one_order_for_a_seed_and_no_order_of_names():
    names = [f"{k:03}" for k in range(50)]
    labels = dict.fromkeys(names, EMPTY)
    first = next_images(names, labels, None, 1, "random")
    assert sorted(first) == names != first
    assert next_images(names[::-1], labels, None, 1, "random") == first
    assert next_images(names, labels, None, 1, "random", seed=1) != first
    rest = {**labels, first[0]: {**EMPTY, "done": True}}
    assert next_images(names, rest, None, 1, "random") == first[1:]


def test_what_was_labelled_before_tells_less():
    told = Told({"cat": 1.0, "dog": 0.5}, 4.0)
    assert told.worth({}) == 1.5 / 4
    assert told.worth({"cat": 3, "bird": 9}) == (1 / 4 + 0.5) / 4


def test_each_image_is_the_best_that_is_left():
    draws = random.Random(0)
    told = {
        f"{k}": Told(
            {c: draws.random() for c in "abcde" if draws.random() < 0.4}, 1 + draws.random()
        )
        for k in range(60)
    }
    counts, left, expected = Counter({"a": 2}), dict(told), []
    while left:
        best = max(left, key=lambda name: left[name].worth(counts))
        expected.append(best)
        counts.update(left.pop(best).bits.keys())
    assert by_worth(told, {"a": 2}) == expected


def test_a_class_of_which_nothing_is_labelled_comes_before_one_of_which_much_is():
    done = {**EMPTY, "done": True, "tags": ["cat"]}
    labels = {**dict.fromkeys("abc", done), "d": EMPTY, "e": EMPTY}
    things = found(a=[0.9], b=[0.9], c=[0.9], d=[0.5])
    dog = {"name": "dog", "score": 0.9, "bbox": [0.0, 0.0, 1.0, 1.0], "segmentation": None}
    things.objects["e"] = [dog]
    assert next_images([*"abcde"], labels, things, 2) == ["e", "d"]
    bare = dict.fromkeys("de", EMPTY)
    assert next_images([*"de"], bare, things, 2) == ["d", "e"]
