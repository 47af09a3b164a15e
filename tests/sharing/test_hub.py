"""The hub, with a client that keeps models in a folder: no test has a network."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from sharing.test_archives import content_of
from toy_shared import STAGE, bare

from wsis.errors import InputError
from wsis.sharing import hub
from wsis.sharing.folder import DIGESTS, write_digests
from wsis.sharing.places import find_run

NAME = "me/horses"


class RepositoryNotFoundError(Exception):
    """As the client raises it."""


class Hub:
    """Does to a folder what the client does to a hub."""

    def __init__(self, place: Path) -> None:
        self.place, self.token, self.down, self.told = place, "hf_x", False, []

    def get_token(self) -> str | None:
        return self.token

    def _there(self, name: str) -> Path:
        if self.down:
            raise ConnectionError("no route\nto host")
        if not (self.place / name).is_dir():
            raise RepositoryNotFoundError(f"404 {name}")
        return self.place / name

    def create_repo(self, name, private, exist_ok):
        self.told.append(("create_repo", private, exist_ok))
        if not self.down:
            (self.place / name).mkdir(parents=True, exist_ok=True)
        self._there(name)
        return Address(name)

    def upload_folder(self, repo_id, folder_path, commit_message, allow_patterns, delete_patterns):
        there = self._there(repo_id)
        for pattern in delete_patterns:
            for path in there.glob(pattern):
                path.unlink()
        copy(folder_path, there, allow_patterns)

    def HfApi(self):
        return self

    def model_info(self, name, revision):
        files = sorted(self._there(name).rglob("*"))
        texts = [path.read_bytes() for path in files if path.is_file()]
        return SimpleNamespace(sha=revision or f"{hash(tuple(texts)):x}".strip("-"))

    def snapshot_download(self, name, revision, local_dir, allow_patterns):
        self.told.append(("snapshot_download", revision))
        copy(self._there(name), Path(local_dir), allow_patterns)


def copy(source: Path, target: Path, patterns: list[str]) -> None:
    for pattern in patterns:
        for path in source.glob(pattern):
            place = target / path.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, place)


class Address(str):
    @property
    def repo_id(self) -> str:
        return self[:]

    def __str__(self) -> str:
        return f"https://huggingface.co/{self[:]}"


@pytest.fixture
def client(tmp_path, monkeypatch) -> Hub:
    made = Hub(tmp_path / "hub")
    monkeypatch.setitem(sys.modules, "huggingface_hub", made)
    monkeypatch.setenv("WSIS_CACHE", str(tmp_path / "cache"))
    return made


@pytest.fixture
def folder(tmp_path) -> Path:
    return bare(tmp_path / "horses")


def line(call, *words) -> str:
    with pytest.raises(InputError) as caught:
        call(*words)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_there_and_back(client, folder, tmp_path):
    (folder / "example.jpg").write_text("picture")
    shared = content_of(folder)
    (folder / "private.txt").write_text("no part of the model")
    assert hub.upload(folder, NAME) == "https://huggingface.co/me/horses"
    assert content_of(tmp_path / "hub/me/horses") == shared
    found = find_run(f"hub:{NAME}")
    assert found.is_relative_to(tmp_path / "cache")
    read = {n: c for n, c in shared.items() if n not in ("README.md", "example.jpg")}
    assert content_of(found) == read
    assert find_run(f"hub:{NAME}") == found
    assert [name for name, *_ in client.told].count("snapshot_download") == 1


def test_a_new_model_is_private_unless_told_otherwise(client, folder):
    hub.upload(folder, NAME)
    hub.upload(folder, NAME, public=True)
    assert client.told == [("create_repo", True, True), ("create_repo", False, True)]


def test_what_was_shared_before_goes(client, folder, tmp_path):
    """Its picture, which may be private by now, and the record of another stage."""
    (folder / "example.jpg").write_text("picture")
    hub.upload(folder, NAME)
    shutil.rmtree(folder)
    bare(folder)
    shutil.move(folder / STAGE, folder / "2-other")
    (folder / DIGESTS).unlink()
    write_digests(folder)
    hub.upload(folder, NAME)
    assert content_of(tmp_path / "hub/me/horses") == content_of(folder)
    find_run(f"hub:{NAME}")


def test_revisions_are_kept_apart(client, folder):
    hub.upload(folder, NAME)
    found = find_run(f"hub:{NAME}@abc")
    assert found.name == "abc"
    assert find_run(f"hub:{NAME}") != found


def test_without_a_network_what_was_downloaded_is_taken(client, folder, capsys):
    hub.upload(folder, NAME)
    found = find_run(f"hub:{NAME}")
    client.down = True
    assert find_run(f"hub:{NAME}") == found
    assert capsys.readouterr().err == "note: no hub; hub:me/horses as downloaded before\n"
    told = line(find_run, "hub:me/other")
    assert told == (
        "cannot download hub:me/other: no route to host; check the network, or share a folder"
    )
    assert "cannot upload to hub:me/horses: no route" in line(hub.upload, folder, NAME)


def test_mistakes_get_a_line(client, folder, monkeypatch):
    assert "no such model, or not yours" in line(find_run, "hub:me/gone")
    for name in ("horses", "a/b/c", "../a", "a/..", "a b/c", ""):
        assert "give hub:USER/NAME" in line(find_run, f"hub:{name}")
    client.token = None
    assert "not logged in to the hub: run `hf auth login`" in line(hub.upload, folder, NAME)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert "pip install 'wsis[hub]'" in line(find_run, f"hub:{NAME}")
    assert "pip install 'wsis[hub]'" in line(hub.check_login)


def test_a_model_of_another_library(client, tmp_path):
    (tmp_path / "hub/me/other").mkdir(parents=True)
    (tmp_path / "hub/me/other/pytorch_model.bin").write_text("x")
    (tmp_path / "hub/me/other/config.yaml").write_text("x")
    assert "was not written by wsis.share" in line(find_run, "hub:me/other")


def test_a_damaged_download(client, folder, tmp_path):
    (folder / "model.json").write_text("changed")
    hub.upload(folder, NAME)
    assert "hub:me/horses: model.json is damaged or was changed" in line(find_run, f"hub:{NAME}")


def test_the_real_client_offline(tmp_path, monkeypatch):
    pytest.importorskip("huggingface_hub")
    from huggingface_hub import constants

    monkeypatch.setenv("WSIS_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    told = line(find_run, "hub:me/horses")
    assert told == (
        "cannot download hub:me/horses: HF_HUB_OFFLINE is set; unset it, or share a folder"
    )


def test_the_real_client_without_a_network(tmp_path, monkeypatch):
    pytest.importorskip("huggingface_hub")
    monkeypatch.setenv("WSIS_CACHE", str(tmp_path))
    client = sys.modules["huggingface_hub"]

    class Api(client.HfApi):
        def __init__(self) -> None:
            super().__init__(endpoint="http://127.0.0.1:9")  # nobody listens

    monkeypatch.setattr(client, "HfApi", Api)
    assert "cannot download hub:me/horses: " in line(find_run, "hub:me/horses")
