"""What is said while a stage works."""

from __future__ import annotations

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from wsis.runs import progress
from wsis.runs.progress import Bar, Lines, percents, title


class Net(pl.LightningModule):
    """Each step and each batch of validation takes ten seconds by the test's clock."""

    def __init__(self, clock: list[float]) -> None:
        super().__init__()
        self.clock, self.layer = clock, torch.nn.Linear(1, 1)

    def training_step(self, batch, i):
        self.clock[0] += 10
        loss = self.layer(batch).mean() * 0 + 1.25
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch, i):
        self.clock[0] += 10

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def trainer(tmp_path, callback, **settings) -> pl.Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    quiet |= {"accelerator": "cpu", "default_root_dir": tmp_path, "num_sanity_val_steps": 0}
    return pl.Trainer(callbacks=[callback], **quiet, **settings)


def test_a_line_a_minute(tmp_path, clock, capsys):
    """After 20 seconds, then every minute; 30 steps of 10 seconds are 5 minutes."""
    made = trainer(tmp_path, Lines("2-net"), max_steps=30, enable_progress_bar=False)
    loader = DataLoader(torch.ones(30, 1))
    made.fit(Net(clock), loader)
    assert capsys.readouterr().out.splitlines() == [
        "2-net: step 2 of 30, loss 1.25, 5 min left",
        "2-net: step 8 of 30, loss 1.25, 4 min left",
        "2-net: step 14 of 30, loss 1.25, 3 min left",
        "2-net: step 20 of 30, loss 1.25, 2 min left",
        "2-net: step 26 of 30, loss 1.25, 40 s left",
    ]
    made.validate(Net(clock), DataLoader(torch.ones(10, 1)), verbose=False)
    assert capsys.readouterr().out.splitlines() == [
        "2-net: validating, batch 2 of 10, 80 s left",
        "2-net: validating, batch 8 of 10, 20 s left",
    ]


def test_validations_on_the_way_leave_the_clock_alone(tmp_path, clock, capsys):
    """A validation of 10 seconds after every 10 steps of 10: 30 steps of 11 seconds."""
    settings = {"max_steps": 30, "val_check_interval": 10, "enable_progress_bar": False}
    loaders = DataLoader(torch.ones(30, 1)), DataLoader(torch.ones(1, 1))
    trainer(tmp_path, Lines("2-net"), **settings).fit(Net(clock), *loaders)
    assert [line for line in capsys.readouterr().out.splitlines() if "left" in line] == [
        "2-net: step 2 of 30, loss 1.25, 5 min left",
        "2-net: step 8 of 30, loss 1.25, 4 min left",
        "2-net: step 13 of 30, loss 1.25, 3 min left",
        "2-net: step 19 of 30, loss 1.25, 2 min left",
        "2-net: step 24 of 30, loss 1.25, 65 s left",
    ]


def test_the_bar_has_the_name_of_the_stage(tmp_path, clock, capsys):
    made = trainer(tmp_path, Bar("2-net"), max_steps=3)
    made.fit(Net(clock), DataLoader(torch.ones(3, 1)))
    assert "2-net:" in capsys.readouterr().out


def test_stages_are_counted():
    planned = ["1-classifier", "2-labels", "round-1-net"]
    assert [title(name, planned) for name in planned] == [
        "stage 1 of 3, classifier",
        "stage 2 of 3, labels",
        "stage 3 of 3, round-1-net",
    ]
    assert title("train", ["train"]) == "train"
    assert title("1-first", []) == "1-first", "how many is not known"
    assert title("4-more", planned) == "4-more"


class Judged(Net):
    main_metrics = ("mAP",)

    def validation_step(self, batch, i):
        self.log_dict({"val/mAP": 0.8125, "val/loss": 0.5}, prog_bar=True)


def test_metrics_are_in_per_cent(tmp_path, clock, capsys):
    loaders = DataLoader(torch.ones(4, 1)), DataLoader(torch.ones(1, 1))
    settings = {"max_steps": 4, "val_check_interval": 2}
    made = trainer(tmp_path, Lines("2-net"), enable_progress_bar=False, **settings)
    made.fit(Judged(clock), *loaders)
    said = capsys.readouterr().out.splitlines()
    assert [line for line in said if "val" in line] == [
        "2-net: step 2, val/mAP 81.2%",
        "2-net: step 4, val/mAP 81.2%",
    ]
    trainer(tmp_path, Bar("2-net"), **settings).fit(Judged(clock), *loaders)
    shown = capsys.readouterr().out
    assert "val/mAP=81.2%" in shown
    assert "val/loss=0.500" in shown


def test_what_is_not_known_is_left_out():
    assert percents({"a": 0.12345, "b": float("nan")}, ["b", "a", "c"]) == "a 12.3%"
