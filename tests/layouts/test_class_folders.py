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


VOC = """<annotation><filename>notes.jpg</filename><object><name>emu</name><bndbox><xmin>1</xmin>
<ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object></annotation>"""
LABELME = '{"shapes": [{"label": "emu", "points": [[1, 1], [9, 9]], "shape_type": "rectangle"}], "imagePath": "a.jpg", "imageHeight": 60, "imageWidth": 80, "flags": {}}'


@pytest.mark.parametrize(("name", "text"), [("a.xml", VOC), ("a.json", LABELME)])
def test_a_stray_label_file_is_not_silently_all_labels(photos, read, name, text):
    root = photos("cat/a.jpg", "cat/b.jpg", "dog/c.jpg")
    (root / "cat" / name).write_text(text)
    way_out = rf'1 label file .*cat/{name}, for 3 images.*--data\.labels "\*\.{name[2:]}"'
    with pytest.raises(InputError, match=way_out):
        read(root)
    assert [image["file_name"] for image in read(root, given=f"*.{name[2:]}").images] == [
        "cat/a.jpg"
    ]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("notes.xml", "<notes/>"),
        ("notes.json", '{"a": 1}'),
        ("notes.txt", "0 0.5 0.5 0.1 0.1"),
        ("labels.csv", "a.jpg,emu\n"),
        ("notes.xml", ""),
        ("notes.json", "{"),
    ],
)
def test_other_files_beside_the_images_of_a_class(photos, read, name, text):
    root = photos("cat/a.jpg", "dog/c.jpg")
    (root / "cat" / name).write_text(text)
    assert tags(read(root)) == {"cat/a.jpg": ["cat"], "dog/c.jpg": ["dog"]}
