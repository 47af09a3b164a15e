"""A method of three stages and its data, small enough to kill a hundred times."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Literal

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Dataset

from wsis.data.samplers import OrderSampler, StepSampler
from wsis.method import Method
from wsis.metrics import Evaluation
from wsis.runs.run import Run
from wsis.types import Prediction

SLOW = float(os.environ.get("TOY_SLOW", 0))


class Net(Method):
    """A net with dropout and momentum: both remember.

    Args:
        num_classes: Number of classes.
        width: How wide the hidden layer is.
        rate: Learning rate.
        pool: How regions are pooled.
        sizes: Sizes of something.
    """

    needs_proposals = False

    def __init__(
        self,
        num_classes: int,
        width: int = 4,
        rate: float = 0.1,
        pool: Literal["moi", "roi"] = "moi",
        sizes: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = torch.nn.Sequential(
            torch.nn.Linear(4, width), torch.nn.Dropout(), torch.nn.Linear(width, num_classes)
        )

    def configure_callbacks(self):
        return []

    def training_step(self, batch, i):
        time.sleep(SLOW)
        loss = (self.net(stack(batch)) - 1).square().mean()
        self.log("loss", loss)
        return loss

    def validation_step(self, batch, i):
        self.log("val/loss", self.net(stack(batch)).square().mean())

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=self.hparams.rate)


class Staged(Net):
    """Three stages: a first net, files made from it, and the net itself."""

    def stages(self, run: Run, data: pl.LightningDataModule) -> None:
        first = Net(self.hparams.num_classes, rate=0.2)
        checkpoint = run.fit("1-first", first, data, max_steps=4)
        made = run.make(
            "2-files", lambda folder: write_files(folder, checkpoint), width=self.hparams.width
        )
        self.net[0].bias.data += torch.tensor(
            [float(p.read_text()) for p in sorted(made.glob("*.txt"))]
        ).sum()
        run.fit("3-net", self, data)


class Predicting(Net):
    """Trains, then predicts."""

    def configure_callbacks(self):
        return [Evaluation(metrics=[])]

    def predict_step(self, batch, i):
        found = torch.zeros(1, 4), torch.ones(1), torch.zeros(1, dtype=torch.long)
        return [Prediction(sample["image_id"], (4, 4), *found, []) for sample in batch]

    def validation_step(self, batch, i):
        return self.predict_step(batch, i)

    def stages(self, run: Run, data: pl.LightningDataModule) -> None:
        run.make("1-slow", lambda folder: time.sleep(1))
        run.fit("2-net", self, data)
        run.predict("3-all", self, data, "val")
        run.make("4-after", lambda folder: (folder / "done").touch())


def stack(batch):
    return torch.stack([sample["image"] for sample in batch])


def write_files(folder: Path, checkpoint: Path, count: int = 6) -> None:
    weights = torch.load(checkpoint, weights_only=True)["state_dict"]["net.0.weight"]
    for i in range(count):
        (folder / f"{i}.txt").write_text("0.")
        if os.environ.get("TOY_KILL_MAKE") == str(i):
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(SLOW)
        (folder / f"{i}.txt").write_text(str(weights.sum().item() / (i + 1)))


class Rows(Dataset):
    """Row i is a function of i and of the draw."""

    def __init__(self, train: bool) -> None:
        self.train = train

    def __len__(self) -> int:
        return 11

    def __getitem__(self, keys):
        rows = [[i, 1.0, i / 7, (draw % 97) / 97 if self.train else 0.0] for i, draw in keys]
        return [{"image": torch.tensor(row), "image_id": int(row[0])} for row in rows]


class Data(pl.LightningDataModule):
    """Eleven rows.

    Args:
        root: Where the rows would be.
        batch_size: Rows a step.
        labels: A file of labels.
    """

    num_classes = 3
    categories = [{"id": 7, "name": "a"}, {"id": 8, "name": "b"}, {"id": 9, "name": "c"}]  # noqa: RUF012

    def __init__(
        self, root: Path = Path("data"), batch_size: int = 2, labels: Path | None = None
    ) -> None:
        super().__init__()
        self.batch_size, self.labels = batch_size, labels

    def fingerprint(self, model: object = None) -> str:
        return self.labels.read_text() if self.labels else ""

    def dataloader(self, split: str, train: bool) -> DataLoader:
        trainer = self.trainer
        rows, rank, world = Rows(train), trainer.global_rank, trainer.world_size
        sampler: object = OrderSampler(len(rows), self.batch_size, rank, world)
        if train:
            every = trainer.accumulate_grad_batches
            steps = trainer.max_steps * every
            sampler = StepSampler(
                len(rows),
                self.batch_size,
                0,
                steps,
                lambda: trainer.global_step * every,
                rank,
                world,
            )
        return DataLoader(rows, batch_size=None, sampler=sampler, collate_fn=lambda batch: batch)

    def train_dataloader(self) -> DataLoader:
        return self.dataloader("train", True)

    def val_dataloader(self) -> DataLoader:
        return self.dataloader("val", False)
