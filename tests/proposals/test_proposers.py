"""Proposers are found by name, built in or in other packages, and every verb reaches them."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from wsis import registry
from wsis.data import Loading
from wsis.datasets.folder import Folder
from wsis.errors import InputError
from wsis.method import Method
from wsis.proposals import proposers, segments
from wsis.proposals.file import ProposalFile
from wsis.proposals.make import Fresh
from wsis.runs.failures import Tolerant, TolerantReader

PLUGIN = """
import torch
from wsis.types import Proposals

def middle(image, side=10, stride=(2, 3)):
    height, width = image.shape[:2]
    y, x = height // 2, width // 2
    boxes = torch.tensor([[x, y, x + side, y + side], [0, 0, width, height]], dtype=torch.float32)
    return Proposals(boxes, torch.tensor([0.9, 0.1]))

middle.supervision = "boxes"

def wrong(image):
    return [[0, 0, 1, 1]]
"""
ENTRIES = "[wsis.proposers]\nmiddle = toy_boxes:middle\nwrong = toy_boxes:wrong\ngone = no_such:f\n"


@pytest.fixture
def plugins(tmp_path, monkeypatch):
    """A package that is installed as far as Python can tell, here and in new processes."""
    site = tmp_path / "site"
    info = site / "toy_boxes-1.5.dist-info"
    info.mkdir(parents=True)
    (site / "toy_boxes.py").write_text(PLUGIN)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy_boxes\nVersion: 1.5\n")
    (info / "entry_points.txt").write_text(ENTRIES)
    monkeypatch.syspath_prepend(site)
    monkeypatch.setenv("PYTHONPATH", f"{site}:{Path(proposers.__file__).parents[2]}")
    forget()
    yield site
    forget()
    sys.modules.pop("toy_boxes", None)


def forget():
    registry._plugins.cache_clear()
    proposers.find.cache_clear()


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for name in "abc":
        pixels = np.full((40, 60, 3), 60, np.uint8)
        cv2.circle(pixels, (30, 20), 12, (30, 200, 240), -1)
        cv2.imwrite(str(folder / f"{name}.png"), pixels)
    (folder / "labels.csv").write_text("".join(f"{name}.png,cat\n" for name in "abc"))
    return folder


def test_the_built_in_is_there_and_its_settings_are_json():
    assert "segments" in proposers.names()
    told = proposers.find("segments").provenance
    assert told["made"] == "segments"
    assert (told["supervision"], told["version"]) == ("none", str(segments.VERSION))
    assert {"limit", "superpixels", "work_side"} <= set(told)
    assert json.loads(json.dumps(told)) == told
    assert "image" not in told


def test_a_plugin_is_found_by_name(plugins):
    assert proposers.names() == ["gone", "middle", "ncut", "segments", "wrong"]
    told = proposers.find("middle").provenance
    assert told == {
        "made": "middle",
        "version": "1.5",
        "supervision": "boxes",
        "side": 10,
        "stride": [2, 3],
    }
    image = np.zeros((40, 60, 3), np.uint8)
    assert proposers.propose(image, "middle").boxes[0].tolist() == [30, 20, 40, 30]


def test_what_is_wrong_is_one_line(plugins, images):
    with pytest.raises(InputError, match=r"no proposer is called 'mid dle'; did you mean 'middle'"):
        proposers.find("mid dle")
    with pytest.raises(InputError, match=r"proposer gone: no module 'no_such'; install it"):
        proposers.find("gone")
    with pytest.raises(TypeError, match="'wrong' returned list, not Proposals"):
        proposers.propose(np.zeros((4, 4, 3), np.uint8), "wrong")
    with pytest.raises(InputError, match=r"no proposals midle; did you mean 'middle'\?"):
        Folder(images, proposals="midle").proposal_file("train")
    with pytest.raises(
        InputError, match=r"a\.png: the proposer 'wrong' failed \(TypeError: .* \(and 2 more"
    ):
        Folder(images, proposals="wrong").proposal_file("train", workers=0)


def test_a_proposer_that_fails_on_one_image_ends_no_prediction(plugins, images):
    for name, proposer in (("a", "wrong"), ("b", "middle")):
        reader = TolerantReader(Fresh(proposer, images))
        sample = {"image_id": name, "size": (40, 60)}
        sample["proposals"] = reader.read(f"{name}.png", (40, 60), False, 5)
        tolerant = Tolerant(ToyModel())
        (found,) = tolerant.predict_step([sample])
        if proposer == "wrong":
            assert "a.png: the proposer 'wrong' failed (TypeError" in tolerant.failed["a"]
            assert len(found.boxes) == 0
        else:
            assert not tolerant.failed
            assert found == 2


class ToyModel(Method):
    """Counts proposals."""

    def predict_step(self, batch, batch_idx=0):
        return [len(sample["proposals"].boxes) for sample in batch]


def test_two_proposers_share_no_file(plugins, images):
    files = {}
    for name in ("segments", "middle"):
        files[name] = Folder(images, proposals=name).proposal_file("train", workers=0)
        assert files[name].provenance["made"] == name
    assert files["segments"].path != files["middle"].path
    assert len(files["middle"].read("a.png", (40, 60)).boxes) == 2
    prints = {name: Folder(images, proposals=name).fingerprint() for name in files}
    assert prints["segments"] != prints["middle"]


def test_other_settings_and_versions_make_other_proposals(plugins, images):
    """A file of an earlier version, complete as it is, is not taken for today's."""
    before = Folder(images, proposals="middle").proposal_file("train", workers=0)
    (plugins / "toy_boxes.py").write_text(PLUGIN.replace("side=10", "side=12"))
    sys.modules.pop("toy_boxes")
    forget()
    wider = Folder(images, proposals="middle").proposal_file("train", workers=0)
    assert (before.provenance["side"], wider.provenance["side"]) == (10, 12)
    sizes = [file.read("a.png", (40, 60)).boxes[0].tolist()[2] for file in (before, wider)]
    assert sizes == [40, 42]
    metadata = plugins / "toy_boxes-1.5.dist-info/METADATA"
    metadata.write_text(metadata.read_text().replace("1.5", "1.6"))
    forget()
    newer = Folder(images, proposals="middle").proposal_file("train", workers=0)
    assert newer.provenance["version"] == "1.6"
    assert len({before.path, wider.path, newer.path}) == 3


def test_a_proposer_s_name_goes_before_a_file_s(plugins, images, monkeypatch):
    monkeypatch.chdir(images)
    Path("middle").write_bytes(pickle.dumps({"boxes": [], "ids": []}))
    file = Folder(images, proposals="middle").proposal_file("train", workers=0)
    assert file.provenance["made"] == "middle"
    with pytest.raises(InputError, match="no known proposal format"):
        Folder(images, proposals="./middle").proposal_file("train")


@pytest.mark.slow
def test_workers_reach_a_plugin_by_name(plugins, images):
    file = Folder(images, proposals="middle").proposal_file("train", workers=2)
    assert len(file) == 3
    for method in ("fork", "spawn"):
        with torch.multiprocessing.get_context(method).Pool(1) as pool:
            boxes = pool.apply(_first_box, (str(images),))
        assert boxes == [30, 20, 40, 30]


def _first_box(folder: str) -> list[float]:
    return Fresh("middle", Path(folder)).read("a.png", (40, 60)).boxes[0].tolist()


def test_fresh_proposals_are_those_of_a_file(images):
    file = Folder(images, loading=Loading(workers=0)).proposal_file("train", workers=0)
    for segmented in (True, False):
        for limit in (None, 3):
            kept = file.read("b.png", (40, 60), segmented, limit)
            made = Fresh("segments", images).read("b.png", (40, 60), segmented, limit)
            for ours, theirs in zip(made, kept, strict=True):
                assert (ours is None) == (theirs is None)
                assert ours is None or torch.equal(ours, theirs)


@pytest.mark.slow
def test_the_verb_knows_plugins(plugins, images):
    words = ["--data", "folder", "--data.root", str(images), "--data.proposals", "middle"]
    command = [sys.executable, "-m", "wsis.propose", *words, "--workers", "2"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "proposals of 3 images" in ended.stdout
    (path,) = images.glob("*.sqlite")
    assert ProposalFile(path).provenance["made"] == "middle"
