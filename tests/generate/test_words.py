"""Substitution of object words."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsis.datasets._scene import THINGS
from wsis.datasets.voc import VOC_CLASSES
from wsis.generate._lexicon import COCO_CLASSES, OTHERS
from wsis.generate.words import plurals, prompts, substitute, synonyms

SHAPES = tuple(kind.name for kind in THINGS)
ONE = set(OTHERS)
MANY = {"rocks", "barrels", "statues", "crates", "fountains", "logs", "pillars", "lanterns", "baskets", "mailboxes"} | {
    "wheelbarrows", "ladders", "shrubs", "tents", "fences", "windmills",
}  # fmt: skip
TARGETS = {
    "man": ONE, "women": MANY, "people": MANY, "policemen": MANY, "children": MANY, "airplane": ONE, "jets": MANY,
    "buses": MANY,     "dining tables": MANY, "dining-table": ONE, "diningtable": ONE, "potted plant": ONE, "tv monitors": MANY,
    "TV": ONE,    "Motorbikes": MANY, "motor cycle": ONE, "ponies": MANY, "sheep": ONE, "calves": MANY, "oxen": MANY,
    "geese": MANY,    "loveseat": ONE, "puppies": MANY, "Dog": ONE, "double decker": ONE, "yachts": MANY, "humans": MANY,
}  # fmt: skip
OTHER_WORDS = (
    "the", "grass", "near", "training", "catfish", "carpet", "birdhouse", "dogma", "bottleneck", "hot dog", "teddy bears",
    "giraffe", "two", "red", "on", ",",  "boathouse", "Horseshoe", "elephants", "businesslike", "café", "3", "wine glasses",
)  # fmt: skip


@given(st.lists(st.sampled_from([*TARGETS, *OTHER_WORDS]), max_size=12))
def test_target_words_alone_are_replaced_in_the_right_number(words):
    new = substitute(" | ".join(words), VOC_CLASSES).split(" | ") if words else []
    for before, after in zip(words, new, strict=True):
        if before in TARGETS:
            assert after.lower() in TARGETS[before]
            assert after[0].isupper() == before[0].isupper()
        else:
            assert after == before


@given(
    st.text(st.sampled_from("acdgino t-_s"), max_size=30),
    st.sampled_from([VOC_CLASSES, COCO_CLASSES, SHAPES]),
)
def test_nothing_is_left_to_replace(caption, classes):
    once = substitute(caption, classes)
    assert substitute(once, classes) == once


@given(st.text(max_size=40))
def test_without_classes_a_caption_stays(caption):
    assert substitute(caption, []) == caption
    assert substitute(caption, ["", "-"]) == caption


@pytest.mark.parametrize(
    "classes", [VOC_CLASSES, COCO_CLASSES, SHAPES], ids=["voc", "coco", "shapes"]
)
def test_every_word_of_every_class_is_replaced(classes):
    for name in classes:
        for word in {name, *synonyms(name)}:
            for form in (word, *plurals(word)):
                new = substitute(f"view of {form}, grey", classes)
                assert re.fullmatch(r"view of (\w+), grey", new), (form, new)
                assert re.fullmatch(r"view of (\w+), grey", new)[1] in ONE | MANY, (form, new)


def test_the_longest_name_decides():
    assert substitute("a hot dog", ["dog"]) == "a hot dog"
    assert substitute("a hot dog", ["hot dog"]).split()[1] in ONE
    assert len(substitute("a hot dog", ["hot dog", "dog"]).split()) == 2
    assert substitute("a fire lizard, Fire-Lizards", ["fire lizard"]).lower().split(", ")[1] in MANY
    assert substitute("a c++ book", ["c++"]).split()[1] in ONE


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("an airplane", r"a \w+"),
        ("An  elephant", r"A  \w+"),
        ("an old man", r"an old \w+"),
        ("an umbrella", "an umbrella"),
    ],
)
def test_the_article_fits(before, after):
    assert re.fullmatch(after, substitute(before, ["airplane", "elephant", "person"]))


def test_objects_differ_and_stay_the_same_each_time():
    captions = [f"{number} dogs beside a man and a chair" for number in range(200)]
    new = [substitute(caption, VOC_CLASSES) for caption in captions]
    assert new == [substitute(caption, VOC_CLASSES) for caption in captions]
    assert {line.split()[1] for line in new} == MANY
    assert all(
        len({line.split()[1].rstrip("s"), line.split()[4], line.split()[7]}) == 3 for line in new
    )


def test_no_object_of_a_class_is_put_in():
    classes = [*VOC_CLASSES, "log", "rocks", "tent pole"]
    new = {substitute(f"{number} dogs", classes).split()[1] for number in range(300)}
    assert new == MANY - {"logs", "rocks", "tents"}
    assert substitute("a dog", ["dog", *OTHERS]) == "a thing"


def test_names_of_data_sets():
    assert prompts(
        ["aeroplane", "tvmonitor", "diningtable", "pottedplant", "sofa", "umbrella", "fire lizard"]
    ) == [
        "a photo of an airplane",
        "a photo of a tv",
        "a photo of a dining table",
        "a photo of a potted plant",
        "a photo of a couch",
        "a photo of an umbrella",
        "a photo of a fire lizard",
    ]
    assert all(len(synonyms(name)) > 1 or name in COCO_CLASSES for name in (*VOC_CLASSES, *SHAPES))
    assert synonyms("fire_lizard") == ("fire lizard",)


def test_coco_classes_are_those_of_the_file():
    shared = Path(os.environ.get("WSIS_SHARED") or Path(__file__).parents[3] / "shared" / "data")
    path = next(shared.rglob("instances_val2017*.json"), None)
    if path is None:
        pytest.skip("COCO's annotations are not here")
    assert list(COCO_CLASSES) == [
        category["name"] for category in json.loads(path.read_text())["categories"]
    ]


@pytest.mark.parametrize(
    ("one", "many"),
    [
        ("dog", "dogs"),
        ("bus", "buses"),
        ("bench", "benches"),
        ("knife", "knives"),
        ("calf", "calves"),
        ("giraffe", "giraffes"),
        ("puppy", "puppies"),
        ("toy", "toys"),
        ("wine glass", "wine glasses"),
        ("fireman", "firemen"),
        ("mouse", "mice"),
    ],
)
def test_plurals(one, many):
    assert plurals(one)[0] == many
