"""A model is judged on data with other classes by their names, never by their numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from pycocotools import mask as rle

from wsis.data.module import Loading
from wsis.datasets.coco import COCO, COCO_VOC_CLASSES
from wsis.datasets.voc import VOC_CLASSES
from wsis.errors import InputError
from wsis.inference import store_predictions
from wsis.method import Method
from wsis.reports import evaluation
from wsis.runs.classes import check_classes, for_classes_of
from wsis.types import Prediction

SEEN = ("boat", "bus", "cat", "train")


class Finds(Method):
    """A model of VOC's classes that finds one object of each of `SEEN` in every image."""

    needs_proposals = False
    class_names = VOC_CLASSES

    def predict(self, sample: Any) -> Prediction:
        labels = torch.tensor([self.class_names.index(name) for name in SEEN])
        boxes = torch.tensor([[0.0, 0, 4, 4], [4, 0, 8, 4], [0, 4, 4, 8], [4, 4, 8, 8]])
        masks = []
        for x1, y1, x2, y2 in boxes.int().tolist():
            mask = torch.zeros(8, 8, dtype=torch.uint8)
            mask[y1:y2, x1:x2] = 1
            masks.append(rle.encode(mask.T.contiguous().numpy().T))
        scores = torch.tensor([0.9, 0.8, 0.7, 0.6])
        return Prediction(sample["image_id"], (8, 8), boxes, scores, labels, masks)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Images with a bus, a cat and a boat where the model finds them, in COCO's 80 names."""
    names = ["boat", "bus", "cat", "train", "bear", "airplane", "motorcycle", "bicycle", "bird"]
    names += ["car", "cow", "dog", "horse", "sheep"]
    categories = [{"id": 7 * k + 5, "name": name} for k, name in enumerate(names)]
    annotations = [
        {"id": 1, "image_id": 1, "category_id": 12, "bbox": [4, 0, 4, 4]},
        {"id": 2, "image_id": 1, "category_id": 19, "bbox": [0, 4, 4, 4]},
        {"id": 3, "image_id": 1, "category_id": 5, "bbox": [0, 0, 4, 4]},
    ]
    for a in annotations:
        x, y, w, h = a["bbox"]
        a |= {"segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]], "area": 16, "iscrowd": 0}
    images = [{"id": 1, "file_name": "1.jpg", "height": 8, "width": 8}]
    (tmp_path / "annotations").mkdir()
    for split in ("train", "val"):
        content = {"images": images, "categories": categories, "annotations": annotations}
        path = tmp_path / f"annotations/instances_{split}2017.json"
        path.write_text(json.dumps(content))
        (tmp_path / f"{split}2017").mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / f"{split}2017/1.jpg")
    return tmp_path


def data_of(root: Path, classes: str) -> COCO:
    loading = Loading(batch_size=1, workers=0)
    return COCO(root, classes, proposals="none", loading=loading)  # type: ignore[arg-type]


def test_a_voc_model_is_judged_on_a_subset_of_its_classes(root, tmp_path, monkeypatch):
    data = data_of(root, "coco-voc")
    monkeypatch.setattr(evaluation, "load", lambda *_: type("Loaded", (), {"model": Finds()}))
    found = evaluation.evaluate_run(Path("run"), data, folder=tmp_path / "out", accelerator="cpu")
    stored = json.loads((tmp_path / "out" / "predictions.json").read_text())
    names = {category["id"]: category["name"] for category in data.categories}
    assert [names[result["category_id"]] for result in stored] == ["bus", "cat", "train"]
    assert [result["score"] for result in stored] == pytest.approx([0.8, 0.7, 0.6])
    assert found.overall["AP50"] == pytest.approx(1)
    assert found.per_class["bus"]["AP50"] == found.per_class["cat"]["AP50"] == pytest.approx(1)


def test_classes_that_were_not_learnt_are_refused_by_name(root):
    with pytest.raises(InputError, match="coco has bear, which the run has not learnt") as caught:
        for_classes_of(Finds(), data_of(root, "all"))
    assert "\n" not in str(caught.value)


def test_numbers_are_never_taken_for_names(root, tmp_path):
    """What other verbs do: they write labels of their own data."""
    with pytest.raises(InputError, match="knows the classes aeroplane, bicycle"):
        store_predictions(Finds(), data_of(root, "coco-voc"), "val", tmp_path, "cpu")


class Other:
    def __init__(self, *names: str, stuff: tuple[str, ...] = ()) -> None:
        self.class_names = names
        self.stuff = [{"id": 100 + k, "name": name} for k, name in enumerate(stuff)]

    def index(self, split: str) -> Any:
        return type("Index", (), {"name": "other"})


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (VOC_CLASSES, [3, 5, 7, 18]),
        (tuple(reversed(VOC_CLASSES)), [16, 14, 12, 1]),
        (COCO_VOC_CLASSES, [3, 5, 11]),
        (("airplane", "cat"), [1]),
        (("couch",), []),
    ],
    ids=["same", "reversed", "subset", "COCO's names", "nothing found"],
)
def test_detections_keep_their_class(names, labels):
    model = for_classes_of(Finds(), Other(*names))
    check_classes(model, Other(*names))
    (found,) = model.predict_step([{"image_id": 3}], 0)
    assert found.labels.tolist() == labels
    assert len(found.boxes) == len(found.scores) == len(found.masks) == len(labels)
    for label, score, box in zip(found.labels, found.scores, found.boxes, strict=True):
        known = dict(zip(SEEN, Finds().predict({"image_id": 3}).scores.tolist(), strict=True))
        assert known[names[label]] == pytest.approx(score.item())
        assert box.tolist() in Finds().predict({"image_id": 3}).boxes.tolist()


def test_a_model_without_names_or_with_given_boxes_has_nothing_to_match():
    nameless, segments_boxes = Finds(), Finds()
    nameless.class_names, segments_boxes.needs_boxes = (), True
    for model in (nameless, segments_boxes):
        assert for_classes_of(model, Other("zebra")) is model
        check_classes(model, Other("zebra"))


class PaintsMaps(Finds):
    """A panoptic model of two things and three kinds of stuff, with a pixel of each and of void."""

    panoptic = True
    class_names = ("cat", "bus")
    stuff_names = ("grass", "sky", "road")

    def predict(self, sample: Any) -> Prediction:
        labels = torch.tensor([[0, 1, 2, 3, 4, -1]])
        instances = torch.tensor([[1, 2, 0, 0, 0, 0]])
        return Prediction(
            *(sample["image_id"], (1, 6), torch.zeros(0, 4), torch.zeros(0)),
            *(torch.zeros(0, dtype=torch.int64), []),
            panoptic=torch.stack([labels, instances], -1).int(),
        )


@pytest.mark.parametrize(
    ("things", "stuff", "labels", "instances"),
    [
        (("cat", "bus"), ("sky", "road", "grass"), [0, 1, 4, 2, 3, -1], [1, 2, 0, 0, 0, 0]),
        (("bus", "cat"), ("grass", "sky", "road"), [1, 0, 2, 3, 4, -1], [1, 2, 0, 0, 0, 0]),
        (("bus",), ("road", "sky"), [-1, 0, -1, 2, 1, -1], [0, 2, 0, 0, 0, 0]),
        (("cat", "bus"), (), [0, 1, -1, -1, -1, -1], [1, 2, 0, 0, 0, 0]),
    ],
    ids=["stuff in another order", "things in another order", "fewer of both", "no stuff"],
)
def test_panoptic_maps_keep_their_classes(things, stuff, labels, instances):
    model = for_classes_of(PaintsMaps(), Other(*things, stuff=stuff))
    check_classes(model, Other(*things, stuff=stuff))
    (found,) = model.predict_step([{"image_id": 3}], 0)
    assert model.panoptic
    assert found.panoptic is not None
    assert found.panoptic[0].T.tolist() == [labels, instances]
    assert found.panoptic.dtype == torch.int32


def test_stuff_that_was_not_learnt_is_refused_for_a_panoptic_model_alone():
    data = Other("cat", "bus", stuff=("grass", "water"))
    with pytest.raises(InputError, match="other has water, which the run has not learnt"):
        for_classes_of(PaintsMaps(), data)
    with pytest.raises(InputError, match="knows the classes grass, sky, road"):
        check_classes(PaintsMaps(), data)
    alone = PaintsMaps()
    alone.panoptic = False
    assert for_classes_of(alone, data) is alone
    check_classes(alone, data)
