"""Which labels of a folder are taken, and what is said of the rest."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import quote

import pytest
from labelled import tags

from wsis.datasets.folder import Folder
from wsis.errors import InputError
from wsis.layouts.find import LAYOUTS, find_labels
from wsis.layouts.pictures import Pictures

CREATEML = [{"image": "a.jpg", "annotations": [{"label": "cat"}]}]


def test_none_fits(photos, read):
    with pytest.raises(InputError, match=r"no train labels in .*labels\.csv.*YOLO"):
        read(photos("a.jpg"))
    root = photos("a.jpg")
    (root / "labels.json").write_text("{}")
    with pytest.raises(InputError, match=r"labels\.json has no known layout; known are COCO"):
        read(root)


def test_a_spreadsheet_is_to_be_saved_as_csv(photos, read):
    root = photos("a.jpg")
    (root / "Photos.xlsx").write_bytes(b"PK")
    with pytest.raises(InputError, match=r"Photos\.xlsx is a spreadsheet; save it as CSV"):
        read(root)


def test_two_fit(photos, read):
    root = photos("a.jpg")
    (root / "tags.csv").write_text("a.jpg,dog\n")
    (root / "objects.json").write_text(json.dumps(CREATEML))
    with pytest.raises(
        InputError, match=r"objects\.json \(Create ML\), tags\.csv \(table\); choose"
    ):
        read(root)
    assert tags(read(root, given="objects.json")) == {"a.jpg": ["cat"]}
    (root / "labels.csv").write_text("a.jpg,emu\n")
    assert tags(read(root)) == {"a.jpg": ["emu"]}


def test_splits_by_names_of_files_and_folders(photos, read):
    root = photos("a.jpg", "b.jpg")
    (root / "train.csv").write_text("a.jpg,cat\n")
    assert find_labels(root, "val") is None
    (root / "validation.csv").write_text("b.jpg,cat\n")
    assert tags(read(root)) == {"a.jpg": ["cat"]}
    assert tags(read(root, "val", known=["cat"])) == {"b.jpg": ["cat"]}


def test_what_is_left_out_is_said(photos, read):
    root = photos("a.jpg", "b.jpg", "c.jpg", "test/d.jpg")
    for name in ("e.dng", "f.avif", ".hidden.dng"):
        (root / name).write_bytes(b"")
    (root / "labels.csv").write_text("a.jpg,cat;dog\n")
    (root / "val.csv").write_text("b.jpg,cat\n")
    notes = Folder(root, proposals="none").index("train").notes
    assert "2 files left out: .avif, .dng; convert to JPEG what you need" in notes
    assert any(note.startswith("1 image without a label left out, such as c.jpg") for note in notes)
    chosen = Folder(root, classes=("dog", "emu"), proposals="none").index("train")
    assert tags(chosen) == {"a.jpg": ["dog"]}
    assert "labels of other classes are left out: cat (1 image)" in chosen.notes
    assert any(note.startswith("no image has emu") for note in chosen.notes)


def test_links_to_folders_are_followed_once(photos, read, tmp_path_factory):
    root = photos("here/a.jpg")
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (root / "here/a.jpg").rename(elsewhere / "b.jpg")
    (root / "linked").symlink_to(elsewhere)
    (root / "again").symlink_to(root)
    (root / "labels.csv").write_text("b.jpg,cat\n")
    assert tags(read(root)) == {"linked/b.jpg": ["cat"]}


def test_sizes_that_differ_are_found_before_training(photos, read):
    root = photos("a.jpg")
    xml = (
        "<annotation><filename>a.jpg</filename><size><width>160</width><height>120</height></size>"
        "<object><name>cat</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax>"
        "</bndbox></object></annotation>"
    )
    (root / "a.xml").write_text(xml)
    with pytest.raises(InputError, match="labelled at 160 x 120 pixels but has 80 x 60"):
        read(root)


def test_coordinates_far_outside(photos, read):
    root = photos("a.jpg")
    far = {"label": "cat", "coordinates": {"x": 1e9, "y": 5, "width": 4, "height": 4}}
    (root / "labels.json").write_text(json.dumps([{"image": "a.jpg", "annotations": [far]}]))
    with pytest.raises(InputError, match=r"far outside a\.jpg of 80 x 60 pixels"):
        read(root)


def test_a_missing_image_is_not_replaced_by_one_of_another_split(photos, read):
    root = photos("train/a.jpg", "valid/b.jpg")
    (root / "train/labels.csv").write_text("a.jpg,cat\nb.jpg,cat\n")
    with pytest.raises(InputError, match=r"labels\.csv:2: no image b\.jpg"):
        read(root)


def test_classes_that_no_label_has(photos, read):
    root = photos("a.jpg")
    (root / "labels.csv").write_text("a.jpg,cat\n")
    with pytest.raises(InputError, match="has none of the classes dog, emu; it has cat"):
        read(root, classes=["dog", "emu"])


def test_relative_roots(photos, read, monkeypatch):
    root = photos("d/train/a.jpg", "d/train/n/a.jpg")
    monkeypatch.chdir(root)
    (root / "d/classes.txt").write_text("cat\n")
    (root / "d/train/a.txt").write_text("0 0.5 0.5 1 1\n")
    expected = {"train/a.jpg": ["cat"], "train/n/a.jpg": []}
    assert tags(read(Path("d"))) == expected
    assert tags(read(Path("d/../d/"))) == expected


def test_docs_name_every_layout():
    page = (Path(__file__).parents[2] / "docs/formats.md").read_text()
    assert all(layout.name.split()[0] in page for layout in LAYOUTS)


def test_a_whole_path_inside_the_folder_is_that_picture(photos):
    root = photos("a b.jpg", "sub/a b.jpg")
    for name in ("a b.jpg", "sub/a b.jpg"):
        written = f"/data/local-files/?d={quote(str(root.resolve() / name).lstrip('/'))}"
        assert Pictures(root).find(written, root, "tasks.json") == name


def test_splits_in_other_words(photos, read):
    root = photos(
        *(
            f"{part}/{name}/{part}.jpg"
            for part in ("training_set", "test_set")
            for name in ("cat", "dog")
        )
    )
    assert tags(read(root)) == {
        "training_set/cat/training_set.jpg": ["cat"],
        "training_set/dog/training_set.jpg": ["dog"],
    }


def test_captions_of_coco_are_no_labels(photos):
    root = photos("a.jpg")
    content = {"images": [], "annotations": [{"image_id": 1, "caption": "a cat"}]}
    (root / "captions.json").write_text(json.dumps(content))
    assert find_labels(root, "train") is None
