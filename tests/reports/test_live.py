"""The page of a run in training: it changes nothing, costs little, and stops loading itself."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import toy_runs
from torch import nn

from wsis.data.module import Loading
from wsis.method import Method
from wsis.reports import live
from wsis.reports.live import LivePage, Watcher
from wsis.runs.loggers import CSV
from wsis.types import Prediction


class Noisy(Method):
    """Has modules with two modes, one of them always in evaluation, and predicts at random."""

    needs_proposals = False

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.BatchNorm2d(3)
        self.body = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(0.5), nn.Conv2d(3, 1, 1))
        self.modes: list[tuple[bool, bool]] = []

    def on_train_start(self):
        self.frozen.eval()

    def training_step(self, batch, i):
        self.modes.append((self.body[0].training, self.frozen.training))
        images = torch.stack([sample["image"] for sample in batch]).float()
        loss = self.body(self.frozen(images)).mean() + torch.rand(()) * self.body[2].weight.sum()
        self.log("train/loss", loss)
        return loss

    def predict(self, sample) -> Prediction:
        self.body(sample["image"][None].float())
        score = torch.rand(1) + 0 * (np.random.rand() + random.random())  # noqa: NPY002
        box, label = torch.tensor([[9.0, 9.0, 99.0, 99.0]]), torch.tensor([2])
        return Prediction(sample["image_id"], sample["size"], box, score, label, [])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1, momentum=0.9)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    made = toy_runs.shapes(tmp_path_factory.mktemp("live"), loading=Loading(workers=0))
    for split in ("train", "val"):
        made.index(split)
    return made


def train(folder: Path, data, *callbacks, model: Method | None = None, **settings) -> Noisy:
    pl.seed_everything(1, verbose=False)
    model = model or Noisy()
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    quiet |= {"enable_checkpointing": False, "num_sanity_val_steps": 0, "max_steps": 4}
    loggers = [CSV(folder / "train")]
    (folder / "train").mkdir(parents=True, exist_ok=True)
    trainer = pl.Trainer(
        callbacks=[*callbacks], logger=loggers, log_every_n_steps=1, **quiet | settings
    )
    trainer.fit(model, datamodule=data)
    return model


def data_of(page: LivePage) -> dict:
    found = re.search(r'id="data">(.*?)</script>', page.path.read_text())
    return json.loads(found[1])


@pytest.mark.slow
def test_training_is_the_same_to_the_bit(monkeypatch, data, tmp_path):
    monkeypatch.setattr(live, "SPARING", 0)
    page = LivePage(tmp_path, "noisy on shapes")
    watched = train(tmp_path, data, Watcher(page, "train", every=0))
    plain = train(tmp_path / "other", data)
    for (name, ours), theirs in zip(
        watched.state_dict().items(), plain.state_dict().values(), strict=True
    ):
        assert torch.equal(ours, theirs), name
    assert watched.modes == plain.modes == [(True, False)] * 4
    assert len(data_of(page)["images"]) == live.PICTURES, "it has looked at the model"


def test_the_page_loads_itself_again_only_while_the_run_works(data, tmp_path):
    page = LivePage(tmp_path, "noisy on shapes")
    with page.kept():
        assert "beginning" in page.path.read_text()
        train(tmp_path, data, Watcher(page, "train", every=0), val_check_interval=2)
        during = page.path.read_text()
    after = page.path.read_text()
    assert 'http-equiv="refresh"' in during
    assert "train: step 4 of 4, loss" in during
    assert "<figcaption>train: train/loss" in during
    assert 'http-equiv="refresh"' not in after
    assert "finished" in after
    assert len(data_of(page)["images"]) == live.PICTURES, "the last pictures stay"


def test_a_run_that_fails_says_where(monkeypatch, data, tmp_path):
    monkeypatch.setattr(live, "SPARING", 0)
    page = LivePage(tmp_path, "noisy on shapes")

    class Failing(Noisy):
        def training_step(self, batch, i):
            if i == 2:
                raise KeyboardInterrupt
            return super().training_step(batch, i)

    with pytest.raises(BaseException), page.kept():  # noqa: B017, PT011
        train(tmp_path, data, Watcher(page, "train", every=0), model=Failing())
    assert "stopped; last train: step 2 of 4, loss" in page.path.read_text()
    assert 'http-equiv="refresh"' not in page.path.read_text()


def test_a_run_that_has_nothing_to_do_leaves_its_page_alone(tmp_path):
    page = LivePage(tmp_path, "noisy on shapes")
    page.path.write_text("pictures")
    with page.kept():
        pass
    assert page.path.read_text() == "pictures"


@pytest.mark.slow
def test_pages_take_a_twentieth_of_the_time(monkeypatch, data, tmp_path):
    now, written = [1000.0], []

    class Slow(LivePage):
        def write(self, *args, **settings):
            written.append(now[0])
            now[0] += 30

    class Steps(pl.Callback):
        def on_train_batch_end(self, *args):
            now[0] += 10

    monkeypatch.setattr(live, "time", SimpleNamespace(monotonic=lambda: now[0]))
    watcher = Watcher(Slow(tmp_path, "x"), "train")
    train(tmp_path, data, watcher, Steps(), max_steps=200, limit_val_batches=0)
    pauses = np.diff(written[1:-1])  # without the first and last page, which have no pictures
    assert len(pauses) >= 2
    assert (pauses >= live.SPARING * 30).all()


def test_other_processes_write_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr(live, "rank", lambda: 1)
    page = LivePage(tmp_path, "noisy on shapes")
    with page.kept():
        page.write("now")
    assert not page.path.exists()
