"""Decode the run lengths of Label Studio's brush: bits of red, green, blue and alpha in turn.

The bits are 32 for the number of values, 5 for the width of a value, four times 4 for the widths
of lengths; then for each run a bit that says whether one value is repeated, 2 that choose the width
of its length, the length, and the value or values. Numbers other than the first are less by one
than what they stand for.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["decode_brush"]


class _Bits:
    """Bits that are read one number after another."""

    def __init__(self, content: bytes) -> None:
        self.bits = np.unpackbits(np.frombuffer(content, np.uint8))
        self.text = (self.bits + ord("0")).tobytes().decode("ascii")
        self.place = 0

    def number(self, width: int) -> int:
        self.place += width
        return int(self.text[self.place - width : self.place], 2)

    def numbers(self, count: int, width: int) -> NDArray[np.int64]:
        start, self.place = self.place, self.place + count * width
        digits = self.bits[start : self.place].reshape(count, width)
        return digits @ (1 << np.arange(width - 1, -1, -1, dtype=np.int64))


def decode_brush(values: Sequence[int], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Return where alpha is above zero, (H,W) bool.

    Args:
        values: bytes of the run lengths.
        size: (H, W) of the image.

    Raises:
        ValueError: the run lengths are of another size, or end too early.
    """
    bits, count = _Bits(bytes(list(values))), 4 * size[0] * size[1]
    if bits.number(32) != count:
        raise ValueError(f"the brush is not of an image of {size[1]} x {size[0]} pixels")
    width = bits.number(5) + 1
    widths = [bits.number(4) + 1 for _ in range(4)]
    result = np.zeros(count, np.uint8)
    place = 0
    while place < count:
        is_run = bits.number(1)
        end = min(place + 1 + bits.number(widths[bits.number(2)]), count)
        if is_run:
            result[place:end] = bits.number(width) > 0
        else:
            result[place:end] = bits.numbers(end - place, width) > 0
        place = end
    return result.reshape(*size, 4)[..., 3].astype(bool)
