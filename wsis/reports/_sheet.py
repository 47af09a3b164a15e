"""One picture of many images: the objects drawn, with names, and their numbers by class."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from wsis.files import atomic_write
from wsis.images.draw import Picture, grid, jpeg, overlay
from wsis.images.read import read_image
from wsis.layouts.text import counted
from wsis.reports.found import Found
from wsis.types import Index

__all__ = ["write_sheet"]

MOST = 64
"""Images on a sheet; of more, those that lie evenly apart are drawn."""
WIDTH, LARGEST = 2560, 800
"""Pixels of a row of pictures, and of the longer side of a picture, at most."""


def write_sheet(folder: Path, index: Index, found: Sequence[Found]) -> list[Path]:
    """Write sheet.jpg, a grid of the images with their objects, and the numbers of all above it."""
    if not found:
        return []
    classes = [category["name"] for category in index.categories]
    count = min(MOST, len(found))
    chosen = np.linspace(0, len(found) - 1, count).round().astype(int).tolist()
    columns = math.ceil(math.sqrt(count))
    side = min(LARGEST, WIDTH // columns)
    pictures = [_drawn(found[k], classes, side) for k in chosen]
    captions = [f"{_shown_name(found[k])}\n{_objects([found[k]], classes)}" for k in chosen]
    some = "" if count == len(found) else f", {count} of them here"
    heading = f"{counted(len(found), 'image')}{some}: {_objects(found, classes)}"
    with atomic_write(folder / "sheet.jpg") as scratch:
        scratch.write_bytes(jpeg(grid(pictures, columns, captions, heading=heading), 80))
    return [folder / "sheet.jpg"]


def _drawn(image: Found, classes: Sequence[str], side: int) -> Picture:
    pixels = read_image(image.path, image.objects.size)
    return overlay(pixels, image.objects, classes, long_side=side)


def _shown_name(image: Found) -> str:
    """Return the name of an image's file without what no letter shows, such as line breaks."""
    return "".join(c if c.isprintable() else "\ufffd" for c in image.path.name)


def _objects(images: Sequence[Found], classes: Sequence[str]) -> str:
    """Return how many objects of each class there are, the most frequent first."""
    counts: Counter[int] = Counter()
    for image in images:
        counts.update(image.objects.labels.tolist())
    return ", ".join(f"{classes[c]} {n}" for c, n in counts.most_common()) or "nothing found"
