"""What Roboflow's library writes, read back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from labelled import objects
from PIL import Image
from pycocotools import mask as rle

from wsis.data.targets import run_length
from wsis.layouts.find import read_split

sv = pytest.importorskip("supervision")
BOXES = np.array([[10, 20, 40, 44], [5, 6, 30, 50]], np.float32)


@pytest.fixture
def dataset(tmp_path: Path):
    masks = np.zeros((2, 60, 80), bool)
    masks[0, 20:44, 10:40] = masks[1, 6:50, 5:30] = True
    masks[1, 6:20, 15:30] = False  # an L
    detections = sv.Detections(xyxy=BOXES, mask=masks, class_id=np.array([1, 0]))
    path = str(tmp_path / "source" / "a.jpg")
    Path(path).parent.mkdir()
    Image.new("RGB", (80, 60)).save(path)
    return sv.DetectionDataset(["cat", "dog"], [path], {path: detections})


def check(root: Path, tolerance: float) -> None:
    index = read_split(root, "train")
    (found,) = objects(index).values()
    for (name, *box), (x1, y1, x2, y2), wanted in zip(found, BOXES, ["dog", "cat"], strict=True):
        assert name == wanted
        assert box == pytest.approx([x1, y1, x2 - x1, y2 - y1], abs=tolerance)
    return index


def check_masks(index, dataset) -> None:
    (truth,) = dataset.annotations.values()
    (annotations,) = index.annotations.values()
    for annotation, mask in zip(annotations, truth.mask, strict=True):
        found = rle.decode(run_length(annotation["segmentation"], (60, 80))).astype(bool)
        assert (found & mask).sum() / (found | mask).sum() > 0.9  # its corners are pixel centres


def test_yolo(dataset, tmp_path):
    root = tmp_path / "out"
    dataset.as_yolo(str(root / "images"), str(root / "labels"), str(root / "data.yaml"))
    yaml = root / "data.yaml"
    yaml.write_text(yaml.read_text() + "\ntrain: images\n")
    check_masks(check(root, 1), dataset)


def test_coco(dataset, tmp_path):
    root = tmp_path / "out"
    dataset.as_coco(str(root / "train"), str(root / "train/_annotations.coco.json"))
    check_masks(check(root, 0), dataset)


def test_pascal_voc(dataset, tmp_path):
    root = tmp_path / "out"
    dataset.as_pascal_voc(str(root / "JPEGImages"), str(root / "Annotations"))
    check(root, 1)  # it writes x2 as the pixel after the last
