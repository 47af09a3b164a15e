"""The table of fields: each field is seen by those who may see it, and a new one is one entry."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Iterable
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from poison import poison
from torch import Tensor

from wsis.data.samples import Samples
from wsis.data.targets import FIELDS, Field, cut_target, join_targets, target_of_masks
from wsis.data.transforms import Augment, Cut
from wsis.datasets.coco import COCO
from wsis.datasets.shapes import Shapes
from wsis.errors import InputError
from wsis.types import Index, Target, class_of

AUGMENT = Augment(short_sides=(48, 64), crop=0.9, jitter=1.5)
OBJECTS = ("points", "boxes", "masks")
SETS = [{"tags"}, {"tags", "stuff_tags"}, {"points"}] + [
    {"tags", "complete", *kinds} for n in range(4) for kinds in combinations(OBJECTS, n)
]


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = Shapes(tmp_path_factory.mktemp("shapes"), train=6, val=1, proposals="none")
    data.index("train")
    return data.folder


@pytest.fixture(scope="module")
def mixed(clean, tmp_path_factory) -> Path:
    """Objects that are known by everything, a mask with its box, a box, points, or a tag, in turn."""
    folder = tmp_path_factory.mktemp("mixed") / "data"
    shutil.copytree(clean, folder)
    path = folder / "annotations/instances_train2017.json"
    content = json.loads(path.read_text())
    ways = (
        ("points", "bbox", "segmentation"),
        ("bbox", "segmentation"),
        ("bbox",),
        ("points",),
        (),
    )
    for number, annotation in enumerate(content["annotations"]):
        x, y, width, height = annotation["bbox"]
        annotation["points"] = [[x + width / 2, y + height / 2, 1], [x, y, 0]]
        for key in {"points", "bbox", "segmentation"} - {*ways[number % len(ways)]}:
            del annotation[key]
    path.write_text(json.dumps(content))
    return folder


def poisoned(clean: Path, folder: Path, fields: Iterable[str]) -> Path:
    """Copy a data set, with noise in what `fields` are read from."""
    shutil.copytree(clean, folder)
    poison(folder, fields)
    return folder


def leaves(folder: Path, supervision: set[str]) -> list[tuple[str, Tensor]]:
    data = COCO(folder, panoptic=True, proposals="none", augment=AUGMENT)
    samples = data.samples("train", train=True, supervision=supervision)
    found = []
    for k in range(len(samples)):
        sample = samples.sample(k, 7 + k)
        found += [("image", sample["image"]), *sorted(sample["target"].items())]
    return found


def same(a: list[tuple[str, Tensor]], b: list[tuple[str, Tensor]]) -> bool:
    """Whether all bits are the same; NaN is not equal to itself."""
    bits = [[(name, x.shape, x.numpy().tobytes()) for name, x in found] for found in (a, b)]
    return bits[0] == bits[1]


@pytest.mark.parametrize("supervision", SETS, ids=lambda names: "-".join(sorted(names)))
@pytest.mark.filterwarnings("ignore:.*are tags alone")
def test_noise_in_every_other_field_changes_no_bit(mixed, tmp_path, supervision):
    other = FIELDS.keys() - supervision
    folder = poisoned(mixed, tmp_path / "poisoned", other)
    assert same(leaves(mixed, supervision), leaves(folder, supervision))


@pytest.mark.parametrize("field", ["stuff_tags", *OBJECTS])
@pytest.mark.filterwarnings("ignore:.*are tags alone")
def test_noise_reaches_those_who_may_see_the_field(mixed, tmp_path, field):
    """The test above can fail."""
    folder = poisoned(mixed, tmp_path / "poisoned", [field])
    assert not same(leaves(mixed, {*FIELDS}), leaves(folder, {*FIELDS}))


@pytest.mark.parametrize("supervision", SETS, ids=lambda names: "-".join(sorted(names)))
@pytest.mark.filterwarnings("ignore:.*are tags alone")
def test_objects_are_rows_if_a_field_knows_them(mixed, supervision):
    """Nothing of the others is kept, not even that they are there."""
    keys = {"points": "points", "boxes": "bbox", "masks": "segmentation"}
    seen = {keys[name] for name in supervision & keys.keys()}
    content = json.loads((mixed / "annotations/instances_train2017.json").read_text())
    classes = class_of(content["categories"])
    data = COCO(mixed, panoptic=True, proposals="none", augment=Augment(flip=0))
    samples = data.samples("train", train=True, supervision=supervision)
    rows = 0
    for image, stored, number in zip(content["images"], samples._records, range(6), strict=True):
        of_image = [a for a in content["annotations"] if a["image_id"] == image["id"]]
        known = [a for a in of_image if seen & a.keys()]
        target: Any = samples.sample(number)["target"]
        rows += len(known)
        assert len(pickle.loads(stored)["annotations"]) == len(known)
        assert "truth" not in pickle.loads(stored)
        if "labels" in target:
            assert target["labels"].tolist() == [classes[a["category_id"]] for a in known]
        hidden = {classes[a["category_id"]] for a in of_image if not seen & a.keys()}
        if "complete" in supervision:
            assert set((~target["complete"]).nonzero().flatten().tolist()) == hidden
    assert rows or not seen


def test_evaluation_hands_out_no_more_fields_than_training(clean):
    samples = COCO(clean, panoptic=True, proposals="none").samples("val", False, {"tags"})
    assert {*samples.sample(0)["target"]} == {"tags"}


@pytest.mark.parametrize("wrong", [{"tags", "mask"}, "mask", "tags"])
def test_unknown_fields_are_one_line(clean, wrong):
    with pytest.raises(
        InputError, match="fields are tags, stuff_tags, complete, points, boxes, masks"
    ):
        COCO(clean, proposals="none").samples("train", train=True, supervision=wrong)


def test_a_field_that_no_annotation_has(tmp_path, clean):
    folder = shutil.copytree(clean, tmp_path / "boxes")
    path = folder / "annotations/instances_train2017.json"
    content = json.loads(path.read_text())
    for annotation in content["annotations"]:
        del annotation["segmentation"]
    path.write_text(json.dumps(content))
    data = COCO(folder, proposals="none")
    assert len(data.samples("train", train=True, supervision={"tags", "boxes"})) == 6
    with pytest.raises(InputError, match="no masks to train with"):
        data.samples("train", train=True, supervision={"tags", "boxes", "masks"})


def clicks_of_masks(masks: Tensor, labels: Tensor, like: Target) -> Any:
    """A point in the middle of each mask's pixels, in their order."""
    clicks = [mask.nonzero()[int(mask.sum()) // 2].flip(0) + 0.5 for mask in masks]
    return {"clicks": torch.stack(clicks) if clicks else torch.zeros(0, 2), "labels": labels}


def cut_clicks(target: Any, cut: Cut) -> Any:
    x, y = cut.view.to_input(target["clicks"].repeat(1, 2))[:, :2].unbind(1)
    inside = (x >= 0) & (y >= 0) & (x < cut.size[1]) & (y < cut.size[0])
    return {"clicks": torch.stack([x, y], 1)}, inside


def read_clicks(record: Any, classes: Any) -> Any:
    annotations = record["annotations"]
    labels = [classes.things[a["category_id"]] for a in annotations]
    clicks = torch.tensor([a["click"] for a in annotations]).view(-1, 2)
    return {"clicks": clicks, "labels": torch.tensor(labels)}


CLICKS = Field(
    tensors=("clicks", "labels"),
    read=read_clicks,
    of_masks=clicks_of_masks,
    keys=("click", "category_id"),
    needed="click",
    cut=cut_clicks,
)


def test_a_new_field_is_one_entry(monkeypatch, clean):
    """Clicks: read by those who may see them and nobody else, cut, flipped and pasted."""
    monkeypatch.setitem(FIELDS, "clicks", CLICKS)
    data = COCO(clean, proposals="none", augment=Augment(flip=1))
    index: Index = data.index("train")
    with pytest.raises(InputError, match="no clicks to train with"):
        data.samples("train", train=True, supervision={"tags", "clicks"})
    for found in index.annotations.values():
        for annotation in found:
            x, y, width, height = annotation["bbox"]
            annotation["click"] = [x + width / 2, y + height / 2]

    samples = data.samples("train", train=True, supervision={"tags", "clicks"})
    record = b"".join(samples._records)
    assert b"click" in record
    assert b"bbox" not in record
    assert b"segmentation" not in record
    assert b"click" not in b"".join(data.samples("train", True, {"tags", "boxes"})._records)
    image = index.images[0]
    middle = torch.tensor([a["click"] for a in index.annotations[image["id"]]])
    target: Any = samples.sample(0)["target"]
    assert {*target} == {"tags", "clicks", "labels"}
    assert torch.allclose(
        target["clicks"], torch.tensor([256.0, 0.0]) + middle * torch.tensor([-1.0, 1.0])
    )

    whole: Any = Samples(index, {"tags", "clicks", "masks"}).sample(0)["target"]
    half = Cut(0, 0, 256, 128, (512, 256), False)
    seen: Any = cut_target(whole, half)
    left = (middle[:, 0] < 128) & whole["masks"][:, :, :128].flatten(1).any(1)
    assert torch.allclose(seen["clicks"], 2 * middle[left])
    assert len(seen["labels"]) == len(seen["masks"]) == int(left.sum())

    pasted = target_of_masks(whole, whole["masks"][:1], torch.tensor([3]))
    both: Any = join_targets(whole, pasted)
    assert len(both["clicks"]) == len(whole["clicks"]) + 1
    x, y = both["clicks"][-1].long().tolist()
    assert whole["masks"][0, y, x]
    assert both["labels"][-1] == 3
    assert both["tags"][3] == 1
