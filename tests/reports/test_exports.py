"""Predictions for other programs."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as rle
from pycocotools.coco import COCO

from wsis.reports.exports import export
from wsis.types import Index, Prediction

SIZE = (40, 60)


def encode(pixels) -> dict:
    return rle.encode(np.asfortranarray(pixels.astype(np.uint8)))


def masks() -> np.ndarray:
    """A disc, a square with a hole that lies over it, and a rectangle below the threshold."""
    y, x = np.ogrid[:40, :60]
    disc = (y - 20) ** 2 + (x - 20) ** 2 < 15**2
    square = np.zeros(SIZE, bool)
    square[10:30, 25:45] = True
    square[18:22, 33:37] = False
    rest = np.zeros(SIZE, bool)
    rest[:5] = True
    return np.stack([square, disc, rest])


@pytest.fixture
def made(tmp_path) -> Path:
    images = [
        {"id": k, "file_name": f"in/{name}.jpg", "height": 40, "width": 60}
        for k, name in ((3, "a"), (5, "b"))
    ]
    categories = [{"id": 7, "name": "cat"}, {"id": 9, "name": "dog, small"}]
    index = Index(name="own", root=Path(), images=images, categories=categories, annotations={})
    boxes = torch.tensor([[25, 10, 45, 30], [6, 6, 35, 35], [0, 0, 60, 5]]).float()
    found = Prediction(
        3, SIZE, boxes, torch.tensor([0.9, 0.5, 0.1]), torch.tensor([1, 0, 0]),
        [encode(mask) for mask in masks()],
    )  # fmt: skip
    nothing = Prediction(5, SIZE, boxes[:0], torch.zeros(0), torch.zeros(0, dtype=torch.int64), [])
    names, formats = ["a", "b"], ("csv", "png", "polygons")
    files = export(tmp_path, index, names, [found, nothing], 0.5, formats)
    assert all(path.exists() for path in files)
    assert len(files) == 4
    return tmp_path


def test_tables(made):
    objects = list(csv.DictReader((made / "objects.csv").open(encoding="utf-8")))
    assert [row["class"] for row in objects] == ["dog, small", "cat"]
    assert [int(row["area"]) for row in objects] == [masks()[0].sum(), masks()[1].sum()]
    assert [row["number"] for row in objects] == ["1", "2"]
    assert objects[0]["x2"] == "45.0"
    counts = list(csv.DictReader((made / "counts.csv").open(encoding="utf-8")))
    assert counts == [
        {"image": "in/a.jpg", "cat": "1", "dog, small": "1"},
        {"image": "in/b.jpg", "cat": "0", "dog, small": "0"},
    ]


def test_label_images(made):
    square, disc, _ = masks()
    expected = np.where(square, 1, np.where(disc, 2, 0))
    assert np.array_equal(np.array(Image.open(made / "masks/a.png")), expected)
    assert not np.array(Image.open(made / "masks/b.png")).any()


def test_polygons_are_the_masks_but_for_their_holes(made):
    coco = COCO(made / "polygons.json")
    square, disc, _ = masks()
    square[18:22, 33:37] = True
    for number, mask in ((1, square), (2, disc)):
        drawn = coco.annToMask(coco.anns[number]).astype(bool)
        assert (drawn & mask).sum() / (drawn | mask).sum() > 0.97
    assert coco.anns[1]["category_id"] == 9
    assert json.loads((made / "polygons.json").read_text())["categories"][1]["name"] == "dog, small"
