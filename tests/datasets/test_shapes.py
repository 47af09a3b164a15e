from __future__ import annotations

import errno
import hashlib
import json
import os
import time
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from pycocotools import mask as rle

from wsis.data.index import read_coco
from wsis.data.salient import Salient
from wsis.datasets._scene import THINGS, SceneSettings, paint_scene
from wsis.datasets.shapes import Shapes
from wsis.datasets.voc import read_voc
from wsis.errors import InputError
from wsis.images.read import read_image
from wsis.types import Index


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shapes")


@pytest.fixture(scope="module")
def shapes(root: Path) -> Shapes:
    data = Shapes(root, train=40, val=8, salient=8, proposals="none")
    data.index("train")
    return data


def digests(folder: Path) -> dict[str, str]:
    files = (p for p in sorted(folder.rglob("*")) if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_constructor_touches_no_disk(tmp_path: Path) -> None:
    data = Shapes(tmp_path / "absent")
    assert (data.num_classes, data.num_stuff) == (8, 3)
    assert len(set(data.class_names)) == 8
    assert not (tmp_path / "absent").exists()


@pytest.mark.slow
def test_equal_settings_give_equal_bytes(shapes: Shapes, tmp_path: Path) -> None:
    again = Shapes(tmp_path, train=40, val=8, salient=8, proposals="none")
    again.index("train")
    assert again.folder.name == shapes.folder.name
    assert digests(again.folder) == digests(shapes.folder)
    assert again.fingerprint() == shapes.fingerprint()
    assert [p.name for p in tmp_path.iterdir()] == [shapes.folder.name]  # no scratch left


@pytest.mark.slow
def test_settings_and_seed_have_folders_of_their_own(
    shapes: Shapes, root: Path, tmp_path: Path
) -> None:
    other = Shapes(tmp_path, train=40, val=8, seed=1, proposals="none")
    assert (
        len(
            {
                d.folder.name
                for d in (shapes, other, Shapes(root, long_tail=True), Shapes(root, mark=0.4))
            }
        )
        == 4
    )
    theirs, ours = (
        read_image(i.root / i.images[0]["file_name"])
        for i in (other.index("train"), shapes.index("train"))
    )
    assert not torch.equal(theirs, ours)
    assert other.fingerprint() != shapes.fingerprint()


def test_annotations_agree_with_each_other(shapes: Shapes) -> None:
    """Masks do not overlap, boxes are the masks' boxes, points lie in them, and the panoptic picture shows the same objects and stuff."""
    index = shapes.index("train")
    panoptic = json.loads((shapes.folder / "annotations/panoptic_train2017.json").read_text())
    segments = {a["image_id"]: a for a in panoptic["annotations"]}
    for image in index.images:
        found = index.annotations[image["id"]]
        masks = np.stack([rle.decode(a["segmentation"]) for a in found])
        assert masks.sum(0).max() == 1
        for mask, annotation in zip(masks, found, strict=True):
            ys, xs = np.nonzero(mask)
            assert annotation["bbox"] == [xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1]
            ((x, y, inside),) = annotation["points"]
            assert inside == mask[int(y), int(x)] == 1
        entry = segments[image["id"]]
        picture = cv2.imread(
            str(shapes.folder / "annotations/panoptic_train2017" / entry["file_name"])
        ).astype(int)
        ids = picture[..., 2] + 256 * picture[..., 1] + 65536 * picture[..., 0]
        areas = {s["id"]: s["area"] for s in entry["segments_info"]}
        assert areas == {
            int(k): int(n) for k, n in zip(*np.unique(ids, return_counts=True), strict=True)
        }
        things = [s["category_id"] for s in entry["segments_info"] if s["category_id"] < 100]
        assert things == [a["category_id"] for a in found]
        shown = {s["category_id"] - 101 for s in entry["segments_info"] if s["category_id"] > 100}
        assert set(index.stuff_tags[image["id"]]) == shown


def test_voc_layout_says_the_same(
    shapes: Shapes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("WSIS_CACHE", str(tmp_path))
    index, devkit = shapes.index("val"), shapes.folder / "VOCdevkit/VOC2012"
    stems = (devkit / "ImageSets/Segmentation/val.txt").read_text().split()

    def told(index: Index) -> dict[str, list[tuple[int, list[float]]]]:
        return {
            i["file_name"]: [(a["category_id"], a["bbox"]) for a in index.annotations[i["id"]]]
            for i in index.images
        }

    for masks in (True, False):
        voc = read_voc(devkit, stems, shapes.class_names, masks=masks)
        assert told(voc) == told(index)
        assert list(voc.tags.values()) == list(index.tags.values())
    masks = read_voc(devkit, stems, shapes.class_names, masks=True).annotations
    for image, found in index.annotations.items():
        assert [a["segmentation"] for a in masks[image]] == [a["segmentation"] for a in found]


def test_file_systems_without_links_and_full_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    index = Shapes(tmp_path / "a", train=1, val=1, proposals="none").index("train")
    picture = index.root / index.images[0]["file_name"]
    twin = index.root.parent / "VOCdevkit/VOC2012/JPEGImages" / picture.name
    assert twin.read_bytes() == picture.read_bytes()
    monkeypatch.setattr("wsis.datasets.shapes._write_jpeg", refuse)
    with pytest.raises(
        InputError, match=r"cannot write .*: Operation not permitted; give another --data\.root"
    ):
        Shapes(tmp_path / "b", train=1, val=1).index("train")
    assert not list((tmp_path / "b").iterdir())


def test_splits_share_no_image(shapes: Shapes) -> None:
    train, val = shapes.index("train"), shapes.index("val")
    assert (len(train.images), len(val.images)) == (40, 8)
    assert not {i["id"] for i in train.images} & {i["id"] for i in val.images}
    pictures = [
        hashlib.sha256((x.root / i["file_name"]).read_bytes()).digest()
        for x in (train, val)
        for i in x.images
    ]
    assert len(set(pictures)) == 48


@pytest.mark.slow
def test_the_hard_parts_are_there() -> None:
    """Sizes, groups that touch, occlusion, co-occurring ground: counted on 200 scenes."""
    scenes = [
        paint_scene(
            np.random.default_rng([7, k]),
            SceneSettings(),
            k % len(THINGS),
            np.full(len(THINGS), 1 / len(THINGS)),
        )
        for k in range(200)
    ]
    boxes = [
        rle.toBbox(rle.encode(np.asfortranarray(s.owner == k + 1, np.uint8)))
        for s in scenes
        for k in range(len(s.labels))
    ]
    sides = np.array([max(box[2:]) for box in boxes])
    assert 16 <= sides.min() < 30
    assert 140 < sides.max() <= 170
    kernel = np.ones((3, 3), np.uint8)
    touching = several = 0
    for scene in scenes:
        for label in set(scene.labels):
            same = [k + 1 for k, other in enumerate(scene.labels) if other == label]
            several += len(same) > 1
            grown = sum(
                cv2.dilate((scene.owner == k).astype(np.uint8), kernel).astype(int) for k in same
            )
            touching += bool((grown > 1).any())
    assert touching > 0.5 * several > 30
    on_grass = [
        np.bincount(s.stuff[s.stuff < 255], minlength=3).argmax() == 0 for s in scenes[::8]
    ]  # class 0 lives on grass
    assert np.mean(on_grass) > 0.8


def test_two_classes_share_each_body() -> None:
    bodies = Counter((kind.outline, kind.colour, kind.material) for kind in THINGS)
    assert list(bodies.values()) == [2, 2, 2, 2]
    assert len({(kind.mark, kind.pattern) for kind in THINGS}) == 8


@pytest.mark.slow
def test_long_tail(tmp_path: Path) -> None:
    index = Shapes(tmp_path, train=100, val=8, long_tail=True, proposals="none").index("train")
    per_class = Counter(label for found in index.tags.values() for label in found)
    assert per_class[0] > 5 * per_class[7] > 0


def test_salient_objects_are_single_and_of_other_classes(shapes: Shapes) -> None:
    salient = Salient(shapes.salient_folder(), augment=shapes.augment)
    index = salient.index("train")
    assert len(index.images) == 8
    assert all(len(found) == 1 for found in index.annotations.values())
    mask = rle.decode(index.annotations[1][0]["segmentation"])
    assert cv2.connectedComponents(mask)[0] == 2
    assert mask[0].sum() + mask[-1].sum() + mask[:, 0].sum() + mask[:, -1].sum() == 0  # shown whole
    sample = salient.samples("train", train=True).sample(0, 3)
    assert sample["target"]["masks"].shape == (1, 256, 256)


@pytest.mark.slow
def test_generated_in_seconds(tmp_path: Path) -> None:
    began = time.process_time()
    Shapes(tmp_path, train=40, val=0).read("train")
    assert (
        time.process_time() - began < 2.5
    )  # 400 images in ten times that, whatever else the machine does


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        Shapes(tmp_path / "file").index("train")


def test_failed_writing_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("killed")

    monkeypatch.setattr("wsis.datasets.shapes._write_voc", fail)
    with pytest.raises(RuntimeError, match="killed"):
        Shapes(tmp_path, train=2, val=2).index("train")
    assert list(tmp_path.iterdir()) == []


def test_coco_reader_reads_it_as_coco(shapes: Shapes) -> None:
    path = shapes.folder / "annotations/instances_val2017.json"
    some = read_coco(path, shapes.folder / "val2017", ["blue-dotted flower", "red-striped egg"])
    assert [c["name"] for c in some.categories] == ["blue-dotted flower", "red-striped egg"]
    renumbered = {6: 0, 0: 1}
    for image, tags in shapes.index("val").tags.items():
        assert some.tags[image] == sorted(renumbered[t] for t in tags if t in renumbered)
