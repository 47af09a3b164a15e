"""Where proposals are kept."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wsis import propose
from wsis.datasets.folder import Folder


@pytest.fixture
def photos(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("WSIS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "photos"
    folder.mkdir()
    for seed, name in enumerate("ab"):
        picture(folder / f"{name}.png", seed)
    (folder / "labels.csv").write_text("a.png,cat\nb.png,\n")
    return folder


def picture(path: Path, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 255, (3, 4, 3), np.uint8)
    Image.fromarray(pixels).resize((32, 24)).save(path)


def test_a_folder_of_photos_is_left_as_it_is(photos, capsys):
    before = sorted(photos.iterdir())
    file = Folder(photos).proposal_file("train", workers=0)
    assert file.path.is_relative_to(photos.parent / "cache")
    assert f"making proposals of 2 images, kept in {file.path}" in capsys.readouterr().out
    assert sorted(photos.iterdir()) == before
    again = Folder(photos).proposal_file("train", workers=0)
    assert again.path == file.path
    assert capsys.readouterr().out == ""


def test_asked_for_they_lie_beside_the_photos_and_are_used(photos):
    (made,) = propose.main(["--data", "folder", "--data.root", str(photos), "--workers", "0"])
    assert made.parent == photos
    assert Folder(photos).proposal_file("train").path == made
    picture(photos / "c.png", 3)
    with (photos / "labels.csv").open("a") as file:
        file.write("c.png,cat\n")
    completed = Folder(photos).proposal_file("train", workers=0)
    assert (completed.path, len(completed)) == (made, 3)


def test_another_photo_of_the_same_name_and_size_gets_its_own(photos):
    file = Folder(photos).proposal_file("train", workers=0)
    boxes = {name: file.read(name, (24, 32)).boxes for name in ("a.png", "b.png")}
    picture(photos / "a.png", 7)
    os.utime(photos / "a.png", (1e9, 1e9))  # as unzip and cp -p do
    os.utime(file.path, (1e9, 1e9))  # surely before
    new = Folder(photos).proposal_file("train", workers=0)
    assert new.path == file.path
    assert new.read("b.png", (24, 32)).boxes.equal(boxes["b.png"])
    assert not new.read("a.png", (24, 32)).boxes.equal(boxes["a.png"])
