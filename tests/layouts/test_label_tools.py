"""Exports of label tools, written as their documentation shows them, with known boxes and tags."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
from labelled import incomplete, objects, points, tags
from PIL import Image
from pycocotools import mask as rle

from wsis.data.targets import run_length
from wsis.errors import InputError
from wsis.layouts.find import find_labels
from wsis.types import Index

BOX = [10, 20, 30, 24]
PENTAGON = [(10, 20), (40, 20), (40, 44), (25, 30), (10, 44)]
FLAT = [float(v) for point in PENTAGON for v in point]


def write(path: Path, content) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def mask(index: Index, place: int = 0, image: int = 0) -> np.ndarray:
    record = index.images[image]
    annotation = index.annotations[record["id"]][place]
    lengths = run_length(annotation["segmentation"], (record["height"], record["width"]))
    return rle.decode(lengths).astype(bool)


def pentagon() -> np.ndarray:
    return rle.decode(rle.frPyObjects([FLAT], 60, 80))[..., 0].astype(bool)


def ellipse(x: float, y: float, rx: float, ry: float) -> np.ndarray:
    ys, xs = np.mgrid[:60, :80] + 0.5
    return ((xs - x) / rx) ** 2 + ((ys - y) / ry) ** 2 <= 1


def iou(one: np.ndarray, other: np.ndarray) -> float:
    return (one & other).sum() / (one | other).sum()


# --- COCO ---


def coco(*names: str, categories=("cat", "dog"), first: int = 1) -> dict:
    return {
        "images": [
            {"id": n, "file_name": name, "width": 80, "height": 60} for n, name in enumerate(names)
        ],
        "annotations": [
            {"id": n, "image_id": n, "category_id": first, "bbox": BOX, "area": 720, "iscrowd": 0}
            for n in range(len(names))
        ],
        "categories": [{"id": n, "name": name} for n, name in enumerate(categories, first)],
    }


def test_coco_of_roboflow(photos, read):
    root = photos("train/a.jpg", "valid/b.jpg")
    for split, name in (("train", "a.jpg"), ("valid", "b.jpg")):
        content = coco(name)
        content["categories"].insert(0, {"id": 0, "name": "pets", "supercategory": "none"})
        write(root / split / "_annotations.coco.json", content)
    index = read(root)
    assert [category["name"] for category in index.categories] == ["cat", "dog"]
    assert objects(index) == {"train/a.jpg": [("cat", *BOX)]}
    assert 'category 0, "pets", has no annotation and is left out' in index.notes
    assert index.notes[0] == "labels: 1 image in COCO format, train/_annotations.coco.json"
    assert objects(read(root, "val", known=["cat", "dog"])) == {"valid/b.jpg": [("cat", *BOX)]}


def test_coco_of_cvat(photos, read):
    root = photos("images/default/a.jpg")
    write(root / "annotations/instances_default.json", coco("a.jpg"))
    assert objects(read(root)) == {"images/default/a.jpg": [("cat", *BOX)]}
    assert find_labels(root, "val") is None
    root = photos("images/val/b.jpg")
    write(root / "annotations/instances_val.json", coco("b.jpg"))
    assert objects(read(root, "val", known=["cat"])) == {"images/val/b.jpg": [("cat", *BOX)]}


@pytest.mark.parametrize("place", ["images/3f2a1b9c-a.jpg", "a.jpg"])
def test_coco_of_label_studio(photos, read, place):
    root = photos(place)
    write(root / "result.json", coco("images\\3f2a1b9c-a.jpg", first=0))
    assert objects(read(root)) == {place: [("cat", *BOX)]}


def test_coco_keeps_ids_and_what_else_annotations_have(photos, read):
    root = photos("a.jpg", "b.jpg")
    content = coco("b.jpg", "a.jpg")
    content["annotations"][0] |= {"score": 0.5, "source": "me"}
    write(root / "labels.json", content)
    index = read(root)
    assert [image["id"] for image in index.images] == [0, 1]
    assert index.annotations[0] == [{"id": 0, "image_id": 0, "score": 0.5, "source": "me", **{
        "category_id": 1, "bbox": BOX, "area": 720, "iscrowd": 0}}]  # fmt: skip
    assert [category["id"] for category in read(root, classes=["dog", "cat"]).categories] == [2, 1]


def test_coco_classes_of_one_normal_form_are_one(photos, read):
    root = photos("a.jpg", "b.jpg")
    content = coco("a.jpg", "b.jpg", categories=("café", "cafe\u0301"))
    content["annotations"][1]["category_id"] = 2
    write(root / "labels.json", content)
    assert tags(read(root)) == {"a.jpg": ["café"], "b.jpg": ["café"]}


# --- YOLO ---


@pytest.mark.parametrize(
    "train", ["images/train", "../images/train", "./images/train", ["images/train"]]
)
def test_yolo_with_yaml(photos, read, train):
    root = photos("images/train/a.jpg", "images/train/n.jpg", "images/val/b.jpg")
    write(
        root / "data.yaml",
        json.dumps({"train": train, "val": "images/val", "nc": 2, "names": ["cat", "dog"]}),
    )
    polygon = " ".join(f"{x / 80} {y / 60}" for x, y in PENTAGON)
    write(root / "labels/train/a.txt", f"1 0.3125 0.53333333 0.375 0.4\n0 {polygon}\n")
    write(root / "labels/val/b.txt", "0 0.5 0.5 1 1\n")
    index = read(root)
    assert objects(index) == {
        "images/train/a.jpg": [("dog", *BOX), ("cat", *BOX)],
        "images/train/n.jpg": [],
    }
    assert (mask(index, 1) == pentagon()).all()
    assert index.notes[:2] == (
        "labels: 2 images in YOLO format, data.yaml",
        "1 image without boxes: they have none of the classes",
    )
    assert objects(read(root, "val", known=["cat", "dog"])) == {
        "images/val/b.jpg": [("cat", 0, 0, 80, 60)]
    }


def test_yolo_of_roboflow(photos, read):
    root = photos("train/images/a.jpg", "valid/images/b.jpg")
    write(
        root / "data.yaml",
        "train: ../train/images\nval: ../valid/images\nnames: {0: cat, 1: dog}\n",
    )
    for split, name in (("train", "a"), ("valid", "b")):
        write(root / split / "labels" / f"{name}.txt", "1 0.3125 0.53333333 0.375 0.4\n")
    assert objects(read(root)) == {"train/images/a.jpg": [("dog", *BOX)]}
    assert tags(read(root, "val", known=["cat", "dog"])) == {"valid/images/b.jpg": ["dog"]}


@pytest.mark.parametrize(
    ("names", "image", "label"),
    [
        ("classes.txt", "images/a.jpg", "labels/a.txt"),  # Label Studio
        ("classes.txt", "a.jpg", "a.txt"),  # labelImg
        ("labels/classes.txt", "images/a.jpg", "labels/a.txt"),
        ("obj.names", "obj_train_data/a.jpg", "obj_train_data/a.txt"),  # CVAT, Darknet
    ],
)
def test_yolo_with_a_list_of_classes(photos, read, names, image, label):
    root = photos(image)
    write(root / names, "cat\ndog\n")
    write(root / label, "1 0.3125 0.53333333 0.375 0.4\n")
    assert objects(read(root)) == {image: [("dog", *BOX)]}
    assert find_labels(root, "val") is None


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("2 0.5 0.5 0.1 0.1", r"a\.txt:1: class 2 is not among the 2 names"),
        ("0 10 20 30 24", "fractions of the image"),
        ("0 0.5 0.5 nan 0.1", "fractions of the image"),
        ("0 0.5 0.5 0.1", "4 numbers are neither a box"),
        ("cat 0.5 0.5 0.1 0.1", "is no YOLO label"),
    ],
)
def test_yolo_lines_that_are_refused(photos, read, line, message):
    root = photos("a.jpg")
    write(root / "classes.txt", "cat\ndog\n")
    write(root / "a.txt", line)
    with pytest.raises(InputError, match=message):
        read(root)


def test_yolo_names_that_yaml_takes_for_something_else(photos, read):
    root = photos("images/a.jpg")
    write(root / "data.yaml", "train: images\nnames: [yes, no]\n")
    with pytest.raises(InputError, match="a class is bool; put its name in quotes"):
        read(root)


# --- Pascal VOC ---

VOC = """<annotation><folder>x</folder><filename>{name}</filename><size><width>{width}</width>
<height>60</height><depth>3</depth></size><object><name>cat</name><difficult>0</difficult><bndbox>
<xmin>11</xmin><ymin>21</ymin><xmax>40</xmax><ymax>44</ymax></bndbox></object></annotation>"""


@pytest.mark.parametrize(
    ("image", "xml", "name"),
    [
        ("JPEGImages/a.jpg", "Annotations/a.xml", "a.jpg"),
        ("train/a.jpg", "train/a.xml", "a.jpg"),  # Roboflow
        ("images/a.jpg", "Annotations/a.xml", "C:\\old\\other.png"),  # labelImg after renaming
        ("images/sub/a.jpg", "Annotations/sub/a.xml", "sub/a.jpg"),  # CVAT
    ],
)
@pytest.mark.parametrize("width", [80, 0])
def test_voc(photos, read, image, xml, name, width):
    root = photos(image)
    write(root / xml, VOC.format(name=name, width=width))
    assert objects(read(root)) == {image: [("cat", *BOX)]}  # pixels 11 to 40, the first is 1


def test_voc_splits_by_lists(photos, read):
    root = photos("JPEGImages/a.jpg", "JPEGImages/b.jpg")
    for name in "ab":
        write(root / f"Annotations/{name}.xml", VOC.format(name=f"{name}.jpg", width=80))
    assert find_labels(root, "val") is None
    write(root / "ImageSets/Main/train.txt", "a\n")
    write(root / "ImageSets/Main/val.txt", "b 1\n")
    assert list(tags(read(root))) == ["JPEGImages/a.jpg"]
    assert list(tags(read(root, "val", known=["cat"]))) == ["JPEGImages/b.jpg"]


def test_xml_with_entities_is_refused(photos, read):
    root = photos("a.jpg")
    bomb = '<!DOCTYPE x [<!ENTITY e "ee"><!ENTITY f "&e;&e;">]>'
    write(root / "a.xml", bomb + VOC.format(name="&f;", width=80))
    with pytest.raises(InputError, match="declares a document type"):
        read(root)


# --- LabelMe ---


def labelme(*shapes: dict, **more) -> dict:
    return {"version": "5.2.1", "flags": {}, "shapes": list(shapes), "imagePath": "a.jpg",
            "imageData": None, "imageHeight": 60, "imageWidth": 80, **more}  # fmt: skip


def shape(kind: str, points, label: str = "cat", group: int | None = None, **more) -> dict:
    return {"label": label, "points": points, "group_id": group, "shape_type": kind, **more}


def test_labelme(photos, read):
    root = photos("a.jpg", "b.jpg", "c.jpg")
    write(root / "a.json", labelme(
        shape("polygon", PENTAGON), shape("rectangle", [[40, 44], [10, 20]]),
        shape("circle", [[40, 30], [40, 10]], "dog"), shape("point", [[1, 2]], "emu"),
        shape("point", [[3, 4]], "emu", 7), shape("point", [[5, 6]], "emu", 7),
        shape("line", [[1, 2], [3, 4]], "emu"), shape("line", [[1, 2], [3, 4]], "fox"),
    ))  # fmt: skip
    write(root / "b.json", labelme(imagePath="..\\elsewhere\\b.jpg"))
    index = read(root)
    assert objects(index) == {
        "a.jpg": [("cat", *BOX), ("cat", *BOX), ("dog", 20, 10, 40, 40)],
        "b.jpg": [],
    }
    assert tags(index) == {"a.jpg": ["cat", "dog", "emu", "fox"], "b.jpg": []}
    assert points(index)["a.jpg"] == [("emu", (1, 2, 1)), ("emu", (3, 4, 1), (5, 6, 1))]
    assert incomplete(index) == {"a.jpg": ["emu", "fox"], "b.jpg": []}
    assert (mask(index) == pentagon()).all()
    assert iou(mask(index, 2), ellipse(40, 30, 20, 20)) > 0.98


def test_labelme_groups_and_masks(photos, read):
    part = np.array([[1, 0, 1], [1, 1, 1]], bool)
    png = io.BytesIO()
    Image.fromarray(part).save(png, "PNG")
    encoded = base64.b64encode(png.getvalue()).decode()
    root = photos("a.jpg")
    triangles = [(0, 0), (9, 0), (0, 9)], [(30, 30), (39, 30), (39, 39)]
    write(root / "a.json", labelme(
        shape("polygon", triangles[0], group=1), shape("mask", [[5, 7], [7, 8]], mask=encoded),
        shape("polygon", triangles[1], group=1),
    ))  # fmt: skip
    index = read(root)
    assert objects(index)["a.jpg"] == [("cat", 0, 0, 39, 39), ("cat", 5, 7, 3, 2)]
    flat = [[v for point in triangle for v in point] for triangle in triangles]
    assert (mask(index) == rle.decode(rle.frPyObjects(flat, 60, 80)).any(2)).all()
    expected = np.zeros((60, 80), bool)
    expected[7:9, 5:8] = part
    assert (mask(index, 1) == expected).all()


def test_labelme_flags_are_tags_where_nothing_is_drawn(photos, read):
    root = photos("a.jpg")
    write(root / "a.json", labelme(flags={"cat": True, "dog": False}))
    assert tags(read(root)) == {"a.jpg": ["cat"]}


# --- VIA ---

VIA_SHAPES = [
    {"name": "rect", "x": 10, "y": 20, "width": 30, "height": 24},
    {
        "name": "polygon",
        "all_points_x": [x for x, _ in PENTAGON],
        "all_points_y": [y for _, y in PENTAGON],
    },
    {"name": "ellipse", "cx": 40, "cy": 30, "rx": 20, "ry": 10, "theta": 0},
    {"name": "point", "cx": 4, "cy": 5},
]
VIA_NAMES = ["cat", "cat", "dog", "emu"]


def via(name: str, regions) -> dict:
    return {
        f"{name}123": {"filename": name, "size": 123, "regions": regions, "file_attributes": {}}
    }


@pytest.mark.parametrize("form", ["1", "2", "project", "ticks"])
def test_via_json(photos, read, form):
    root = photos("a.jpg", "b.jpg")
    regions = [
        {
            "shape_attributes": drawn,
            "region_attributes": {"type": {name: True, "x": False} if form == "ticks" else name},
        }
        for drawn, name in zip(VIA_SHAPES, VIA_NAMES, strict=True)
    ]
    content = via("a.jpg", {str(n): r for n, r in enumerate(regions)} if form == "1" else regions)
    content |= via("b.jpg", {} if form == "1" else [])
    project = {"_via_settings": {}, "_via_img_metadata": content, "_via_attributes": {}}
    write(root / "via_region_data.json", project if form == "project" else content)
    check_via(read(root))


def check_via(index: Index) -> None:
    assert objects(index) == {
        "a.jpg": [("cat", *BOX), ("cat", *BOX), ("dog", 20, 20, 40, 20)],
        "b.jpg": [],
    }
    assert tags(index) == {"a.jpg": ["cat", "dog", "emu"], "b.jpg": []}
    assert points(index) == {"a.jpg": [("emu", (4, 5, 1))], "b.jpg": []}
    assert incomplete(index) == {"a.jpg": [], "b.jpg": []}
    assert (mask(index, 1) == pentagon()).all()
    assert iou(mask(index, 2), ellipse(40, 30, 20, 10)) > 0.97


def test_via_csv(photos, read):
    root = photos("a.jpg", "b.jpg")

    def cell(value) -> str:
        return '"' + json.dumps(value).replace('"', '""') + '"'

    rows = [
        f'a.jpg,123,"{{}}",4,{n},{cell(drawn)},{cell({"type": name})}'
        for n, (drawn, name) in enumerate(zip(VIA_SHAPES, VIA_NAMES, strict=True))
    ]
    heading = "filename,file_size,file_attributes,region_count,region_id,region_shape_attributes,region_attributes"
    rows.append('b.jpg,123,"{}",0,0,"{}","{}"')
    write(root / "via_region_data.csv", "\n".join([heading, *rows]))
    check_via(read(root))


def test_via_attributes_that_may_both_be_the_class(photos, read):
    root = photos("a.jpg")
    region = {
        "shape_attributes": VIA_SHAPES[0],
        "region_attributes": {"colour": "red", "size": "big"},
    }
    write(root / "via.json", via("a.jpg", [region]))
    with pytest.raises(InputError, match="attributes colour, size, any of which may be the class"):
        read(root)
    region["region_attributes"]["Class"] = "cat"
    write(root / "via.json", via("a.jpg", [region]))
    assert tags(read(root)) == {"a.jpg": ["cat"]}


# --- CVAT ---


def test_cvat(photos, read):
    root = photos("images/a.jpg", "images/b.jpg")
    corners = ";".join(f"{x:.2f},{y:.2f}" for x, y in PENTAGON)
    write(root / "annotations.xml", f"""<?xml version="1.0" encoding="utf-8"?><annotations><version>1.1</version>
    <meta><task><labels><label><name>dog</name></label><label><name>cat</name></label><label><name>emu</name></label></labels></task></meta>
    <image id="0" name="a.jpg" width="80" height="60">
    <box label="cat" xtl="10.0" ytl="20.0" xbr="40.0" ybr="44.0" occluded="0"><attribute name="age">3</attribute></box>
    <polygon label="cat" points="{corners}"/><ellipse label="dog" cx="40" cy="30" rx="20" ry="10"/>
    <mask label="dog" rle="0, 1, 1, 4" left="5" top="7" width="3" height="2"/>
    <box label="dog" xtl="10" ytl="20" xbr="30" ybr="30" rotation="90.0"/>
    <points label="emu" points="1.5,2;3,4"/><points label="emu" points="7,8"/>
    <polyline label="dog" points="1,2;3,4"/><tag label="emu" source="manual"/></image><image id="1" name="b.jpg" width="80" height="60"/></annotations>""")  # fmt: skip
    index = read(root)
    assert [category["name"] for category in index.categories] == ["dog", "cat", "emu"]
    assert objects(index) == {
        "images/a.jpg": [
            ("cat", *BOX),
            ("cat", *BOX),
            ("dog", 20, 20, 40, 20),
            ("dog", 5, 7, 3, 2),
            ("dog", 15, 15, 10, 20),
        ],
        "images/b.jpg": [],
    }
    assert tags(index)["images/a.jpg"] == ["dog", "cat", "emu"]
    assert points(index)["images/a.jpg"] == [("emu", (1.5, 2, 1), (3, 4, 1)), ("emu", (7, 8, 1))]
    assert incomplete(index)["images/a.jpg"] == ["dog"]
    assert (mask(index, 1) == pentagon()).all()
    assert iou(mask(index, 2), ellipse(40, 30, 20, 10)) > 0.97
    assert mask(index, 3)[7:9, 5:8].tolist() == [[True, False, True], [True, True, True]]
    assert mask(index, 3).sum() == 5


def test_cvat_of_a_video_or_with_wrong_run_lengths(photos, read):
    root = photos("a.jpg")
    write(root / "annotations.xml", "<annotations><track id='0' label='cat'/></annotations>")
    with pytest.raises(InputError, match=r'export it as "CVAT for images 1\.1"'):
        read(root)
    part = '<mask label="cat" rle="3, 9" left="0" top="0" width="3" height="2"/>'
    image = f'<image id="0" name="a.jpg" width="80" height="60">{part}</image>'
    write(root / "annotations.xml", f"<annotations>{image}</annotations>")
    with pytest.raises(InputError, match="run lengths of a mask sum to 12, not to its 3 x 2"):
        read(root)


# --- Create ML and Hugging Face ---


@pytest.mark.parametrize("keys", [("image", "annotations"), ("imagefilename", "annotation")])
def test_createml(photos, read, keys):
    root = photos("a.jpg", "b.jpg")
    box = {"x": 25, "y": 32, "width": 30, "height": 24}
    labels = [{"label": "cat", "coordinates": box}, {"label": "dog"}]
    write(
        root / "_annotations.createml.json",
        [{keys[0]: "a.jpg", keys[1]: labels}, {keys[0]: "b.jpg", keys[1]: []}],
    )
    index = read(root)
    assert objects(index) == {"a.jpg": [("cat", *BOX)], "b.jpg": []}
    assert tags(index) == {"a.jpg": ["cat", "dog"], "b.jpg": []}


def test_hugging_face(photos, read):
    root = photos("train/a.jpg", "train/b.jpg", "validation/c.jpg")
    line = {
        "file_name": "a.jpg",
        "objects": {"bbox": [BOX, [0, 0, 5, 5]], "categories": ["cat", 3]},
    }
    write(
        root / "train/metadata.jsonl",
        "\n".join(map(json.dumps, [line, {"file_name": "b.jpg", "label": "dog"}])),
    )
    write(root / "validation/metadata.csv", "file_name,label\nc.jpg,dog\n")
    index = read(root)
    assert objects(index) == {"train/a.jpg": [("cat", *BOX), ("3", 0, 0, 5, 5)], "train/b.jpg": []}
    assert tags(index)["train/b.jpg"] == ["dog"]
    assert tags(read(root, "val", known=["dog"])) == {"validation/c.jpg": ["dog"]}


@pytest.mark.parametrize(
    "label",
    ["labels/3f2a1b9c-k\u00e4fer.txt", "labels/ka\u0308fer.txt", "labels/K\u00e4fer.TXT"],
)
def test_yolo_files_are_those_of_images_that_are_spelled_alike(photos, read, label):
    root = photos("images/k\u00e4fer.jpg", "images/b.jpg")
    write(root / "classes.txt", "cat\ndog\n")
    write(root / label, "1 0.3125 0.53333333 0.375 0.4\n")
    assert objects(read(root)) == {"images/b.jpg": [], "images/k\u00e4fer.jpg": [("dog", *BOX)]}


def test_yolo_files_of_no_image_are_told(photos, read):
    root = photos("images/a.jpg")
    write(root / "classes.txt", "cat\ndog\n")
    write(root / "labels/gone.txt", "1 0.3125 0.53333333 0.375 0.4\n")
    with pytest.raises(InputError, match=r"1 label file without an image, such as .*gone\.txt"):
        read(root)
    write(root / "labels/a.txt", "1 0.3125 0.53333333 0.375 0.4\n")
    index = read(root)
    assert objects(index) == {"images/a.jpg": [("dog", *BOX)]}
    assert any("1 label file without an image" in note for note in index.notes)


def test_yolo_names_are_a_list(photos, read):
    root = photos("images/train/a.jpg")
    write(root / "data.yaml", "train: images/train\nnames: cat\n")
    write(root / "labels/train/a.txt", "0 0.3125 0.53333333 0.375 0.4\n")
    with pytest.raises(InputError, match="names is 'cat'; write a list of the classes"):
        read(root)


def test_box_tables_in_fractions_and_with_sizes(photos, read):
    root = photos("a.jpg")
    x, y, width, height = BOX
    corners = [x / 80, y / 60, (x + width) / 80, (y + height) / 60]
    write(
        root / "labels.csv",
        f"filename,class,xmin,ymin,xmax,ymax\na.jpg,dog,{','.join(map(str, corners))}\n",
    )
    assert objects(read(root)) == {"a.jpg": [("dog", *BOX)]}
    write(
        root / "labels.csv",
        "filename,width,height,class,xmin,ymin,xmax,ymax\na.jpg,416,416,dog,1,2,30,40\n",
    )
    with pytest.raises(InputError, match=r"a\.jpg"):
        read(root)


def test_labelme_groups_are_one_object(photos, read):
    root = photos("a.jpg")
    square = {"label": "cat", "group_id": 1, "points": [[0, 0], [10, 0], [10, 10], [0, 10]]}
    boxed = {**square, "shape_type": "rectangle", "points": [[50, 40], [60, 50]]}
    point = {**square, "shape_type": "point", "points": [[5, 5]]}

    def of(*shapes):
        content = {"imagePath": "a.jpg", "imageHeight": 60, "imageWidth": 80, "shapes": shapes}
        write(root / "a.json", json.dumps(content))
        return read(root).annotations[1]

    polygon = {**square, "shape_type": "polygon"}
    (found,) = of(polygon, point)
    assert (found["bbox"], len(found["segmentation"])) == ([0, 0, 10, 10], 1)
    assert found["points"] == [[5, 5, 1]]
    (found,) = of(point, boxed, {**point, "points": [[7, 8]]})
    assert (found["bbox"], found["points"]) == ([50, 40, 10, 10], [[5, 5, 1], [7, 8, 1]])
    (found,) = of(point, {**point, "shape_type": "line", "points": [[1, 1], [2, 2]]})
    assert (found.get("bbox"), found["points"]) == (None, [[5, 5, 1]])
    (found,) = of(polygon, boxed)
    assert (found["bbox"], found.get("segmentation")) == ([0, 0, 60, 50], None)
    halves = [labelme_mask(place) for place in ((2, 3), (40, 30))]
    (found,) = of(*halves)
    assert rle.area(found["segmentation"]) == 2 * 4 * 5
    assert [round(v) for v in rle.toBbox(found["segmentation"])] == [2, 3, 42, 32]
    with pytest.raises(InputError, match="has a mask and another shape; draw both as masks"):
        of(halves[0], boxed)


@pytest.mark.parametrize(
    ("shape", "box"),
    [
        (
            {"shape_type": "rotation", "points": [[10, 5], [20, 15], [10, 25], [0, 15]]},
            [0, 5, 20, 20],
        ),
        ({"shape_type": None, "points": [[1, 2], [5, 2], [5, 9]]}, [1, 2, 4, 7]),
    ],
)
def test_labelme_shapes_of_other_tools(photos, read, shape, box):
    root = photos("a.jpg")
    write(root / "a.json", {"imagePath": "a.jpg", "shapes": [{"label": "cat", **shape}]})
    assert objects(read(root)) == {"a.jpg": [("cat", *box)]}


def test_labelme_shapes_that_are_not_known(photos, read):
    root = photos("a.jpg")
    shape = {"label": "cat", "shape_type": "cuboid", "points": [[1, 2], [5, 9]]}
    write(root / "a.json", {"imagePath": "a.jpg", "shapes": [shape]})
    with pytest.raises(
        InputError, match='the shape "cuboid" of "cat" is not known; draw a polygon'
    ):
        read(root)


def test_voc_turned_boxes(photos, read):
    root = photos("a.jpg")
    box = "<cx>30</cx><cy>20</cy><w>20</w><h>6</h><angle>1.5707963</angle>"
    item = f"<object><name>cat</name><robndbox>{box}</robndbox></object>"
    write(root / "a.xml", f"<annotation><filename>a.jpg</filename>{item}</annotation>")
    assert objects(read(root)) == {"a.jpg": [("cat", 27, 10, 6, 20)]}


def test_sides_are_swapped_only_where_the_photo_is_turned(photos, read):
    root = photos("a.jpg")
    item = "<object><name>cat</name><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object>"
    size = "<size><width>60</width><height>80</height></size>"
    write(root / "a.xml", f"<annotation><filename>a.jpg</filename>{size}{item}</annotation>")
    with pytest.raises(InputError, match="is labelled at 60 x 80 pixels but has 80 x 60"):
        read(root)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (80, 60)).save(root / "a.jpg", exif=exif)
    assert objects(read(root)) == {"a.jpg": [("cat", 0, 1, 9, 8)]}


def test_cvat_subsets_are_splits(photos, read):
    root = photos("a.jpg", "b.jpg", "c.jpg")
    images = "".join(
        f'<image id="{n}" name="{name}" subset="{subset}" width="80" height="60">'
        f'<tag label="cat"/></image>'
        for n, (name, subset) in enumerate(
            (("a.jpg", ""), ("b.jpg", "Validation"), ("c.jpg", "Test"))
        )
    )
    write(root / "annotations.xml", f"<annotations>{images}</annotations>")
    index = read(root)
    assert tags(index) == {"a.jpg": ["cat"]}
    assert "2 images of other subsets left out" in index.notes
    assert tags(read(root, "val", given="annotations.xml", known=["cat"])) == {"b.jpg": ["cat"]}


def test_via_options_called_by_numbers_and_classes_of_whole_files(photos, read):
    root = photos("a.jpg", "b.jpg")
    shape = {"name": "rect", "x": 10, "y": 20, "width": 30, "height": 24}
    region = {"shape_attributes": shape, "region_attributes": {"class": "1"}}
    options = {"class": {"type": "dropdown", "options": {"1": "cat", "2": "dog"}}}
    content = {
        "_via_attributes": {"region": options, "file": {}},
        "_via_img_metadata": {
            "a": {"filename": "a.jpg", "regions": [region], "file_attributes": {}},
            "b": {"filename": "b.jpg", "regions": [], "file_attributes": {"class": "dog"}},
        },
    }
    write(root / "labels.json", content)
    index = read(root)
    assert objects(index) == {"a.jpg": [("cat", *BOX)], "b.jpg": []}
    assert tags(index) == {"a.jpg": ["cat"], "b.jpg": ["dog"]}


def labelme_mask(place):
    """A mask of 4 x 5 pixels at a place, as LabelMe writes it."""
    file = io.BytesIO()
    Image.fromarray(np.full((5, 4), 255, np.uint8)).save(file, "png")
    (x, y), text = place, base64.b64encode(file.getvalue()).decode()
    points = [[x, y], [x + 3, y + 4]]
    return {"label": "cat", "group_id": 1, "shape_type": "mask", "points": points, "mask": text}


def test_cvat_parts_of_a_skeleton_are_no_classes(photos, read):
    root = photos("a.jpg")
    labels = (
        "<label><name>person</name><type>skeleton</type></label>"
        "<label><name>head</name><parent>person</parent></label>"
    )
    skeleton = '<skeleton label="person"><points label="head" points="1,1"/></skeleton>'
    image = f'<image id="0" name="a.jpg" width="80" height="60">{skeleton}</image>'
    write(root / "a.xml", f"<annotations><meta>{labels}</meta>{image}</annotations>")
    index = read(root)
    assert [category["name"] for category in index.categories] == ["person"]
    assert tags(index) == {"a.jpg": ["person"]}
    assert points(index) == {"a.jpg": []}


@pytest.mark.parametrize("names", ["obj.names", "voc.names"])
@pytest.mark.parametrize("has_data", [True, False])
def test_yolo_of_darknet(photos, read, has_data, names):
    root = photos("obj/a.jpg", "obj/b.jpg", "obj/c.jpg")
    write(root / names, "cat\ndog\n")
    for name, number in (("a", 0), ("b", 1)):
        write(root / f"obj/{name}.txt", f"{number} 0.5 0.5 0.1 0.2\n")
    write(root / "train.txt", "data/obj/a.jpg\ndata/obj/c.jpg\n")
    write(root / "valid.txt", "data/obj/b.jpg\n")
    if has_data:
        lines = "classes= 2\ntrain = data/train.txt\nvalid = data/valid.txt\n"
        write(root / "obj.data", f"{lines}names = data/{names}\nbackup = backup/\n")
    index = read(root)
    assert tags(index) == {"obj/a.jpg": ["cat"], "obj/c.jpg": []}
    assert not any("label file" in note for note in index.notes)
    assert tags(read(root, "val", known=["cat", "dog"])) == {"obj/b.jpg": ["dog"]}


def test_yolo_lines_written_twice_count_once(photos, read):
    root = photos("a.jpg")
    write(root / "classes.txt", "cat\n")
    write(root / "a.txt", "0 .5 .5 .1 .2\n0 .2 .2 .1 .1\n0  .5 .5 .1 .2\n")
    index = read(root)
    boxes = [annotation["bbox"] for annotation in index.annotations[1]]
    assert boxes == [pytest.approx([36, 24, 8, 12]), pytest.approx([12, 9, 8, 6])]
    assert "1 line written twice in a file, kept once" in index.notes
