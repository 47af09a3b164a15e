"""A pool of cut-out objects on disk, and which of them to paste (EM-Paste, section 3.3).

A pool is a folder: an RGBA png per object, cut to its box, in a folder per class, opaque where the object is and with its
surroundings still there in the colours; and `foregrounds.json`, written last, with the class and the source of each.
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
from wsis.files import read_json, whole
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
    """Reads cut-out objects one by one, the last used from memory; travels to loader workers.

    Args:
        folder: that `write_pool` wrote.
        least_area: objects whose box has fewer square pixels are left out; the authors take 700.
        cached: so many objects are kept in memory.

    Raises:
        InputError: no pool, one that is damaged, or no object that is large enough.
    """

    def __init__(
        self, folder: str | os.PathLike[str], least_area: float = 0, cached: int = 256
    ) -> None:
        self.folder, self.least_area, self.cached = Path(folder), least_area, cached
        content = _read_index(self.folder)
        self.categories: list[str] = content["categories"]
        self.provenance: dict[str, Any] = content["provenance"]
        boxes = np.array([entry["box"] for entry in content["foregrounds"]], np.float64).reshape(
            -1, 4
        )
        kept = np.flatnonzero(
            (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) >= least_area
        )
        if not len(kept):
            raise InputError(
                f"{self.folder} has no foreground of {least_area:g} square pixels; lower the limit or add some"
            )
        # arrays, not lists of objects: workers share their pages
        self.labels: NDArray[np.int64] = np.array(
            [entry["label"] for entry in content["foregrounds"]], np.int64
        )[kept]
        self._files = np.array([entry["file"] for entry in content["foregrounds"]])[kept]
        self._cut = lru_cache(cached)(self._read)

    def __len__(self) -> int:
        return len(self.labels)

    def __reduce__(self) -> tuple[Any, ...]:
        return ForegroundPool, (self.folder, self.least_area, self.cached)

    def draw(self, number: int) -> tuple[Tensor, Tensor]:
        """Give the image (3,h,w) uint8 and the mask (h,w) bool of an object; they are shared, so not to be written to."""
        return self._cut(int(number))

    def file(self, number: int) -> str:
        """Give the name of an object's file in the folder."""
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
    """Write a pool; it is none before its last object is written.

    Args:
        folder: of the pool; files of an earlier one are replaced.
        categories: names of the classes.
        foregrounds: the objects.
        provenance: how they were found, with which settings and supervision.

    Raises:
        InputError: an empty mask, no object at all, or a folder that cannot be written.
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
        file = re.sub(r"[^\w-]+", "_", categories[label]) + f"/{number:06d}.png"
        with whole(folder / file) as scratch:
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
    with whole(folder / _INDEX) as scratch:
        scratch.write_text(json.dumps(content))


def draw_foregrounds(
    labels: NDArray[np.integer[Any]],
    number: int | tuple[int, int],
    rng: np.random.Generator,
    how: Literal["uniform", "balanced"] = "uniform",
) -> NDArray[np.int64]:
    """Draw objects to paste on an image, with replacement; give their positions.

    Args:
        labels: (N,) class of each object of the pool.
        number: how many, or the fewest and the most.
        rng: what is drawn from.
        how: "uniform" draws every object as often. "balanced" draws every class that is there as often, so an object with
            probability proportional to 1 / objects of its class.

    Raises:
        InputError: nothing to draw from, an unknown way, or a count below 0.
    """
    least, most = number if isinstance(number, tuple) else (number, number)
    if how not in ("uniform", "balanced") or not 0 <= least <= most or not len(labels):
        raise InputError(
            f"cannot draw {number} of {len(labels)} foregrounds {how!r}; give some, and uniform or balanced"
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
            f"no foregrounds in {folder}, or they were not all written; give the folder of a whole pool"
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
