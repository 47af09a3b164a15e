"""What wsis.fit says and leaves behind, without training."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from wsis import fit


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """Two tagged photos; runs go to the folder beside."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for name in ("a", "b"):
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / f"photos/{name}.png")
    (tmp_path / "photos/labels.csv").write_text("a.png,cat\nb.png,\n")
    return tmp_path


def refused(words: str, capsys: pytest.CaptureFixture[str]) -> str:
    """Return the one line that a mistake is answered with."""
    with pytest.raises(SystemExit):
        fit.main(words.split())
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


FOLDER = "--data folder --data.root photos --trainer.accelerator cpu"


def test_data_are_looked_at_before_weights(photos, capsys):
    words = f"--model boxcaseg {FOLDER} --model.backbone.weights no.safetensors"
    assert "folder has no boxes to train with" in refused(words, capsys)
    words = words.replace("boxcaseg", "point_mil")
    assert "folder has no points to train with" in (line := refused(words, capsys))
    assert "wsis.simulate --point 1" in line


def test_the_folder_is_wanted_rather_than_the_file(photos, capsys):
    line = refused("--model cam --data folder --data.root photos/labels.csv", capsys)
    assert "give its folder, --data.root photos, and --data.labels labels.csv" in line


def test_a_failed_start_leaves_no_folder(photos, capsys):
    words = f"--model cam {FOLDER} --data.proposals none --model.backbone.name test_byobnet"
    words += " --model.backbone.weights none --model.backbone.frozen_stages 5"
    assert "learn from random features" in refused(words, capsys)
    assert not list(photos.rglob("config.yaml"))
    kept = photos / "kept"
    kept.mkdir()
    refused(f"{words} --run_dir kept", capsys)
    assert kept.is_dir(), "what was there before stays"


SHAPES = "--model classifier --data shapes --data.root shapes --data.train 2 --data.val 1"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--trainer.max_steps 0", "trainer: max_steps 0: give a whole number of at least 1"),
        ("--trainer.max_steps -5", "trainer: max_steps -5: give"),
        ("--trainer.max_epochs 0 --trainer.max_steps -1", "trainer: max_epochs 0: give"),
        ("--trainer.accumulate_grad_batches 0", "trainer: accumulate_grad_batches 0: give"),
        ("--trainer.limit_train_batches 0", "trainer: limit_train_batches 0"),
        ("--trainer.gradient_clip_val -1", "trainer: gradient_clip_val -1"),
        ("--trainer.fast_dev_run true", "--trainer.fast_dev_run keeps no checkpoint"),
        ("--stage nosuch", "no stage is called 'nosuch' (have: train)"),
        ("--data.seed -1", "data: seed -1: give a whole number of at least 0"),
        ("--data.train 0", "data: train 0: give a whole number of at least 1"),
        ("--data.rotation -1", "data: rotation -1.0: give a number of at least 0"),
        ("--data.mark 99", "data: mark 99.0: give a number of at least 0, at most 1"),
    ],
)
def test_numbers_that_no_run_can_have(words, told, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert told in refused(f"{SHAPES} {words}", capsys)
    assert not list(tmp_path.rglob("stage.json"))
