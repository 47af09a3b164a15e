from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle
from scipy.io import savemat

from wsis.datasets._long_tail import draw_long_tail, tail_counts
from wsis.datasets.voc import VOC, VOC_CLASSES, read_voc
from wsis.errors import InputError

SHARED = (
    Path(os.environ.get("WSIS_SHARED", Path(__file__).parents[2].parent / "shared"))
    / "data"
    / "voc"
)

XML = """<annotation><size><width>8</width><height>6</height></size>
<object><name>cat</name><difficult>0</difficult><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>4</xmax><ymax>3</ymax></bndbox></object>
<object><name>dog</name><difficult>1</difficult><bndbox><xmin>5</xmin><ymin>4</ymin><xmax>8</xmax><ymax>6</ymax></bndbox></object>
</annotation>"""


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WSIS_CACHE", str(tmp_path / "cache"))


def write_list(devkit: Path, kind: str, name: str, stems: list[str]) -> None:
    (devkit / "ImageSets" / kind).mkdir(parents=True, exist_ok=True)
    (devkit / "ImageSets" / kind / f"{name}.txt").write_text("\n".join(stems) + "\n")


def write_image(devkit: Path, stem: str, masks: bool = True) -> None:
    for name in ("JPEGImages", "Annotations", "SegmentationObject", "SegmentationClass"):
        (devkit / name).mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 6)).save(devkit / "JPEGImages" / f"{stem}.jpg")
    (devkit / "Annotations" / f"{stem}.xml").write_text(XML)
    if masks:
        objects, classes = np.zeros((2, 6, 8), np.uint8)
        objects[:3, :4], classes[:3, :4] = 1, 8  # a cat at the boxes of the xml
        objects[3:, 4:], classes[3:, 4:] = 2, 12
        objects[0, 0] = classes[0, 0] = 255
        Image.fromarray(objects).convert("P").save(devkit / "SegmentationObject" / f"{stem}.png")
        Image.fromarray(classes).convert("P").save(devkit / "SegmentationClass" / f"{stem}.png")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """VOC 2012 with one image each in train and val, and SBD with these two and a third."""
    devkit = tmp_path / "VOCdevkit/VOC2012"
    for stem in ("2007_000001", "2007_000002"):
        write_image(devkit, stem)
    write_image(devkit, "2008_000003", masks=False)
    for kind in ("Segmentation", "Main"):
        write_list(devkit, kind, "train", ["2007_000001"])
        write_list(devkit, kind, "val", ["2007_000002"])
    sbd = tmp_path / "benchmark_RELEASE/dataset"
    (sbd / "inst").mkdir(parents=True)
    objects = np.zeros((6, 8), np.uint8)
    objects[:, :2], objects[:, 6:] = 1, 2
    content = {
        "Segmentation": objects,
        "Categories": np.array([[15], [1]]),
        "Boundaries": np.zeros((2, 1)),
    }
    savemat(sbd / "inst/2008_000003.mat", {"GTinst": content})
    (sbd / "train.txt").write_text("2007_000002\n2008_000003\n")
    (sbd / "val.txt").write_text("2007_000001\n")
    return tmp_path


def test_trainaug_is_train_and_sbd_without_val(root: Path) -> None:
    data = VOC(root, proposals="none")
    index = data.index("train")
    assert [i["file_name"] for i in index.images] == ["2007_000001.jpg", "2008_000003.jpg"]
    assert [i["file_name"] for i in data.index("val").images] == ["2007_000002.jpg"]
    person, plane = index.annotations[2008000003]
    assert (person["category_id"], person["bbox"]) == (15, [0, 0, 2, 6])
    assert (plane["category_id"], plane["bbox"]) == (1, [6, 0, 2, 6])


def test_masks_come_from_the_pngs_without_the_void(root: Path) -> None:
    cat, dog = VOC(root, proposals="none").index("val").annotations[2007000002]
    assert (VOC_CLASSES[cat["category_id"] - 1], cat["bbox"]) == ("cat", [0, 0, 4, 3])
    assert (VOC_CLASSES[dog["category_id"] - 1], dog["bbox"]) == ("dog", [4, 3, 4, 3])
    mask = rle.decode(cat["segmentation"])
    assert mask.sum() == 11
    assert mask[0, 0] == 0


def test_detection_reads_boxes_and_ignores_the_difficult(root: Path) -> None:
    data = VOC(root, task="detection", proposals="none")
    cat, dog = data.index("train").annotations[2007000001]
    assert (cat["bbox"], cat["iscrowd"]) == ([0, 0, 4, 3], 0)
    assert (dog["bbox"], dog["iscrowd"]) == ([4, 3, 4, 3], 1)
    assert data.index("train").tags[2007000001] == [VOC_CLASSES.index("cat")]
    truth = data.samples("val", train=False).sample(0)["truth"]
    assert truth.boxes.tolist() == [[0, 0, 4, 3], [4, 3, 8, 6]]
    assert truth.crowd.tolist() == [False, True]
    assert truth.masks == []


def test_2007_has_its_own_lists(tmp_path: Path) -> None:
    devkit = tmp_path / "VOC2007"
    write_image(devkit, "000005", masks=False)
    write_image(devkit, "000012", masks=False)
    write_list(devkit, "Main", "trainval", ["000005"])
    write_list(devkit, "Main", "test", ["000012"])
    data = VOC(tmp_path, year="2007", task="detection", proposals="none")
    assert [data.index(split).images[0]["id"] for split in ("train", "val")] == [5, 12]


def test_training_on_the_lists_of_the_classification_task(root: Path) -> None:
    """CCGR's setting: tags of images without masks to train on, masks to judge by."""
    write_list(root / "VOCdevkit/VOC2012", "Main", "train", ["2007_000001", "2008_000003"])
    data = VOC(root, train_list="Main/train", proposals="none")
    train, val = data.index("train"), data.index("val")
    assert [image["file_name"] for image in train.images] == ["2007_000001.jpg", "2008_000003.jpg"]
    assert all(not a.get("segmentation") for found in train.annotations.values() for a in found)
    assert all(a.get("segmentation") for found in val.annotations.values() for a in found)
    for split in ("train", "val"):  # every image has background, whether or not a mask says where
        samples = data.samples(split, False, {"tags", "stuff_tags"})
        assert all(
            samples.sample(k)["target"]["stuff_tags"].tolist() == [1] for k in range(len(samples))
        )
    assert data.num_stuff == 1
    assert (
        "stuff_tags"
        not in VOC(root, task="detection", proposals="none")
        .samples("train", False)
        .sample(0)["target"]
    )
    with pytest.raises(InputError, match=r"no list .*ImageSets/Main/gone"):
        VOC(root, train_list="Main/gone", proposals="none").index("train")


def test_what_was_read_is_kept_until_a_file_changes(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = VOC(root, proposals="none").index("train")
    monkeypatch.setattr("wsis.datasets.voc._read_image", None)
    assert VOC(root, proposals="none").index("train") == first
    monkeypatch.undo()
    xml = root / "VOCdevkit/VOC2012/Annotations/2007_000001.xml"
    xml.write_text(XML.replace(">cat<", ">sheep<"))
    assert VOC(root, proposals="none").index("train").tags[2007000001] == [
        VOC_CLASSES.index("sheep")
    ]


def test_missing_data_says_what_to_fetch(root: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"fetch the archives from http.*VOC2012.*JPEGImages"):
        VOC(tmp_path / "nothing").index("train")
    (root / "benchmark_RELEASE").rename(root / "gone")
    with pytest.raises(InputError, match=r"SBD.*benchmark\.tgz.*train_list"):
        VOC(root).index("train")
    with pytest.raises(InputError, match=r"no list .*minival\.txt"):
        VOC(root, val_list="minival").index("val")


def test_bad_annotations_are_named(root: Path) -> None:
    devkit = root / "VOCdevkit/VOC2012"
    xml = devkit / "Annotations/2007_000002.xml"
    for content, message in [
        (XML.replace(">cat<", ">unicorn<"), "unknown class 'unicorn'"),
        ("", "not a VOC annotation"),
        (XML.replace("<xmin>1</xmin>", ""), "not a VOC annotation"),
    ]:
        xml.write_text(content)
        with pytest.raises(InputError, match=rf"2007_000002\.xml.*{message}") as caught:
            VOC(root).index("val")
        assert "\n" not in str(caught.value)
    xml.write_text(XML)
    Image.new("P", (9, 6)).save(devkit / "SegmentationObject/2007_000002.png")
    with pytest.raises(InputError, match="differ in size"):
        VOC(root).index("val")
    (devkit / "SegmentationClass/2007_000002.png").unlink()
    with pytest.raises(InputError, match=r"no .*SegmentationClass.2007_000002\.png"):
        VOC(root).index("val")
    (root / "benchmark_RELEASE/dataset/inst/2008_000003.mat").write_bytes(b"")
    with pytest.raises(InputError, match="not an SBD instance file"):
        VOC(root).index("train")


def test_box_of_no_area_is_dropped_with_a_warning_but_its_tag_stays(root: Path) -> None:
    xml = root / "VOCdevkit/VOC2012/Annotations/2007_000001.xml"
    xml.write_text(XML.replace("<xmax>4</xmax>", "<xmax>0</xmax>"))
    with pytest.warns(UserWarning, match="1 annotations with a box of no area"):
        index = VOC(root, task="detection").index("train")
    assert len(index.annotations[2007000001]) == 1
    assert index.tags[2007000001] == [VOC_CLASSES.index("cat")]


def test_a_name_twice_in_a_list(root: Path) -> None:
    write_list(root / "VOCdevkit/VOC2012", "Segmentation", "val", ["2007_000002", "2007_000002"])
    with pytest.raises(InputError, match=r"val\.txt names 2007_000002 twice"):
        VOC(root).index("val")


def test_tail_counts_give_the_published_groups() -> None:
    """VOC-MLT: at most 800 images a class, head (100 or more) 6, medium (20 to 99) 6, tail 8 of 20 classes."""
    counts = tail_counts(20, 800)
    assert (counts[0], counts[-1]) == (800, pytest.approx(1 + 799 * 0.01 ** (7 / 6), abs=1))
    assert [
        (counts >= 100).sum(),
        ((counts >= 20) & (counts < 100)).sum(),
        (counts < 20).sum(),
    ] == [6, 6, 8]


def test_long_tailed_draw_follows_its_counts() -> None:
    single = {image: [image % 5] for image in range(1000)}
    drawn = draw_long_tail(single, 5, maximum=150)
    counts = sorted(
        (sum(image % 5 == label for image in drawn) for label in range(5)), reverse=True
    )
    assert counts == tail_counts(5, 150).tolist()
    assert drawn == draw_long_tail(single, 5, maximum=150)
    rng = np.random.default_rng(0)
    many = {image: np.flatnonzero(rng.random(6) < 0.3).tolist() for image in range(2000)}
    drawn = draw_long_tail(many, 6, maximum=300)
    held = np.array([[label in many[image] for label in range(6)] for image in drawn])
    wanted = np.sort(tail_counts(6, 300))
    assert (np.sort(held.sum(0)) >= wanted).all()
    assert not (held.sum(0) > wanted[np.argsort(np.argsort(held.sum(0)))])[held.argmax(1)].all()


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs real VOC images")
def test_real_masks_agree_with_real_boxes() -> None:
    devkit = SHARED / "VOCdevkit/VOC2012"
    stems = (devkit / "ImageSets/Segmentation/val.txt").read_text().split()
    stems = [stem for stem in stems if (devkit / "Annotations" / f"{stem}.xml").is_file()]
    masks = read_voc(devkit, stems, VOC_CLASSES, masks=True)
    boxes = read_voc(devkit, stems, VOC_CLASSES, masks=False)
    inward = []  # how far each side of a mask lies inside the best box of its class
    for image, found in masks.annotations.items():
        for a in found:
            same = [
                b["bbox"] for b in boxes.annotations[image] if b["category_id"] == a["category_id"]
            ]
            assert same, (image, a["category_id"])
            x, y, w, h = np.subtract(
                same[rle.iou([a["bbox"]], same, [0] * len(same)).argmax()], a["bbox"]
            )
            inward += [-x, -y, x + w, y + h]
    assert len(inward) > 4 * 30
    assert (
        0 <= np.median(inward) <= 5
    )  # the void border that separates a mask from its box is 5 px wide
    assert np.median(np.abs(inward)) <= 5
