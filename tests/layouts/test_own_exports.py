"""What `predict` and `label` write for other programs is read back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from labelled import tags
from pycocotools import mask as rle

from wsis.data.targets import run_length
from wsis.errors import InputError
from wsis.nn.masks import run_lengths, tight_boxes
from wsis.reports.exports import export
from wsis.types import Index, Prediction

FILES = {
    "coco": "coco.json",
    "polygons": "polygons.json",
    "yolo": "yolo/data.yaml",
    "label_studio": "label_studio.json",
    "label_studio_polygons": "label_studio_polygons.json",
    "cvat": "cvat.xml",
}


@pytest.mark.parametrize("form", FILES)
def test_round_trip(photos, read, form):
    root = photos("a.png")
    masks = torch.zeros(2, 60, 80, dtype=torch.bool)
    masks[0, 10:40, 5:35] = masks[1, 20:50, 40:75] = True
    masks[0, 20:30, 15:25] = False  # a hole
    record = {"id": 1, "file_name": "a.png", "height": 60, "width": 80}
    categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    index = Index(name="own", root=root, images=[record], categories=categories)
    found = Prediction(
        image_id=1,
        size=(60, 80),
        boxes=tight_boxes(masks),
        scores=torch.tensor([0.9, 0.8]),
        labels=torch.tensor([1, 0]),
        masks=[run_lengths(mask) for mask in masks],
    )
    export(root / "out", index, [found], [form])
    file = root / "out" / FILES[form]
    if form.startswith("label_studio"):
        with pytest.raises(InputError, match="predictions alone, which nobody accepted"):
            read(root, given=str(file))
        file.write_text(file.read_text().replace('"predictions"', '"annotations"'))
    back = read(root, given=str(file))
    assert list(tags(back).values()) == [["cat", "dog"]]
    name = {category["id"]: category["name"] for category in back.categories}
    (annotations,) = back.annotations.values()
    for annotation in annotations:
        mask = rle.decode(run_length(annotation["segmentation"], (60, 80))).astype(bool)
        truth = masks[0 if name[annotation["category_id"]] == "dog" else 1].numpy()
        assert np.logical_and(mask, truth).sum() / np.logical_or(mask, truth).sum() > 0.95
