"""Files are there whole or as they were."""

from __future__ import annotations

import errno
import os
from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsis.errors import InputError
from wsis.files import atomic_write, check_writable, clear_scratch, database, short_name


def write(path, text, error):
    with atomic_write(path) as scratch:
        scratch.write_text(text)
        raise error


@pytest.mark.parametrize(
    "error",
    [KeyboardInterrupt(), ValueError("of the writer"), OSError(errno.EIO, "broken disk")],
    ids=repr,
)
def test_what_fails_leaves_the_old_file_and_nothing_else(tmp_path, error):
    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(type(error)):
        write(tmp_path / "a.txt", "ne", error)
    assert (tmp_path / "a.txt").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_what_ends_well_takes_its_place(tmp_path):
    for text in ("first", "second"):
        with atomic_write(tmp_path / "new/folder/a.txt") as scratch:
            scratch.write_text(text)
            assert scratch.parent == tmp_path / "new/folder", (
                "on one file system, so that the step is one"
            )
            assert text == "first" or (tmp_path / "new/folder/a.txt").read_text() == "first"
        assert (tmp_path / "new/folder/a.txt").read_text() == text
    assert len(list((tmp_path / "new/folder").iterdir())) == 1


def test_no_room_and_no_folder_are_one_line(tmp_path):
    with pytest.raises(InputError, match=r"cannot write .*a\.txt: full; free space") as full:
        write(tmp_path / "a.txt", "ne", OSError(errno.ENOSPC, "full"))
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"choose a folder that can be written") as barred:
        write(tmp_path / "file/a.txt", "ne", AssertionError)
    assert not any("\n" in str(caught.value) for caught in (full, barred))


@pytest.mark.parametrize("name", ["a" * 255, chr(0x5199) * 85, "\udcff" * 255], ids=len)
def test_names_of_any_legal_length(tmp_path, name):
    with atomic_write(tmp_path / name) as scratch:
        scratch.write_text("whole")
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_scratch_files_of_killed_processes_are_found(tmp_path):
    kept = []
    for name in ("a.txt", "b" * 255):
        with atomic_write(tmp_path / name) as scratch:
            kept.append(scratch)
            scratch.write_text("x")
        scratch.write_text("left by a killed process")
    clear_scratch(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "b" * 255]
    assert len(kept) == 2


@given(st.text(st.characters(blacklist_categories=["Cs"]), max_size=300), st.integers(20, 300))
def test_short_names(name, most):
    short = short_name(name, most)
    assert len(short.encode()) <= most
    assert (short == name) == (len(name.encode()) <= most)
    assert short_name(name + "x", most) != short, "names that differ stay different"


@pytest.mark.parametrize("opened", [atomic_write, database, check_writable])
def test_what_is_no_file_is_never_replaced(tmp_path, opened):
    """As root, a file renamed to /dev/null takes its place."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    (tmp_path / "stdout").symlink_to("/proc/self/fd/1")
    (tmp_path / "folder").mkdir()
    kept = sorted(os.listdir(tmp_path))
    for name in kept:
        with pytest.raises(InputError, match=rf"cannot write .*{name}: it is a"), ExitStack() as s:
            s.enter_context(opened(tmp_path / name))
    assert sorted(os.listdir(tmp_path)) == kept
    assert (tmp_path / "pipe").is_fifo()


def test_a_place_is_checked_without_a_trace_but_its_folder(tmp_path):
    (tmp_path / "a.txt").write_text("old")
    check_writable(tmp_path / "a.txt")
    check_writable(tmp_path / "new/b.txt")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.txt", "new"]
    assert (tmp_path / "a.txt").read_text() == "old"
    with pytest.raises(InputError, match="choose a folder that can be written"):
        check_writable(tmp_path / "a.txt/c.txt")
