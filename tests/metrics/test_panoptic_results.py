"""Panoptic maps from a model's steps to figures and files, on one process and on two."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from pytorch_lightning.loggers.logger import DummyLogger
from torch.utils.data import DataLoader, Dataset

from wsis.errors import InputError
from wsis.method import Method
from wsis.metrics import Evaluation, PanopticQuality
from wsis.metrics.panoptic_results import read_panoptic
from wsis.types import GroundTruth, Prediction

THINGS = [{"id": 7, "name": "seven"}, {"id": 9, "name": "nine"}]
STUFF = [{"id": 0, "name": "ground"}]
IMAGES = [{"id": 100 + i, "file_name": f"{i}.jpg", "height": 20, "width": 30} for i in range(5)]


def scene(i: int) -> tuple[Prediction, GroundTruth]:
    """Two rectangles on ground, found a little beside where they are."""
    rng = np.random.default_rng(i)
    maps = []
    for shift in (0, int(rng.integers(0, 3))):
        panoptic = torch.tensor([2, 0], dtype=torch.int32).repeat(20, 30, 1)
        panoptic[2 + shift : 10 + shift, 2:10] = torch.tensor([0, 1])
        panoptic[12:18, 12 + shift : 20 + shift] = torch.tensor([1, 2])
        panoptic[:, 28:] = torch.tensor([-1, 0])
        maps.append(panoptic)
    none = torch.zeros(0)
    prediction = Prediction(100 + i, (20, 30), none.view(0, 4), none, none.long(), [], maps[1])
    return prediction, GroundTruth(none.view(0, 4), none.long(), [], none.bool(), maps[0])


class Scenes(Dataset):
    def __len__(self) -> int:
        return 5

    def __getitem__(self, i: int) -> dict:
        return {
            "image": torch.zeros(3, 20, 30, dtype=torch.uint8),
            "image_id": 100 + i,
            "truth": scene(i)[1],
            "size": (20, 30),
        }


class SceneData(pl.LightningDataModule):
    categories, stuff, num_classes, num_stuff, class_names = THINGS, STUFF, 2, 1, ("seven", "nine")

    def val_dataloader(self) -> DataLoader:
        return DataLoader(Scenes(), batch_size=2, collate_fn=list)

    test_dataloader = predict_dataloader = val_dataloader


class Oracle(Method):
    def __init__(self, panoptic: bool = True) -> None:
        super().__init__()
        self.panoptic = panoptic

    def validation_step(self, batch, i):
        found = [scene(sample["image_id"] - 100)[0] for sample in batch]
        return (
            found if self.panoptic else [prediction._replace(panoptic=None) for prediction in found]
        )

    test_step = predict_step = validation_step

    def on_test_end(self) -> None:
        logged = {name: float(value) for name, value in self.trainer.callback_metrics.items()}
        Path(self.trainer.default_root_dir, f"rank{self.trainer.global_rank}").write_text(
            json.dumps(logged)
        )


def trainer_for(folder: Path, **settings) -> pl.Trainer:
    quiet = {
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "logger": False,
        "enable_checkpointing": False,
    }
    return pl.Trainer(
        default_root_dir=folder, accelerator="cpu", callbacks=[Evaluation()], **quiet, **settings
    )


def by_hand() -> dict[str, float]:
    metric = PanopticQuality(2, 1)
    metric.update(*map(list, zip(*map(scene, range(5)), strict=True)))
    return {name: float(value) for name, value in metric.compute().items() if value.ndim == 0}


def stored_maps(folder: Path) -> list[np.ndarray]:
    maps = read_panoptic(folder / "panoptic.json", IMAGES, THINGS, STUFF)
    return [maps(image).numpy() for image in IMAGES]


@pytest.mark.parametrize(
    "settings", [{}, {"devices": 2, "strategy": "ddp_fork"}], ids=["one", "two processes"]
)
@pytest.mark.filterwarnings("ignore")
def test_figures_are_logged_and_maps_stored(tmp_path, settings):
    """Of an odd number of images Lightning's sampler repeats one."""
    trainer_for(tmp_path, **settings).test(Oracle(), datamodule=SceneData(), verbose=False)
    expected = by_hand()
    assert 0.5 < expected["PQ"] < 1
    for rank in range(settings.get("devices", 1)):
        logged = json.loads((tmp_path / f"rank{rank}").read_text())
        for name, value in expected.items():
            assert logged[f"test/{name}"] == pytest.approx(value, abs=1e-6)
    for found, image in zip(stored_maps(tmp_path), range(5), strict=True):
        assert (found == scene(image)[0].panoptic.numpy()).all()
    names = {path.name for path in tmp_path.iterdir()}
    assert {name for name in names if not name.startswith("rank")} == {
        "predictions.json",
        "panoptic.json",
        "panoptic",
    }


@pytest.mark.filterwarnings("ignore")
def test_the_json_is_cocos(tmp_path):
    """As panopticapi reads it: colours are numbers, which the json knows, and void is black."""
    trainer_for(tmp_path).predict(Oracle(), datamodule=SceneData())
    content = json.loads((tmp_path / "panoptic.json").read_text())
    assert [(c["id"], c["isthing"]) for c in content["categories"]] == [(7, 1), (9, 1), (0, 0)]
    assert [a["image_id"] for a in content["annotations"]] == [image["id"] for image in IMAGES]
    for i, annotation in enumerate(content["annotations"]):
        colours = np.array(Image.open(tmp_path / "panoptic" / annotation["file_name"])).astype(int)
        numbers = colours @ [1, 256, 256**2]
        panoptic = scene(i)[0].panoptic.numpy()
        assert ((numbers == 0) == (panoptic[..., 0] < 0)).all()
        found = {s["id"]: (s["category_id"], s["area"]) for s in annotation["segments_info"]}
        assert set(np.unique(numbers)) - {0} == set(found)
        for number, (category, area) in found.items():
            inside = numbers == number
            assert inside.sum() == area
            assert {[7, 9, 0][label] for label in np.unique(panoptic[inside][:, 0])} == {category}


@pytest.mark.filterwarnings("ignore")
def test_older_maps_go(tmp_path):
    """Those of a run that was killed, of more images, and of a panoptic method where the new one is not."""
    (tmp_path / ".panoptic").mkdir()
    (tmp_path / ".panoptic/000000000999.png").touch()
    trainer_for(tmp_path).predict(Oracle(), datamodule=SceneData())
    assert len(list((tmp_path / "panoptic").iterdir())) == 5
    trainer_for(tmp_path, limit_predict_batches=1).predict(Oracle(), datamodule=SceneData())
    assert len(list((tmp_path / "panoptic").iterdir())) == 2
    trainer_for(tmp_path).predict(Oracle(panoptic=False), datamodule=SceneData())
    assert [path.name for path in tmp_path.iterdir()] == ["predictions.json"]


@pytest.mark.filterwarnings("ignore")
def test_files_of_others_stay(tmp_path):
    (tmp_path / "panoptic").mkdir()
    (tmp_path / "panoptic/mine.png").touch()
    (tmp_path / "panoptic.json").write_text('{"annotations": [{"file_name": "mine.png"}]}')
    trainer_for(tmp_path).predict(Oracle(panoptic=False), datamodule=SceneData())
    assert "mine.png" in (tmp_path / "panoptic.json").read_text()
    trainer_for(tmp_path).predict(Oracle(), datamodule=SceneData())
    trainer_for(tmp_path).predict(Oracle(panoptic=False), datamodule=SceneData())
    assert [path.name for path in (tmp_path / "panoptic").iterdir()] == ["mine.png"]


@pytest.mark.filterwarnings("ignore")
def test_validation_draws_maps_for_loggers_that_take_pictures(tmp_path):
    trainer = trainer_for(tmp_path)
    album = Album()
    trainer.loggers = [album]
    trainer.validate(Oracle(), datamodule=SceneData(), verbose=False)
    assert len(album.pictures) == 5
    assert album.pictures[0].shape[1] > 4 * 512  # instances and map, each beside its truth


class Album(DummyLogger):
    """Takes pictures as WandbLogger does."""

    def __init__(self) -> None:
        super().__init__()
        self.pictures = []

    def log_image(self, key, images, step=None):
        self.pictures += images


@pytest.mark.filterwarnings("ignore")
def test_a_model_that_does_not_ask_has_no_panoptic_figures(tmp_path):
    trainer_for(tmp_path).test(Oracle(panoptic=False), datamodule=SceneData(), verbose=False)
    assert not any("PQ" in name for name in json.loads((tmp_path / "rank0").read_text()))


ANNOTATION = {"image_id": 100, "file_name": "a.png", "segments_info": [{"id": 1, "category_id": 7}]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "is a json list; expected an object with annotations"),
        ({"annotations": [{**ANNOTATION, "image_id": 5}]}, "image 5"),
        ({"annotations": [{"image_id": 100}]}, r"annotations\[0\] has no file_name"),
        (
            {"annotations": [{**ANNOTATION, "segments_info": [{"id": 1, "category_id": 8}]}]},
            "category 8",
        ),
        (
            {"annotations": [{**ANNOTATION, "segments_info": [{"id": 1}]}]},
            r"segments_info\[0\] has no category_id",
        ),
        (
            {"annotations": [{**ANNOTATION, "segments_info": [{"category_id": 7}]}]},
            r"segments_info\[0\] has no id",
        ),
    ],
)
def test_wrong_files_get_one_clear_line(tmp_path, content, message):
    path = tmp_path / "panoptic.json"
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=message) as error:
        read_panoptic(path, IMAGES, THINGS, STUFF)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)
