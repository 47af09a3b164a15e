"""Files are there whole or as they were."""

from __future__ import annotations

import errno

import pytest

from wsis.errors import InputError
from wsis.files import atomic_write


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
