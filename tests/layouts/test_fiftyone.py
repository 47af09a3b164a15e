"""What FiftyOne 1.22 wrote when it exported COCO, CSV and YOLO, with names and numbers changed."""

from __future__ import annotations

import json

import numpy as np
from labelled import objects, tags
from pycocotools import mask as rle

from wsis.data.targets import run_length

TRIANGLE = [40.0, 44.5, 10.0, 44.5, 10.0, 20.5, 40.0, 44.5]
"""The first corner is also the last."""


def test_coco(photos, read):
    root = photos("data/a.jpg", "data/b.jpg")
    unknown = {"license": None, "coco_url": None}
    content = {
        "info": {"year": "", "version": "", "url": "https://voxel51.com/fiftyone"},
        "licenses": [],
        "categories": [
            {"id": 1, "name": "cat", "supercategory": None},
            {"id": 2, "name": "dog", "supercategory": None},
        ],
        "images": [
            {"id": 1, "file_name": "a.jpg", "height": 60, "width": 80, **unknown},
            {"id": 2, "file_name": "b.jpg", "height": 60, "width": 80, **unknown},
        ],
        "annotations": [
            {
                "id": 1,
                "image_id": 1,
                "category_id": 2,
                "bbox": [10.0, 20.0, 30.0, 24.0],
                "segmentation": [TRIANGLE],
                "score": 0.7,
                "area": 720.0,
                "iscrowd": 0,
                "source": "prediction",
                "ignore": 0,
            }
        ],
    }
    (root / "labels.json").write_text(json.dumps(content))
    index = read(root)
    assert objects(index) == {"data/a.jpg": [("dog", 10, 20, 30, 24)], "data/b.jpg": []}
    (annotation,) = index.annotations[index.images[0]["id"]]
    mask = rle.decode(run_length(annotation["segmentation"], (60, 80)))
    assert np.isclose(mask.sum(), 30 * 24 / 2, rtol=0.1)


def test_tags_of_samples(photos, read):
    """Several tags are in one cell, apart by commas."""
    root = photos("data/a.jpg", "data/b.jpg", "data/c.jpg")
    (root / "labels.csv").write_text('file,tags\na.jpg,cat\nb.jpg,"cat,dog"\nc.jpg,none\n')
    assert tags(read(root)) == {
        "data/a.jpg": ["cat"],
        "data/b.jpg": ["cat", "dog"],
        "data/c.jpg": [],
    }


def test_yolo(photos, read):
    root = photos("images/train/a.jpg")
    (root / "dataset.yaml").write_text(
        "names:\n  0: cat\n  1: dog\npath: /other/machine\ntrain: ./images/train/\n"
    )
    (root / "labels/train").mkdir(parents=True)
    (root / "labels/train/a.txt").write_text("1 0.3125 0.533333 0.375 0.4\n")
    ((name, (found,)),) = objects(read(root)).items()
    assert name == "images/train/a.jpg"
    assert found[0] == "dog"
    assert np.allclose(found[1:], [10, 20, 30, 24], atol=0.01)
