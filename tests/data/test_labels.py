"""Labels from elsewhere in place of the training annotations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from wsis import fit
from wsis.data.index import write_coco
from wsis.datasets.coco import COCO
from wsis.datasets.shapes import Shapes
from wsis.datasets.voc import VOC
from wsis.errors import InputError

Content = dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = Shapes(tmp_path_factory.mktemp("shapes"), train=4, val=2, proposals="none")
    data.index("train")
    return data.folder


def labels(root: Path, path: Path, **parts: Any) -> Path:
    """The data set's own training annotations with `parts` of the file replaced."""
    content: Content = json.loads((root / "annotations/instances_train2017.json").read_text())
    path.write_text(json.dumps(content | parts))
    return path


def own(root: Path, part: str) -> list[dict[str, Any]]:
    content: Content = json.loads((root / "annotations/instances_train2017.json").read_text())
    return content[part]


def targets(data: COCO) -> list[dict[str, Tensor]]:
    samples = data.samples("train", train=True, supervision={"tags", "boxes", "masks"})
    return [dict(samples.sample(k)["target"]) for k in range(len(samples))]


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_own_annotations_as_labels_change_nothing(root: Path, tmp_path: Path) -> None:
    path = labels(root, tmp_path / "same.json")
    for data in (COCO(root, proposals="none"), COCO(root, labels=str(path), proposals="none")):
        assert len(targets(data)) == 4
    assert all(
        map(
            equal,
            targets(COCO(root, proposals="none")),
            targets(COCO(root, labels=str(path), proposals="none")),
        )
    )


def test_labels_may_be_of_some_images_of_no_object_and_unsure(root: Path, tmp_path: Path) -> None:
    images, found = own(root, "images")[:2], own(root, "annotations")
    first = [a for a in found if a["image_id"] == images[0]["id"]]
    kept = [
        {**first[0], "ignore": 1, "score": 0.3},
        {**first[0], "iscrowd": 1},
        {**first[0], "segmentation": None},
    ]
    data = COCO(
        root,
        labels=str(
            labels(root, tmp_path / "few.json", images=images, annotations=[first[0], *kept])
        ),
    )
    some, none = targets(data)
    assert some["ignore_mask"].tolist() == [False, True, False, True]
    assert some["crowd"].tolist() == [False, False, True, False]
    assert some["masks"].flatten(1).any(1).tolist() == [True, True, True, False]
    assert none["boxes"].shape == (0, 4)
    assert none["masks"].shape[0] == none["ignore_mask"].shape[0] == 0
    assert none["tags"].sum() > 0, "tags stay those of the data set"
    assert data.fingerprint() != COCO(root).fingerprint()
    assert [i["id"] for i in data.index("val").images] == [
        i["id"] for i in COCO(root).index("val").images
    ]


def test_boxes_outside_the_image_are_clipped_or_left_out(root: Path, tmp_path: Path) -> None:
    image, annotation = own(root, "images")[0], own(root, "annotations")[0]
    boxes = [
        [-20, -10, 50, 50],
        [200, 200, 500, 500],
        [300, 10, 20, 20],
        [-50, 5, 20, 20],
        [20, 20, 0, 9],
    ]
    full = {"size": [256, 256], "counts": [0, 256 * 256]}
    given = [
        {**annotation, "image_id": image["id"], "bbox": box, "segmentation": full if k < 2 else []}
        for k, box in enumerate(boxes)
    ]
    path = labels(root, tmp_path / "outside.json", images=[image], annotations=given)
    with pytest.warns(UserWarning, match="3 annotations with a box of no area in the image"):
        (target,) = targets(
            COCO(root, labels=str(path), augment=COCO(root).augment.__class__(flip=0))
        )
    assert target["boxes"].tolist() == [[0, 0, 30, 40], [200, 200, 256, 256]]
    assert len(target["masks"]) == len(target["ignore_mask"]) == 2


def test_every_data_set_takes_labels(root: Path, tmp_path: Path) -> None:
    shapes = Shapes(root.parent, train=4, val=2)
    index = shapes.index("train")
    write_coco(tmp_path / "one.json", index._replace(images=index.images[:1]))
    given = Shapes(root.parent, train=4, val=2, labels=str(tmp_path / "one.json"))
    assert [i["id"] for i in given.index("train").images] == [index.images[0]["id"]]
    assert VOC(root, labels=str(tmp_path / "one.json")).relabelled == tmp_path / "one.json"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            {"images": lambda i: [{**i[0], "file_name": "other.jpg"}]},
            r"wrong\.json labels other\.jpg, not a training image of",
        ),
        ({"images": lambda i: [{**i[0], "id": 77}]}, r"not a training image of coco"),
        (
            {"images": lambda i: [{**i[0], "width": 128}]},
            r"at 128 x 256 pixels, but it has 256 x 256",
        ),
        (
            {"categories": lambda c: [{**x, "name": x["name"] + "s"} for x in c]},
            r"wrong\.json has no category",
        ),
        (
            {"annotations": lambda a: [{**a[0], "segmentation": {"size": [9, 9], "counts": [81]}}]},
            r"annotation 1: the mask is \[9, 9\], but its image is \[256, 256\]",
        ),
        (
            {
                "annotations": lambda a: [
                    {k: v for k, v in x.items() if k != "segmentation"} for x in a
                ]
            },
            r"coco has no masks to train with in .*wrong\.json",
        ),
    ],
    ids=["image", "number", "size", "classes", "mask", "boxes"],
)
def test_labels_of_something_else(
    root: Path, tmp_path: Path, change: dict[str, Any], says: str
) -> None:
    parts = {part: edit(own(root, part)) for part, edit in change.items()}
    if "images" in parts:
        parts["annotations"] = []
    path = labels(root, tmp_path / "wrong.json", **parts)
    with pytest.raises(InputError, match=says) as error:
        COCO(root, labels=str(path), proposals="none").samples(
            "train", train=True, supervision={"tags", "boxes", "masks"}
        )
    assert "\n" not in str(error.value)


def test_missing_labels(root: Path) -> None:
    with pytest.raises(InputError, match=r"cannot read gone\.json"):
        COCO(root, labels="gone.json").index("train")


def test_wrong_labels_are_told_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On the way to the message nothing is loaded or made: Lightning's text of a data module would do that."""
    data = Shapes(tmp_path, train=2, val=2)
    data.index("train")
    root = data.folder
    path = labels(
        root,
        tmp_path / "wrong.json",
        images=[{**own(root, "images")[0], "file_name": "other.jpg"}],
        annotations=[],
    )
    words = f"--model mask_rcnn --data coco --data.root {root} --data.labels {path} --run_dir {tmp_path / 'run'}"
    with pytest.raises(SystemExit):
        fit.main([*words.split(), "--trainer.max_steps=1", "--model.backbone.weights=none"])
    assert "wrong.json labels other.jpg, not a training image of coco" in capsys.readouterr().err
    assert not list(root.glob("proposals*"))
