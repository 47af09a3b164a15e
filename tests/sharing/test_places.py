"""A model is found in a folder, an archive and at a URL, once downloaded without the network."""

from __future__ import annotations

import http.server
import shutil
import threading
from functools import partial
from pathlib import Path

import pytest
import torch
from sharing.test_archives import content_of, pack
from toy_shared import bare

from wsis.errors import InputError
from wsis.sharing.places import find_run, weights_file


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("WSIS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path) -> Path:
    return bare(tmp_path / "horses")


@pytest.fixture
def archive(folder, tmp_path) -> Path:
    (tmp_path / "www").mkdir()
    return pack(tmp_path / "www/horses.zip", content_of(folder))


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves files, and redirects below /to/."""

    def do_GET(self) -> None:
        if self.path.startswith("/to/"):
            self.send_response(302)
            self.send_header("Location", self.path.removeprefix("/to/"))
            self.end_headers()
        elif self.path.startswith("/half/"):
            self.send_response(200)
            self.send_header("Content-Length", "1000000")
            self.end_headers()
            self.wfile.write(b"half")
        else:
            super().do_GET()

    def log_message(self, *_: object) -> None:
        self.server.asked.append(self.path)


@pytest.fixture
def server(archive):
    handler = partial(Handler, directory=str(archive.parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.asked = []
        server.address = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def refused(place: object) -> str:
    with pytest.raises(InputError) as caught:
        find_run(place)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_folder_is_where_it_is(folder, tmp_path):
    assert find_run(folder) == find_run(str(folder)) == folder
    assert find_run(tmp_path) == tmp_path, "a run, or nothing; whoever reads it will say so"
    (folder / "config.yaml").write_text("other")
    assert "config.yaml is damaged or was changed" in refused(folder)


def test_an_archive_is_unpacked_once(archive, folder, cache):
    found = find_run(archive)
    assert found.is_relative_to(cache)
    assert content_of(found) == content_of(folder)
    before = (found / "config.yaml").stat().st_ino
    assert find_run(str(archive)) == found
    assert (found / "config.yaml").stat().st_ino == before


def test_other_content_under_the_same_name(archive, folder):
    first = find_run(archive)
    shutil.rmtree(folder)
    (bare(folder) / "README.md").write_text("new")
    pack(archive, content_of(folder))
    assert (find_run(archive) / "README.md").read_text() == "new"
    assert find_run(archive) != first


def test_a_damaged_archive_names_itself(archive, folder):
    (folder / "model.json").write_text("changed")
    pack(archive, content_of(folder))
    assert refused(archive).startswith(f"{archive}: model.json is damaged or was changed")


def test_a_url_is_downloaded_once(server, folder, cache, capsys):
    url = f"{server.address}/horses.zip"
    found = find_run(url)
    assert found.is_relative_to(cache)
    assert content_of(found) == content_of(folder)
    assert find_run(url) == found
    assert server.asked == ["/horses.zip"]
    assert capsys.readouterr().err == f"downloading {url}\n"
    assert [path.name for path in (cache / "shared").iterdir()] == [found.name]


def test_urls_that_fail(server, cache):
    assert "404" in refused(f"{server.address}/gone.zip")
    assert "give the URL of a .zip" in refused(f"{server.address}/horses.exe")
    assert "broke off after 4 of 1000000 bytes" in refused(f"{server.address}/half/a.zip")
    assert "only https is fetched" in refused(f"{server.address}/to/http://example.org/a.zip")
    server.shutdown()
    server.server_close()
    assert "check the network" in refused(f"{server.address}/horses.zip")
    assert not any((cache / "shared").iterdir())


@pytest.mark.parametrize("url", ["http://example.org/a.zip", "ftp://a/a.zip", "file:///a.zip"])
def test_only_https(url):
    assert "only https is fetched" in refused(url)


def test_a_host_that_is_not_there():
    assert "cannot download https://" in refused("https://nowhere.invalid/a.zip")


def test_weights(folder, archive, tmp_path):
    assert weights_file(folder) == folder / "model.safetensors"
    assert weights_file(archive) == find_run(archive) / "model.safetensors"
    assert weights_file(tmp_path / "last.ckpt") == tmp_path / "last.ckpt"
    torch.save({"a": torch.zeros(1)}, tmp_path / "best.pth.tar")  # as many name their weights
    assert weights_file(tmp_path / "best.pth.tar") == tmp_path / "best.pth.tar"
    (folder / "model.safetensors").write_text("other")
    with pytest.raises(InputError, match=r"model\.safetensors is damaged"):
        weights_file(folder)
