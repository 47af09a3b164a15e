"""`python -m wsis.serve`: where it listens, and what it refuses."""

from __future__ import annotations

import socket
import sys

import pytest
from test_store import write_photos

from wsis.serve.__main__ import main


@pytest.fixture
def photos(tmp_path) -> str:
    write_photos(tmp_path)
    return str(tmp_path)


def refusal(capsys, *words: str) -> str:
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.fixture
def served(monkeypatch) -> list[str]:
    """Nothing is served; hosts that a socket was opened for."""
    waitress = pytest.importorskip("waitress")
    pytest.importorskip("flask")
    hosts: list[str] = []

    class Server:
        def __init__(self, app: object, sockets: list[socket.socket], **_: object) -> None:
            hosts.append(sockets[0].getsockname()[0])

        def run(self) -> None:
            pass

    monkeypatch.setattr(waitress, "create_server", Server)
    return hosts


def test_it_listens_on_loopback_without_a_token(photos, served, capsys):
    main(["--data.root", photos, "--port", "0", "--data.classes", '["cat"]'])
    out = capsys.readouterr().out
    assert served == ["127.0.0.1"]
    assert "0 of 3 photos are done" in out
    address = out.split("open ")[1].strip()
    assert address.startswith("http://127.0.0.1:")
    assert "token" not in address


def test_a_page_only_to_look_at(photos, served, capsys):
    main(["--data.root", photos, "--port", "0", "--read_only", "true"])
    assert "3 photos to look at" in capsys.readouterr().out


def test_a_token_may_be_asked_for(photos, served, capsys):
    main(["--data.root", photos, "--port", "0", "--token", "true"])
    assert len(capsys.readouterr().out.split("?token=")[1].strip()) >= 32


def test_what_is_refused(photos, served, capsys, tmp_path):
    assert "no folder" in refusal(capsys, "--data.root", f"{photos}/gone")
    assert "every network" in refusal(capsys, "--data.root", photos, "--host", "0.0.0.0")
    assert "give --data folder" in refusal(capsys, "--data", "shapes")
    assert "gone" in refusal(capsys, f"{photos}/gone")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert "choose another --port" in refusal(capsys, "--data.root", photos, "--port", port)
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "no images to label" in refusal(capsys, "--data.root", str(empty), "--port", "0")
    assert served == []


def test_without_the_extra_it_says_what_to_install(photos, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "waitress", None)
    assert 'pip install "wsis[serve]"' in refusal(capsys, "--data.root", photos)
