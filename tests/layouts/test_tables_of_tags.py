"""Tables of tags as spreadsheets write them."""

from __future__ import annotations

import unicodedata

import pytest
from labelled import objects, tags

from wsis.errors import InputError
from wsis.layouts.tables import read_table

BOTH = {"a.jpg": ["cat", "dog"], "b.jpg": ["cat"]}
ONE = {"a.jpg": ["cat"], "b.jpg": ["dog"]}
NEGATIVE = {"a.jpg": ["cat"], "b.jpg": []}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("file,tags\na.jpg,cat;dog\nb.jpg,cat\n", BOTH),
        ("filename,label\na.jpg,cat;dog\nb.jpg,cat\n", BOTH),
        ("image_path,class\na.jpg,cat;dog\nb.jpg,cat\n", BOTH),
        ("Image Name,Tags\na.jpg,cat;dog\nb.jpg,cat\n", BOTH),
        ("whatever,else\na.jpg,cat;dog\nb.jpg,cat\n", BOTH),
        ("label,filename\ncat;dog,a.jpg\ncat,b.jpg\n", BOTH),
        ("a.jpg;cat;dog\nb.jpg;cat\n", BOTH),
        ("a.jpg;cat,dog\nb.jpg;cat\n", BOTH),
        ("Datei;Klasse\r\na.jpg;cat|dog\r\nb.jpg;cat\r\n", BOTH),
        ("sep=;\r\nfile;tags\r\na.jpg;cat,dog\r\nb.jpg;cat\r\n", BOTH),
        ("a.jpg\tcat;dog\nb.jpg\tcat\n", BOTH),
        ('a.jpg,"cat,dog"\nb.jpg,cat\n', BOTH),
        ('"a.jpg","cat, dog"\n"b.jpg","cat"\n', BOTH),
        ("a.jpg,cat|dog\nb.jpg,cat\n", BOTH),
        ("a.jpg|cat|dog\nb.jpg|cat\n", BOTH),
        ("a.jpg,cat,dog\nb.jpg,cat\n", BOTH),
        ("a.jpg,cat,dog,,\nb.jpg,cat,,,\n", BOTH),
        ("file,tags,,\na.jpg,cat,dog,\nb.jpg,cat,,\n", BOTH),
        ("file,tag1,tag2\na.jpg,cat,dog\nb.jpg,cat,\n", BOTH),
        ("a.jpg,cat\na.jpg,dog\nb.jpg,cat\n", BOTH),
        (",file,tags\n0,a.jpg,cat;dog\n1,b.jpg,cat\n", BOTH),  # pandas
        ("id,file,cat,dog\n0,a.jpg,1,1\n1,b.jpg,1,0\n", BOTH),
        ("file,cat,dog,is_valid\na.jpg,True,True,True\nb.jpg,True,False,False\n", BOTH),
        ("Datei;cat;dog\na.jpg;WAHR;WAHR\nb.jpg;WAHR;FALSCH\n", BOTH),
        ("file,tags\na.jpg,\"['cat', 'dog']\"\nb.jpg,['cat']\n", BOTH),
        ('file,tags\na.jpg,"[""cat"", ""dog""]"\nb.jpg,"[""cat""]"\n', BOTH),
        ('file;tags\na.jpg;"cat\ndog"\nb.jpg;cat\n', BOTH),
        ('"sep=;"\na.jpg;cat;dog\nb.jpg;c\u200bat\n', BOTH),
        ("file,tags\na.jpg,cat\nb.jpg,NaN\n", NEGATIVE),
        ("file,tags\na.jpg,cat\nb.jpg,[]\n", NEGATIVE),
        ("filename, cat, dog\na.jpg, 1, 1\nb.jpg, 1, 0\n", BOTH),
        ("file,dog,cat\na.jpg,x,x\nb.jpg,,x\n", BOTH),
        (".\\a.jpg,cat;dog\n./b.jpg,cat\n", BOTH),
        ("C:\\Users\\me\\photos\\a.jpg,cat;dog\nD:\\b.jpg,cat\n", BOTH),
        ("A.JPG,cat;dog\nB.jpg,cat\n", BOTH),
        ("id,label\na,cat;dog\nb,cat\n", BOTH),
        ("file,label,split\na.jpg,cat;dog,train\nb.jpg,cat,train\n", BOTH),
        ("a.jpg, cat \n\n\nb.jpg,dog\n", ONE),
        ("a.jpg,cat;;cat;\nb.jpg,dog\n", ONE),
        ("a.jpg,cat\nb.jpg,\n", NEGATIVE),
        ("a.jpg,cat\nb.jpg\n", NEGATIVE),
        ("a.jpg,cat\nb.jpg,none\n", NEGATIVE),
        ("filename,cat\na.jpg,1\nb.jpg,0\n", NEGATIVE),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_dialects(photos, read, text, expected, encoding):
    root = photos("a.jpg", "b.jpg")
    (root / "labels.csv").write_bytes(text.encode(encoding))
    index = read(root)
    assert tags(index) == expected
    assert index.notes[0] == "labels: 2 images in table format, labels.csv"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "cp1252"])
def test_encodings(photos, read, encoding):
    root = photos("a.jpg", "b.jpg")
    (root / "labels.csv").write_bytes("file;tags\r\na.jpg;Käfer\r\nb.jpg;\r\n".encode(encoding))
    assert tags(read(root)) == {"a.jpg": ["Käfer"], "b.jpg": []}


def test_names_that_look_the_same_are_one(photos, read):
    names = [unicodedata.normalize(form, "Käfer é") for form in ("NFC", "NFD")]
    root = photos("a.jpg", "b.jpg", unicodedata.normalize("NFD", "ö.jpg"))
    blank = names[0].replace(" ", "\u00a0  ")
    text = f"a.jpg,{names[0]}\nb.jpg,{names[1]};{blank}\nö.jpg,\n"
    (root / "labels.csv").write_text(text, encoding="utf-8")
    index = read(root)
    assert [category["name"] for category in index.categories] == [names[0]]
    assert sorted(index.tags.values()) == [[], [0], [0]]


def test_commas_in_a_cell_are_noted_or_part_of_a_name(photos, read):
    root = photos("a.jpg", "b.jpg")
    (root / "labels.csv").write_text('a.jpg,"collie, old; cat"\nb.jpg,cat\n')
    assert any('such as "collie, old; cat" into 3 tags' in note for note in read(root).notes)
    (root / "labels.csv").write_text('a.jpg,"collie, old"\nb.jpg,cat\n')
    chosen = read(root, classes=["cat", "collie, old"])
    assert tags(chosen) == {"a.jpg": ["collie, old"], "b.jpg": ["cat"]}


def test_tags_in_cells_and_apart_by_commas(photos, read):
    root = photos("a.jpg", "b.jpg")
    (root / "labels.csv").write_text('a.jpg,wet,"cat,dog"\nb.jpg,"cat,",\n')
    index = read(root)
    assert tags(index) == {"a.jpg": ["cat", "dog", "wet"], "b.jpg": ["cat"]}
    assert index.notes[1].startswith('1 cell split at commas, such as "cat,dog" into 2 tags')


def test_left_out_columns_are_named(photos, read):
    root = photos("a.jpg")
    (root / "labels.csv").write_text("file,label,split\na.jpg,cat,train\n")
    assert "columns left out: split" in read(root).notes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gone.jpg,cat\n", r"labels\.csv:1: no image gone\.jpg in .*; add it or remove"),
        ("file,tag\na.jpg,cat\na.jpeg,cat\n", r'labels\.csv:3: .* did you mean "a\.jpg"\?'),
        ("a.jpg,1,0,0\nb.jpg,0,1,0\n", "are numbers; write a heading"),
        ("file,where,who\na.jpg,here,me\n", "columns where, who, any of which may be the tags"),
        ("a.jpg,\n", "has no label"),
        ("", "is empty; export it again"),
        ("file,tags\n", "has no label"),
        (",cat\n", "no image"),
    ],
)
def test_refused(photos, read, text, message):
    root = photos("a.jpg", "b.jpg")
    (root / "labels.csv").write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        read(root)
    assert "\n" not in str(caught.value)


def test_no_text_is_refused(photos, read):
    root = photos("a.jpg")
    (root / "labels.csv").write_bytes(b"PK\x03\x04\x14\x00\x06\x00")  # a renamed xlsx
    with pytest.raises(InputError, match="save it as CSV"):
        read(root)


def test_same_name_in_two_folders(photos, read):
    root = photos("x/a.jpg", "y/a.jpg")
    (root / "labels.csv").write_text("a.jpg,cat\n")
    with pytest.raises(InputError, match=r"may be x/a\.jpg or y/a\.jpg"):
        read(root)
    (root / "labels.csv").write_text("Z:\\all\\Y\\a.jpg,cat\n")
    assert tags(read(root)) == {"y/a.jpg": ["cat"]}


def test_boxes(photos, read):

    root = photos("train/a.jpg", "train/b.jpg")
    (root / "train/_annotations.csv").write_text(
        "filename,width,height,class,xmin,ymin,xmax,ymax\n"
        "a.jpg,80,60,cat,10,20,30,50\na.jpg,80,60,dog,0,0,8,6\nb.jpg,80,60,,,,,\n"
    )
    index = read(root)
    assert objects(index) == {
        "train/a.jpg": [("cat", 10, 20, 20, 30), ("dog", 0, 0, 8, 6)],
        "train/b.jpg": [],
    }
    assert tags(index)["train/a.jpg"] == ["cat", "dog"]


def test_long_cells_and_lines_of_any_system(tmp_path):
    path = tmp_path / "x.csv"
    long = "x" * 200_000  # longer than csv's own limit
    path.write_bytes(f"a.jpg,{long}\rb.jpg,c\u2028d\r".encode())
    assert read_table(path).rows == [(1, ["a.jpg", long]), (2, ["b.jpg", "c\u2028d"])]
