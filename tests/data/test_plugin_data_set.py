"""A data set of another package: what `wsis.data` exports is all it needs."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image

import wsis
from wsis import registry
from wsis.command_line.parser import CLI

SOURCE = '''
"""Plain colours, one a class."""

from pathlib import Path
from typing import Any

from wsis.data import Augment, DataModule, Index, Loading

__all__ = ["Colours"]
NAMES = ("red", "green", "blue")


class Colours(DataModule):
    """Pictures of one colour.

    Args:
        root: Folder of the pictures.
        count: Number of pictures.
    """

    def __init__(self, root: Path = Path("colours"), count: int = 6, **settings: Any) -> None:
        super().__init__("colours", Path(root), **settings)
        self.count = count

    @property
    def has_val(self) -> bool:
        return False

    def read(self, split: str) -> Index:
        numbers = range(1, self.count + 1)
        return Index(
            name="colours",
            root=self.folder,
            images=[
                {"id": n, "file_name": f"{n}.png", "height": 64, "width": 64} for n in numbers
            ],
            categories=[{"id": k, "name": name} for k, name in enumerate(NAMES)],
            tags={n: [n % 3] for n in numbers},
        )


SMALL = {"augment": Augment(), "loading": Loading(batch_size=2, workers=0)}
'''

TINY = ("--model.backbone.name=test_byobnet", "--model.backbone.weights=none")


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    (tmp_path / "colours_plugin.py").write_text(SOURCE)
    for number in range(1, 7):
        picture = np.zeros((64, 64, 3), np.uint8)
        picture[..., number % 3] = 200
        Image.fromarray(picture).save(tmp_path / f"{number}.png")
    monkeypatch.syspath_prepend(tmp_path)
    yield __import__("colours_plugin")
    del sys.modules["colours_plugin"]


def test_it_trains(plugin, tmp_path):
    data = plugin.Colours(tmp_path, proposals="none", **plugin.SMALL)
    model = wsis.CAM(data.num_classes, {"name": "test_byobnet", "weights": "none"})
    before = [parameter.clone() for parameter in model.parameters()]
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = pl.Trainer(accelerator="cpu", max_steps=2, enable_model_summary=False, **quiet)
    trainer.fit(model, datamodule=data)
    assert trainer.global_step == 2
    assert not all(map(torch.equal, before, model.parameters()))


def test_the_command_line_knows_its_settings_and_those_it_passes_on(plugin, tmp_path, capsys):
    with pytest.raises(SystemExit):
        CLI("fit", ["--model", "cam", "--data", "colours_plugin.Colours", "--help", "data"])
    said = capsys.readouterr().out
    for sentence in (
        "Number of pictures.",
        "COCO json to train on",
        "Maximum number of proposals per image",
        "Images per step and process.",
    ):
        assert said.count(sentence) == 1
    assert "--data.name" not in said
    assert "--data.folder" not in said
    words = ["--data.count", "3", "--data.proposals", "none", "--data.loading.workers", "0"]
    cli = CLI(
        "fit",
        ["--model=cam", "--data=colours_plugin.Colours", f"--data.root={tmp_path}", *words, *TINY],
    )
    assert (cli.datamodule.count, cli.datamodule.proposals) == (3, "none")
    assert cli.datamodule.loading.workers == 0


def test_what_settings_there_are(plugin):
    assert [*registry.arguments(plugin.Colours)] == [
        *("name", "folder", "labels", "simulate", "proposals", "max_proposals"),
        "max_test_proposals",
        *("augment", "loading"),
        *("root", "count"),
    ]
    with pytest.raises(TypeError, match="unexpected keyword argument 'proposal'"):
        plugin.Colours(Path(), proposal="none")
