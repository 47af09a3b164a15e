from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from wsis.datasets.folder import Folder
from wsis.errors import InputError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "sub").mkdir()
    for name in ("a.jpg", "b.png", "sub/c, one.jpg"):
        Image.new("RGB", (8, 6)).save(tmp_path / name)
    (tmp_path / "labels.csv").write_text(
        'file,tags\na.jpg,dog;cat\nb.png,\n"sub/c, one.jpg", cat \n'
    )
    return tmp_path


def test_tags(root: Path) -> None:
    data = Folder(root, proposals="none")
    assert data.class_names == ["cat", "dog"]
    index = data.index("train")
    assert [(i["file_name"], index.tags[i["id"]]) for i in index.images] == [
        ("a.jpg", [0, 1]),
        ("b.png", []),
        ("sub/c, one.jpg", [0]),
    ]
    samples = data.samples("train", train=True)
    assert [samples.sample(k)["target"]["tags"].tolist() for k in range(3)] == [
        [1, 1],
        [0, 0],
        [1, 0],
    ]


def test_without_validation_labels_predictions_are_for_the_training_images(root: Path) -> None:
    data = Folder(root, proposals="none")
    assert data.val_dataloader() == []
    assert sum(map(len, data.predict_dataloader())) == 3
    with pytest.raises(InputError, match=r"no val labels .*val\.csv"):
        data.index("val")


def test_validation_speaks_of_the_training_classes(root: Path) -> None:
    (root / "val.csv").write_text("a.jpg,dog\n")
    assert Folder(root, proposals="none").index("val").tags == {1: [1]}
    (root / "val.csv").write_text("a.jpg,dgo\n")
    with pytest.raises(InputError, match=r"val\.csv:1: unknown tag \"dgo\"; did you mean 'dog'\?"):
        Folder(root, proposals="none").index("val")


def test_validation_has_the_ids_of_the_training_classes(root: Path) -> None:
    """Whatever the file of validation labels calls them: results are written with these ids."""
    categories = [{"id": 4, "name": "cat"}, {"id": 2, "name": "eel"}, {"id": 9, "name": "dog"}]
    boxes = [
        {"id": 1, "image_id": 1, "category_id": 9, "bbox": [0, 0, 4, 4]},
        {"id": 2, "image_id": 1, "category_id": 2, "bbox": [0, 0, 5, 5]},
    ]
    images = [{"id": 1, "file_name": "a.jpg"}]
    content = {"images": images, "annotations": boxes, "categories": categories}
    (root / "val.json").write_text(json.dumps(content))
    data = Folder(root, proposals="none")
    assert data.index("val").categories == data.index("train").categories
    assert [a["category_id"] for a in data.index("val").annotations[1]] == [2]  # dog


def test_classes_give_the_order(root: Path) -> None:
    assert Folder(root, classes=("dog", "cat", "emu"), proposals="none").index("train").tags[1] == [
        0,
        1,
    ]
    index = Folder(root, classes=("cat", "emu"), proposals="none").index("train")
    assert index.tags == {1: [0], 2: [], 3: [0]}
    assert "labels of other classes are left out: dog (1 image)" in index.notes


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            "a.jpg,cat\ngone.jpg,cat\n",
            r"labels\.csv:2: no image gone\.jpg in .*; add it or remove its label",
        ),
        ("a.jpg,\n", "has no label"),
        ("", "is empty"),
        (b"\xff\xfe\x00", "save it as CSV in UTF-8"),
        (b"a.jpg,c\x81\n", "save it as CSV in UTF-8"),
    ],
)
def test_bad_lines(root: Path, lines: str | bytes, message: str) -> None:
    (root / "labels.csv").write_bytes(lines if isinstance(lines, bytes) else lines.encode())
    with pytest.raises(InputError, match=message) as caught:
        Folder(root).index("train")
    assert "\n" not in str(caught.value)


def test_broken_images_are_found_before_training(root: Path) -> None:
    (root / "b.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"b\.png is empty \(0 bytes\)"):
        Folder(root).index("train")


def test_truncated_image_is_named_when_it_is_read(root: Path) -> None:
    Image.effect_noise((200, 200), 50).save(root / "a.jpg")
    content = (root / "a.jpg").read_bytes()
    (root / "a.jpg").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"cannot read image .*a\.jpg"):
        Folder(root, proposals="none").samples("train", train=True).sample(0)


def test_no_labels_at_all(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"write .*labels\.csv with lines like"):
        Folder(tmp_path).index("train")
    with pytest.raises(InputError, match=r"no label file .*mine\.csv"):
        Folder(tmp_path, labels="mine.csv").index("train")


def test_boxes_in_a_coco_json(root: Path) -> None:
    (root / "labels.csv").unlink()
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "height": 6, "width": 8}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 5, "bbox": [1, 2, 3, 4]}],
        "categories": [{"id": 5, "name": "cat"}],
    }
    (root / "labels.json").write_text(json.dumps(content))
    data = Folder(root, proposals="none")
    target = data.samples("train", train=False, supervision={"tags", "boxes"}).sample(0)["target"]
    assert target["boxes"].tolist() == [[1, 2, 4, 6]]
    assert "masks" not in target
    with pytest.raises(InputError, match="no masks"):
        data.samples("train", train=True, supervision={"tags", "boxes", "masks"})
    content["annotations"] = []
    (root / "labels.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="has no label"):
        Folder(root).index("train")


def test_tags_alone_cannot_give_boxes(root: Path) -> None:
    with pytest.raises(InputError, match="no boxes"):
        Folder(root, proposals="none").samples("train", train=True, supervision={"tags", "boxes"})


def test_fingerprint_knows_content_and_no_paths(
    root: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    first = Folder(root, proposals="none").fingerprint()
    moved = tmp_path_factory.mktemp("elsewhere") / "images"
    root.rename(moved)
    assert Folder(moved, proposals="none").fingerprint() == first
    (moved / "labels.csv").write_text("a.jpg,cat\nb.png,dog\n")
    assert Folder(moved, proposals="none").fingerprint() != first


def test_state_knows_the_class_names(root: Path) -> None:
    data = Folder(root, proposals="none")
    assert [c["name"] for c in data.state_dict()["categories"]] == ["cat", "dog"]
    data.load_state_dict(data.state_dict())
    with pytest.raises(
        InputError, match="checkpoint knows the classes emu but folder has cat, dog"
    ):
        data.load_state_dict({"categories": [{"id": 1, "name": "emu"}]})
