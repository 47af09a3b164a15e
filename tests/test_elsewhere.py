"""The page "In other tools": its Python runs, where the tools are installed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from labelled import tags
from pages import ROOT, blocks
from PIL import Image
from pycocotools import mask as rle

import wsis
from wsis.layouts.find import read_split
from wsis.reports.exports import export
from wsis.types import Index, Prediction

FIFTYONE, TAGS, BOXES, MEMORY, SUPERVISION, BACK = blocks(ROOT / "docs/elsewhere.md", "python")


def disc() -> np.ndarray:
    y, x = np.ogrid[:60, :80]
    return (y - 30) ** 2 + (x - 40) ** 2 < 20**2


@pytest.fixture
def found(tmp_path, monkeypatch) -> Prediction:
    """What is found in the first of two photos; it is also in predictions/coco.json."""
    monkeypatch.chdir(tmp_path)
    Path("PHOTOS").mkdir()
    for name in ("PHOTOS/a.jpg", "PHOTOS/b.jpg", "image.jpg"):
        Image.new("RGB", (80, 60), "grey").save(name)
    images = [
        {"id": k, "file_name": f"PHOTOS/{name}.jpg", "height": 60, "width": 80}
        for k, name in enumerate("ab")
    ]
    categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    index = Index(name="own", root=Path(), images=images, categories=categories)
    mask = rle.encode(np.asfortranarray(disc(), np.uint8))
    box, score = torch.tensor([[21.0, 11, 60, 50]]), torch.tensor([0.9])
    first = Prediction(0, (60, 80), box, score, torch.tensor([1]), [mask], ("cat", "dog"))
    none = first.rows(torch.tensor([], dtype=torch.long))._replace(image_id=1)
    export(Path("predictions"), index, [first, none], ["coco"])
    return first


def test_supervision(found, monkeypatch):
    pytest.importorskip("supervision")
    monkeypatch.setattr(wsis, "load", lambda run: (None, None, None, 0.5))
    monkeypatch.setattr(wsis, "predict", lambda model, image: found)
    known: dict = {}
    exec(MEMORY, known)
    assert np.array_equal(known["found"].mask, [disc()])
    assert known["found"].confidence == pytest.approx([0.9])

    exec(SUPERVISION + BACK, known)
    assert np.array_equal(known["found"].mask, [disc()])
    assert known["names"] == ["dog"]
    changed = (known["drawn"] != known["image"]).any(2)
    assert changed[disc()].all()
    back = read_split(Path("DIR"), "train")
    assert tags(back) == {"train/a.jpg": ["dog"], "train/b.jpg": []}


def test_fiftyone(found, monkeypatch):
    """It needs a database, too."""
    fo = pytest.importorskip("fiftyone")
    try:
        fo.list_datasets()
    except Exception as error:
        pytest.skip(f"no database: {error}")
    shown = []

    class Session:
        def wait(self) -> None: ...

    monkeypatch.setattr(fo, "launch_app", lambda photos: shown.append(photos) or Session())
    known: dict = {}
    exec(FIFTYONE, known)
    (photos,) = shown
    (thing,) = photos.match({"filepath": {"$regex": "a.jpg"}}).first().wsis.detections
    assert (thing.label, thing.confidence) == ("dog", pytest.approx(0.9))
    assert np.array_equal(thing.to_segmentation(frame_size=(80, 60), target=1).mask > 0, disc())

    for sample, names in zip(photos, (["cat", "dog"], ["none"]), strict=True):
        sample.tags = names
        sample.save()
    exec(TAGS, known)
    assert tags(read_split(Path("DIR"), "train")) == {
        "data/a.jpg": ["cat", "dog"],
        "data/b.jpg": [],
    }
    exec(BOXES.replace("ground_truth", "wsis").replace("DIR", "MORE"), known)
    content = json.loads(Path("MORE/labels.json").read_text())
    assert [i["file_name"] for i in content["images"]] == ["a.jpg", "b.jpg"]
    assert tags(read_split(Path("MORE"), "train")) == {"data/a.jpg": ["dog"], "data/b.jpg": []}
