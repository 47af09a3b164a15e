"""Settings that are shared name no path of the machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from wsis.sharing.portable import without_paths


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        ("/home/me/photos", "photos"),
        ("~/photos/", "photos"),
        ("../weights/a.safetensors", "a.safetensors"),
        (Path("/home/me/photos"), "photos"),
        ("runs/cam/TIME/1-classifier/checkpoints/last.ckpt", "last.ckpt"),
        ("photos", "photos"),
        ("hub:user/name", "hub:user/name"),
        ("https://example.org/a.zip", "https://example.org/a.zip"),
        (0.1, 0.1),
        (None, None),
        (True, True),
    ],
)
def test_values(value, kept):
    assert without_paths(value) == kept
    assert without_paths({"a": {"b": [value]}}) == {"a": {"b": [kept]}}


def test_classes_are_no_paths():
    assert without_paths({"classes": ["cat/dog"]}) == {"classes": ["cat/dog"]}
