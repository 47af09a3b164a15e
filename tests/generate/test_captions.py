"""Captions from files."""

from __future__ import annotations

import json

import pytest

from wsis.errors import InputError
from wsis.generate.captions import read_captions


def test_captions_of_coco(tmp_path):
    path = tmp_path / "captions.json"
    texts = [(7, "a  cat"), (9, " "), (7, "grass"), (8, "a bus")]
    found = [{"id": k, "image_id": i, "caption": text} for k, (i, text) in enumerate(texts)]
    path.write_text(json.dumps({"images": [], "annotations": found}))
    assert read_captions(path) == {"image 7": ["a cat", "grass"], "image 8": ["a bus"]}


def test_damaged_captions_of_coco(tmp_path):
    path = tmp_path / "captions.json"
    path.write_text(json.dumps({"annotations": [{"image_id": 7, "caption": 3}]}))
    with pytest.raises(InputError, match=r"annotations\[0\]\.caption is 3; expected text"):
        read_captions(path)
    path.write_text(json.dumps({"annotations": []}))
    with pytest.raises(InputError, match="has no captions"):
        read_captions(path)
