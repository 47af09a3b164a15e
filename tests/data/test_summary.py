"""What is said of a data set before training."""

from __future__ import annotations

from pathlib import Path

from wsis.data.summary import brief, describe
from wsis.types import Index


def index(names: str, *tags: str, times: int = 10) -> Index:
    """Images with one letter per tag, the first of its class's name, each `times` times."""
    classes = names.split()
    position = {name[0]: k for k, name in enumerate(classes)}
    images = [
        {"id": n, "file_name": f"{n}.jpg", "height": 4, "width": 4}
        for n in range(len(tags) * times)
    ]
    of_image = {n: [position[letter] for letter in tags[n // times]] for n in range(len(images))}
    categories = [{"id": k + 1, "name": name} for k, name in enumerate(classes)]
    return Index(
        name="own", root=Path(), images=images, categories=categories, annotations={}, tags=of_image
    )


def test_good_tags_are_counted_and_no_more():
    assert describe(index("ant bee", "a", "b", "ab", "")) == [
        "40 images, 2 classes: ant 20, bee 20; 10 images without any"
    ]
    assert describe(index("weed", "w", "")) == [
        "20 images, 1 class: weed 10; 10 images without any"
    ]


def test_objects_known_by_points_are_counted():
    box = {"category_id": 1, "bbox": [1, 1, 2, 2]}
    mask = {**box, "segmentation": [[1, 1, 3, 1, 3, 3]]}
    point = {"category_id": 1, "points": [[1, 1, 1]]}
    tagged = index("ant", "a", "")
    known = tagged._replace(annotations={0: [box, mask, point, point], 1: [mask | point]})
    assert describe(known)[1] == "objects by what is known of them: mask 2, box 1, point 2"
    assert len(describe(tagged._replace(annotations={0: [box, mask]}))) == 1


def test_a_class_in_every_image_cannot_be_told_from_the_rest():
    _, note = describe(index("ant bee", "a", "ab"))
    assert 'every image has "ant"' in note


def test_classes_that_only_occur_together():
    _, note = describe(index("ant soil", "as", "s", ""))
    assert '"ant" is only in images of "soil"' in note
    lines = describe(index("ant soil", "as", ""))
    assert len(lines) == 3, "each is only with the other"


def test_few_images():
    _, note = describe(index("ant bee", "a", "b", "", times=4))
    assert note.endswith("fewer than 10 images: ant 4, bee 4")


def test_names_that_may_be_one():
    cats = index("cat Cat dog", "d", "c", "C", "")
    _, note = describe(cats)
    assert '"cat" and "Cat" are two classes' in note
    composed = index("käfer x", "k", "x", "")
    names = ["Ka\u0308fer", "k\u00e4fer"]
    categories = [{"id": k, "name": name} for k, name in enumerate(names)]
    assert "are two classes" in describe(composed._replace(categories=categories))[1]
    cafes = [{"id": k, "name": name} for k, name in enumerate(["cafe", "caf\u00e9"])]
    assert "are two classes" in describe(composed._replace(categories=cafes))[1]
    joined = [{"id": k, "name": name} for k, name in enumerate(["cat,dog", "x"])]
    note = describe(composed._replace(categories=joined))[1]
    assert '"cat,dog" is one class; write a semicolon between tags' in note
    nothing = index("ant none", "a", "n", "")
    assert '"none" is a class like others' in describe(nothing)[1]


def test_notes_of_reading_come_first():
    ant = index("ant bee", "a", "b", "")
    assert describe(ant._replace(notes=["labels: 30 images"]))[0] == "labels: 30 images"


def test_many_classes_are_cut_short():
    names = " ".join(chr(ord("A") + k) for k in range(26))
    (line,) = describe(index(names, *names.split(), ""))
    assert "26 classes: A 10" in line
    assert "T 10, ...;" in line
    assert "U 10" not in line


def test_brief_has_sizes_and_classes():
    splits = {"train": index("ant bee", "a", "b"), "val": index("ant bee", "a", times=4)}
    assert brief(splits) == "20 train and 4 val images, 2 classes: ant, bee"
    assert brief({"train": index("weed", "w", times=1)}) == "1 train images, 1 class: weed"
    many = " ".join(f"{chr(0x4E00 + n)}{n}" for n in range(25))
    assert brief({"train": index(many)}).endswith(", ...")
