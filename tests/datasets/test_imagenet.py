"""Pre-training: images in a folder for each class become the weights that a method begins with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from wsis import fit
from wsis.datasets.imagenet import ImageNet
from wsis.errors import InputError
from wsis.models.pdsl import PDSL

CLASSES = ("n01440764", "n02102040", "n03000684")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 2)):
        for k, name in enumerate(CLASSES):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(80 * k, 80 * k + 80, (50 + i, 70, 3), np.uint8)
                Image.fromarray(pixels).save(tmp_path / split / name / f"{i}.JPEG", "jpeg")
    return tmp_path


def test_a_folder_is_a_class(root):
    data = ImageNet(root)
    index = data.index("train")
    assert data.class_names == list(CLASSES)
    assert len(index.images) == 12
    for image in index.images:
        (label,) = index.tags[image["id"]]
        assert image["file_name"].startswith(f"{CLASSES[label]}/")
        assert (image["height"], image["width"]) == Image.open(
            index.root / image["file_name"]
        ).size[::-1]
    assert len(data.index("val").images) == 6
    sample = data.samples("train", train=True).sample(11)
    assert sample["target"]["tags"].tolist() == [0, 0, 1]


def test_validation_keeps_the_numbers_of_training(root):
    for path in (root / "val" / CLASSES[0]).iterdir():
        path.unlink()
    index = ImageNet(root).index("val")
    assert set(map(tuple, index.tags.values())) == {(1,), (2,)}


def test_what_is_no_imagenet(root, tmp_path):
    with pytest.raises(InputError, match="sort ImageNet's into a folder for each class"):
        ImageNet(tmp_path / "nothing").index("train")
    (root / "val" / "n09").mkdir()
    Image.new("RGB", (8, 8)).save(root / "val" / "n09" / "1.png")
    with pytest.raises(InputError, match="has the class n09, which"):
        ImageNet(root).index("val")
    (root / "train" / CLASSES[0] / "0.JPEG").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"0\.JPEG"):
        ImageNet(root).index("train")


@pytest.mark.slow
def test_pretrained_weights_begin_a_method(root, tmp_path):
    """The recipe on twelve images: PDSL's backbone has the checkpoint's weights, bit for bit."""
    run = tmp_path / "run"
    words = ["--model", "classifier", "--data", "imagenet", "--data.root", str(root)]
    words += ["--data.augment.max_side", "64", "--data.loading.batch_size", "4"]
    words += ["--data.loading.workers", "0", "--model.test_side", "64"]
    words += ["--trainer.max_steps", "3", "--trainer.accelerator", "cpu", "--run_dir", str(run)]
    fit.main(words)
    file = run / "train" / "checkpoints" / "last.ckpt"
    trained = torch.load(file, map_location="cpu", weights_only=False)["state_dict"]
    model = PDSL(3, backbone={"name": "resnet18_ws", "weights": str(file)})
    ours = model.backbone.state_dict()
    assert len(ours) > 60
    for name, value in ours.items():
        assert torch.equal(value, trained[f"backbone.{name}"]), name
    assert any(value.abs().sum() > 0 for name, value in ours.items() if "running_mean" in name)
    assert not model.backbone.is_random
