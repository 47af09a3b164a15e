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
