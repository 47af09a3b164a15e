"""Features of frozen networks on disk, so that each image passes a network once.

A map is found by the pixels it was computed from. Runs, rows of an ablation and methods therefore
share maps without agreeing on splits, sizes or flips.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wsis.errors import InputError

__all__ = ["FeatureStore"]


class FeatureStore:
    """Maps of images in half precision, in an SQLite file that several processes may share.

    A killed process loses the maps of the batch that it was writing and no others.

    Args:
        path: of the file, which is made if need be.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._opened: tuple[int, sqlite3.Connection] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "_opened": None}

    def maps(
        self, images: Sequence[Tensor], compute: Callable[[Tensor], Tensor], how: str = ""
    ) -> list[Tensor]:
        """Return the maps (D,h,w) float16 of images, computing and keeping those not yet known.

        Args:
            images: (3,H,W) uint8 each.
            compute: function from one image to its map (D,h,w).
            how: what maps depend on besides the pixels, such as a precision.

        Raises:
            InputError: a map has values that half precision does not hold, or the file cannot be
                read or written.
        """
        keys = [_key(image, how) for image in images]
        try:
            known = self._read(keys)
            made = {
                key: self._half(compute(image))
                for key, image in dict(zip(keys, images, strict=True)).items()
                if key not in known
            }
            self._write(made)
        except (sqlite3.Error, OSError) as error:
            raise InputError(
                f"cannot keep features in {self.path}: {error}; free space, or delete the file to "
                "have it made again"
            ) from error
        return [(known | made)[key].to(images[0].device) for key in keys]

    def _half(self, found: Tensor) -> Tensor:
        half = found.to("cpu", torch.float16)
        if not half.isfinite().all():
            raise InputError(
                f"features reach {found.abs().max():.3g}, which half precision does not hold; "
                "leave out --model.backbone.stored"
            )
        return half

    def _read(self, keys: Sequence[bytes]) -> dict[bytes, Tensor]:
        wanted = ", ".join("?" * len(keys))
        rows = self._connection().execute(f"SELECT * FROM maps WHERE key IN ({wanted})", keys)
        return {
            key: torch.frombuffer(bytearray(content), dtype=torch.float16).view(json.loads(shape))
            for key, shape, content in rows
        }

    def _write(self, made: dict[bytes, Tensor]) -> None:
        rows = [(key, json.dumps(half.shape), half.numpy().tobytes()) for key, half in made.items()]
        with self._connection() as connection:  # one transaction
            connection.executemany("INSERT OR IGNORE INTO maps VALUES (?, ?, ?)", rows)

    def _connection(self) -> sqlite3.Connection:
        """Return this process's connection; one that was inherited by a fork must not be used."""
        if self._opened is None or self._opened[0] != os.getpid():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            connection = sqlite3.connect(self.path, timeout=60, check_same_thread=False)
            connection.execute(
                "CREATE TABLE IF NOT EXISTS maps (key BLOB PRIMARY KEY, shape TEXT, map BLOB)"
            )
            self._opened = os.getpid(), connection
        return self._opened[1]


def _key(image: Tensor, how: str) -> bytes:
    pixels = image.contiguous().cpu()
    content = hashlib.blake2b(f"{how} {tuple(pixels.shape)}".encode(), digest_size=16)
    content.update(pixels.numpy().tobytes())
    return content.digest()
