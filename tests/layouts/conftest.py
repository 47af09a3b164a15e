"""Small photos, and the reader of a split."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from wsis.layouts.find import read_split
from wsis.types import Index

SIZE = (80, 60)


@pytest.fixture
def photos(tmp_path: Path) -> Callable[..., Path]:
    """Make photos of 80 x 60 pixels; return their folder."""

    def make(*names: str) -> Path:
        for name in names:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", SIZE).save(tmp_path / name)
        return tmp_path

    return make


@pytest.fixture
def read() -> Callable[..., Index]:

    def read_with(root, split="train", known=(), **more):
        categories = [{"id": number, "name": name} for number, name in enumerate(known, 1)]
        return read_split(root, split, known=categories, **more)

    return read_with
