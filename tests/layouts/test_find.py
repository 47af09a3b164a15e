"""Which labels of a folder are taken, and what is said of the rest."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from urllib.parse import quote

import pytest
from labelled import tags

from wsis.datasets.folder import Folder
from wsis.errors import InputError
from wsis.layouts.find import LAYOUTS, find_labels
from wsis.layouts.labels import refuse_damaged
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


VOC = (
    "<annotation><filename>a.jpg</filename><object><name>cat</name><bndbox><xmin>1</xmin>"
    "<ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object></annotation>"
)
LABELME = {"shapes": [{"label": "dog", "points": [[1, 1], [9, 1], [9, 9]]}], "imagePath": "a.jpg"}


def test_files_of_two_tools_beside_the_images(photos, read):
    root = photos("a.jpg")
    (root / "a.xml").write_text(VOC)
    (root / "a.json").write_text(json.dumps(LABELME))
    with pytest.raises(
        InputError, match=r'\*\.xml \(Pascal VOC\), \*\.json \(LabelMe\); choose .* "\*\.xml"'
    ):
        read(root)
    assert tags(read(root, given="*.xml")) == {"a.jpg": ["cat"]}
    assert tags(read(root, given="*.json")) == {"a.jpg": ["dog"]}
    (root / "classes.txt").write_text("emu\n")
    (root / "a.txt").write_text("0 .5 .5 .1 .1\n")
    with pytest.raises(InputError, match=r"\*\.txt \(YOLO\)"):
        read(root)
    assert tags(read(root, given="*.txt")) == {"a.jpg": ["emu"]}


@pytest.mark.parametrize("name", ["b.json", "annotations/b.xml", "b.TXT"])
def test_unread_label_files_of_images_without_a_label_are_told(photos, read, name):
    root = photos("a.jpg", "b.jpg", "c.jpg")
    (root / "annotations").mkdir()
    (root / "labels.csv").write_text("a.jpg,cat\n")
    (root / "a.json").write_text(json.dumps(LABELME))  # of an image with a label
    assert not any("not read" in note for note in read(root).notes)
    (root / name).write_text("what another tool wrote")
    told = f"1 file named like images without a label, such as {name}, not read: .* in table format"
    assert any(re.match(told, note) for note in read(root).notes)


def test_files_that_are_read_are_not_told(photos, read):
    root = photos("a.jpg", "b.jpg")
    (root / "a.xml").write_text(VOC)
    (root / "b.md").write_text("no labels")
    notes = read(root).notes
    assert any("1 image without a label left out, such as b.jpg" in note for note in notes)
    assert not any("not read" in note for note in notes)


@pytest.mark.parametrize("name", ["images_{}", "{}_images", "{}2017", "{} Set", "{}/{}"])
def test_splits_within_names_of_folders(photos, read, name):
    train, val = (name.replace("{}", split) for split in ("train", "val"))
    root = photos(*(f"{folder}/{c}/{c}.jpg" for folder in (train, val) for c in ("cat", "dog")))
    for split, folder in (("train", train), ("val", val)):
        found = tags(read(root, split, known=["cat", "dog"] if split == "val" else []))
        assert found == {f"{folder}/{c}/{c}.jpg": [c] for c in ("cat", "dog")}


def test_classes_that_hold_a_word_for_a_split(photos, read):
    root = photos("train station/a.jpg", "test tube/b.jpg")
    assert tags(read(root)) == {
        "train station/a.jpg": ["train station"],
        "test tube/b.jpg": ["test tube"],
    }
    with pytest.raises(InputError, match="bus-train and bus-val; call them train and val"):
        read(photos("bus-train/a.jpg", "bus-val/a.jpg"))


def test_a_class_called_train(photos, read):
    with pytest.raises(InputError, match="train may be a split or a class"):
        read(photos("train/a.jpg", "bus/b.jpg"))


def test_a_folder_within_a_folder_is_entered(photos, read):
    root = photos("archive/data/cat/a.jpg", "archive/data/dog/b.jpg")
    (root / "__MACOSX").mkdir()
    assert tags(read(root)) == {
        "archive/data/cat/a.jpg": ["cat"],
        "archive/data/dog/b.jpg": ["dog"],
    }


def test_a_submission_of_kaggle_is_no_labels(photos, read):
    root = photos("train/a.jpg", "test/b.jpg")
    (root / "train.csv").write_text("image,label\na.jpg,cat\n")
    (root / "sample_submission.csv").write_text("image,label\nb.jpg,cat\n")
    assert tags(read(root)) == {"train/a.jpg": ["cat"]}


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("labels.json", "", "is empty"),
        ("labels.csv", "\n", "is empty"),
        ("objects.json", "", "is empty"),
        ("objects.json", '{"images": [', "is not a whole json file"),
        ("annotations.xml", "<annotat", "is no whole XML"),
        ("labels.json", "<!DOCTYPE html><title>Sign in</title>", "is a web page"),
        ("train.csv", "\n<HTML><body>Sign in", "is a web page"),
        ("labels.json", "<!-- 404 -->\n<!DOCTYPE  html>", "is a web page"),
        ("labels.json", "<head><title>404</title></head>", "is a web page"),
        ("a.xml", '<?xml version="1.0"?>\n<!DOCTYPE html PUBLIC "x" "y"><html/>', "is a web page"),
        ("data.parquet", "PAR1", "is a table of pandas"),
        ("labels.zip", "PK", "is an archive; unpack it"),
        ("via.json", '{"project": {"data_format_version": "3.1.1"}}', "is of VIA 3; draw in VIA 2"),
    ],
)
def test_files_that_are_no_labels_are_named(photos, read, name, content, told):
    root = photos("a.jpg")
    (root / name).write_text(content)
    with pytest.raises(InputError, match=rf"/{name} {told}"):
        read(root)
    with pytest.raises(InputError, match=rf"/{name} {told}"):
        read(root, given=name)


def test_a_web_page_beside_good_files_is_named(photos, read):
    root = photos("a.jpg", "b.jpg")
    (root / "a.xml").write_text(VOC)
    (root / "b.xml").write_text("<?xml version='1.0'?><!DOCTYPE html><html/>")
    with pytest.raises(InputError, match=r"b\.xml is a web page"):
        read(root)


def test_many_comments_before_the_labels_take_no_time(tmp_path):
    """A pattern that could divide them in two ways would take twice as long for each."""
    comments = "<!-- a -->" * 1000
    (tmp_path / "a.xml").write_text(comments + VOC)
    refuse_damaged(tmp_path / "a.xml")
    (tmp_path / "b.xml").write_text(comments + "<html>")
    with pytest.raises(InputError, match="is a web page"):
        refuse_damaged(tmp_path / "b.xml")


@pytest.mark.parametrize(("suffix", "good"), [("xml", VOC), ("json", json.dumps(LABELME))])
def test_an_empty_file_beside_good_ones_is_named(photos, read, suffix, good):
    root = photos("a.jpg", "b.jpg")
    (root / f"a.{suffix}").write_text(good)
    (root / f"b.{suffix}").write_text("")
    with pytest.raises(InputError, match=rf"b\.{suffix} is empty"):
        read(root)


def test_json_in_utf16(photos, read):
    root = photos("a.jpg")
    content = {
        "images": [{"id": 1, "file_name": "a.jpg"}],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4]}],
    }
    for text in (json.dumps(content), json.dumps(CREATEML)):
        (root / "labels.json").write_text(text, encoding="utf-16")
        assert tags(read(root)) == {"a.jpg": ["cat"]}


def test_names_with_percent_signs(photos):
    root = photos("a b.jpg", "ü.jpg", "c%20d.jpg", "c d.jpg")
    pictures = Pictures(root)
    assert pictures.find("/data/upload/1/3f2a1b9c-a%20b.jpg", root, "") == "a b.jpg"
    assert pictures.find("/data/upload/1/3f2a1b9c-%C3%BC.jpg", root, "") == "ü.jpg"
    assert pictures.find("c%20d.jpg", root, "") == "c%20d.jpg"


@pytest.mark.parametrize(
    "shape",
    [
        {"bbox": [0, 0.2, 0.3, 1]},
        {"bbox": [0.1, 0.2, 0.3, 1.0001]},
        {"segmentation": [[0, 0, 1, 0, 1, 0.5]]},
    ],
)
def test_fractions_where_pixels_belong(photos, read, shape):
    root = photos("a.jpg")
    content = {
        "images": [{"id": 1, "file_name": "a.jpg"}],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [{"image_id": 1, "category_id": 1, **shape}],
    }
    (root / "labels.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="lie between 0 and 1; multiply them"):
        read(root)
    box = {"bbox": [[0.1, 0.1, 0.5, 0.5]], "categories": ["cat"]}
    (root / "labels.json").unlink()
    (root / "metadata.jsonl").write_text(json.dumps({"file_name": "a.jpg", "objects": box}))
    with pytest.raises(InputError, match="lie between 0 and 1; multiply them"):
        read(root)


def voc(*corners: float) -> str:
    sides = zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True)
    box = "".join(f"<{name}>{value}</{name}>" for name, value in sides)
    return (
        "<annotation><filename>a.jpg</filename><object><name>cat</name>"
        f"<bndbox>{box}</bndbox></object></annotation>"
    )


def test_names_that_are_not_utf8_are_refused(photos, read):
    root = photos("cat/a.jpg", "dog/b.jpg")
    (root / "cat/a.jpg").rename(os.fsdecode(os.fsencode(root) + b"/cat/caf\xe9.jpg"))
    with pytest.raises(InputError, match=r"cat/caf.udce9\.jpg: the name is not UTF-8; rename"):
        read(root)


def test_links_that_lead_nowhere_are_told(photos, read):
    root = photos("cat/a.jpg", "dog/b.jpg")
    (root / "cat/c.jpg").symlink_to("/nowhere/c.jpg")
    with pytest.raises(InputError, match=r"no image .*cat/c\.jpg"):
        read(root)


def test_fractions_where_xml_has_pixels(photos, read):
    root = photos("a.jpg")
    (root / "a.xml").write_text(voc(0.1, 0.2, 0.5, 1))
    with pytest.raises(InputError, match="lie between 0 and 1; multiply them"):
        read(root)
    (root / "a.xml").write_text(voc(1, 1, 1, 1))  # the first pixel
    assert read(root).annotations[1][0]["bbox"] == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"PK\x03\x04\x14\x00\x08", "is a spreadsheet or an archive under another name"),
        (b"file,tags\na.jpg,#N/A\n", r"labels\.csv:2: #N/A is an error of the spreadsheet"),
        (b'file,tags\n"a.jpg,cat\nb.jpg,cat\n', "no image a.jpg,cat b.jpg,cat in"),
    ],
)
def test_tables_that_are_no_tables_of_tags(photos, read, content, told):
    root = photos("a.jpg", "b.jpg")
    (root / "labels.csv").write_bytes(content)
    with pytest.raises(InputError, match=told) as error:
        read(root)
    assert "\n" not in str(error.value)


def test_links_that_lead_to_themselves(photos, read):
    root = photos("a.jpg")
    (root / "labels.csv").symlink_to(root / "labels.csv")
    with pytest.raises(InputError, match="no train labels"):
        read(root)
    (root / "tags.csv").write_text("file,tags\na.jpg,cat\n")
    assert read(root).images[0]["file_name"] == "a.jpg"
