"""A shared folder whose files are not those that were shared is refused in a line."""

from __future__ import annotations

import hashlib
import json

import pytest
from toy_shared import STAGE, bare

from wsis.errors import InputError
from wsis.sharing.folder import check_shared, is_shared, sha256

READ = ["model.safetensors", "model.json", "config.yaml", f"{STAGE}/stage.json"]


@pytest.fixture
def folder(tmp_path):
    return bare(tmp_path / "shared")


def test_whole(folder):
    check_shared(folder)
    digests = json.loads((folder / "digests.json").read_text())
    assert digests.keys() == {*READ, "README.md"}
    for name, digest in digests.items():
        assert digest == hashlib.sha256((folder / name).read_bytes()).hexdigest()


@pytest.mark.parametrize("name", READ)
def test_changed(name, folder):
    path = folder / name
    check_shared(folder)
    path.write_bytes(path.read_bytes()[::-1])
    with pytest.raises(InputError, match=f"shared: {name} is damaged or was changed") as caught:
        check_shared(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [*READ, "digests.json"])
def test_missing(name, folder):
    (folder / name).unlink()
    with pytest.raises(InputError, match=name):
        check_shared(folder)
    assert is_shared(folder)


def test_the_card_may_be_edited(folder):
    (folder / "README.md").write_text("more")
    check_shared(folder)
    (folder / "README.md").unlink()
    check_shared(folder)


@pytest.mark.parametrize(
    "content",
    ["", "[]", "3", '{"config.yaml": 3}', '{"../config.yaml": "0"}', '{"/a": "0"}', '{"": "0"}'],
)
def test_digests_that_are_none(content, folder):
    (folder / "digests.json").write_text(content)
    with pytest.raises(InputError, match=r"digests\.json") as caught:
        check_shared(folder)
    assert "\n" not in str(caught.value)


def test_the_record_of_another_stage_is_refused(folder):
    (folder / "0-other").mkdir()
    (folder / "0-other/stage.json").write_text("{}")
    with pytest.raises(InputError, match="the record of one stage"):
        check_shared(folder)


def test_a_run_is_not_shared(tmp_path):
    (tmp_path / "config.yaml").write_text("")
    assert not is_shared(tmp_path)


def test_a_digest_is_of_the_file_as_it_is(tmp_path):
    path = tmp_path / "a"
    for content in (b"one", b"three"):
        path.write_bytes(content)
        assert sha256(path) == hashlib.sha256(content).hexdigest()
