"""Panoptic truths of the data sets, against masks, label maps and a pixel-by-pixel reading of COCO's format."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as rle

from wsis.data.samples import Samples
from wsis.datasets.coco import COCO
from wsis.datasets.shapes import Shapes
from wsis.datasets.voc import VOC, read_voc
from wsis.errors import InputError
from wsis.images.panoptic import PanopticMaps, write_map
from wsis.method import Method

SHARED = Path(os.environ.get("WSIS_SHARED", Path(__file__).parents[3] / "shared")) / "data"
needs_coco = pytest.mark.skipif(not (SHARED / "coco").is_dir(), reason="needs real COCO images")
needs_voc = pytest.mark.skipif(not (SHARED / "voc").is_dir(), reason="needs real VOC images")


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WSIS_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Shapes:
    data = Shapes(tmp_path_factory.mktemp("shapes"), train=4, val=3, proposals="none")
    data.index("train")
    return data


class Model(Method):
    """Asks for panoptic truths, or not."""

    supervision = frozenset({"tags", "stuff_tags"})
    needs_proposals = False

    def __init__(self, panoptic: bool) -> None:
        super().__init__()
        self.panoptic = panoptic
        self.seen: list[Any] = []

    def validation_step(self, batch: Any, _: int) -> None:
        self.seen += batch


def validated(data: Any, panoptic: bool) -> list[Any]:
    model = Model(panoptic)
    quiet = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }
    pl.Trainer(accelerator="cpu", **quiet).validate(model, data, verbose=False)
    return model.seen


@pytest.mark.filterwarnings("ignore")
def test_evaluation_has_the_map_when_the_model_asks(shapes: Shapes) -> None:
    assert [s["truth"].panoptic for s in validated(shapes, False)] == [None] * 3
    for sample in validated(shapes, True):
        panoptic, truth = sample["truth"].panoptic, sample["truth"]
        assert panoptic.shape == (256, 256, 2)
        assert panoptic.dtype == torch.int32
        for k, (mask, label) in enumerate(zip(truth.masks, truth.labels.tolist(), strict=True), 1):
            inside = (panoptic[..., 1] == k).numpy()
            assert (inside == rle.decode(mask)).all()
            assert (panoptic[..., 0][torch.from_numpy(inside)] == label).all()
        stuff = panoptic[panoptic[..., 1] == 0][:, 0].unique()
        assert (stuff - shapes.num_classes).tolist() == sample["target"]["stuff_tags"].nonzero()[
            :, 0
        ].tolist()


def test_training_never_gets_it_asked_or_not(shapes: Shapes) -> None:
    index = shapes.index("train")
    assert index.panoptic is not None
    assert shapes.samples("train", train=True).panoptic is None
    asked = Samples(index, {"tags", "stuff_tags", "boxes", "masks"}, shapes.augment, panoptic=True)
    assert asked.panoptic is None
    assert "truth" not in asked.sample(0)


SKY, VOID = [2, 0], [-1, 0]


def write_coco(root: Path) -> dict[str, Any]:
    """One image of 4 x 6: a car, a train, a crowd of cars, sky, and a corner of nothing."""
    numbers = np.array(
        [
            [1, 1, 70000, 70000, 9, 9],
            [1, 1, 70000, 70000, 9, 9],
            [300] * 6,
            [0, 300, 300, 300, 5, 5],
        ]
    )
    segments = [
        {"id": 70000, "category_id": 7},
        {"id": 1, "category_id": 3, "iscrowd": 0},
        {"id": 9, "category_id": 3, "iscrowd": 1},
        {"id": 300, "category_id": 187},
        {"id": 5, "category_id": 3},
    ]
    for folder in ("annotations/panoptic_val2017", "val2017"):
        (root / folder).mkdir(parents=True)
    Image.new("RGB", (6, 4)).save(root / "val2017/x.jpg")
    Image.new("RGB", (6, 4)).save(root / "val2017/y.jpg")
    colours = np.stack([numbers % 256, numbers // 256 % 256, numbers // 65536], -1).astype(np.uint8)
    Image.fromarray(colours).save(root / "annotations/panoptic_val2017/x.png")
    things = [{"id": 3, "name": "car"}, {"id": 7, "name": "train"}]
    images = [
        {"id": k, "file_name": f"{name}.jpg", "height": 4, "width": 6}
        for k, name in enumerate("xy")
    ]
    annotation = {"id": 1, "image_id": 0, "category_id": 3, "bbox": [0, 0, 2, 2], "iscrowd": 0}
    (root / "annotations/instances_val2017.json").write_text(
        json.dumps({"images": images, "annotations": [annotation], "categories": things})
    )
    categories = [*({**c, "isthing": 1} for c in things), {"id": 187, "name": "sky", "isthing": 0}]
    panoptic = {
        "annotations": [{"image_id": 0, "file_name": "x.png", "segments_info": segments}],
        "categories": categories,
    }
    (root / "annotations/panoptic_val2017.json").write_text(json.dumps(panoptic))
    return panoptic


def test_coco_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_coco(tmp_path)
    index = COCO(tmp_path, panoptic=True, proposals="none").read("val")
    first = [
        [0, 2],
        [0, 2],
        [1, 1],
        [1, 1],
        VOID,
        VOID,
    ]  # the train is the json's first thing, the crowd no thing
    expected = [first, first, [SKY] * 6, [VOID, SKY, SKY, SKY, [0, 3], [0, 3]]]
    assert index.panoptic(index.images[0]).tolist() == expected
    assert index.panoptic(index.images[1]) is None
    assert index.stuff_tags == {0: [0]}
    monkeypatch.setattr("wsis.datasets.coco._SUBSETS", {"voc": ("train",)})
    subset = COCO(tmp_path, "voc", panoptic=True, proposals="none").read("val")
    first = [VOID, VOID, [0, 1], [0, 1], VOID, VOID]  # cars are not in the subset
    expected = [first, first, [[1, 0]] * 6, [VOID, *[[1, 0]] * 3, VOID, VOID]]
    assert subset.panoptic(subset.images[0]).tolist() == expected
    assert COCO(tmp_path, proposals="none").read("val").panoptic is None


@pytest.mark.parametrize("fault", ["missing", "folder", "size", "grey", "broken"])
def test_a_bad_png_is_one_line(tmp_path: Path, fault: str) -> None:
    write_coco(tmp_path)
    path = tmp_path / "annotations/panoptic_val2017/x.png"
    if fault == "folder":
        shutil.rmtree(path.parent)
    elif fault == "missing":
        path.unlink()
    elif fault == "broken":
        path.write_bytes(path.read_bytes()[:20])
    else:
        Image.new("L" if fault == "grey" else "RGB", (6, 4) if fault == "grey" else (7, 4)).save(
            path
        )
    index = COCO(tmp_path, panoptic=True, proposals="none").read("val")
    with pytest.raises(InputError, match=r"x\.png") as error:
        index.panoptic(index.images[0])
    assert "\n" not in str(error.value)


RECORDS: dict[str, tuple[tuple[str | int, ...], Any, str]] = {
    "thing or stuff": (("categories", 0, "isthing"), None, r"categories\[0\]\.isthing is None"),
    "segments": (("annotations", 0, "segments_info"), None, r"\[0\]\.segments_info is None"),
    "file": (("annotations", 0, "file_name"), 7, r"annotations\[0\]\.file_name is 7"),
    "image": (("annotations", 0, "image_id"), "x", r"annotations\[0\]\.image_id is 'x'"),
    "category": (("annotations", 0, "segments_info", 1, "category_id"), 4, "has category 4, not"),
    "number": (("annotations", 0, "segments_info", 1, "id"), 2**40, "whole number <= 16777215"),
    "same class": (("categories", 2, "name"), "car", "category name car is there twice"),
}


@pytest.mark.parametrize("fault", RECORDS)
def test_a_bad_record_is_one_line(tmp_path: Path, fault: str) -> None:
    content: Any = write_coco(tmp_path)
    (*way, last), value, says = RECORDS[fault]
    record = content
    for key in way:
        record = record[key]
    record[last] = value
    (tmp_path / "annotations/panoptic_val2017.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=rf"panoptic_val2017\.json.*{says}") as error:
        COCO(tmp_path, panoptic=True, proposals="none").read("val")
    assert "\n" not in str(error.value)


@needs_coco
def test_real_coco_areas_are_those_of_the_json() -> None:
    index = COCO(SHARED / "coco", panoptic=True, proposals="none").read("val")
    content = json.loads((SHARED / "coco/annotations/panoptic_val2017.json").read_text())
    classes = {c["id"]: k for k, c in enumerate([*index.categories, *index.stuff])}
    by_id = {image["id"]: image for image in index.images}
    for annotation in content["annotations"][:15]:
        panoptic = index.panoptic(by_id[annotation["image_id"]])
        keys, areas = np.unique(
            panoptic.numpy().astype(np.int64) @ np.array([1000, 1]), return_counts=True
        )
        found = sorted((int(k) // 1000, int(a)) for k, a in zip(keys, areas, strict=True) if k >= 0)
        told = [
            (classes[s["category_id"]], s["area"])
            for s in annotation["segments_info"]
            if not s["iscrowd"]
        ]
        assert found == sorted(told)


@needs_voc
def test_real_voc_follows_its_pngs() -> None:
    data = VOC(SHARED / "voc", proposals="none")
    index, devkit = data.index("val"), SHARED / "voc/VOCdevkit/VOC2012"
    assert [c["name"] for c in data.stuff] == ["background"]
    voids = 0
    for image in index.images[:8]:
        panoptic = index.panoptic(image).numpy()
        png = Path(image["file_name"]).with_suffix(".png").name
        objects, classes = (
            np.array(Image.open(devkit / f"Segmentation{kind}" / png))
            for kind in ("Object", "Class")
        )
        assert ((panoptic[..., 0] == 20) == (objects == 0)).all()
        assert ((panoptic[..., 0] == -1) == (objects == 255)).all()
        known = (objects > 0) & (objects < 255)
        agree = panoptic[known][:, 0] + 1 == classes[known]
        assert agree.mean() > 0.99  # some pixels of VOC's two maps differ
        for k, annotation in enumerate(index.annotations[image["id"]], 1):
            assert ((panoptic[..., 1] == k) == rle.decode(annotation["segmentation"])).all()
        voids += (objects == 255).sum()
    assert voids > 0


def test_stuff_tags_reach_the_targets(shapes: Shapes) -> None:
    as_coco = COCO(shapes.folder, panoptic=True, proposals="none", augment=shapes.augment)
    for data in (shapes, as_coco):
        for train in (True, False):
            split = "train" if train else "val"
            samples = data.samples(split, train, {"tags", "stuff_tags"})
            for k, image in enumerate(data.index(split).images):
                png = (
                    shapes.folder / f"annotations/panoptic_{split}2017" / f"{image['id']:012d}.png"
                )
                there = [float((cv2.imread(str(png))[..., 2] == n).any()) for n in (1, 2, 3)]
                assert samples.sample(k)["target"]["stuff_tags"].tolist() == there


def test_a_missing_voc_png_is_one_line(shapes: Shapes, tmp_path: Path) -> None:
    shutil.copytree(shapes.folder / "VOCdevkit", tmp_path / "VOCdevkit")
    devkit = tmp_path / "VOCdevkit/VOC2012"
    stem = (devkit / "ImageSets/Segmentation/val.txt").read_text().split()[0]
    index = read_voc(devkit, [stem], shapes.class_names, masks=True)
    assert Samples(index, {"tags", "stuff_tags"}).sample(0)["target"]["stuff_tags"].tolist() == [
        1.0
    ]
    (devkit / f"SegmentationObject/{stem}.png").unlink()
    with pytest.raises(InputError, match=f"SegmentationObject/{stem}.png"):
        index.panoptic(index.images[0])


@given(st.integers(0, 2**32 - 1), st.integers(0, 300))
@settings(max_examples=25, deadline=None)
def test_written_maps_read_back(
    tmp_path_factory: pytest.TempPathFactory, seed: int, first: int
) -> None:
    """The segments are the same; instances are numbered anew, from 1, in order of class and number."""
    rng = np.random.default_rng(seed)
    label = rng.integers(-1, 5, (9, 11))
    instance = np.where((label >= 0) & (label < 3), rng.integers(first, first + 3, label.shape), 0)
    path = tmp_path_factory.mktemp("maps") / "1.png"
    segments = write_map(path, torch.from_numpy(np.stack([label, instance], -1).astype(np.int32)))
    annotation = {"image_id": 1, "file_name": "1.png"}
    annotation["segments_info"] = [{"id": n, "category_id": 50 + c} for n, c, _ in segments]
    back = PanopticMaps(path.parent, [annotation], {50 + c: c for c in range(5)}, 3)(
        {"id": 1, "height": 9, "width": 11}
    )
    assert (back[..., 0].numpy() == label).all()
    pairs = sorted(
        {(c, i) for c, i in zip(label.ravel(), instance.ravel(), strict=True) if 0 <= c < 3}
    )
    numbered = {pair: k for k, pair in enumerate(pairs, 1)}
    expected = [numbered.get(pair, 0) for pair in zip(label.ravel(), instance.ravel(), strict=True)]
    assert back[..., 1].ravel().tolist() == expected
    assert sum(area for _, _, area in segments) == (label >= 0).sum()
