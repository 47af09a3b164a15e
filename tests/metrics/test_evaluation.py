"""The callback against the metrics used by hand, on one process and on two, and with loggers that take pictures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pycocotools import mask as rle_masks
from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger
from torch.utils.data import DataLoader, Dataset

from wsis.method import Method
from wsis.metrics import CorLoc, Evaluation, InstanceAP
from wsis.metrics.results import to_results
from wsis.types import GroundTruth, Prediction

SIZE = (48, 64)


def scene(i: int) -> tuple[Prediction, GroundTruth]:
    """Two rectangles of classes 0 and 1, found a little beside where they are."""
    rng = np.random.default_rng(i)
    corners = rng.integers(0, 24, (2, 2))

    def side(shift):
        boxes = np.concatenate([corners + shift, corners + shift + 20], 1).astype(np.float32)
        masks = np.zeros((*SIZE, 2), np.uint8, order="F")
        for m, (x1, y1, x2, y2) in enumerate(boxes.astype(int)):
            masks[y1:y2, x1:x2, m] = 1
        return torch.from_numpy(boxes), rle_masks.encode(masks)

    boxes, masks = side(0)
    truth = GroundTruth(boxes, torch.tensor([0, 1]), masks, torch.tensor([False, False]))
    boxes, masks = side(rng.integers(0, 7, (2, 2)))
    scores = torch.tensor(-np.sort(-rng.random(2)), dtype=torch.float32)
    return Prediction(100 + i, SIZE, boxes, scores, torch.tensor([0, 1]), masks), truth


class Scenes(Dataset):
    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, i: int) -> dict:
        image = torch.full((3, *SIZE), 40 * (i % 6), dtype=torch.uint8)
        return {"image": image, "image_id": 100 + i, "truth": scene(i)[1], "size": SIZE}


class SceneData(pl.LightningDataModule):
    def __init__(self, length: int = 5) -> None:
        super().__init__()
        self.length = length
        self.categories = [{"id": 7, "name": "seven"}, {"id": 9, "name": "nine"}]
        self.num_classes = 2
        self.class_names = ["seven", "nine"]

    def val_dataloader(self) -> DataLoader:
        return DataLoader(Scenes(self.length), batch_size=2, collate_fn=list)

    train_dataloader = test_dataloader = predict_dataloader = val_dataloader


class Oracle(Method):
    """Knows what `scene` says; trains one number."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def configure_callbacks(self):
        return []  # the trainer has one

    def training_step(self, batch, i):
        return (self.weight - 1) ** 2

    def validation_step(self, batch, i):
        return [scene(sample["image_id"] - 100)[0] for sample in batch]

    test_step = predict_step = validation_step

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def trainer_for(folder: Path, callback: Evaluation, **settings) -> pl.Trainer:
    quiet = {
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "logger": False,
        "enable_checkpointing": False,
    }
    return pl.Trainer(
        default_root_dir=folder, accelerator="cpu", callbacks=[callback], **{**quiet, **settings}
    )


def by_hand(length: int) -> dict[str, torch.Tensor]:
    predictions, truths = zip(*(scene(i) for i in range(length)), strict=True)
    figures = {}
    for metric in (InstanceAP(2), CorLoc(2)):
        metric.update(list(predictions), list(truths))
        figures |= metric.compute()
    return figures


def test_validation_logs_what_the_metrics_say(tmp_path):
    trainer = trainer_for(tmp_path, Evaluation())
    (logged,) = trainer.validate(Oracle(), datamodule=SceneData(), verbose=False)
    expected = by_hand(5)
    for name in ("AP", "AP25", "AP50", "AP75", "CorLoc", "box_AP50"):
        assert logged[f"val/{name}"] == pytest.approx(expected[name].item(), abs=1e-6)
    assert 0 < expected["AP"] < 1
    assert not (tmp_path / "predictions.json").exists()


def test_each_validation_forgets_the_last(tmp_path):
    callback = Evaluation()
    trainer = trainer_for(tmp_path, callback, max_epochs=2)
    trainer.fit(Oracle(), datamodule=SceneData())
    assert trainer.callback_metrics["val/AP50"].item() == pytest.approx(
        by_hand(5)["AP50"].item(), abs=1e-6
    )
    assert len(callback.metrics[1].pairs) == 1 + 3  # the empty one and three batches


@pytest.mark.parametrize("verb", ["test", "predict"])
def test_predictions_are_stored_whole(tmp_path, verb):
    trainer = trainer_for(tmp_path, Evaluation())
    getattr(trainer, verb)(Oracle(), datamodule=SceneData())
    stored = json.loads((tmp_path / "predictions.json").read_text())
    assert stored == [r for i in range(5) for r in to_results(scene(i)[0], [7, 9])]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["predictions.json"]


def test_predictions_replace_older_ones(tmp_path):
    for length in (5, 2):
        trainer_for(tmp_path, Evaluation()).predict(Oracle(), datamodule=SceneData(length))
    assert len(json.loads((tmp_path / "predictions.json").read_text())) == 4


def test_steps_that_return_something_else_are_told(tmp_path):
    model = Oracle()
    model.validation_step = lambda batch, batch_idx: torch.zeros(())
    with pytest.raises(TypeError, match="one Prediction per sample"):
        trainer_for(tmp_path, Evaluation()).validate(model, datamodule=SceneData(), verbose=False)


def test_given_metrics_take_the_place_of_the_default(tmp_path):
    trainer = trainer_for(tmp_path, Evaluation([CorLoc()]))
    (logged,) = trainer.test(Oracle(), datamodule=SceneData(), verbose=False)
    assert set(logged) == {"test/CorLoc", "test/CorLoc_images"}


class Album(Logger):
    """Takes pictures as WandbLogger does."""

    def __init__(self) -> None:
        super().__init__()
        self.pictures = []

    name = version = ""

    def log_image(self, key, images, step=None):
        self.pictures.append((key, images, step))

    def log_metrics(self, metrics, step=None):
        pass

    def log_hyperparams(self, params, *args, **kwargs):
        pass


def test_pictures_of_the_first_images_go_to_loggers_that_take_them(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    album, board = Album(), TensorBoardLogger(tmp_path)
    trainer = trainer_for(
        tmp_path,
        Evaluation(pictures=3),
        logger=[CSVLogger(tmp_path), album, board],
    )
    trainer.validate(Oracle(), datamodule=SceneData(), verbose=False)
    assert [key for key, _, _ in album.pictures] == [f"val/pictures/{k}" for k in range(3)]
    for _, (picture,), _ in album.pictures:
        assert picture.dtype == np.uint8
        assert picture.shape[1] > 2 * 512  # prediction beside truth
    board.finalize("success")
    events = accumulator.EventAccumulator(board.log_dir)
    events.Reload()
    assert len(events.Tags()["images"]) == 3


def test_nothing_is_drawn_where_no_logger_takes_it(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "wsis.images.draw.overlay", lambda *args, **kwargs: pytest.fail("drawn for nobody")
    )
    trainer_for(tmp_path, Evaluation(), logger=CSVLogger(tmp_path)).validate(
        Oracle(), datamodule=SceneData(), verbose=False
    )


class Witness(Oracle):
    """Writes down what each rank has logged."""

    def on_test_end(self) -> None:
        logged = {name: float(value) for name, value in self.trainer.callback_metrics.items()}
        Path(self.trainer.default_root_dir, f"rank{self.trainer.global_rank}").write_text(
            json.dumps(logged)
        )


@pytest.mark.slow
@pytest.mark.parametrize("length", [5, 1])
def test_two_processes_see_what_one_sees(tmp_path, length):
    """Of an odd number of images Lightning's sampler repeats one."""
    trainer = trainer_for(tmp_path, Evaluation(), devices=2, strategy="ddp_fork")
    trainer.test(Witness(), datamodule=SceneData(length), verbose=False)
    expected = by_hand(length)
    for rank in (0, 1):
        logged = json.loads((tmp_path / f"rank{rank}").read_text())
        for name in ("AP", "AP50", "CorLoc"):
            assert logged[f"test/{name}"] == pytest.approx(expected[name].item(), abs=1e-6)
    stored = json.loads((tmp_path / "predictions.json").read_text())
    once = [r for i in range(length) for r in to_results(scene(i)[0], [7, 9])]
    assert sorted(map(json.dumps, stored)) == sorted(map(json.dumps, once))
