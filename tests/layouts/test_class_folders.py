from __future__ import annotations

import pytest
from labelled import tags

from wsis.errors import InputError
from wsis.layouts.find import find_labels


def test_folders_are_classes(photos, read):
    root = photos("cat/a.jpg", "dog/deep/b.jpg", "_none/c.jpg")
    index = read(root)
    assert tags(index) == {"cat/a.jpg": ["cat"], "dog/deep/b.jpg": ["dog"], "_none/c.jpg": []}
    assert '"_none" of 1 image is read as none of the classes' in index.notes
    assert find_labels(root, "val") is None


def test_background_may_be_chosen(photos, read):
    root = photos("cat/a.jpg", "background/b.jpg")
    assert tags(read(root))["background/b.jpg"] == []
    assert tags(read(root, classes=["background"])) == {
        "background/b.jpg": ["background"],
        "cat/a.jpg": [],
    }


def test_splits(photos, read):
    root = photos("train/cat/a.jpg", "train/dog/b.jpg", "valid/cat/c.jpg", "valid/dog/d.jpg")
    assert tags(read(root)) == {"train/cat/a.jpg": ["cat"], "train/dog/b.jpg": ["dog"]}
    assert tags(read(root, "val", known=["cat", "dog"])) == {
        "valid/cat/c.jpg": ["cat"],
        "valid/dog/d.jpg": ["dog"],
    }


def test_folders_that_are_no_classes(photos, read):
    for folder in ("images", "DCIM"):
        with pytest.raises(InputError, match="no train labels"):
            read(photos(f"{folder}/a.jpg"))
    with pytest.raises(InputError, match="no train labels"):
        read(photos("images/a.jpg", "masks/a.png"))


def test_a_photo_outside(photos, read):
    with pytest.raises(InputError, match=r"e\.jpg and 0 more lie beside the folders of classes"):
        read(photos("cat/a.jpg", "dog/b.jpg", "e.jpg"))
