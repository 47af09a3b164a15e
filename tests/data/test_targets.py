"""The table of fields: each field is seen by those who may see it, and a new one is one entry."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
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
from wsis.types import Index, Target

AUGMENT = Augment(short_sides=(48, 64), crop=0.9, jitter=1.5)
SETS = [{"tags"}, {"tags", "stuff_tags"}, {"tags", "boxes"}, {"tags", "boxes", "masks"}]


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = Shapes(tmp_path_factory.mktemp("shapes"), train=6, val=1, proposals="none")
    data.index("train")
    return data.folder


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
    return len(a) == len(b) and all(
        name == other and torch.equal(x, y) for (name, x), (other, y) in zip(a, b, strict=True)
    )


@pytest.mark.parametrize("supervision", SETS, ids=lambda names: "-".join(sorted(names)))
def test_noise_in_every_other_field_changes_no_bit(clean, tmp_path, supervision):
    other = FIELDS.keys() - supervision
    folder = poisoned(clean, tmp_path / "poisoned", other)
    assert same(leaves(clean, supervision), leaves(folder, supervision))


@pytest.mark.parametrize("field", ["stuff_tags", "boxes", "masks"])
def test_noise_reaches_those_who_may_see_the_field(clean, tmp_path, field):
    """The test above can fail."""
    folder = poisoned(clean, tmp_path / "poisoned", [field])
    assert not same(leaves(clean, {*FIELDS}), leaves(folder, {*FIELDS}))


def test_evaluation_hands_out_no_more_fields_than_training(clean):
    samples = COCO(clean, panoptic=True, proposals="none").samples("val", False, {"tags"})
    assert {*samples.sample(0)["target"]} == {"tags"}


@pytest.mark.parametrize("wrong", [{"tags", "mask"}, "mask", "tags"])
def test_unknown_fields_are_one_line(clean, wrong):
    with pytest.raises(InputError, match="fields are tags, stuff_tags, boxes, masks"):
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


def points_of_masks(masks: Tensor, labels: Tensor, like: Target) -> Any:
    """A point in the middle of each mask's pixels, in their order."""
    points = [mask.nonzero()[int(mask.sum()) // 2].flip(0) + 0.5 for mask in masks]
    return {"points": torch.stack(points) if points else torch.zeros(0, 2), "labels": labels}


def cut_points(target: Any, cut: Cut) -> Any:
    x, y = cut.view.to_input(target["points"].repeat(1, 2))[:, :2].unbind(1)
    inside = (x >= 0) & (y >= 0) & (x < cut.size[1]) & (y < cut.size[0])
    return {"points": torch.stack([x, y], 1)}, inside


def read_points(record: Any, classes: Any) -> Any:
    annotations = record["annotations"]
    labels = [classes.things[a["category_id"]] for a in annotations]
    points = torch.tensor([a["point"] for a in annotations]).view(-1, 2)
    return {"points": points, "labels": torch.tensor(labels)}


POINTS = Field(
    tensors=("points", "labels"),
    read=read_points,
    of_masks=points_of_masks,
    keys=("point", "category_id"),
    needed="point",
    cut=cut_points,
)


def test_a_new_field_is_one_entry(monkeypatch, clean):
    """Points: read by those who may see them and nobody else, cut, flipped and pasted."""
    monkeypatch.setitem(FIELDS, "points", POINTS)
    data = COCO(clean, proposals="none", augment=Augment(flip=1))
    index: Index = data.index("train")
    with pytest.raises(InputError, match="no points to train with"):
        data.samples("train", train=True, supervision={"tags", "points"})
    for found in index.annotations.values():
        for annotation in found:
            x, y, width, height = annotation["bbox"]
            annotation["point"] = [x + width / 2, y + height / 2]

    samples = data.samples("train", train=True, supervision={"tags", "points"})
    record = b"".join(samples._records)
    assert b"point" in record
    assert b"bbox" not in record
    assert b"segmentation" not in record
    assert b"point" not in b"".join(data.samples("train", True, {"tags", "boxes"})._records)
    image = index.images[0]
    middle = torch.tensor([a["point"] for a in index.annotations[image["id"]]])
    target: Any = samples.sample(0)["target"]
    assert {*target} == {"tags", "points", "labels"}
    assert torch.allclose(
        target["points"], torch.tensor([256.0, 0.0]) + middle * torch.tensor([-1.0, 1.0])
    )

    whole: Any = Samples(index, {"tags", "points", "masks"}).sample(0)["target"]
    half = Cut(0, 0, 256, 128, (512, 256), False)
    seen: Any = cut_target(whole, half)
    left = (middle[:, 0] < 128) & whole["masks"][:, :, :128].flatten(1).any(1)
    assert torch.allclose(seen["points"], 2 * middle[left])
    assert len(seen["labels"]) == len(seen["masks"]) == int(left.sum())

    pasted = target_of_masks(whole, whole["masks"][:1], torch.tensor([3]))
    both: Any = join_targets(whole, pasted)
    assert len(both["points"]) == len(whole["points"]) + 1
    x, y = both["points"][-1].long().tolist()
    assert whole["masks"][0, y, x]
    assert both["labels"][-1] == 3
    assert both["tags"][3] == 1
