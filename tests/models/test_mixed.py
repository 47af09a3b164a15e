"""Mixed labels: what each object teaches, and that labels of one kind are that method."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pycocotools import mask as rle

import wsis
from wsis.coco.objects import kind_of
from wsis.data.index import write_coco
from wsis.data.simulated import Simulation, simulate
from wsis.data.transforms import Augment
from wsis.datasets.shapes import Shapes
from wsis.errors import InputError
from wsis.models.mixed import Mixed, kinds, learnable
from wsis.models.mixed.labels import completed, write_labels
from wsis.runs.record import stages

TINY = {"name": "test_byobnet", "weights": "none", "frozen_stages": 0}
NETWORK = {"features": 16, "hidden": 16, "mask_width": 8, "test_side": 0}
QUIET = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
SIZE = (40, 60)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("shapes")


def shapes(root, labels="") -> Shapes:
    return Shapes(
        root,
        train=8,
        val=2,
        max_proposals=40,
        labels=str(labels),
        augment=Augment(short_sides=(96,)),
    )


def labelled(root, folder, **shares):
    """Return a file of weaker labels of the generated data."""
    path = folder / "labels.json"
    write_coco(path, simulate(shapes(root).index("train"), Simulation(**shares)))
    return path


def square(x, y, side):
    mask = np.zeros(SIZE, np.uint8)
    mask[y : y + side, x : x + side] = 1
    run = rle.encode(np.asfortranarray(mask))
    return {"size": list(SIZE), "counts": run["counts"].decode()}


def found(category, x, y, side, score):
    box = [x, y, side, side]
    return {
        "category_id": category,
        "bbox": box,
        "segmentation": square(x, y, side),
        "score": score,
    }


def test_an_object_takes_the_best_detection_that_holds_its_points():
    mine = [{"category_id": 1, "points": [[12, 12, 1], [25, 12, 0]]}]
    right, large, other = (
        found(1, 10, 10, 10, 0.4),
        found(1, 5, 5, 30, 0.9),
        found(1, 40, 5, 9, 1.0),
    )
    (only,) = completed(mine, [large, other, right], {1}, SIZE)
    assert only["segmentation"] == right["segmentation"], "the large one holds the point outside"
    assert only["points"] == mine[0]["points"]


def test_a_detection_is_taken_once_and_an_object_without_one_keeps_its_points():
    mine = [
        {"category_id": 1, "points": [[12, 12, 1]]},
        {"category_id": 1, "points": [[14, 14, 1]]},
    ]
    made = completed(mine, [found(1, 10, 10, 10, 0.4)], {1}, SIZE)
    assert [bool(a.get("bbox")) for a in made] == [True, False]
    assert made[1] == mine[1]


def test_a_tag_takes_all_detections_and_what_is_placed_stays():
    placed = {"category_id": 1, "bbox": [0, 0, 9, 9]}
    a, b, wrong = found(2, 10, 10, 5, 0.3), found(2, 30, 10, 5, 0.8), found(1, 30, 20, 5, 0.9)
    assert completed([placed], [a, b, wrong], {1, 2}, SIZE) == [placed, b, a]


@pytest.mark.parametrize("from_file", [True, False])
def test_detections_of_a_tag_do_not_make_its_class_complete(from_file, root, tmp_path):
    """Whether tags are read from a file or drawn by `data.simulate`."""
    truth = shapes(root).index("train")
    own = simulate(truth, Simulation(box=0.5, tag=0.5))
    if from_file:
        own = shapes(root, labelled(root, tmp_path, box=0.5, tag=0.5)).index("train")
    tags_alone = [i["id"] for i in own.images if not any(map(places, own.annotations[i["id"]]))]
    assert tags_alone
    found = tmp_path / "found.json"
    write_coco(found, truth)
    scored = json.loads(found.read_text())
    for annotation in scored["annotations"]:
        annotation["score"] = 0.9
    found.write_text(json.dumps(scored))
    write_labels(tmp_path, own, found)
    made = shapes(root, tmp_path / "labels.json").index("train")
    assert sorted(made.complete) == tags_alone
    for number in tags_alone:
        assert {*made.complete[number]} == {*range(8)} - {*truth.tags[number]}
        assert made.annotations[number]


def places(annotation) -> bool:
    return kind_of(annotation) != "tag"


def test_data_without_any_label_are_refused(root):
    truth = shapes(root).index("train")
    bare = truth._replace(annotations={}, tags={image["id"]: [] for image in truth.images})
    data = shapes(root)
    data._indices["train"] = bare
    with pytest.raises(InputError, match="has no label to train with"):
        Mixed.check_data(data, {})


def test_kinds_of_what_is_known(root, tmp_path):
    truth = shapes(root).index("train")
    assert kinds(truth) == {"mask"}
    mixed = simulate(truth, Simulation(mask=0.3, box=0.3, point=0.2, tag=0.2))
    assert kinds(mixed) == {"mask", "box", "point", "tag"}
    bare = truth._replace(annotations={})
    assert kinds(bare) == {"tag"}
    assert kinds(truth._replace(annotations={}, tags={i["id"]: [] for i in truth.images})) == set()


def test_only_what_has_a_box_is_learnt_and_incomplete_images_have_no_background():
    target = {
        "boxes": torch.tensor([[0.0, 0, 9, 9], [5, 5, 20, 20], [torch.nan] * 4]),
        "labels": torch.tensor([1, 0, 2]),
        "crowd": torch.tensor([False, True, False]),
        "masks": torch.zeros(3, *SIZE).bool(),
        "ignore_mask": torch.tensor([False, False, True]),
        "complete": torch.tensor([True, True, True]),
    }
    image = torch.zeros(3, *SIZE)
    made = learnable({"image": image, "target": target})
    assert made["boxes"].tolist() == [[0, 0, 9, 9]]
    assert made["labels"].tolist() == [2]
    whole = [0, 0, SIZE[1], SIZE[0]]
    assert made["skipped"].tolist() == [[5, 5, 20, 20], whole], "an object's place is not known"
    rows = {n: v[:2] for n, v in target.items() if n != "complete"}
    complete = learnable({"image": image, "target": {**rows, "complete": target["complete"]}})
    assert complete["skipped"].tolist() == [[5, 5, 20, 20]]
    lacking = {**rows, "complete": torch.tensor([True, False, True])}
    assert learnable({"image": image, "target": lacking})["skipped"][-1].tolist() == whole


def weights_of(model, data) -> dict[str, torch.Tensor]:
    pl.seed_everything(3, verbose=False)
    trainer = pl.Trainer(max_steps=3, accelerator="cpu", limit_val_batches=0, **QUIET)
    trainer.fit(model, datamodule=data)
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mask", "box"])
def test_labels_of_one_kind_are_that_method_to_the_bit(kind, root, tmp_path):
    data = shapes(root, labelled(root, tmp_path, **{kind: 1.0}))
    pl.seed_everything(0, verbose=False)
    mixed = Mixed(8, TINY, NETWORK)
    optimisation = mixed.optimisation
    pl.seed_everything(0, verbose=False)
    if kind == "mask":
        other = wsis.MaskRCNN(8, TINY, **NETWORK, optimisation=optimisation)
    else:
        other = wsis.BoxInst(8, TINY, NETWORK, optimisation=optimisation)
    expected, made = weights_of(other, data), weights_of(mixed, data)
    assert mixed.kinds == {kind}
    assert len(made) == len(expected)
    for one, theirs in zip(made.values(), expected.values(), strict=True):
        assert torch.equal(one, theirs)


def step(model, target, kinds) -> dict[str, float]:
    """Return the losses of a step on one image."""
    logged: dict[str, float] = {}
    model.kinds = kinds
    model.log_losses = lambda losses, *_: logged.update(losses)
    torch.manual_seed(0)
    image = torch.randint(0, 256, (3, *SIZE), dtype=torch.uint8)
    model.training_step([{"image": image, "target": target}], 0).backward()
    return {name: float(value.detach()) for name, value in logged.items()}


def test_each_kind_counts_by_its_share_of_regions():
    torch.manual_seed(0)
    model = Mixed(2, TINY, NETWORK)
    boxes = torch.tensor([[4.0, 4, 24, 24], [30, 10, 56, 36]])
    masks = torch.zeros(2, *SIZE).bool()
    masks[0, 4:24, 4:24] = True
    masks[1, 10:36, 30:56] = True
    target = {
        "boxes": boxes,
        "labels": torch.tensor([0, 1]),
        "crowd": torch.zeros(2).bool(),
        "masks": masks,
        "complete": torch.ones(2).bool(),
    }
    both = frozenset({"mask", "box"})
    all_masks = step(model, {**target, "ignore_mask": torch.tensor([False, False])}, both)
    assert all_masks["mask"] > 0 == all_masks["projection"] == all_masks["pairwise"]
    no_mask = step(model, {**target, "ignore_mask": torch.tensor([True, True])}, both)
    assert no_mask["mask"] == 0 < no_mask["projection"]
    alone = step(model, {**target, "ignore_mask": torch.tensor([True, True])}, frozenset({"box"}))
    assert no_mask == {"mask": 0.0, **alone}
    mixed = step(model, {**target, "ignore_mask": torch.tensor([False, True])}, both)
    assert mixed["mask"] > 0
    assert mixed["projection"] > 0
    nothing = {name: value[:0] for name, value in target.items() if name != "complete"}
    empty = {**nothing, "ignore_mask": torch.zeros(0).bool(), "complete": target["complete"]}
    assert step(model, empty, both)["mask"] == 0


POINT_MIL = {
    "backbone": TINY,
    "widths": {"hidden": 32, "features": 32, "mask": 8},
    "inference": {"short_sides": [], "flip": False},
}
PDSL = {
    **POINT_MIL,
    "evidence": "fast",
    "regression": False,
    "mask_heads": 0,
    "pretraining": {"steps": 2, "backbone": {"feature_level": 2}},
}
DATA = {"train": 8, "val": 2, "max_proposals": 40}


def fitted(folder, root, model, settings, **shares):
    """Train on weaker labels of the generated data; return the run."""
    data = {**DATA, "root": str(root), "simulate": {"seed": 1, **shares}}
    trainer = {"max_steps": 2, "accelerator": "cpu"}
    return wsis.fit(
        model, "shapes", model=settings, data=data, trainer=trainer, run_dir=str(folder)
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "method", "settings"), [("point", "point_mil", POINT_MIL), ("tag", "pdsl", PDSL)]
)
def test_points_or_tags_alone_are_that_method_to_the_bit(kind, method, settings, root, tmp_path):
    mixed = {f"{kind}_labeller": {"steps": 2, **settings}, "backbone": TINY, "network": NETWORK}
    one = fitted(tmp_path / "one", root, method, settings, **{kind: 1})
    other = fitted(tmp_path / "other", root, "mixed", mixed, **{kind: 1})
    names = [folder.name for folder, _ in stages(one)]
    assert names == [folder.name for folder, _ in stages(other)]
    for name in names:
        theirs, ours = (
            torch.load(run / name / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
            for run in (one, other)
        )
        assert theirs.keys() == ours.keys()
        assert all(torch.equal(theirs[key], ours[key]) for key in theirs)


@pytest.mark.slow
def test_all_kinds_teach_the_last_network(root, tmp_path):
    settings = {
        "backbone": TINY,
        "network": NETWORK,
        "point_labeller": {"steps": 2, **POINT_MIL},
        "label_score": 0.9,
    }
    run = fitted(tmp_path / "run", root, "mixed", settings, mask=0.2, box=0.3, point=0.25, tag=0.25)
    assert [folder.name for folder, _ in stages(run)] == ["train", "2-found", "3-labels", "4-mixed"]
    labels = json.loads((run / "3-labels/labels.json").read_text())["annotations"]
    given = simulate(shapes(root).index("train"), Simulation(0.2, 0.3, 0.25, 0.25, seed=1))
    before = Counter(kind_of(a) for found in given.annotations.values() for a in found)
    found = [a for a in labels if "PointMIL" in a.get("source", "")]
    made = Counter(kind_of(a) for a in labels if a not in found)
    assert (made["mask"], made["box"]) == (before["mask"], before["box"])
    assert found
    assert len(found) + made["point"] >= before["point"]
    model, *_ = wsis.load(run)
    assert isinstance(model, Mixed)
