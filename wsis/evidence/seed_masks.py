"""Bottom-up masks of the boxes that PDSL and JTSM choose as seeds, with a cache."""

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
from wsis.evidence.grabcut import SIZE, clip, crops, foreground, sample_masks, spread_masks

__all__ = ["Evidence", "Request"]

Array = NDArray[Any]


class Request(NamedTuple):
    """Boxes of one image, for which `Evidence` returns foreground masks."""

    image_id: int
    image: Callable[[], Tensor]
    """Returns the original image, (3,H,W) uint8 RGB; called only if a box is not in the cache."""
    boxes: Tensor
    """(K,4) xyxy in pixels of the original image, inside it."""
    sure: Tensor | None = None
    """(K,SIZE,SIZE) bool, cells known to be foreground, as in `crops`."""
    background: Tensor | None = None
    """(K,SIZE,SIZE) bool, cells known to be background."""
    centred: bool = True
    """Whether foreground is expected at the centre of each box."""


class _Key(NamedTuple):
    """What a mask depends on."""

    image: int
    corners: tuple[int, ...]
    """x1, y1, x2, y2 in whole pixels."""
    sure: bytes
    """Packed cells; empty if none are given."""
    background: bytes
    centred: bool


class Evidence:
    """LRU cache around `crops`; masks are stored bit-packed, up to `megabytes`.

    Boxes are rounded to whole pixels, so that a box mapped back from another augmentation hits the
    cache. Results do not depend on the contents of the cache.

    Args:
        setting: "fast" or "authors", as in `foreground`.
        megabytes: Memory for masks; 1000 hold about 1.5 million masks.
        threads: Number of images processed in parallel.
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
        """Return windows (K,4) float32 in original pixels and masks (K,SIZE,SIZE) bool, on the CPU.

        One pair for each request.
        """
        keys = [_keys(request) for request in requests]
        masks: dict[_Key, bytes] = {}
        incomplete: list[Request] = []
        missing_keys: list[list[_Key]] = []
        for request, of_image in zip(requests, keys, strict=True):
            masks |= {key: self._masks[key] for key in of_image if key in self._masks}
            missing = [key for key in of_image if key not in self._masks]
            if missing:
                incomplete.append(request)
                missing_keys.append(missing)
        if incomplete:
            with ThreadPoolExecutor(self.threads) as pool:
                for made in pool.map(self._make, incomplete, missing_keys):
                    masks.update(made)
        self._remember(masks)
        return [_unpack(of_image, masks) for of_image in keys]

    def _remember(self, masks: dict[_Key, bytes]) -> None:
        for key, mask in masks.items():
            if key not in self._masks:
                self.used += _size(key, mask)
            self._masks[key] = mask
            self._masks.move_to_end(key)
        while self.used > self.limit:
            self.used -= _size(*self._masks.popitem(last=False))


def _keys(request: Request) -> list[_Key]:
    """Return the key of each box, its corners in whole pixels."""
    corners = request.boxes.detach().cpu().double().round().int()
    low, high = corners[:, :2], corners[:, 2:]
    boxes = torch.cat([low, torch.maximum(high, low + 1)], 1).tolist()
    known = [_packed(cells, len(boxes)) for cells in (request.sure, request.background)]
    return [
        _Key(request.image_id, tuple(box), sure, background, request.centred)
        for box, sure, background in zip(boxes, *known, strict=True)
    ]


def _packed(cells: Tensor | None, count: int) -> list[bytes]:
    """Return the packed cells (K,SIZE,SIZE) of each box; empty ones if None."""
    if cells is None:
        return [b""] * count
    packed = np.packbits(cells.cpu().numpy().reshape(-1, SIZE * SIZE), axis=1)
    return [row.tobytes() for row in packed]


def _size(key: _Key, mask: bytes) -> int:
    """Return the bytes that an entry of the cache takes."""
    known = len(key.sure) + len(key.background)
    return len(mask) + known + 500  # 500: Python's tuples, numbers and table entry


def _make(request: Request, keys: list[_Key]) -> dict[_Key, bytes]:
    keys = list(dict.fromkeys(keys))
    image, boxes = _image(request), np.array([key.corners for key in keys])
    known = _cells([key.sure for key in keys]), _cells([key.background for key in keys])
    return _pack(keys, crops(image, boxes, *known, request.centred)[1])


def _make_as_authors(request: Request, keys: list[_Key]) -> dict[_Key, bytes]:
    keys = list(dict.fromkeys(keys))
    image, boxes = _image(request), np.array([key.corners for key in keys], dtype=np.float64)
    size = image.shape[:2]
    known = _cells([key.sure for key in keys]), _cells([key.background for key in keys])
    sure, background = (None if m is None else spread_masks(m, boxes, *size) for m in known)
    masks = foreground(image, boxes, sure, "authors", background)
    return _pack(keys, sample_masks(masks, clip(boxes, *size)))


def _image(request: Request) -> Array:
    return np.ascontiguousarray(request.image().permute(1, 2, 0).numpy())


def _cells(packed: list[bytes]) -> Array | None:
    """Return the cells (K,SIZE,SIZE) of keys; None if none are given."""
    if not all(packed):
        return None
    bits = np.unpackbits(np.frombuffer(b"".join(packed), np.uint8))
    return bits.reshape(-1, SIZE, SIZE).astype(bool)


def _pack(keys: list[_Key], masks: Array) -> dict[_Key, bytes]:
    packed = np.packbits(masks.reshape(len(keys), -1), axis=1)
    return {key: mask.tobytes() for key, mask in zip(keys, packed, strict=True)}


def _unpack(keys: list[_Key], masks: dict[_Key, bytes]) -> tuple[Tensor, Tensor]:
    windows = torch.tensor([key.corners for key in keys], dtype=torch.float32).reshape(-1, 4)
    packed = np.frombuffer(b"".join(masks[key] for key in keys), np.uint8)
    cells = np.unpackbits(packed).reshape(len(keys), SIZE, SIZE).astype(bool)
    return windows, torch.from_numpy(cells)
