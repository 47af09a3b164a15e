from __future__ import annotations

import json
import os
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO as Reference

from wsis.data.index import read_coco, write_coco
from wsis.data.module import Augment
from wsis.datasets.coco import COCO, COCO_VOC_CLASSES
from wsis.datasets.voc import VOC_CLASSES
from wsis.errors import InputError

SHARED = (
    Path(os.environ.get("WSIS_SHARED", Path(__file__).parents[2].parent / "shared"))
    / "data"
    / "coco"
)
REAL = pytest.mark.skipif(not SHARED.is_dir(), reason="needs real COCO images")

CATEGORIES = [{"id": 3, "name": "car"}, {"id": 7, "name": "train"}, {"id": 62, "name": "chair"}]
POLYGON = [[2, 1, 6, 1, 6, 4, 2, 4]]


def content() -> dict[str, Any]:
    annotations = [
        {
            "id": 1,
            "image_id": 10,
            "category_id": 62,
            "bbox": [2, 1, 4, 3],
            "iscrowd": 0,
            "segmentation": POLYGON,
        },
        {
            "id": 2,
            "image_id": 10,
            "category_id": 3,
            "bbox": [0, 0, 1, 2],
            "iscrowd": 1,
            "segmentation": {"size": [6, 8], "counts": [0, 2, 46]},
        },
        {
            "id": 3,
            "image_id": 11,
            "category_id": 7,
            "bbox": [1, 1, 2, 2],
            "iscrowd": 0,
            "segmentation": [[1, 1, 3, 1, 3, 3, 1, 3]],
        },
    ]
    images = [{"id": 10 + k, "file_name": f"{k}.jpg", "height": 6, "width": 8} for k in range(3)]
    return {"images": images, "annotations": annotations, "categories": CATEGORIES}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for split in ("train", "val"):
        (tmp_path / f"{split}2017").mkdir()
        for k in range(3):
            Image.new("RGB", (8, 6)).save(tmp_path / f"{split}2017/{k}.jpg")
        write(tmp_path, content(), split)
    return tmp_path


def write(root: Path, value: Any, split: str = "train") -> None:
    (root / "annotations").mkdir(exist_ok=True)
    (root / f"annotations/instances_{split}2017.json").write_text(json.dumps(value))


def test_tags_boxes_and_masks(root: Path) -> None:
    data = COCO(root, proposals="none")
    assert data.class_names == ["car", "train", "chair"]
    assert data.index("train").tags == {
        10: [0, 2],
        11: [1],
    }  # an image without objects is not trained on
    assert data.index("val").tags == {10: [0, 2], 11: [1], 12: []}
    target = data.samples("val", train=False, supervision={"tags", "boxes", "masks"}).sample(0)[
        "target"
    ]
    assert target["boxes"].tolist() == [[2, 1, 6, 4], [0, 0, 1, 2]]
    assert target["labels"].tolist() == [2, 0]
    assert target["crowd"].tolist() == [False, True]
    expected = np.zeros((2, 6, 8), bool)
    expected[0, 1:4, 2:6] = True
    expected[1, :2, 0] = True
    np.testing.assert_array_equal(target["masks"].numpy(), expected)


def test_classes_can_be_chosen_and_ordered(root: Path) -> None:
    index = read_coco(
        root / "annotations/instances_val2017.json", root / "val2017", ["chair", "car"]
    )
    assert index.categories == [{"id": 62, "name": "chair"}, {"id": 3, "name": "car"}]
    assert index.tags == {10: [0, 1], 11: [], 12: []}


def test_written_index_reads_back(root: Path) -> None:
    index = read_coco(root / "annotations/instances_val2017.json", root / "val2017")
    write_coco(root / "copy.json", index)
    again = read_coco(root / "copy.json", root / "val2017")
    assert (again.images, again.tags, again.categories) == (
        index.images,
        index.tags,
        index.categories,
    )
    assert [a["bbox"] for a in again.annotations[10]] == [a["bbox"] for a in index.annotations[10]]
    assert Reference(str(root / "copy.json")).anns.keys() == {1, 2, 3}


def test_missing_data_says_what_to_fetch(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no COCO val .*cocodataset\.org.*val2017/\*\.jpg"):
        COCO(tmp_path).index("val")


def broken(change: str) -> dict[str, Any]:
    value = content()
    match change:
        case "file":
            value["images"].append({"id": 99, "file_name": "absent.jpg", "height": 6, "width": 8})
        case "twice":
            value["images"].append({**value["images"][0], "id": 99})
        case "id":
            value["images"].append({**value["images"][0], "file_name": "3.jpg"})
        case "image":
            value["annotations"][0]["image_id"] = 5
        case "category":
            value["annotations"][0]["category_id"] = 99
        case "key":
            del value["categories"]
        case "name":
            value["categories"] = [*CATEGORIES, {"id": 4, "name": "car"}]
        case "same category":
            value["categories"] = [*CATEGORIES, {"id": 3, "name": "cart"}]
        case "nameless":
            value["categories"] = [*CATEGORIES, {"id": 4}]
        case "text id":
            value["images"][0]["id"] = "0.jpg"
        case "numbered file":
            value["images"][0]["file_name"] = 0
        case "half a pixel":
            value["images"][0]["height"] = 6.5
        case "no object":
            value["annotations"][1] = [1, 2]
        case "listed image":
            value["annotations"][0]["image_id"] = [10]
        case "other size":
            value["annotations"][1]["segmentation"]["size"] = [8, 6]
        case "flat polygon":
            value["annotations"][0]["segmentation"] = POLYGON[0]
        case "odd polygon":
            value["annotations"][0]["segmentation"] = [POLYGON[0][:7]]
        case "endless polygon":
            value["annotations"][0]["segmentation"] = [[2, 1, 6, 1, 6, float("nan")]]
    return value


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("file", r"names absent\.jpg, not found in .*train2017"),
        ("twice", r"file_name 0\.jpg is there twice"),
        ("id", "image id 10 is there twice"),
        ("image", "annotation 1: it is of image 5"),
        ("category", "annotation 1: it has category 99"),
        ("key", "has no categories; add it"),
        ("name", "category name car is there twice"),
        ("same category", "category id 3 is there twice"),
        ("nameless", r"categories\[3\] has no name: {'id': 4}; add it"),
        ("text id", r"images\[0\]\.id is '0\.jpg'; expected a whole number"),
        ("numbered file", r"images\[0\]\.file_name is 0; expected text"),
        ("half a pixel", r"images\[0\]\.height is 6\.5; expected a whole number"),
        ("no object", r"annotations\[1\] is \[1, 2\]; expected an object"),
        ("listed image", r"annotations\[0\]\.image_id is \[10\]; expected a whole number"),
        ("other size", r"annotation 2: the mask is \[8, 6\], but its image is \[6, 8\]"),
        ("flat polygon", r"annotations\[0\]\.segmentation\[0\] is 2; expected a list"),
        ("odd polygon", "annotation 1: a polygon has 7 coordinates"),
        ("endless polygon", "annotation 1: a polygon has a corner at nan"),
    ],
)
def test_bad_files_are_one_line_that_names_the_fault(root: Path, change: str, message: str) -> None:
    write(root, broken(change))
    with pytest.raises(InputError, match=message) as caught:
        COCO(root).index("train")
    assert "\n" not in str(caught.value)
    assert "instances_train2017.json" in str(caught.value)


def test_what_is_missing_is_derived(root: Path) -> None:
    """Sizes from the files; boxes without area in the image from the masks; numbers from text."""
    value = content()
    images, (one, crowd, other) = value["images"], value["annotations"]
    del images[0]["width"], one["bbox"]
    images[1]["height"], images[2]["id"] = None, "12"
    crowd["bbox"], other["bbox"] = [3, 0, 0, 5], [-20, 1, 2, 2]
    one |= {"image_id": "10", "segmentation": [[2, 1, 6, "1", 6, 4, 2, 4.0]]}
    write(root, value)
    index = COCO(root).index("train")
    assert {(image["height"], image["width"]) for image in index.images} == {(6, 8)}
    boxes = [a["bbox"] for found in index.annotations.values() for a in found]
    assert boxes == [[2, 1, 4, 3], [0, 0, 1, 2], [1, 1, 2, 2]]


def test_annotations_without_box_and_mask_are_tags(root: Path) -> None:
    value = content()
    for annotation in value["annotations"]:
        del annotation["bbox"], annotation["segmentation"]
    write(root, value)
    with warnings.catch_warnings(action="error", category=UserWarning):
        index = COCO(root).index("train")
    assert index.tags == {10: [0, 2], 11: [1]}
    assert not any(index.annotations.values())
    value["annotations"][0]["bbox"] = [2, 1, 4, 3]
    write(root, value)
    with pytest.warns(UserWarning, match="2 annotations have neither a box, a mask nor points"):
        index = COCO(root).index("train")
    assert index.tags == {10: [0, 2], 11: [1]}
    assert list(map(len, index.annotations.values())) == [1, 0]


def test_polygons_without_area_are_left_out(root: Path) -> None:
    value = content()
    thin, whole = value["annotations"][0], value["annotations"][2]
    thin["segmentation"], whole["segmentation"] = (
        [[1, 2, 7, 2], []],
        [[], *whole["segmentation"], [1, 2, 5, 2]],
    )
    write(root, value)
    samples = COCO(root, proposals="none", augment=Augment(flip=0)).samples(
        "train", train=True, supervision={"tags", "boxes", "masks"}
    )
    first, second = (samples.sample(k)["target"] for k in range(2))
    assert (first["ignore_mask"].tolist(), first["masks"].flatten(1).sum(1).tolist()) == (
        [True, False],
        [0, 2],
    )
    assert (second["ignore_mask"].tolist(), second["masks"].flatten(1).sum(1).tolist()) == (
        [False],
        [4],
    )


def test_sizes_may_be_written_as_fractions(root: Path) -> None:
    value = content()
    for image in value["images"]:
        image["height"] = 6.0
    write(root, value)
    samples = COCO(root, proposals="none").samples(
        "train", train=True, supervision={"tags", "boxes", "masks"}
    )
    assert samples.sample(0)["target"]["masks"].any()


def test_not_json(root: Path) -> None:
    (root / "annotations/instances_train2017.json").write_text("<html>")
    with pytest.raises(InputError, match="is not a whole json file"):
        COCO(root).index("train")


def test_boxes_of_no_area_are_counted_and_dropped_but_tags_stay(root: Path) -> None:
    value = content()
    value["annotations"][0] |= {"bbox": [2, 1, 0, 3], "segmentation": None}
    value["annotations"][2] |= {"bbox": [1, 1, 2, -1], "segmentation": []}
    write(root, value)
    with pytest.warns(UserWarning, match="2 annotations with a box of no area") as caught:
        index = COCO(root).index("train")
    assert len(caught) == 1
    assert [len(found) for found in index.annotations.values()] == [1, 0]
    assert index.tags == {10: [0, 2], 11: [1]}


def test_boxes_that_lie_outside_are_dropped_and_others_clipped(root: Path) -> None:
    """Polygons and an uncompressed crowd among boxes without masks; what is left is in order."""
    nan, inf = float("nan"), float("inf")
    useless = [
        [8, 1, 2, 2],
        [1, 6, 2, 2],
        [-3, 1, 3, 2],
        [1, -2, 2, 2],
        [4, 4, -2, 2],
        [4, 4, 2, 0],
    ]
    useless += [
        [nan, 1, 2, 2],
        [1, nan, 2, 2],
        [1, 1, nan, 2],
        [1, 1, 2, nan],
        [1, 1, inf, 2],
        [-inf, 1, inf, 2],
    ]
    value = content()
    usual, crowd, _ = value["annotations"]
    given = [usual, *({**usual, "bbox": box, "segmentation": []} for box in useless), crowd]
    given += [
        {**usual, "bbox": box} for box in ([-2, -1, 4, 3], [6.5, 4.5, 9, 9], [-5, -5, 90, 90])
    ]
    value["annotations"] = [{**annotation, "id": k + 1} for k, annotation in enumerate(given)]
    expected = [[2, 1, 6, 4], [0, 0, 1, 2], [0, 0, 2, 2], [6.5, 4.5, 8, 6], [0, 0, 8, 6]]
    for split in ("train", "val"):
        write(root, value, split)
    data = COCO(root, proposals="none", augment=Augment(flip=0))
    with pytest.warns(
        UserWarning, match=r"json: 12 annotations with a box of no area in the image are left out"
    ):
        samples = [
            data.samples("train", train, supervision)
            for train in (True, False)
            for supervision in ({"tags", "boxes"}, {"tags", "boxes", "masks"})
        ]
    for each in samples:
        target = each.sample(0)["target"]
        assert target["boxes"].tolist() == expected
        assert target["crowd"].tolist() == [False, True, False, False, False]
        assert len(target.get("masks", expected)) == len(expected)
    with pytest.warns(UserWarning, match="12 annotations"):
        truth = data.samples("val", train=False).sample(0)["truth"]
    assert truth.boxes.tolist()[2:4] == [[-2, -1, 2, 2], [6.5, 4.5, 15.5, 13.5]], "as annotated"
    assert len(truth.masks) == len(expected)


def test_2014_is_found_by_its_file_names(root: Path) -> None:
    for split in ("train", "val"):
        (root / f"{split}2017").rename(root / f"{split}2014")
        (root / f"annotations/instances_{split}2017.json").rename(
            root / f"annotations/instances_{split}2014.json"
        )
    assert COCO(root).index("train").root == root / "train2014"
    with pytest.raises(InputError, match="no COCO train annotations"):
        COCO(root, year="2017").index("train")


@REAL
def test_real_counts_agree_with_pycocotools() -> None:
    data = COCO(SHARED, panoptic=True, proposals="none")
    assert (data.num_classes, data.num_stuff) == (80, 53)
    for split in ("train", "val"):
        reference = Reference(str(SHARED / f"annotations/instances_{split}2017.json"))
        index = data.index(split)
        kept = [image for image in reference.imgs if split == "val" or reference.getAnnIds([image])]
        assert [image["id"] for image in index.images] == kept
        assert sum(map(len, index.annotations.values())) == len(reference.anns)
        name = {c["id"]: c["name"] for c in reference.cats.values()}
        for image in kept:
            told = {
                name[a["category_id"]] for a in reference.loadAnns(reference.getAnnIds([image]))
            }
            assert {data.class_names[t] for t in index.tags[image]} == told


@REAL
def test_real_subsets() -> None:
    everything = COCO(SHARED, proposals="none")
    voc, few = COCO(SHARED, "voc", proposals="none"), COCO(SHARED, "coco-voc", proposals="none")
    assert voc.class_names == list(VOC_CLASSES)
    assert few.class_names == list(COCO_VOC_CLASSES)
    assert (len(COCO_VOC_CLASSES), set(COCO_VOC_CLASSES) < set(VOC_CLASSES)) == (12, True)

    def objects(data: COCO) -> Counter[str]:
        name = {c["id"]: c["name"] for c in data.categories}
        return Counter(
            name[a["category_id"]]
            for found in data.index("val").annotations.values()
            for a in found
        )

    all_objects, voc_objects = objects(everything), objects(voc)
    same = {"tvmonitor": "tv", "sofa": "couch", "motorbike": "motorcycle", "aeroplane": "airplane"}
    same |= {"diningtable": "dining table", "pottedplant": "potted plant"}
    assert voc_objects == {n: c for n in VOC_CLASSES if (c := all_objects[same.get(n, n)])}
    assert objects(few) == {n: c for n, c in voc_objects.items() if n in COCO_VOC_CLASSES}
    assert all(voc.index("train").tags.values())


@REAL
def test_real_images_decode_with_their_masks() -> None:
    data = COCO(SHARED, proposals="none")
    reference = Reference(str(SHARED / "annotations/instances_val2017.json"))
    samples = data.samples("val", train=False, supervision={"tags", "boxes", "masks"})
    for position in range(0, 60, 20):
        sample = samples.sample(position)
        anns = reference.loadAnns(reference.getAnnIds([sample["image_id"]]))
        assert sample["image"].shape[1:] == sample["size"]
        for mask, annotation in zip(sample["target"]["masks"], anns, strict=True):
            np.testing.assert_array_equal(
                mask.numpy(), reference.annToMask(annotation).astype(bool)
            )
