from __future__ import annotations

import os
import pickle
from collections import OrderedDict

import numpy as np
import pytest

from wsis.errors import InputError
from wsis.files import read_pickle

DATA = {
    "boxes": [
        np.arange(8, dtype=np.int16).reshape(2, 4),
        np.asfortranarray(np.random.default_rng(0).random((3, 4))),
    ],
    "names": ("ä", b"\x00\xff"),
    "score": np.float32(0.5),
    "objects": np.array([np.ones(2), None], dtype=object),
    "odd": OrderedDict(a={1, 2}, b=frozenset([3])),
}


class Harmful:
    def __reduce__(self):
        return os.mkdir, ("harm",)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_data_of_every_protocol_comes_back(tmp_path, protocol):
    path = tmp_path / "data.pkl"
    path.write_bytes(pickle.dumps(DATA, protocol))
    back = read_pickle(path)
    for got, expected in zip(back["boxes"], DATA["boxes"], strict=True):
        assert got.dtype == expected.dtype
        np.testing.assert_array_equal(got, expected)
    assert back["names"] == DATA["names"]
    assert back["score"] == DATA["score"]
    np.testing.assert_array_equal(back["objects"][0], np.ones(2))
    assert back["odd"] == DATA["odd"]


def test_bytes_of_python_2(tmp_path):
    path = tmp_path / "data.pkl"
    path.write_bytes(b"\x80\x02}q\x00U\x01a\x55\x02\xff\x00s.")
    assert read_pickle(path) == {"a": "\xff\x00"}


def test_code_is_refused_and_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "data.pkl"
    path.write_bytes(pickle.dumps({"boxes": Harmful()}))
    with pytest.raises(InputError, match="mkdir, which is not data"):
        read_pickle(path)
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", pickle.dumps(DATA)[:100]])
def test_damaged_file_is_one_line(tmp_path, content):
    path = tmp_path / "data.pkl"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"data\.pkl") as error:
        read_pickle(path)
    assert "\n" not in str(error.value)


def test_missing_file(tmp_path):
    with pytest.raises(InputError, match="No such file"):
        read_pickle(tmp_path / "none.pkl")
