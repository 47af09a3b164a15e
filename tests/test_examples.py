"""The examples of docs/extending, as if they were installed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from example_site import EXAMPLES, install_examples
from PIL import Image
from pycocotools import mask as rle

from wsis import fit, propose, registry
from wsis.datasets.shapes import Shapes
from wsis.errors import InputError
from wsis.nn.masks import tight_boxes
from wsis.proposals import proposers
from wsis.proposals.file import ProposalFile


@pytest.fixture(scope="module")
def paths(tmp_path_factory) -> list[str]:
    return install_examples(tmp_path_factory.mktemp("site"))


@pytest.fixture
def installed(paths, monkeypatch):
    """The examples can be imported and are found by name."""
    for path in reversed(paths):
        monkeypatch.syspath_prepend(path)
    registry._plugins.cache_clear()
    yield
    registry._plugins.cache_clear()


# A data set


@pytest.fixture
def sorted_photos(tmp_path) -> Path:
    root = tmp_path / "sorted"
    rng = np.random.default_rng(0)
    files = ["train/cat/1.jpg", "train/cat/2.jpg", "train/dog/2.jpg", "train/none/3.jpg"]
    for name in [*files, "val/dog/4.jpg"]:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (48, 64, 3), np.uint8)).save(path)
    return root


def test_folders_are_read_as_tags(installed, sorted_photos):
    data = registry.find("data", "class_folders")(sorted_photos)
    index = data.index("train")
    tags = {image["file_name"]: index.tags[image["id"]] for image in index.images}
    assert data.class_names == ["cat", "dog"]
    assert tags == {"cat/1.jpg": [0], "cat/2.jpg": [0, 1], "none/3.jpg": []}
    assert [(image["height"], image["width"]) for image in index.images] == [(48, 64)] * 3
    assert data.has_val
    assert list(data.index("val").tags.values()) == [[1]]


def test_a_photo_in_no_class_is_reported(installed, sorted_photos):
    (sorted_photos / "val/cow").mkdir()
    (sorted_photos / "val/dog/4.jpg").rename(sorted_photos / "val/cow/4.jpg")
    with pytest.raises(InputError, match=r"cow/4\.jpg lies in no folder of a class"):
        registry.find("data", "class_folders")(sorted_photos).index("val")


@pytest.mark.slow
def test_a_method_trains_on_the_folders(installed, sorted_photos, tmp_path):
    words = ["--model", "cam", "--data", "class_folders", "--data.root", str(sorted_photos)]
    words += ["--config", str(EXAMPLES / "dataset/cam.yaml"), "--run_dir", str(tmp_path / "run")]
    words += ["--model.backbone.name", "test_byobnet", "--model.backbone.weights", "none"]
    words += ["--model.backbone.frozen_stages", "0", "--trainer.max_steps", "1"]
    fit.main([*words, "--trainer.accelerator", "cpu"])
    stage = json.loads((tmp_path / "run/train/stage.json").read_text())
    assert stage["finished"]
    assert stage["steps"] == 1


# A proposer


@pytest.fixture
def square() -> np.ndarray:
    """A red square on a green ground."""
    image = np.zeros((90, 120, 3), np.uint8)
    image[..., 1] = 150
    image[30:60, 40:80] = (220, 30, 30)
    return image


def test_windows_are_sets_of_superpixels(installed, square):
    from windows import windows

    boxes, scores, labels, members = windows(square)
    assert labels.shape == square.shape[:2]
    assert members.shape == (len(boxes), int(labels.max()) + 1)
    masks = members[:, labels.long()]
    assert torch.equal(tight_boxes(masks), boxes)
    assert (scores[:-1] >= scores[1:]).all()
    assert scores.min() > 0
    assert scores.max() <= 1
    assert len(torch.unique(members, dim=0)) == len(members)
    truth = torch.zeros(90, 120, dtype=torch.bool)
    truth[30:60, 40:80] = True
    overlap = (masks & truth).sum((1, 2)) / (masks | truth).sum((1, 2))
    assert overlap.max() > 0.5


@pytest.mark.slow
def test_a_proposer_is_chosen_by_its_name(installed, tmp_path):
    words = ["--data", "shapes", "--data.root", str(tmp_path / "data"), "--data.train", "2"]
    words += ["--data.proposals", "windows", "--out", str(tmp_path / "made.sqlite")]
    propose.main([*words, "--split", "train", "--workers", "1"])
    file = ProposalFile(tmp_path / "made.sqlite")
    assert len(file) == 2
    assert file.provenance["made"] == "windows"
    assert file.provenance["superpixels"] == 300
    assert file.provenance["supervision"] == "none"


def test_segment_anything_is_a_proposer_without_being_a_dependency(installed, monkeypatch):
    """The names and arguments are those of the package `segment_anything`; its network is not."""
    asked = {}

    class Generator:
        def __init__(self, network, points_per_side, output_mode):
            asked.update(network=network, points=points_per_side, mode=output_mode)

        def generate(self, image):
            whole, part = np.zeros((2, *image.shape[:2]), np.uint8)
            whole[2:9, 2:9], part[3:5, 3:5] = 1, 1
            coded = [rle.encode(np.asfortranarray(mask)) for mask in (part, whole)]
            return [
                {"segmentation": {**c, "counts": c["counts"].decode()}, "area": 1, "bbox": [0] * 4}
                | {"predicted_iou": 1.02, "stability_score": 0.97, "point_coords": [[1.0, 2.0]]}
                for c in coded
            ]

    class Network:
        def to(self, device):
            return self

    package = types.ModuleType("segment_anything")
    package.SamAutomaticMaskGenerator = Generator
    package.sam_model_registry = {"vit_b": lambda checkpoint: Network()}
    monkeypatch.setitem(sys.modules, "segment_anything", package)
    found = proposers.propose(np.zeros((10, 12, 3), np.uint8), "sam")
    assert found.boxes.tolist() == [[2, 2, 9, 9], [3, 3, 5, 5]]
    assert found.scores.tolist() == [1, 1]
    assert (asked["points"], asked["mode"]) == (32, "coco_rle")
    assert proposers.find("sam").provenance["supervision"] == "masks of SA-1B"


# A label field


def test_extreme_points_are_read_cut_and_pasted(installed, monkeypatch):
    from wsis.data import targets
    from wsis.data.transforms import Cut

    monkeypatch.syspath_prepend(EXAMPLES / "label_field")
    import extremes

    try:
        cross = [[20.0, 10.0], [10.0, 20.0], [20.0, 30.0], [30.0, 20.0]]
        far = [[x + 60.0, y] for x, y in cross]
        annotations = [
            {"category_id": 7, "extreme_points": cross},
            {"category_id": 3, "extreme_points": far},
            {"category_id": 3},
        ]
        record = {"annotations": annotations, "tags": [0, 1]}
        record["image"] = {"id": 1, "height": 50, "width": 100}
        classes = targets.Classes({3: 0, 7: 1}, 0)
        fields = [targets.FIELDS[name] for name in ("tags", "extremes")]
        target = targets.read_target(record, fields, classes)
        assert set(target) == {"tags", "extremes", "labels"}
        assert target["extremes"][:2].tolist() == [cross, far]
        assert target["labels"].tolist() == [1, 0, 0]

        # the left half at twice its size, flipped: x goes to 100 - 2 x
        cut = Cut(top=0, left=0, height=50, width=50, size=(100, 100), flip=True)
        changed = targets.cut_target(target, cut)
        assert changed["extremes"][0].tolist() == [[60, 20], [40, 40], [60, 60], [80, 40]]
        assert changed["extremes"][1].isnan().all()
        assert changed["labels"].tolist() == [1, 0]
        assert torch.equal(changed["tags"], target["tags"])

        covered = torch.zeros(50, 100, dtype=torch.bool)
        covered[20, 10] = True
        left = targets.cover_target(target, covered)
        assert left["extremes"][0].isnan().all()
        assert torch.equal(left["extremes"][1], target["extremes"][1])
        assert torch.equal(left["labels"], target["labels"])

        mask = torch.zeros(1, 50, 100, dtype=torch.bool)
        mask[0, 10:13, 21] = mask[0, 11, 20:24] = True
        pasted = extremes.of_masks(mask, torch.tensor([1]), target)
        assert pasted["extremes"].tolist() == [
            [[21.5, 10.5], [20.5, 11.5], [21.5, 12.5], [23.5, 11.5]]
        ]
    finally:
        targets.FIELDS.pop("extremes", None)
        sys.modules.pop("extremes", None)


@pytest.mark.slow
def test_workers_that_are_not_forked_know_the_field(tmp_path):
    """Spawned ones, as on macOS and Windows, import nothing but what samples refer to."""
    program = f"""
import sys
sys.path.append({str(EXAMPLES / "label_field")!r})
from torch.utils.data import DataLoader
from wsis.data import Loading
from wsis.data.samples import Samples
from wsis.datasets.shapes import Shapes

if __name__ == "__main__":
    import extremes
    data = Shapes(root={str(tmp_path)!r}, train=2, val=1, proposals="none")
    index = data.index("train")
    for annotation in sum(index.annotations.values(), []):
        annotation["extreme_points"] = [[5.0, 5.0]] * 4
    samples = Samples(index, {{"tags", "extremes"}}, data.augment)
    loader = DataLoader(samples, sampler=[[(0, 1)]], batch_size=None, num_workers=1,
                        multiprocessing_context="spawn")
    (batch,) = loader
    print(sorted(batch[0]["target"]))
"""
    (tmp_path / "spawn.py").write_text(program)
    environment = {**os.environ, "PYTHONPATH": str(EXAMPLES.parent)}
    done = subprocess.run(
        [sys.executable, str(tmp_path / "spawn.py")],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == "['extremes', 'labels', 'tags']", done.stderr


# A segmentor


TINY = {"name": "test_byobnet", "weights": "none", "output_stride": 32, "frozen_stages": 0}


def make_sample() -> dict:
    """Two objects of a class that touch nothing, and one of another whose mask is unknown."""
    masks = torch.zeros(3, 64, 96, dtype=torch.bool)
    masks[0, 8:24, 8:24] = masks[1, 40:56, 8:24] = True
    image = torch.zeros(3, 64, 96, dtype=torch.uint8)
    image[0][masks[0] | masks[1]] = 250
    image[2, 16:48, 64:88] = 250
    boxes = torch.tensor([[8.0, 8, 24, 24], [8, 40, 24, 56], [64, 16, 88, 48]])
    target = {"tags": torch.ones(2), "boxes": boxes, "labels": torch.tensor([0, 0, 1])}
    target |= {"masks": masks, "ignore_mask": torch.tensor([False, False, True])}
    return {"image": image, "image_id": 1, "size": (64, 96), "target": target}


def test_a_segmentor_is_chosen_by_its_name(installed):
    from wsis.runs.stage import Stage

    given = {"model": "components", "steps": 3, "min_area": 5}
    stage = Stage.of("segmentor", given, "mask_rcnn", num_classes=2, backbone=TINY)
    assert type(stage.model).__name__ == "Components"
    assert stage.model.hparams["min_area"] == 5
    assert stage.model.backbone.settings.name == "test_byobnet"


def test_cells_have_the_class_of_the_mask_on_them(installed):
    model = registry.find("model", "components")(2, TINY | {"feature_level": 1})
    stride = model.backbone.stride
    canvas = model.canvas(make_sample(), (64 // stride, 128 // stride))
    middle = {"mask": (16, 16), "ground": (32, 32), "unknown": (32, 76), "padding": (32, 120)}
    cells = {name: int(canvas[y // stride, x // stride]) for name, (y, x) in middle.items()}
    assert cells == {"mask": 0, "ground": 2, "unknown": 255, "padding": 255}


def test_components_are_the_objects(installed, monkeypatch):
    model = registry.find("model", "components")(2, TINY, min_area=20).eval()
    sample = make_sample()
    logits = torch.full((1, 3, 64, 96), -5.0)
    logits[0, 2] = 0
    logits[0, 0][sample["target"]["masks"][0]] = 5
    logits[0, 0][sample["target"]["masks"][1]] = 9
    logits[0, 1, :4, 60:64] = 9  # 16 pixels
    monkeypatch.setattr(type(model), "forward", lambda self, images: logits)
    monkeypatch.setattr(model.backbone, "stride", 1)
    found = model.predict(sample)
    assert found.boxes.tolist() == [[8, 40, 24, 56], [8, 8, 24, 24]]
    assert found.labels.tolist() == [0, 0]
    assert len(found.masks) == 2
    assert found.scores[0] > found.scores[1] > 0.9


@pytest.mark.slow
def test_a_method_ends_with_the_segmentor(installed, tmp_path):
    segmentor = '{"model": "components", "steps": 1, "batch_size": 2}'
    words = ["--model", "boxcaseg", f"--model.segmentor={segmentor}", "--trainer.max_steps", "1"]
    words += ["--data.train", "4", "--data.val", "2", "--data.root", str(tmp_path / "data")]
    words += ["--model.salient_limit", "2", "--data.loading.batch_size", "4"]
    words += ["--trainer.accelerator", "cpu", "--run_dir", str(tmp_path / "run")]
    fit.main(words)
    metrics = json.loads((tmp_path / "run/3-segmentor/metrics.json").read_text())
    assert "val/AP50" in metrics


# A loss


def test_a_focal_loss_without_focus_is_cross_entropy(installed, monkeypatch):
    focal = registry.find("model", "focal_cam")
    sample = make_sample()
    told = {}
    for focus in (0.0, 2.0):
        torch.manual_seed(0)
        model = focal(focus, num_classes=2, backbone=TINY)
        monkeypatch.setattr(model, "log_losses", lambda *_: None)
        told[focus] = model.training_step([sample], 0)
    assert torch.isclose(told[0.0], model.classifier.loss([sample]))
    p = model.classifier.logits([sample]).sigmoid()  # both classes are in the image
    assert torch.isclose(told[2.0], (-((1 - p) ** 2) * p.log()).mean())


# A backbone


@pytest.mark.slow
def test_a_backbone_of_ones_own_is_trained_saved_and_loaded(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(EXAMPLES / "backbone"))
    import pyramid

    data = Shapes(tmp_path, train=2, val=1, proposals="none")
    before = pyramid.settings()["name"].state_dict()
    model = pyramid.train(data, 1)
    backbone = model.classifier.backbone
    assert (backbone.widths, backbone.strides) == ([32, 32, 64], [2, 4, 8])
    trained = backbone.network.network.state_dict()
    assert trained.keys() == before.keys()
    model.trainer.save_checkpoint(tmp_path / "own.ckpt")
    settings = pyramid.settings()
    again = type(model).load_from_checkpoint(
        tmp_path / "own.ckpt", backbone=settings, weights_only=True
    )
    assert again.class_names == tuple(data.class_names)
    loaded = again.classifier.backbone.network.network.state_dict()
    assert all(torch.equal(value, trained[name]) for name, value in loaded.items())
    with pytest.raises(InputError, match="Pyramid is a module that was given"):
        type(model).load_from_checkpoint(tmp_path / "own.ckpt", weights_only=True)
