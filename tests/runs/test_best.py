"""The best checkpoint is of the step whose validation was best, whatever happened on the way."""

from __future__ import annotations

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from wsis.runs.best import BestCheckpoint
from wsis.runs.checkpoints import CheckpointCallback


class Counter(pl.LightningModule):
    """Its weight is the number of steps; validation measures what the test says for that step."""

    def __init__(self, measured: dict[int, dict[str, float]]) -> None:
        super().__init__()
        self.measured = measured
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def training_step(self, batch, i):
        return -self.weight

    def validation_step(self, batch, i):
        self.log_dict(self.measured[self.trainer.global_step])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 1.0)


def train(folder, measured, steps=6, every=2, start=None, metrics=("AP50", "mAP")):
    best = BestCheckpoint(folder / "best.ckpt", metrics)
    best.begin(0 if start is None else torch.load(start, weights_only=True)["global_step"])
    trainer = pl.Trainer(
        max_steps=steps,
        val_check_interval=every,
        check_val_every_n_epoch=None if isinstance(every, int) else 1000,
        callbacks=[CheckpointCallback(folder / "last.ckpt", 3), best],
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=folder,
    )
    loaders = DataLoader(torch.zeros(steps)), DataLoader(torch.zeros(1))
    model = Counter(measured)
    trainer.fit(model, *loaders, ckpt_path=start)
    trainer.validate(model, loaders[1], verbose=False)
    return best.state_dict()


def weight(path) -> float:
    return float(torch.load(path, weights_only=True)["state_dict"]["weight"])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("values", "step"), [((0.2, 0.5, 0.3), 4), ((0.5, 0.5, 0.3), 4), ((0.1, 0.2, 0.3), 6)]
)
def test_of_the_best_step(tmp_path, values, step):
    measured = {2 * k + 2: {"val/AP50": value} for k, value in enumerate(values)}
    found = train(tmp_path, measured)
    assert found == {"step": step, "val/AP50": pytest.approx(max(values))}
    assert weight(tmp_path / "best.ckpt") == step
    assert weight(tmp_path / "last.ckpt") == 6


@pytest.mark.filterwarnings("ignore")
def test_the_first_metric_decides(tmp_path):
    measured = {
        2: {"val/mAP": 0.9, "val/AP50": 0.1},
        4: {"val/mAP": 0.2, "val/AP50": 0.3},
        6: {"val/mAP": 1.0, "val/AP50": float("nan")},
    }
    assert train(tmp_path, measured)["step"] == 4


@pytest.mark.filterwarnings("ignore")
def test_none_where_it_would_be_the_last_or_nothing_is_measured(tmp_path):
    assert train(tmp_path, {6: {"val/AP50": 0.5}}, every=1.0) == {}
    assert train(tmp_path, {k: {"val/loss": 0.5} for k in (2, 4, 6)}) == {}
    assert not (tmp_path / "best.ckpt").exists()


@pytest.mark.filterwarnings("ignore")
def test_steps_that_a_crash_lost_do_not_count(tmp_path):
    """As of a run that died at step 5 and goes on from its checkpoint of step 3."""
    train(tmp_path, {2: {"val/AP50": 0.4}, 4: {"val/AP50": 0.9}}, steps=4)
    assert weight(tmp_path / "best.ckpt") == 4
    start = tmp_path / "start.ckpt"
    (tmp_path / "previous.ckpt").rename(start)
    again = {4: {"val/AP50": 0.5}, 6: {"val/AP50": 0.3}}
    assert train(tmp_path, again, start=start)["step"] == 4
    assert train(tmp_path, again, start=tmp_path / "last.ckpt")["val/AP50"] == pytest.approx(0.5)
