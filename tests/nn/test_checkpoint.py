"""Files of others are refused in one line, and none of their code is run."""

from __future__ import annotations

import os
import pickle
import sqlite3
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from safetensors.torch import save_file

from wsis.command_line.settings import read_config
from wsis.errors import InputError
from wsis.nn._weights import read_weights
from wsis.nn.checkpoint import load_model, read_checkpoint
from wsis.proposals.file import ProposalFile, forget, write
from wsis.runs.checkpoints import intact
from wsis.runs.record import read_stage


class Evil:
    def __reduce__(self):
        return os.system, ("touch PWNED",)


class Net(pl.LightningModule):
    def __init__(self, width: int = 2) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.layer = torch.nn.Linear(width, 2)


class Other(pl.LightningModule):
    def __init__(self, depth: int) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(depth, 9)


def content(**more) -> dict:
    return {"state_dict": Net().state_dict(), "global_step": 3, "hyper_parameters": {}, **more}


def saved(path: Path, value: object, zipped: bool = True) -> bytes:
    torch.save(value, path, _use_new_zipfile_serialization=zipped)
    return path.read_bytes()


def spoiled(path: Path, name: str) -> None:
    """Put something in the place of a checkpoint or a file of weights."""
    if name == "directory":
        path.mkdir()
        return
    whole = saved(path, content())
    made = {
        "empty": b"",
        "truncated": whole[: len(whole) // 2],
        "text": b"<html>not found</html>\n",
        "flipped": whole[:40] + bytes(40) + whole[80:],
        "code": saved(path, content(evil=Evil())),
        "old code": saved(path, content(evil=Evil()), zipped=False),
        "code alone": pickle.dumps({"state_dict": Evil()}),
        "a list": saved(path, [1, 2]),
        "a tensor": saved(path, torch.zeros(3)),
    }
    path.write_bytes(made[name])


BAD = ["empty", "truncated", "text", "code", "old code", "code alone", "a list", "a tensor"]


def one_line(caught, *parts: str) -> None:
    text = str(caught.value)
    assert "\n" not in text
    assert "weights_only" not in text, "nobody is advised to unpickle"
    assert "pickle" not in text.lower().replace("as a pickle of numpy data", "")
    assert all(part in text for part in parts), text
    assert not Path("PWNED").exists()


@pytest.mark.parametrize("name", [*BAD, "flipped", "directory", "absent"])
def test_checkpoints(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "a.ckpt"
    if name != "absent":
        spoiled(path, name)
    with pytest.raises(InputError) as caught:
        read_checkpoint(path)
    one_line(caught, "a.ckpt")
    if name == "code":
        one_line(caught, "asks for posix.system, which is not data")
    with pytest.raises(InputError) as caught:
        load_model(Net, path)
    one_line(caught, "a.ckpt")
    assert intact(path) == (name in ("code", "a list", "a tensor"))


def test_checkpoints_that_are_right(tmp_path):
    saved(tmp_path / "a.ckpt", content(**{"pytorch-lightning_version": pl.__version__}))
    assert read_checkpoint(tmp_path / "a.ckpt", "global_step")["global_step"] == 3
    net = load_model(Net, tmp_path / "a.ckpt")
    assert isinstance(net, Net)
    with pytest.raises(InputError, match=r"another version of Other; train it again"):
        load_model(Other, tmp_path / "a.ckpt")
    with pytest.raises(InputError, match=r"another version of Net"):
        load_model(Net, tmp_path / "a.ckpt", width=5)
    with pytest.raises(InputError, match=r"not the checkpoint of a run"):
        read_checkpoint(tmp_path / "a.ckpt", "loops")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".pkl"])
@pytest.mark.parametrize("name", [*BAD, "directory", "absent"])
def test_weights(name, suffix, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / f"a{suffix}"
    if name != "absent":
        spoiled(path, name)
    with pytest.raises(InputError) as caught:
        read_weights(path)
    one_line(caught, f"a{suffix}")


def test_truncated_safetensors(tmp_path):
    save_file({"x": torch.zeros(99)}, tmp_path / "a.safetensors")
    whole = (tmp_path / "a.safetensors").read_bytes()
    for part in (whole[:-9], whole[:20], b"\xff" * 8 + whole[8:]):
        (tmp_path / "a.safetensors").write_bytes(part)
        with pytest.raises(InputError, match=r"a\.safetensors is damaged") as caught:
            read_weights(tmp_path / "a.safetensors")
        one_line(caught)


def database(path: Path, *statements: str) -> None:
    connection = sqlite3.connect(path)
    for statement in statements:
        connection.execute(statement)
    connection.commit()
    connection.close()


META = "CREATE TABLE meta (key TEXT, value)"
TABLE = "CREATE TABLE proposals (file TEXT PRIMARY KEY, width, height, blob)"
OURS = """INSERT INTO meta VALUES ('format', '"wsis proposals 1"')"""
BAD_DATABASES = {
    "another program's": ["CREATE TABLE x (y)"],
    "other columns": ["CREATE TABLE meta (a, b)"],
    "no json": [META, "INSERT INTO meta VALUES ('format', 'wsis')"],
    "a number": [META, "INSERT INTO meta VALUES ('format', 3)"],
    "a null": [META, "INSERT INTO meta VALUES ('format', NULL)"],
    "bytes": [META, "INSERT INTO meta VALUES ('format', x'ff00')"],
}


@pytest.mark.parametrize("name", [*BAD_DATABASES, "empty", "text", "directory", "absent"])
def test_proposal_files(name, tmp_path):
    path = tmp_path / "a.sqlite"
    if name in BAD_DATABASES:
        database(path, *BAD_DATABASES[name])
    elif name == "directory":
        path.mkdir()
    elif name != "absent":
        path.write_bytes(b"" if name == "empty" else b"text " * 99)
    ways = [ProposalFile, lambda path: forget(path, ["a.jpg"])]
    for way in ways:
        with pytest.raises(InputError) as caught:
            way(path)
        one_line(caught, "a.sqlite")
    if name not in ("empty", "absent"):  # which are begun anew
        with pytest.raises(InputError) as caught, write(path, {"data": "x"}):
            pass
        one_line(caught, "a.sqlite")


@pytest.mark.parametrize("blob", ["NULL", "'text'", "3", "x''", "x'00'", "x'ffffffffffffffff02'"])
def test_damaged_proposals_of_an_image(blob, tmp_path):
    database(
        tmp_path / "a.sqlite",
        META,
        OURS,
        TABLE,
        f"INSERT INTO proposals VALUES ('a.jpg', 5, 4, {blob})",
    )
    with pytest.raises(InputError, match=r"the entry of a\.jpg is damaged"):
        ProposalFile(tmp_path / "a.sqlite").read("a.jpg", (4, 5), segments=True)


@pytest.mark.parametrize(
    "text",
    [
        b"\x89PNG\r\n\x1a\n\0\0",
        b"\xff\xfe\0a",
        b"[" * 5000,
        b"a: &a [*a]",
        b"1: 2",
        b"? {a: b}\n: c",
        b"!!python/object/apply:os.system ['touch PWNED']",
        b"a: !!int x",
    ],
    ids=range(8),
)
def test_settings_files(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.yaml").write_bytes(text)
    with pytest.raises(InputError, match=r"a\.yaml") as caught:
        read_config(tmp_path / "a.yaml")
    one_line(caught)
    (tmp_path / "b.yaml").mkdir()
    with pytest.raises(InputError, match=r"b\.yaml: Is a directory"):
        read_config(tmp_path / "b.yaml")


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"3",
        b"null",
        b"\x89PNG",
        b"[" * 100_000,
        b'{"number": 1}',
        b'{"number": 1, "fingerprint": "x", "metrics": {"val/F1_threshold": "high"}}',
        b'{"number": 1, "fingerprint": "x", "best": [1]}',
    ],
    ids=range(9),
)
def test_records_of_stages(text, tmp_path):
    (tmp_path / "stage.json").write_bytes(text)
    with pytest.raises(InputError, match=r"stage\.json is damaged; delete") as caught:
        read_stage(tmp_path)
    one_line(caught)


def test_a_folder_in_place_of_a_record(tmp_path):
    (tmp_path / "stage.json").mkdir()
    with pytest.raises(InputError, match=r"stage\.json is damaged; delete"):
        read_stage(tmp_path)
