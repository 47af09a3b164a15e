"""Run lengths of many masks at once: down the columns of an image, background first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from wsis.errors import InputError

__all__ = ["Runs", "decode_counts", "runs_of"]

Ints = NDArray[np.int64]
_LONGEST_RUN = 7  # letters, of 5 bits each


class Runs(NamedTuple):
    """The masks of one image, one after the other."""

    lengths: Ints
    """(R,) pixels of each run; those of a mask add up to the image."""
    first: Ints
    """(P,) position in `lengths` of each mask's first run, which is background and may be empty."""
    size: tuple[int, int]
    """(height, width) of the image."""

    @property
    def counts(self) -> Ints:
        """(P,) number of runs of each mask."""
        return np.diff(self.first, append=len(self.lengths))

    @property
    def sums(self) -> Ints:
        """(P,) pixels that the runs of each mask cover."""
        ends = np.concatenate([[0], np.cumsum(self.lengths)])
        return ends[self.first + self.counts] - ends[self.first]


def runs_of(text: str, place: str) -> Ints:
    """Return the runs of compressed counts.

    Raises:
        InputError: the text is not of that form.
    """
    return decode_counts([text], [place])[0]


def decode_counts(texts: Sequence[str | bytes], places: Sequence[str]) -> tuple[Ints, Ints]:
    """Return the runs (R,) of many compressed counts, and how many each has (P,).

    A run is a number in base 32, least digits first, of which the last has no bit 32 and begins
    with the sign; from the fourth run on it is the difference from the run before the last one.

    Args:
        texts: the compressed counts of P masks.
        places: where each mask is, for errors.

    Raises:
        InputError: a text is not of that form.
    """
    coded = [t if isinstance(t, bytes) else t.encode(errors="surrogatepass") for t in texts]
    if not coded:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    sizes = np.array([len(text) for text in coded])
    letters = np.frombuffer(b"".join(coded), np.uint8).astype(np.int64) - 48
    ends = np.flatnonzero(letters < 32)
    starts = np.concatenate([[0], ends[:-1] + 1])
    if not _is_whole(letters, sizes, ends, starts):
        _find_fault(texts, places, f"{texts[0][:30]!r} are no compressed run lengths")
    digits = np.arange(len(letters)) - np.repeat(starts, ends - starts + 1)
    runs = np.add.reduceat((letters & 31) << 5 * digits, starts)
    runs -= (letters[ends] & 16) << 5 * (ends - starts) + 1
    counts = np.diff(np.searchsorted(ends, np.cumsum(sizes)), prepend=0)
    number = np.arange(len(runs)) - np.repeat(np.cumsum(counts) - counts, counts)
    for chain in (number % 2 == 1, (number % 2 == 0) & (number > 0)):
        runs[chain] = _sums_from(runs[chain], number[chain] <= 2)
    if runs.min() < 0:
        _find_fault(texts, places, f"a run length is {runs.min()}")
    return runs, counts


def _is_whole(letters: Ints, sizes: Ints, ends: Ints, starts: Ints) -> bool:
    """Return whether all letters are digits, and each text ends with the last one of a run."""
    if not sizes.all() or letters.min() < 0 or letters.max() > 63:
        return False
    last = letters[np.cumsum(sizes) - 1]
    return bool((last < 32).all() and (ends - starts).max() < _LONGEST_RUN)


def _find_fault(texts: Sequence[Any], places: Sequence[str], says: str) -> None:
    """Raise InputError for the text with a fault, which is found by decoding each on its own."""
    if len(texts) == 1:
        raise InputError(f"{places[0]}: {says}; write it again")
    for text, place in zip(texts, places, strict=True):
        decode_counts([text], [place])


def _sums_from(values: Ints, begins: NDArray[np.bool_]) -> Ints:
    """Return running sums that start anew where `begins` is true, as it is at the first value."""
    total = np.cumsum(values)
    at = np.flatnonzero(begins)
    before = total[at] - values[at]
    sums: Ints = total - np.repeat(before, np.diff(at, append=len(values)))
    return sums
