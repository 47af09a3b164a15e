"""A pool of cut-out objects on disk, and the choice of objects to paste (EM-Paste, section 3.3).

A pool is a folder with an RGBA png per object, in a subfolder per class, and `foregrounds.json`,
written last, with the class and source of each object. A png is cropped to the object's box; alpha
is the mask, and the colours include the surroundings.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from wsis.errors import InputError
from wsis.files import atomic_write, read_json, short_name
from wsis.nn.masks import tight_boxes

__all__ = ["Foreground", "ForegroundPool", "draw_foregrounds", "write_pool"]

_INDEX, _FORMAT = "foregrounds.json", "wsis foregrounds 1"


class Foreground(NamedTuple):
    """An object in its image."""

    image: Tensor
    """(3,H,W) uint8, the whole image."""
    mask: Tensor
    """(H,W) bool."""
    label: int
    """0-based class."""
    source: str
    """Name of the image file."""


class ForegroundPool:
    """Reads cut-out objects one by one, with an LRU cache; it can be pickled for loader workers.

    Args:
        folder: folder written by `write_pool`.
        least_area: minimum box area of an object in square pixels; the authors use 700.
        cached: maximum number of objects in memory.

    Raises:
        InputError: the pool is missing or damaged, or no object is large enough.
    """

    def __init__(
        self, folder: str | os.PathLike[str], least_area: float = 0, cached: int = 256
    ) -> None:
        self.folder, self.least_area, self.cached = Path(folder), least_area, cached
        content = _read_index(self.folder)
        self.categories: list[str] = content["categories"]
        self.provenance: dict[str, Any] = content["provenance"]
        entries = content["foregrounds"]
        boxes = np.array([entry["box"] for entry in entries], np.float64).reshape(-1, 4)
        areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        kept = np.flatnonzero(areas >= least_area)
        if not len(kept):
            raise InputError(
                f"{self.folder} has no foreground of {least_area:g} square pixels; lower the "
                "limit or add some"
            )
        # arrays rather than lists, so that workers share their memory pages
        labels: NDArray[np.int64] = np.array([entry["label"] for entry in entries], np.int64)
        self.labels = labels[kept]
        self._files = np.array([entry["file"] for entry in entries])[kept]
        self._cut = lru_cache(cached)(self._read)

    def __len__(self) -> int:
        return len(self.labels)

    def __reduce__(self) -> tuple[Any, ...]:
        return ForegroundPool, (self.folder, self.least_area, self.cached)

    def draw(self, number: int) -> tuple[Tensor, Tensor]:
        """Return an object's image (3,h,w) uint8 and mask (h,w) bool; do not write to them."""
        return self._cut(int(number))

    def file(self, number: int) -> str:
        """Return the name of an object's file, relative to the folder."""
        return str(self._files[number])

    def _read(self, number: int) -> tuple[Tensor, Tensor]:
        path = self.folder / self._files[number]
        try:
            with Image.open(path) as picture:
                if picture.mode != "RGBA":
                    raise ValueError(f"it is {picture.mode}, not RGBA")
                pixels = torch.from_numpy(np.array(picture))
        except (OSError, SyntaxError, ValueError) as error:
            raise InputError(
                f"cannot read foreground {path} ({error}); write the pool again"
            ) from error
        mask = pixels[..., 3] > 127
        if not mask.any():
            raise InputError(f"{path} is transparent everywhere; write the pool again")
        return pixels[..., :3].permute(2, 0, 1), mask


def write_pool(
    folder: Path,
    categories: Sequence[str],
    foregrounds: Iterable[Foreground],
    provenance: Mapping[str, Any],
) -> None:
    """Write a pool, which is valid only once its last object is written.

    Args:
        folder: folder of the pool; files of an earlier pool are replaced.
        categories: names of the classes.
        foregrounds: the objects.
        provenance: method, settings and supervision that produced the objects.

    Raises:
        InputError: an empty mask, no objects, or a folder that cannot be written.
    """
    (folder / _INDEX).unlink(missing_ok=True)
    entries = []
    for number, (image, mask, label, source) in enumerate(foregrounds):
        if not mask.any():
            raise InputError(f"the {categories[label]} of {source} has an empty mask; leave it out")
        x1, y1, x2, y2 = box = [int(side) for side in tight_boxes(mask[None])[0]]
        pixels = torch.cat([image, mask[None] * torch.tensor(255, dtype=torch.uint8)])[
            :, y1:y2, x1:x2
        ]
        place = short_name(re.sub(r"[^\w-]+", "_", categories[label]))
        file = f"{place}/{number:06d}.png"
        with atomic_write(folder / file) as scratch:
            Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(scratch, "png", compress_level=1)
        entries.append({"file": file, "label": int(label), "image": source, "box": box})
    if not entries:
        raise InputError(f"there are no foregrounds for {folder}; check what they are taken from")
    content = {
        "format": _FORMAT,
        "provenance": dict(provenance),
        "categories": list(categories),
        "foregrounds": entries,
    }
    with atomic_write(folder / _INDEX) as scratch:
        scratch.write_text(json.dumps(content))


def draw_foregrounds(
    labels: NDArray[np.integer[Any]],
    number: int | tuple[int, int],
    rng: np.random.Generator,
    how: Literal["uniform", "balanced"] = "uniform",
) -> NDArray[np.int64]:
    """Return the positions of objects to paste on an image, drawn with replacement.

    Args:
        labels: (N,) class of each object of the pool.
        number: number of objects, or its minimum and maximum.
        rng: random generator.
        how: "uniform" draws objects uniformly. "balanced" draws the classes present uniformly, so
            an object's probability is proportional to 1 / (number of objects of its class).

    Raises:
        InputError: the pool is empty, `how` is unknown, or a count is negative.
    """
    least, most = number if isinstance(number, tuple) else (number, number)
    if how not in ("uniform", "balanced") or not 0 <= least <= most or not len(labels):
        raise InputError(
            f"cannot draw {number} of {len(labels)} foregrounds {how!r}; give some, and uniform "
            "or balanced"
        )
    count = int(rng.integers(least, most + 1))
    if how == "uniform":
        return rng.integers(len(labels), size=count)
    shares = np.cumsum(1 / np.bincount(labels)[labels])
    return np.searchsorted(shares, rng.uniform(0, shares[-1], count), side="right").clip(
        max=len(labels) - 1
    )


def _read_index(folder: Path) -> dict[str, Any]:
    path = folder / _INDEX
    if not path.is_file():
        raise InputError(
            f"no foregrounds in {folder}, or they were not all written; give the folder of a "
            "whole pool"
        )
    content = read_json(path)
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise InputError(f'{path} is no list of "{_FORMAT}"; write the pool again')
    try:
        classes, _ = len(content["categories"]), dict(content["provenance"])
        for entry in content["foregrounds"]:
            _, _ = entry["file"], [float(side) for side in entry["box"]]
            if not 0 <= entry["label"] < classes or len(entry["box"]) != 4:
                raise ValueError(entry)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is damaged at {error}; write the pool again") from error
    return content
