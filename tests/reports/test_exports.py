"""Each format is read back, by another library where there is one."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import get_args
from urllib.parse import unquote
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from pycocotools import mask as rle
from pycocotools.coco import COCO

from wsis.data.index import read_coco
from wsis.reports.exports import Format, export, file_names
from wsis.types import Index, Prediction

SIZE = (40, 60)
CLASSES = ["cat", "dog, small & <wild>"]


def encode(pixels) -> dict:
    return rle.encode(np.asfortranarray(pixels.astype(np.uint8)))


def masks() -> np.ndarray:
    """A square with a hole over a disc, and an object of two parts, one with a hole."""
    y, x = np.ogrid[:40, :60]
    disc = (y - 20) ** 2 + (x - 20) ** 2 < 15**2
    square = np.zeros(SIZE, bool)
    square[10:30, 25:45] = True
    square[16:24, 31:39] = False
    parts = np.zeros(SIZE, bool)
    parts[2:9, 48:58] = True
    parts[4:7, 51:55] = False
    parts[30:38, 50:60] = True
    return np.stack([square, disc, parts])


@pytest.fixture
def made(tmp_path) -> Path:
    """All formats of an image with three objects, one with none, and one with a box alone."""
    pixels = np.random.default_rng(0).integers(0, 255, (*SIZE, 3), np.uint8)
    images = []
    for k, name in ((3, "in/a.png"), (5, "in/b.png"), (6, "other place/a.png")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / name)
        images.append({"id": k, "file_name": name, "height": 40, "width": 60})
    categories = [{"id": 7, "name": CLASSES[0]}, {"id": 9, "name": CLASSES[1]}]
    index = Index(name="own", root=tmp_path, images=images, categories=categories)
    boxes = torch.tensor([[25, 10, 45, 30], [6, 6, 35, 35], [48, 2, 60, 38]]).float()
    scores, labels = torch.tensor([0.9, 0.7, 0.5]), torch.tensor([1, 0, 0])
    found = Prediction(3, SIZE, boxes, scores, labels, [encode(mask) for mask in masks()])
    nothing = found.rows(torch.tensor([], dtype=torch.long))._replace(image_id=5)
    boxed = found.rows(torch.tensor([0]))._replace(image_id=6, masks=[])
    files = export(tmp_path / "out", index, [found, nothing, boxed], get_args(Format))
    assert all(path.exists() for path in files)
    assert len(files) == 13
    return tmp_path / "out"


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return (a & b).sum() / (a | b).sum()


def rasterised(ring: np.ndarray) -> np.ndarray:
    return rle.decode(rle.frPyObjects([ring.flatten().tolist()], *SIZE))[..., 0].astype(bool)


def test_tables(made):
    objects = list(csv.DictReader((made / "objects.csv").open(encoding="utf-8")))
    assert [row["class"] for row in objects] == [CLASSES[1], "cat", "cat", CLASSES[1]]
    areas = [int(row["area"]) for row in objects]
    assert areas == [*(int(mask.sum()) for mask in masks()), 400]
    assert [row["number"] for row in objects] == ["1", "2", "3", "1"]
    assert objects[0]["x2"] == "45.0"
    counts = list(csv.DictReader((made / "counts.csv").open(encoding="utf-8")))
    assert [list(row.values()) for row in counts] == [
        ["in/a.png", "2", "1"],
        ["in/b.png", "0", "0"],
        ["other place/a.png", "0", "1"],
    ]


def grey(folder: Path, count: int) -> tuple[Index, list[Prediction]]:
    """Images of their own grey, on the last of which a disc is found."""
    found, images = [], []
    for k in range(count):
        Image.new("RGB", (60, 40), 3 * (k % 80 + 1,)).save(folder / f"{k:03}.png")
        images.append({"id": k + 1, "file_name": f"{k:03}.png", "height": 40, "width": 60})
        rows = int(k == count - 1)
        box, mask = torch.tensor([[6.0, 6, 35, 35]]), [encode(masks()[1])]
        one = torch.ones(rows)
        found.append(Prediction(k + 1, SIZE, box[:rows], one, one.long() - 1, mask[:rows]))
    categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    return Index(name="own", root=folder, images=images, categories=categories), found


def test_sheet(tmp_path):
    """Two images above, the third below; the disc of the last is tinted, all else is grey."""
    index, found = grey(tmp_path, 3)
    (file,) = export(tmp_path / "out", index, found, ["sheet"])
    picture = Image.open(file)
    assert file.name == "sheet.jpg"
    assert 1600 < picture.width < 1700
    pixels = np.array(picture).astype(int)
    coloured = pixels.max(2) - pixels.min(2) > 60
    rows, columns = (np.flatnonzero(coloured.any(axis)) for axis in (1, 0))
    assert rows[0] > picture.height // 2
    assert columns[-1] < picture.width // 2
    scale = 800 / 60
    assert coloured.sum() == pytest.approx(masks()[1].sum() * scale**2, rel=0.1)


def test_sheet_of_many_images_has_some_and_the_numbers_of_all(tmp_path, monkeypatch):
    seen = {}

    def grid(pictures, columns, captions, heading):
        seen.update(pictures=pictures, columns=columns, captions=captions, heading=heading)
        return pictures[0]

    monkeypatch.setattr("wsis.reports._sheet.grid", grid)
    index, found = grey(tmp_path, 150)
    export(tmp_path / "out", index, found, ["sheet"])
    assert (len(seen["pictures"]), seen["columns"]) == (64, 8)
    assert {picture.shape for picture in seen["pictures"]} == {(213, 320, 3)}
    names = [caption.split("\n")[0] for caption in seen["captions"]]
    assert names == sorted(set(names))
    numbers = np.array([int(name[:3]) for name in names])
    assert (numbers[0], numbers[-1]) == (0, 149)
    assert {*np.diff(numbers)} == {2, 3}, "evenly apart"
    assert seen["captions"][0] == "000.png\nnothing found"
    assert seen["captions"][-1] == "149.png\ncat 1"
    assert seen["heading"] == "150 images, 64 of them here: cat 1"


def test_label_images(made):
    square, disc, parts = masks()
    expected = np.where(square, 1, np.where(disc, 2, np.where(parts, 3, 0)))
    assert np.array_equal(np.array(Image.open(made / "masks/a-3.png")), expected)
    assert not np.array(Image.open(made / "masks/b.png")).any()


def test_cutouts(made):
    names = sorted(path.name for path in (made / "cutouts").iterdir())
    assert names == ["a-3-1.png", "a-3-2.png", "a-3-3.png", "a-6-1.png"]
    whole = np.array(Image.open(made.parent / "in/a.png"))[10:30, 25:45]
    cut = np.array(Image.open(made / "cutouts/a-3-1.png"))
    mask = masks()[0, 10:30, 25:45]
    assert np.array_equal(cut[..., 3] == 255, mask)
    assert not cut[~mask].any()
    assert np.array_equal(cut[..., :3][mask], whole[mask])
    assert (np.array(Image.open(made / "cutouts/a-6-1.png"))[..., 3] == 255).all(), "a box"


def test_coco_run_lengths(made):
    coco = COCO(made / "coco.json")
    for number, mask in enumerate(masks(), 1):
        assert np.array_equal(coco.annToMask(coco.anns[number]).astype(bool), mask)
    assert coco.anns[1]["category_id"] == 9
    assert coco.anns[4]["bbox"] == [25, 10, 20, 20]
    again = read_coco(made / "coco.json", made.parent)
    assert [len(again.annotations[number]) for number in (3, 5, 6)] == [3, 0, 1]


def test_boxes_in_coco_are_those_of_the_masks(tmp_path):
    """Programs that cut masks at their boxes lose nothing."""
    index, found = grey(tmp_path, 1)
    loose = found[0]._replace(boxes=torch.tensor([[7.4, 8.3, 33.2, 33.9]]))
    export(tmp_path / "out", index, [loose], ["coco", "polygons"])
    rows, columns = (np.flatnonzero(masks()[1].any(axis)) for axis in (1, 0))
    box = [columns[0], rows[0], np.ptp(columns) + 1, np.ptp(rows) + 1]
    for name in ("coco", "polygons"):
        (annotation,) = json.loads((tmp_path / f"out/{name}.json").read_text())["annotations"]
        assert annotation["bbox"] == box


@pytest.mark.parametrize("absolute", [False, True])
def test_coco_names_images_in_the_folder_of_all(tmp_path, monkeypatch, absolute):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos/in").mkdir(parents=True)
    (tmp_path / "photos/on").mkdir()
    start = f"{tmp_path}/" if absolute else ""
    index, found = grey(tmp_path, 2)
    names = ["photos/in/a.png", "photos/on/b.png"]
    for image, name in zip(index.images, names, strict=True):
        Image.new("RGB", (60, 40)).save(name)
        image["file_name"] = start + name
    export(tmp_path / "out", index._replace(root=Path()), found, ["coco", "polygons"])
    for name in ("coco", "polygons"):
        images = json.loads((tmp_path / f"out/{name}.json").read_text())["images"]
        assert [image["file_name"] for image in images] == ["in/a.png", "on/b.png"]


def test_coco_as_supervision_reads_it(made):
    supervision = pytest.importorskip("supervision")
    content = json.loads((made / "coco.json").read_text())
    named = [image for image in content["images"] if image["file_name"] != "other place/a.png"]
    kept = [a for a in content["annotations"] if a["image_id"] != 6]  # that one has no mask
    (made / "some.json").write_text(json.dumps(content | {"images": named, "annotations": kept}))
    found = supervision.DetectionDataset.from_coco(
        str(made.parent), str(made / "some.json"), force_masks=True
    )
    assert found.classes == CLASSES
    by_name = {Path(path).name: detections for path, _, detections in found}
    assert np.array_equal(by_name["a.png"].mask, masks())
    assert by_name["a.png"].class_id.tolist() == [1, 0, 0]
    assert by_name["a.png"].xyxy[0].tolist() == [25, 10, 45, 30]
    assert len(by_name["b.png"]) == 0


def test_coco_polygons_keep_their_holes(made):
    coco = COCO(made / "polygons.json")
    for number, mask in enumerate(masks(), 1):
        assert iou(coco.annToMask(coco.anns[number]).astype(bool), mask) >= 0.98
    assert not coco.annToMask(coco.anns[1])[20, 35], "the hole"
    assert coco.anns[1]["category_id"] == 9
    assert coco.anns[4]["segmentation"] == []
    again = read_coco(made / "polygons.json", made.parent)
    assert [c["name"] for c in again.categories] == CLASSES


def test_yolo(made):
    place = made / "yolo"
    assert yaml.safe_load((place / "data.yaml").read_text())["names"] == dict(enumerate(CLASSES))
    lines = (place / "labels/a-3.txt").read_text().splitlines()
    for line, mask, label in zip(lines, masks(), [1, 0, 0], strict=True):
        number, *corners = line.split()
        assert int(number) == label
        points = np.array(corners, float).reshape(-1, 2)
        assert ((points >= 0) & (points <= 1)).all()
        assert iou(rasterised(points * (60, 40)), mask) >= 0.98
    assert (place / "labels/b.txt").read_text() == ""
    box = np.array((place / "labels/a-6.txt").read_text().split()[1:], float).reshape(-1, 2)
    assert (box * (60, 40)).round(3).min(0).tolist() == [25, 10]
    assert (place / "images/a-3.png").read_bytes() == (made.parent / "in/a.png").read_bytes()


def test_yolo_as_supervision_reads_it(made):
    """It draws the line between two parts and the pixels on a polygon's edge, too."""
    supervision = pytest.importorskip("supervision")
    place = made / "yolo"
    found = supervision.DetectionDataset.from_yolo(
        str(place / "images"), str(place / "labels"), str(place / "data.yaml"), force_masks=True
    )
    assert found.classes == CLASSES
    by_name = {Path(path).name: detections for path, _, detections in found}
    assert by_name["a-3.png"].class_id.tolist() == [1, 0, 0]
    assert len(by_name["b.png"]) == 0
    for mask, expected in zip(by_name["a-3.png"].mask, masks(), strict=True):
        assert iou(mask, expected) > 0.7
    assert not by_name["a-3.png"].mask[0][20, 35], "the hole"


def results(path: Path, image: str) -> list[dict]:
    (task,) = (
        task
        for task in json.loads(path.read_text())
        if unquote(task["data"]["image"]).endswith(image)
    )
    return task["predictions"][0]["result"]


def test_label_studio_finds_its_images(made):
    (first, *_) = json.loads((made / "label_studio.json").read_text())
    start, path = unquote(first["data"]["image"]).split("?d=")
    assert start == "/data/local-files/"
    assert Path(f"/{path}") == (made.parent / "in/a.png").resolve()


@pytest.mark.parametrize("name", ["label_studio", "label_studio_polygons"])
def test_label_studios_interface_has_what_the_results_name(made, name):
    view = ElementTree.parse(made / f"{name}.xml").getroot()
    controls = {each.get("name"): each for each in view if each.tag != "Image"}
    for image in ("in/a.png", "other place/a.png"):
        for result in results(made / f"{name}.json", image):
            control = controls[result["from_name"]]
            assert control.tag.lower() == result["type"]
            assert control.get("toName") == result["to_name"] == view[0].get("name")
            values = [label.get("value") for label in control]
            assert result["value"][result["type"]][0] in values == CLASSES


def test_label_studio_brushes(made):
    brush = pytest.importorskip("label_studio_sdk.converter.brush")
    found = results(made / "label_studio.json", "in/a.png")
    for result, mask in zip(found, masks(), strict=True):
        decoded = brush.decode_rle(result["value"]["rle"]).reshape(*SIZE, 4)
        assert np.array_equal(decoded, np.repeat(mask[..., None] * 255, 4, 2))
    assert found[0]["value"]["brushlabels"] == [CLASSES[1]]


@pytest.mark.parametrize("name", ["label_studio", "label_studio_polygons"])
def test_label_studios_own_check(made, name):
    """The interface is pasted as it is: with an XML declaration, text of it is refused."""
    interface = pytest.importorskip("label_studio_sdk.label_interface").LabelInterface
    checked = interface((made / f"{name}.xml").read_text(encoding="utf-8"))
    checked.validate()
    for task in json.loads((made / f"{name}.json").read_text()):
        (prediction,) = task["predictions"]
        assert checked.validate_prediction(prediction, return_errors=True) == []
    assert checked.validate_prediction({"result": [{"from_name": "x"}]}, return_errors=True)


def test_label_studios_interface_has_no_declaration(made):
    assert (made / "label_studio.xml").read_text(encoding="utf-8").startswith("<View>")


def unpacked(packed: list[int]) -> np.ndarray:
    """Decode thi.ng's rle-pack bit by bit, as its page describes it."""
    bits = "".join(f"{byte:08b}" for byte in packed)
    at = 0

    def take(count: int) -> int:
        nonlocal at
        at += count
        return int(bits[at - count : at], 2)

    total, word = take(32), take(5) + 1
    sizes = [take(4) + 1 for _ in range(4)]
    values: list[int] = []
    while len(values) < total:
        repeated, length = take(1), 0
        length = take(sizes[take(2)]) + 1
        values += [take(word)] * length if repeated else [take(word) for _ in range(length)]
    assert len(bits) - at < 8
    return np.array(values)


def test_brushes_bit_by_bit(made):
    found = results(made / "label_studio.json", "in/a.png")
    for result, mask in zip(found, masks(), strict=True):
        decoded = unpacked(result["value"]["rle"]).reshape(*SIZE, 4)
        assert np.array_equal(decoded, np.repeat(mask[..., None] * 255, 4, 2))


def test_label_studio_polygons(made):
    found = results(made / "label_studio_polygons.json", "in/a.png")
    for result, mask in zip(found, masks(), strict=True):
        points = np.array(result["value"]["points"]) * (0.60, 0.40)
        assert iou(rasterised(points), mask) >= 0.98
        assert (result["original_width"], result["original_height"]) == (60, 40)
    (box,) = results(made / "label_studio_polygons.json", "other place/a.png")
    assert box["type"] == "rectanglelabels"
    assert box["value"]["x"] == pytest.approx(100 * 25 / 60)
    assert box["value"]["height"] == pytest.approx(100 * 20 / 40)


def test_cvat(made):
    root = ElementTree.parse(made / "cvat.xml").getroot()
    assert root.findtext("version") == "1.1"
    assert [label.text for label in root.iterfind("meta/task/labels/label/name")] == CLASSES
    names = [image.get("name") for image in root.iterfind("image")]
    assert names == ["in/a.png", "b.png", "other place/a.png"], "b.png is enough"
    shapes = root.find("image").findall("mask")
    for shape, mask in zip(shapes, masks(), strict=True):
        assert np.array_equal(painted(shape), mask)
    assert shapes[0].get("label") == CLASSES[1]
    assert int(shapes[0].get("z_order")) > int(shapes[1].get("z_order"))
    (box,) = root.findall("image")[2].findall("box")
    assert [box.get(side) for side in ("xtl", "ytl", "xbr", "ybr")] == [
        "25.00",
        "10.00",
        "45.00",
        "30.00",
    ]


def test_cvat_as_datumaro_reads_it(made, tmp_path):
    datumaro = pytest.importorskip("datumaro")
    place = tmp_path / "cvat"
    place.mkdir()
    (place / "annotations.xml").write_bytes((made / "cvat.xml").read_bytes())
    (place / "images").symlink_to(made.parent)
    dataset = datumaro.Dataset.import_from(str(place), "cvat")
    names = dataset.categories()[datumaro.AnnotationType.label]
    found = {item.id: item.annotations for item in dataset}
    assert sorted(found) == ["b", "in/a", "other place/a"]
    for shape, mask, label in zip(found["in/a"], masks(), [1, 0, 0], strict=True):
        assert np.array_equal(np.asarray(shape.image, bool), mask)
        assert names[shape.label].name == CLASSES[label]
    (box,) = found["other place/a"]
    assert box.get_bbox() == [25, 10, 20, 20]


def painted(shape) -> np.ndarray:
    """Run lengths of a box row by row, the first of background, as CVAT's documentation says."""
    left, top, width, height = (int(shape.get(k)) for k in ("left", "top", "width", "height"))
    values: list[bool] = []
    for k, length in enumerate(shape.get("rle").split(", ")):
        values += [bool(k % 2)] * int(length)
    mask = np.zeros(SIZE, bool)
    mask[top : top + height, left : left + width] = np.reshape(values, (height, width))
    return mask


def test_file_names_that_are_no_text(tmp_path):
    """Bytes of another encoding, and a control character."""
    name = "caf\udce9\x01.png"
    Image.new("RGB", (60, 40)).save(tmp_path / name)
    images = [{"id": 1, "file_name": name, "height": 40, "width": 60}]
    index = Index(
        name="own", root=tmp_path, images=images, categories=[{"id": 1, "name": "a\x02b"}]
    )
    box, one = torch.tensor([[5.0, 5, 20, 20]]), torch.ones(1)
    found = Prediction(1, SIZE, box, one, one.long() - 1, [encode(masks()[1])])
    export(tmp_path / "out", index, [found], get_args(Format))
    image = ElementTree.parse(tmp_path / "out/cvat.xml").getroot().find("image")
    assert image.get("name") == "caf\ufffd\ufffd.png"
    assert (tmp_path / "out/cutouts/caf\udce9\x01-1.png").is_file()
    assert "caf\\udce9" in (tmp_path / "out/objects.csv").read_text(encoding="utf-8")
    (image,) = json.loads((tmp_path / "out/coco.json").read_text())["images"]
    assert image["file_name"] == name
    (task,) = json.loads((tmp_path / "out/label_studio.json").read_text())
    assert task["data"]["image"].endswith("caf%E9%01.png")


def test_every_image_has_a_name_of_its_own():
    long = "n" * 300
    names = ("a.png", "b/a.png", "a-1.png", "c.png", f"{long}1.png", f"{long}2.png")
    images = [{"id": number, "file_name": name} for number, name in enumerate(names, 1)]
    made = file_names(Index(name="", root=Path(), images=images, categories=[]))
    assert made[:4] == ["a-1", "a-2", "a-1-3", "c"]
    assert len({*made}) == 6
    assert max(map(len, made)) == 240
