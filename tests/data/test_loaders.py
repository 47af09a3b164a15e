"""Several data sets in a batch, and several views of an image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor

from wsis.data.module import Augment, DataModule, Loading
from wsis.data.salient import Salient
from wsis.datasets.shapes import Shapes
from wsis.method import Method
from wsis.types import Batch, Sample

AUGMENT = Augment(short_sides=(48, 64), crop=0.9, jitter=1.5)


class Both(Method):
    """Learns from two data sets, and notes what it has seen."""

    needs_proposals = False

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(3, 1)
        self.seen: list[Any] = []

    def training_step(self, batch: dict[str, Batch], _: int) -> Tensor:
        means = {
            name: torch.stack([s["image"].float().mean((1, 2)) / 255 for s in samples])
            for name, samples in batch.items()
        }
        self.seen.append({name: values.tolist() for name, values in means.items()})
        return self.layer(torch.cat([*means.values()])).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1, momentum=0.9)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataModule:
    """Ten images, two in a batch, beside five salient ones, three in a batch."""
    root = tmp_path_factory.mktemp("shapes")
    shapes = Shapes(
        root, train=10, val=1, salient=5, proposals="none", augment=AUGMENT, loading=Loading(2, 0)
    )
    folder = shapes.salient_folder()
    return shapes.with_loaders(salient=Salient(folder, augment=AUGMENT, loading=Loading(3, 0)))


def fit(data: DataModule, folder: Path, steps: int = 6, **options: Any) -> tuple[Both, Path]:
    pl.seed_everything(3, verbose=False)
    model = Both()
    checkpoints = ModelCheckpoint(folder, "{step}", save_top_k=-1, every_n_train_steps=1)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    epochs, accumulate = options.pop("epochs", None), options.pop("accumulate", 1)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=steps,
        max_epochs=epochs,
        accumulate_grad_batches=accumulate,
        limit_val_batches=0,
        callbacks=[checkpoints],
        **quiet,
    )
    trainer.fit(model, data, **options)
    return model, folder


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_resumed_run_sees_the_batches_of_an_uninterrupted_one(
    data: DataModule, tmp_path: Path, accumulate: int
) -> None:
    """Step 3 lies inside a pass over either set; loader processes change nothing."""
    whole, folder = fit(data, tmp_path / "whole", accumulate=accumulate)
    assert len(whole.seen) == 6 * accumulate
    assert all([*map(len, batch.values())] == [2, 3] for batch in whole.seen)
    again = {"ckpt_path": folder / "step=3.ckpt", "weights_only": False}
    parallel = data.variant()
    parallel.loading = Loading(2, 1)
    parallel.others["salient"].loading = Loading(3, 1)
    resumed, _ = fit(parallel, tmp_path / "resumed", accumulate=accumulate, **again)
    parallel.others["salient"].loading = Loading(3, 0)
    assert resumed.seen == whole.seen[3 * accumulate :]
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_pass_shows_each_image_once_whatever_is_beside(
    data: DataModule, tmp_path: Path, accumulate: int
) -> None:
    """Two passes of five batches; step 3 of sums of two ends the first."""
    model, folder = fit(data, tmp_path / "a", steps=-1, epochs=2, accumulate=accumulate)
    assert len(model.seen) == 10
    assert len({str(batch) for batch in model.seen}) == 10
    again = {"ckpt_path": folder / "step=3.ckpt", "weights_only": False}
    resumed, _ = fit(data, tmp_path / "b", steps=-1, epochs=2, accumulate=accumulate, **again)
    assert resumed.seen == model.seen[{1: 3, 2: 5}[accumulate] :]


def test_processes_share_both_sets(data: DataModule) -> None:
    """Two ranks see, together and in order, what one of twice the size would."""

    class Trainer:
        global_step, max_steps, accumulate_grad_batches = 0, 4, 1
        lightning_module = Both()

        def __init__(self, rank: int, world: int) -> None:
            self.global_rank, self.world_size = rank, world

    def names(batch_size: int, rank: int, world: int) -> list[dict[str, list[str]]]:
        some = data.variant(batch_size=batch_size)
        some.others = {"salient": data.others["salient"].variant(batch_size=batch_size)}
        some.trainer = Trainer(rank, world)  # type: ignore[assignment]
        return [
            {name: [s["path"].name for s in samples] for name, samples in batch.items()}
            for batch, *_ in some.train_dataloader()
        ]

    alone, ranks = names(4, 0, 1), [names(2, rank, 2) for rank in (0, 1)]
    assert len(alone) == 4
    for whole, first, second in zip(alone, *ranks, strict=True):
        assert all(whole[name] == first[name] + second[name] for name in ("images", "salient"))


def test_two_views_of_each_image(data: DataModule) -> None:
    plain = data.samples("train", train=True)
    twice = data.variant(views=2).samples("train", train=True)
    keys = [(3, 17), (5, 18)]
    batch, once = twice[keys], plain[keys]
    assert [sample["path"] for sample in batch] == 2 * [sample["path"] for sample in once]
    assert all(same(a, b) for a, b in zip(batch[:2], once, strict=True))
    assert not any(same(a, b) for a, b in zip(batch[2:], once, strict=True))
    assert all(same(a, b) for a, b in zip(batch, twice[keys], strict=True))
    for first, second in zip(batch[:2], batch[2:], strict=True):
        assert torch.equal(first["target"]["tags"], second["target"]["tags"])
    assert len(data.variant(views=2).samples("val", train=False)[[(0, 0)]]) == 1
    assert data.variant(views=2).fingerprint() != data.fingerprint()


def same(a: Sample, b: Sample) -> bool:
    return a["view"] == b["view"] and np.array_equal(a["image"].numpy(), b["image"].numpy())
