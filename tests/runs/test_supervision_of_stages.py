"""A stage sees no more than its run's method, unless its labels were made in the run."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor

from wsis.data.index import write_coco
from wsis.data.module import DataModule, Loading
from wsis.datasets.shapes import Shapes
from wsis.errors import InputError
from wsis.method import Method, Stages
from wsis.runs.run import Run
from wsis.types import Batch


class Masks(Method):
    """Learns how large masks are."""

    supervision = frozenset({"tags", "boxes", "masks"})
    needs_proposals = False

    def __init__(self) -> None:
        super().__init__()
        self.size = torch.nn.Parameter(torch.zeros(()))

    def training_step(self, batch: Batch | dict[str, Batch], _: int) -> Tensor:
        samples = batch if isinstance(batch, list) else [s for part in batch.values() for s in part]
        sizes = torch.stack([sample["target"]["masks"].float().mean() for sample in samples])
        return (self.size - sizes).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


class Leaky(Method):
    """A method for tags whose second stage trains on masks, with whatever labels it is given."""

    def __init__(self, labels: Path | None, beside: bool = False) -> None:
        super().__init__()
        self.labels, self.beside = labels, beside

    def stages(self, run: Stages, data: Any) -> None:
        def produce(folder: Path) -> None:
            write_coco(folder / "labels.json", data.index("train"))

        made = run.make("1-labels", produce)
        labels = made / "labels.json" if self.labels == Path("inside") else self.labels
        stage = data.variant(labels)
        run.fit("2-masks", Masks(), stage.with_loaders(more=data) if self.beside else stage)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Shapes:
    root = tmp_path_factory.mktemp("shapes")
    return Shapes(root, train=2, val=1, proposals="none", loading=Loading(2, 0))


def train(method: Method, data: DataModule, folder: Path, supervision: frozenset[str]) -> Run:
    def make_trainer(place: Path, callbacks: Any = (), **settings: Any) -> pl.Trainer:
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        return pl.Trainer(
            accelerator="cpu",
            max_steps=2,
            limit_val_batches=0,
            default_root_dir=place,
            callbacks=list(callbacks),
            **quiet,
        )

    run = Run(folder, make_trainer, supervision=supervision)
    method.stages(run, data)
    return run


TAGS = frozenset({"tags"})


@pytest.mark.parametrize("place", [None, "outside", "beside"])
def test_a_stage_that_would_see_more_is_refused(data: Shapes, tmp_path: Path, place: str) -> None:
    labels = None
    if place:
        labels = tmp_path / ("run-beside" if place == "beside" else "elsewhere") / "labels.json"
        labels.parent.mkdir()
        write_coco(labels, data.index("train"))
    with pytest.raises(InputError) as refused:
        train(Leaky(labels), data, tmp_path / "run", TAGS)
    assert str(refused.value).splitlines() == [
        "stage '2-masks': Masks trains on boxes, masks, which a method that learns from tags may not see; "
        "give the stage `labels` made in this run"
    ]
    assert not (tmp_path / "run/2-masks").exists()


def test_a_link_out_of_the_run_is_outside(data: Shapes, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    write_coco(tmp_path / "true.json", data.index("train"))
    (tmp_path / "run/labels.json").symlink_to(tmp_path / "true.json")
    with pytest.raises(InputError, match="may not see"):
        train(Leaky(tmp_path / "run/labels.json"), data, tmp_path / "run", TAGS)


def test_labels_made_in_the_run_may_be_seen(data: Shapes, tmp_path: Path) -> None:
    run = train(Leaky(Path("inside")), data, tmp_path / "run", TAGS)
    assert run.names == ["1-labels", "2-masks"]
    assert (tmp_path / "run/2-masks/checkpoints/last.ckpt").is_file()


def test_what_is_loaded_beside_them_may_not(data: Shapes, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="may not see"):
        train(Leaky(Path("inside"), beside=True), data, tmp_path / "run", TAGS)


def test_a_method_for_masks_may_see_them_all(data: Shapes, tmp_path: Path) -> None:
    train(Leaky(None, beside=True), data, tmp_path / "run", Masks.supervision)
    shutil.rmtree(tmp_path / "run")
    train(Leaky(None), data, tmp_path / "run", Masks.supervision)
