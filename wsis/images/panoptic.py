"""COCO's panoptic maps: a png of segment numbers per image, and a json with their categories."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsis.errors import InputError
from wsis.files import atomic_write
from wsis.images.read import read_numbers

__all__ = ["PanopticMaps", "write_map"]

Record = dict[str, Any]
_PACKED = 1 << 32


class PanopticMaps:
    """Reads the panoptic maps of a COCO panoptic json, each when it is asked for.

    Crowds, segments of categories that are not in `classes`, and pixels of no segment are void.

    Args:
        folder: of the pngs.
        annotations: of the json: image_id, file_name, segments_info.
        classes: class of each category id, things first.
        things: how many classes are things.
    """

    def __init__(
        self, folder: Path, annotations: Iterable[Record], classes: Mapping[int, int], things: int
    ) -> None:
        self.folder, self.things = folder, things
        # bytes, as in `Samples`: half a kilobyte an image and no counters to copy into loader
        # processes
        self._segments = {
            a["image_id"]: pickle.dumps((a["file_name"], _classes(a, classes))) for a in annotations
        }

    def __call__(self, image: Record) -> Tensor | None:
        """Give the map (H,W,2) int32 of an image record; None where the json does not know it.

        Raises:
            InputError: the png is missing, broken or of another size.
        """
        if image["id"] not in self._segments:
            return None
        name, segments = pickle.loads(self._segments[image["id"]])
        path = self.folder / name
        if not os.path.isfile(path):  # False, too, for names that are too long
            raise InputError(
                f"no panoptic map {path}, though {self.folder.name}.json names it; unpack its "
                "archive again"
            )
        numbers = read_numbers(path, (image["height"], image["width"]))
        thing = [0 <= label < self.things for _, label in segments]
        rows = [
            (-1, -1, 0),
            *(
                (n, c, i * t)
                for (n, c), i, t in zip(segments, np.cumsum(thing), thing, strict=True)
            ),
        ]
        table = np.array(sorted(rows), np.int32)  # its first row is void: numbers begin at 0
        place = np.searchsorted(table[:, 0], numbers)
        place[table[np.minimum(place, len(table) - 1), 0] != numbers] = 0
        return torch.from_numpy(table[place, 1:])


def _classes(annotation: Record, classes: Mapping[int, int]) -> list[tuple[int, int]]:
    """Number and class of an image's segments."""
    known = [
        s
        for s in annotation["segments_info"]
        if s["category_id"] in classes and not s.get("iscrowd")
    ]
    return [(s["id"], classes[s["category_id"]]) for s in known]


def write_map(path: Path, panoptic: Tensor) -> list[tuple[int, int, int]]:
    """Write a map (H,W,2) as a png; return number, class and area (pixels) of its segments.

    Raises:
        InputError: the folder cannot be written or the disk is full.
    """
    classes, instances = np.moveaxis(panoptic.cpu().numpy().astype(np.int64), 2, 0)
    keys, place, areas = np.unique(
        classes * _PACKED + instances, return_inverse=True, return_counts=True
    )
    found = keys >= 0  # void has class -1
    numbers = np.cumsum(found) * found
    ids: NDArray[np.int64] = numbers[place].reshape(classes.shape)
    colours = np.stack([ids >> 16, ids >> 8 & 255, ids & 255], -1).astype(
        np.uint8
    )  # OpenCV writes BGR
    with atomic_write(path) as scratch:
        scratch.write_bytes(cv2.imencode(".png", colours)[1].tobytes())
    return [
        (int(n), int(key // _PACKED), int(a))
        for n, key, a in zip(numbers, keys, areas, strict=True)
        if n
    ]
