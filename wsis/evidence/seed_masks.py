"""Bottom-up masks of the boxes that PDSL and JTSM choose as seeds, made once a box and remembered."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsis.errors import InputError
from wsis.evidence.grabcut import SIZE, clip, crops, foreground, sample_masks

__all__ = ["Evidence", "Request"]

Array = NDArray[Any]


class Request(NamedTuple):
    """Boxes of one image whose foreground is asked for."""

    image_id: int
    image: Callable[[], Tensor]
    """Gives the original image, (3,H,W) uint8 RGB; called only when a box is not remembered."""
    boxes: Tensor
    """(K,4) xyxy in pixels of the original, inside it as proposals are."""
    sure: Tensor | None = None
    """(K,SIZE,SIZE) bool as in `crops`."""


_Key = tuple[Any, ...]


class Evidence:
    """`crops` that are made once: masks are remembered bit-packed, up to a number of bytes, the least recently used go first.

    Boxes are rounded to whole pixels, so that a box that comes back from another augmentation is the same box. The answer
    never depends on what is remembered.

    Args:
        setting: "fast" or "authors", as in `foreground`; the authors' takes no sure cells here.
        megabytes: Memory for remembered masks; 1000 hold about a million and a half.
        threads: Images looked at side by side.
    """

    def __init__(self, setting: str = "fast", megabytes: float = 500, threads: int = 4) -> None:
        makers = {"fast": _make, "authors": _make_as_authors}
        if setting not in makers:
            raise InputError(f'evidence {setting!r}: choose "fast" or "authors"')
        self._make = makers[setting]
        self.limit, self.used = int(megabytes * 2**20), 0
        self.threads = threads
        self._masks: OrderedDict[_Key, bytes] = OrderedDict()

    def __len__(self) -> int:
        return len(self._masks)

    def __call__(self, requests: Sequence[Request]) -> list[tuple[Tensor, Tensor]]:
        """For each request windows (K,4) float32, in original pixels, and masks (K,SIZE,SIZE) bool over them; on the CPU."""
        keys = [_keys(request) for request in requests]
        found = {
            key: self._masks[key] for of_image in keys for key in of_image if key in self._masks
        }
        open_requests = [
            (r, missing)
            for r, of in zip(requests, keys, strict=True)
            if (missing := [k for k in of if k not in found])
        ]
        if open_requests:
            with ThreadPoolExecutor(self.threads) as pool:
                for masks in pool.map(self._make, *zip(*open_requests, strict=True)):
                    found.update(masks)
        self._remember(found)
        return [_unpack(of_image, found) for of_image in keys]

    def _remember(self, found: dict[_Key, bytes]) -> None:
        for key, mask in found.items():
            if key not in self._masks:
                self.used += _size(key, mask)
            self._masks[key] = mask
            self._masks.move_to_end(key)
        while self.used > self.limit:
            self.used -= _size(*self._masks.popitem(last=False))


def _keys(request: Request) -> list[_Key]:
    """What tells crops apart: image, whole-pixel box, packed sure cells."""
    corners = request.boxes.detach().cpu().double().round().int()
    boxes = torch.cat(
        [corners[:, :2], torch.maximum(corners[:, 2:], corners[:, :2] + 1)], 1
    ).tolist()
    if request.sure is None:
        return [(request.image_id, *box, b"") for box in boxes]
    sure = np.packbits(request.sure.cpu().numpy().reshape(-1, SIZE * SIZE), axis=1)
    return [
        (request.image_id, *box, cells.tobytes()) for box, cells in zip(boxes, sure, strict=True)
    ]


def _size(key: _Key, mask: bytes) -> int:
    return len(mask) + len(key[-1]) + 400  # 400: Python's tuple, numbers and table entry


def _make(request: Request, keys: list[_Key]) -> dict[_Key, bytes]:
    keys = list(dict.fromkeys(keys))
    sure = None if request.sure is None else np.stack([_bits(key[-1]) for key in keys])
    image = np.ascontiguousarray(request.image().permute(1, 2, 0).numpy())
    return _pack(keys, crops(image, np.array([key[1:5] for key in keys]), sure)[1])


def _make_as_authors(request: Request, keys: list[_Key]) -> dict[_Key, bytes]:
    keys = list(dict.fromkeys(keys))
    image = np.ascontiguousarray(request.image().permute(1, 2, 0).numpy())
    boxes = np.array([key[1:5] for key in keys], dtype=np.float64)
    masks = foreground(image, boxes, setting="authors")
    return _pack(keys, sample_masks(masks, clip(boxes, *image.shape[:2])))


def _pack(keys: list[_Key], masks: Array) -> dict[_Key, bytes]:
    packed = np.packbits(masks.reshape(len(keys), -1), axis=1)
    return {key: mask.tobytes() for key, mask in zip(keys, packed, strict=True)}


def _bits(packed: bytes) -> Array:
    return np.unpackbits(np.frombuffer(packed, np.uint8)).reshape(SIZE, SIZE).astype(bool)


def _unpack(keys: list[_Key], found: dict[_Key, bytes]) -> tuple[Tensor, Tensor]:
    windows = torch.tensor([key[1:5] for key in keys], dtype=torch.float32).reshape(-1, 4)
    masks = np.frombuffer(b"".join(found[key] for key in keys), np.uint8)
    return windows, torch.from_numpy(
        np.unpackbits(masks).reshape(len(keys), SIZE, SIZE).astype(bool)
    )
