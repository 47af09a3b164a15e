"""From Python a method is what the command line makes of the same settings."""

from __future__ import annotations

from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from jsonargparse import ArgumentParser, Namespace

import wsis
from wsis.command_line.build import build, from_python
from wsis.command_line.parser import CLI, overlay
from wsis.command_line.settings import laid_over
from wsis.errors import InputError

SMALL = {"train": 4, "val": 2, "proposals": "none"}


def test_settings_are_laid_over_those_below():
    below = Namespace(
        backbone=Namespace(name="a", stride=8), pretraining={"steps": 9, "lr": 0.1}, width=3
    )

    def over(**given):
        return laid_over(Namespace(model=below), "model", given)

    assert over(backbone={"name": "b"}) == {"backbone": {"name": "b"}}, "the parser keeps the rest"
    assert over(pretraining={"steps": 1}) == {"pretraining": {"steps": 1, "lr": 0.1}}
    assert over(pretraining={"model": "cam", "steps": 1})["pretraining"] == {
        "model": "cam",
        "steps": 1,
    }
    assert over(pretraining=None, width=4) == {"pretraining": None, "width": 4}
    assert laid_over(None, "model", {"width": 4}) == {"width": 4}


def test_groups_from_python_are_laid_over_those_below_and_those_of_files_replace_them():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--wandb.group", type=dict, default={})

    def over(below, merge=False, **group):
        return overlay(parser, {"wandb": {"group": group}}, "a.yaml", below, merge)

    below = over(None, steps=9, lr=0.1)
    assert over(below, merge=True, steps=5).wandb.group == {"steps": 5, "lr": 0.1}
    assert over(below, steps=5).wandb.group == {"steps": 5}


@pytest.mark.slow
def test_it_is_the_command_line(tmp_path, capfd):
    words = "--model pdsl --data shapes --data.train 4 --data.val 2 --data.proposals none"
    words += " --model.pretraining.steps 5 --model.backbone.frozen_stages 0 --trainer.max_steps 7"
    words += f" --data.root {tmp_path} --seed_everything 3"
    cli = CLI("fit", words.split())
    capfd.readouterr()
    model, data, trainer = build(
        "pdsl",
        "shapes",
        model={"pretraining": {"steps": 5}, "backbone": {"frozen_stages": 0}},
        data=SMALL | {"root": tmp_path},
        trainer={"max_steps": 7},
        seed_everything=3,
    )
    assert capfd.readouterr() == ("", "")
    assert model.hparams == cli.model.hparams
    assert model.hparams["pretraining"]["lr"] == 0.004, "of the recipe"
    theirs = cli.model.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in model.state_dict().items())
    assert model.class_names == tuple(data.class_names)
    assert data.loading.batch_size == 8
    assert data.fingerprint() == cli.datamodule.fingerprint()
    assert trainer["max_steps"] == 7
    made = pl.Trainer(**trainer, accelerator="cpu", logger=False, enable_checkpointing=False)
    assert made.max_steps == 7


@pytest.mark.slow
@pytest.mark.parametrize(
    ("names", "settings", "told"),
    [
        (("pdls",), {}, "did you mean 'pdsl'"),
        (("cam", "fold"), {}, "did you mean 'folder'"),
        (("cam",), {"model": {"poling": "lse"}}, "did you mean 'model.pooling'"),
        (("cam",), {"model": {"lr": "high"}}, "--model.lr high: expected"),
        (("cam",), {"data": 3}, "data=3: give a dictionary"),
        (("cam",), {"run_dir": Path()}, "unknown setting 'run_dir'"),
        (("cam", "folder"), {"data": {"root": "nowhere"}}, "no folder nowhere; give that of"),
    ],
)
def test_mistakes_are_told_in_one_line(names, settings, told):
    with pytest.raises(InputError, match=told) as error:
        build(*names, **settings)
    assert "\n" not in str(error.value)


def test_objects_are_refused_with_what_to_write():
    with pytest.raises(InputError, match="the recipe sets what an object has settled"):
        build("cam", wsis.Shapes())
    with pytest.raises(InputError, match="data=3: give a dictionary"):
        from_python("cam", "shapes", {"data": 3})


@pytest.mark.slow
def test_classes_are_as_good_as_names(tmp_path):
    import toy_plugins

    given = {"data": {"root": tmp_path}, "model": {"width": 7}}
    model, data, _ = build(toy_plugins.Net, toy_plugins.Data, **given)
    assert type(model) is toy_plugins.Net
    assert model.hparams["width"] == 7
    assert type(data) is toy_plugins.Data
