"""A run's folder is taken by making it."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest

from wsis import fit
from wsis.command_line import trainers
from wsis.command_line.trainers import run_folder
from wsis.errors import InputError


class Still:
    """A clock that stands."""

    @staticmethod
    def now():
        from datetime import datetime

        return datetime(2026, 1, 2, 3, 4, 5)


def taken(_: int) -> str:
    trainers.datetime = Still
    return str(run_folder("cam", "folder", None))


def test_processes_of_one_second_get_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with ProcessPoolExecutor(4, get_context("fork")) as pool:
        folders = list(pool.map(taken, range(16)))
    assert len({*folders}) == 16
    assert all((tmp_path / folder).is_dir() for folder in folders)
    assert "runs/cam/folder/20260102-030405" in folders
    assert "runs/cam/folder/20260102-030405-16" in folders


def test_a_place_that_cannot_be_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(InputError, match=r"cannot write runs/cam/folder/.*--run_dir"):
        run_folder("cam", "folder", None)


def test_a_mistake_leaves_no_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    words = ["--model", "cam", "--data", "folder", "--data.root", "in"]
    for more in ([], ["--list_stages"]):
        with pytest.raises(SystemExit) as end:
            fit.main([*words, *more])
        assert end.value.code == 2
        assert "Traceback" not in capsys.readouterr().err
        assert not list(tmp_path.glob("runs/*/*/*"))
