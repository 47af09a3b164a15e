"""Supervision is a promise: what a method may not see does not reach it, whatever the annotation files hold."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from poison import poison
from pycocotools import mask as rle
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from torch import Tensor

from wsis.data.module import Augment, Loading
from wsis.data.samples import Samples
from wsis.datasets.coco import COCO
from wsis.datasets.shapes import Shapes
from wsis.errors import InputError
from wsis.method import Method
from wsis.types import Batch, Sample

AUGMENT = Augment(short_sides=(48, 64), crop=0.9, jitter=1.5)
TAGS, STUFF = frozenset({"tags"}), frozenset({"tags", "stuff_tags"})
BOXES, MASKS = TAGS | {"boxes"}, TAGS | {"boxes", "masks"}
OF_BOXES = {"tags", "boxes", "labels", "crowd"}
KEYS = {TAGS: TAGS, STUFF: STUFF, BOXES: OF_BOXES, MASKS: OF_BOXES | {"masks", "ignore_mask"}}


class Toy(Method):
    """Learns from everything it is given, random numbers included."""

    panoptic = True  # asks for all there is

    def __init__(self, supervision: frozenset[str] = TAGS) -> None:
        super().__init__()
        self.supervision = supervision
        self.layer = torch.nn.Linear(3, 8)
        self.seen: list[str] = []

    def training_step(self, batch: Batch, _: int) -> Tensor:
        self.seen.append(digest(batch))
        pooled = torch.stack([s["image"].float().mean((1, 2)) / 255 for s in batch])
        loss = (
            (self.layer(pooled) - torch.stack([s["target"]["tags"] for s in batch])).square().mean()
        )
        if any("proposals" in s for s in batch):
            loss = loss * (1 + sum(s["proposals"].boxes.sum() for s in batch) / 1e6)
        given = [
            v.float().nan_to_num().mean()
            for s in batch
            for k, v in s["target"].items()
            if k != "tags" and v.numel()
        ]
        noise = 0.01 * torch.rand(())
        return loss * (1 + noise + (sum(given) / 100 if given else 0))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1, momentum=0.9)


def leaves(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [leaf for key in sorted(value) for leaf in [key, *leaves(value[key])]]
    return (
        [leaf for item in value for leaf in leaves(item)]
        if isinstance(value, (list, tuple))
        else [value]
    )


def digest(batch: list[Sample]) -> str:
    """Hash every bit of a batch but the folder of its images."""
    parts = [{**s, "path": s["path"].name} for s in batch]
    hashed = hashlib.sha256()
    for leaf in leaves(parts):
        hashed.update(
            leaf.numpy().tobytes() + str(leaf.shape).encode()
            if isinstance(leaf, Tensor)
            else repr(leaf).encode()
        )
    return hashed.hexdigest()


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = Shapes(tmp_path_factory.mktemp("shapes"), train=10, val=3, proposals="none")
    data.index("train")
    return data.folder


@pytest.fixture
def poisoned(clean: Path, tmp_path: Path) -> Path:
    """The same data set with random boxes and masks in its annotation file, some of them without any area."""
    folder = tmp_path / "poisoned"
    shutil.copytree(clean, folder)
    path = folder / "annotations/instances_train2017.json"
    content = json.loads(path.read_text())
    rng = np.random.default_rng(5)
    for k, annotation in enumerate(content["annotations"]):
        mask = rle.encode(np.asfortranarray(rng.random((256, 256)) < 0.5, np.uint8))
        annotation["segmentation"] = {"size": [256, 256], "counts": mask["counts"].decode()}
        annotation["bbox"] = [*rng.integers(0, 100, 2).tolist(), 0 if k % 3 == 0 else 50, 60]
        annotation["area"] = int(rng.integers(1, 1000))
    path.write_text(json.dumps(content))
    path = folder / "annotations/panoptic_train2017.json"
    content = json.loads(path.read_text())
    for annotation in content[
        "annotations"
    ]:  # which stuff an image has may be known, where it is may not
        pixels = rng.integers(0, 20, (256, 256, 3)).astype(np.uint8)
        assert cv2.imwrite(
            str(folder / "annotations/panoptic_train2017" / annotation["file_name"]), pixels
        )
        for k, segment in enumerate(annotation["segments_info"]):
            segment |= {
                "id": k + 3,
                "bbox": rng.integers(0, 100, 4).tolist(),
                "area": int(rng.integers(1, 1000)),
            }
    path.write_text(json.dumps(content))
    return folder


def fit(
    folder: Path, supervision: frozenset[str] = TAGS, steps: int = 6, **options: Any
) -> tuple[Toy, Path]:
    pl.seed_everything(3, verbose=False)
    model = Toy(supervision)
    data = COCO(
        folder,
        panoptic=True,
        proposals="none",
        augment=AUGMENT,
        loading=Loading(2, options.pop("workers", 0)),
    )
    checkpoints = ModelCheckpoint(
        options.pop("checkpoints", None), "{step}", save_top_k=-1, every_n_train_steps=1
    )
    quiet = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "accelerator": "cpu",
    }
    accumulate = options.pop("accumulate", 1)
    trainer = pl.Trainer(
        max_steps=steps,
        max_epochs=options.pop("epochs", None),
        accumulate_grad_batches=accumulate,
        limit_val_batches=0,
        callbacks=[checkpoints],
        **quiet,
    )
    trainer.fit(model, data, **options)
    return model, Path(checkpoints.dirpath or "")


def weights(model: Toy) -> list[list[float]]:
    return [p.detach().flatten().tolist() for p in model.parameters()]


@pytest.mark.filterwarnings("ignore")
def test_poison_does_not_reach_a_method_for_tags(
    clean: Path, poisoned: Path, tmp_path: Path
) -> None:
    honest, _ = fit(clean, checkpoints=tmp_path / "a")
    misled, _ = fit(poisoned, checkpoints=tmp_path / "b")
    assert misled.seen == honest.seen
    assert weights(misled) == weights(honest)


@pytest.mark.filterwarnings("ignore")
def test_poison_does_reach_a_method_for_masks(clean: Path, poisoned: Path, tmp_path: Path) -> None:
    """The test above can fail."""
    honest, _ = fit(clean, MASKS, steps=2, checkpoints=tmp_path / "a")
    misled, _ = fit(poisoned, MASKS, steps=2, checkpoints=tmp_path / "b")
    assert misled.seen != honest.seen
    assert weights(misled) != weights(honest)


@pytest.mark.filterwarnings("ignore")
def test_poison_does_not_reach_a_method_for_points(clean: Path, tmp_path: Path) -> None:
    """Every second object has points, beside a box and a mask or alone; poisoned points do reach it."""
    folders = [tmp_path / name for name in ("honest", "fooled", "hit")]
    for folder, lies in zip(folders, ((), ("boxes", "masks"), ("points",)), strict=True):
        shutil.copytree(clean, folder)
        path = folder / "annotations/instances_train2017.json"
        content = json.loads(path.read_text())
        for k, annotation in enumerate(content["annotations"]):
            x, y, width, height = annotation["bbox"]
            if k % 2:
                annotation["points"] = [[x + width / 2, y + height / 2, 1], [x, y, 0]]
            if k % 4 == 3:
                del annotation["bbox"], annotation["segmentation"]
        path.write_text(json.dumps(content))
        poison(folder, lies)
    points = TAGS | {"points", "complete"}
    models = [
        fit(folder, points, steps=3, checkpoints=tmp_path / folder.stem)[0] for folder in folders
    ]
    honest, fooled, hit = ((model.seen, weights(model)) for model in models)
    assert fooled == honest
    assert hit[0] != honest[0]
    assert hit[1] != honest[1]


@pytest.mark.filterwarnings("ignore")
def test_random_masks_do_not_reach_a_method_for_boxes(clean: Path, poisoned: Path) -> None:
    boxes = {}
    content = json.loads((clean / "annotations/instances_train2017.json").read_text())
    for annotation in content["annotations"]:
        boxes[annotation["id"]] = annotation["bbox"]
    path = poisoned / "annotations/instances_train2017.json"
    content = json.loads(path.read_text())
    for annotation in content["annotations"]:
        annotation["bbox"] = boxes[annotation["id"]]
    path.write_text(json.dumps(content))
    batches = []
    for folder in (clean, poisoned):
        samples = COCO(folder, proposals="none", augment=AUGMENT).samples(
            "train", train=True, supervision=BOXES
        )
        batches.append([digest([samples.sample(k, 7 + k)]) for k in range(len(samples))])
    assert batches[0] == batches[1]


@pytest.mark.parametrize("supervision", KEYS, ids=lambda fields: "-".join(sorted(fields)))
def test_a_training_sample_holds_what_is_allowed_and_no_truth(
    clean: Path, supervision: frozenset[str]
) -> None:
    samples = COCO(clean, panoptic=True, proposals="none", augment=AUGMENT).samples(
        "train", train=True, supervision=supervision
    )
    sample = samples.sample(2, 11)
    assert set(sample["target"]) == KEYS[supervision]
    assert "truth" not in sample
    height, width = sample["image"].shape[1:]
    assert min(height, width) in (48, 64)
    if "masks" in supervision:
        masks, boxes = sample["target"]["masks"], sample["target"]["boxes"]
        assert masks.shape == (len(boxes), height, width)
        for mask, (x1, y1, x2, y2) in zip(masks, boxes.tolist(), strict=True):
            ys, xs = torch.nonzero(mask, as_tuple=True)
            assert xs.min() >= x1 - 1
            assert xs.max() < x2 + 1
            assert ys.min() >= y1 - 1
            assert ys.max() < y2 + 1


def test_panoptic_maps_are_for_evaluation_alone(clean: Path, poisoned: Path) -> None:
    """The poison is there, and training does not even need the files."""
    indices = [
        COCO(folder, panoptic=True, proposals="none").index("train") for folder in (clean, poisoned)
    ]
    honest, misled = ([index.panoptic(image) for image in index.images] for index in indices)
    assert not any(torch.equal(a, b) for a, b in zip(honest, misled, strict=True))
    assert indices[0].stuff_tags == indices[1].stuff_tags
    shutil.rmtree(poisoned / "annotations/panoptic_train2017")
    for supervision in (STUFF, MASKS):
        samples = Samples(indices[1], supervision, AUGMENT, panoptic=True)
        assert "truth" not in samples.sample(0)
        assert "panoptic" not in samples.sample(0)["target"]
    with pytest.raises(InputError, match="no panoptic map"):
        Samples(indices[1], TAGS, panoptic=True).sample(0)


def kept(clean: Path, supervision: frozenset[str]) -> bytes:
    data = COCO(clean, panoptic=True, proposals="none")
    return b"".join(data.samples("train", train=True, supervision=supervision)._records)


def test_what_is_forbidden_is_not_even_kept(clean: Path) -> None:
    of = {BOXES: (b"bbox",), MASKS: (b"segmentation", b"counts"), STUFF: (b"stuff_tags",)}
    every = {key for keys in of.values() for key in keys} | {b"area", b"iscrowd"}
    assert not any(key in kept(clean, TAGS) for key in every)
    assert not any(key in kept(clean, STUFF) for key in every - {*of[STUFF]})
    assert not any(key in kept(clean, BOXES) for key in (*of[MASKS], *of[STUFF], b"area"))
    assert all(key in kept(clean, MASKS) for key in (*of[BOXES], *of[MASKS]))
    assert b"stuff_tags" in kept(clean, STUFF)


def test_evaluation_gives_the_original_image_and_the_truth(clean: Path) -> None:
    data = COCO(clean, proposals="none", augment=AUGMENT, loading=Loading(2, 0))
    batches = list(data.val_dataloader())
    assert [len(batch) for batch in batches] == [2, 1]
    for sample in batches[0]:
        assert sample["image"].shape == (3, 256, 256)
        assert torch.equal(sample["view"].to_original(sample["truth"].boxes), sample["truth"].boxes)
        assert set(sample["target"]) == {"tags"}
        found = data.index("val").annotations[sample["image_id"]]
        assert [m["counts"] for m in sample["truth"].masks] == [
            a["segmentation"]["counts"] for a in found
        ]


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.filterwarnings("ignore")
def test_a_resumed_run_sees_the_batches_of_an_uninterrupted_one(
    clean: Path, tmp_path: Path, accumulate: int
) -> None:
    """Step 3 of 6 lies inside a pass over the 10 images, two a batch; two loader processes change nothing."""
    whole, folder = fit(clean, checkpoints=tmp_path / "whole", accumulate=accumulate)
    again = {"ckpt_path": folder / "step=3.ckpt", "weights_only": False}
    resumed, _ = fit(
        clean, checkpoints=tmp_path / "resumed", workers=2, accumulate=accumulate, **again
    )
    assert resumed.seen == whole.seen[3 * accumulate :]
    assert len(set(whole.seen)) == 6 * accumulate


@pytest.mark.parametrize("accumulate", [2, 3])
@pytest.mark.filterwarnings("ignore")
def test_passes_see_every_batch_whatever_is_accumulated(
    clean: Path, tmp_path: Path, accumulate: int
) -> None:
    """A pass has five batches, and a step ends it with those that are left; step 3 is after batch 5 of sums of 2, 8 of 3."""
    plain, _ = fit(clean, steps=-1, epochs=2, checkpoints=tmp_path / "plain")
    assert len(set(plain.seen)) == 10
    summed, folder = fit(
        clean, steps=-1, epochs=2, checkpoints=tmp_path / "summed", accumulate=accumulate
    )
    assert summed.seen == plain.seen
    again = {"ckpt_path": folder / "step=3.ckpt", "weights_only": False}
    resumed, _ = fit(
        clean, steps=-1, epochs=2, checkpoints=tmp_path / "resumed", accumulate=accumulate, **again
    )
    assert resumed.seen == plain.seen[{2: 5, 3: 8}[accumulate] :]


@pytest.mark.filterwarnings("ignore")
def test_checkpoint_knows_the_class_names(clean: Path, tmp_path: Path) -> None:
    _, folder = fit(clean, steps=1, checkpoints=tmp_path)
    saved = torch.load(folder / "step=1.ckpt", weights_only=True)
    assert [c["name"] for c in saved["COCO"]["categories"]] == Shapes(tmp_path).class_names


def test_loading_leaves_the_random_state_of_training_alone(clean: Path) -> None:
    data = COCO(clean, proposals="none", augment=AUGMENT, loading=Loading(2, 0))
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002
    assert len(list(data.train_dataloader())) == 5
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]  # noqa: NPY002


class Witness(Toy):
    """Writes down which sampler each rank has, and which images it gave."""

    def configure_callbacks(self) -> list[Callback]:
        return []

    def predict_step(self, batch: Batch, _: int) -> None:
        self.seen += [sample["path"].name for sample in batch]

    def on_predict_end(self) -> None:
        name = type(self.trainer.predict_dataloaders.sampler).__name__
        Path(self.trainer.default_root_dir, f"rank{self.trainer.global_rank}").write_text(
            json.dumps([name, *self.seen])
        )


@pytest.mark.filterwarnings("ignore")
def test_lightning_leaves_our_samplers_in_place(clean: Path, tmp_path: Path) -> None:
    """Its own would give an image twice, since there are three for two processes."""
    data = COCO(clean, proposals="none", loading=Loading(1, 0))
    quiet = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "accelerator": "cpu",
    }
    trainer = pl.Trainer(default_root_dir=tmp_path, devices=2, strategy="ddp_fork", **quiet)
    trainer.predict(Witness(), data, return_predictions=False)
    (first, *some), (second, *others) = (
        json.loads((tmp_path / f"rank{rank}").read_text()) for rank in (0, 1)
    )
    assert first == second == "OrderSampler"
    assert sorted(some + others) == [image["file_name"] for image in data.index("val").images]


@pytest.mark.filterwarnings("ignore")
def test_an_image_without_tag_is_legal(clean: Path, tmp_path: Path) -> None:
    folder = tmp_path / "empty"
    shutil.copytree(clean, folder)
    path = folder / "annotations/instances_val2017.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "annotations": []}))
    data = COCO(folder, proposals="none")
    sample = data.samples("val", train=False, supervision=MASKS).sample(0)
    assert sample["target"]["tags"].sum() == 0
    assert sample["target"]["masks"].shape == (0, 256, 256)
    assert sample["truth"].boxes.shape == (0, 4)
    with pytest.raises(InputError, match="no masks to train with"):
        data.samples("val", train=True, supervision=MASKS)
