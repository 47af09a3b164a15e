"""What readers of other tools' files return, and the file that they read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import scipy.io
from numpy.typing import NDArray

from wsis.errors import InputError
from wsis.files import read_json, read_pickle
from wsis.proposals.regions import Masks

__all__ = ["Found", "Outlines", "Reader", "Source"]

Array = NDArray[Any]


class Outlines(NamedTuple):
    """Masks as COCO files have them, decoded when the size of their image is known."""

    segmentations: list[Any]
    """P masks: polygons, or run lengths of either form."""
    places: list[str]
    """File and record of each, for errors."""


class Found(NamedTuple):
    """The proposals of one image, as in the file: boxes, masks or outlines."""

    key: str | int
    """The image's id, or as text its file's name, its stem or the digits of the stem."""
    scores: Array | None
    """(P,), higher is better; None if the format has none."""
    boxes: Array | None = None
    """(P,4) as in the file."""
    rows_first: bool = False
    """Whether y comes before x."""
    base: int = 0
    """Number of the first pixel."""
    inclusive: bool = False
    """Whether the pixels at x2 and y2 belong to the box."""
    sure: bool = False
    """Whether that is always so; if not, the other order is taken where it alone fits."""
    masks: Masks | None = None
    outlines: Outlines | None = None
    ranked: bool = True
    """Whether scores rank masks; if not, wholes come before their parts, and duplicates last."""
    stability: Array | None = None
    """(P,) how little each mask depends on a threshold, from 0 to 1; None if not known."""
    size: tuple[int, int] | None = None
    """(height, width) of the image, if the file says it."""
    left_out: int = 0
    """Boxes without a mask, left out because others of the image have masks."""


class Source:
    """A file of another tool, which is parsed once, on first access."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def matlab(self) -> dict[str, Array]:
        """Variables of a MATLAB file, with the fields of a struct as variables."""
        return _variables(self.path)

    @cached_property
    def pickled(self) -> Any:
        """What a pickle holds."""
        return read_pickle(self.path)

    @cached_property
    def arrays(self) -> dict[str, Array]:
        """The arrays of an npz file."""
        try:
            with np.load(self.path, allow_pickle=False) as content:
                return dict(content)
        except OSError as error:
            raise InputError(f"cannot read {self.path}: {error}; check the file") from error
        except Exception as error:  # a damaged npz can raise nearly any exception
            raise InputError(
                f"{self.path} is no npz of plain arrays ({error}); give one"
            ) from error

    @cached_property
    def outline(self) -> tuple[type, tuple[str, ...]]:
        """Whether a json holds a dict or a list, and the names in it or in its first record."""
        try:
            data = self.path.read_bytes()
            whole = msgspec.json.decode(data, type=list[msgspec.Raw] | dict[str, msgspec.Raw])
            first = whole[:1] if isinstance(whole, list) else []
            records = [msgspec.json.decode(record) for record in first]
        except (OSError, ValueError, RecursionError):  # to read what Python reads, or say why not
            whole = read_json(self.path)
            records = whole[:1] if isinstance(whole, list) else []
        named = whole if isinstance(whole, dict) else (records or [None])[0]
        return type(whole), tuple(map(str, named)) if isinstance(named, dict) else ()


class Reader(NamedTuple):
    """A format of proposal files."""

    suffixes: tuple[str, ...]
    """File suffixes in lower case."""
    matches: Callable[[Source], bool]
    """Returns whether a file with one of the suffixes has the format."""
    read: Callable[[Source], Iterator[Found]]
    """Yields the proposals of each image in the file."""


def _variables(path: Path) -> dict[str, Array]:
    try:
        content = scipy.io.loadmat(path)
    except NotImplementedError as error:
        raise InputError(
            f"{path} is a MATLAB 7.3 file; save it again in MATLAB with -v7"
        ) from error
    except OSError as error:
        raise InputError(
            f"cannot read {path}: {error.strerror or error}; check the path"
        ) from error
    except Exception as error:  # a damaged .mat can raise nearly any exception
        raise InputError(f"{path} is damaged ({error}); fetch it again") from error
    fields: dict[str, Array] = {}
    for name, value in content.items():
        if isinstance(value, np.ndarray) and value.dtype.names and value.size == 1:
            fields |= {inner: value[inner].ravel()[0] for inner in value.dtype.names}
        elif not name.startswith("__"):
            fields[name] = value
    return fields
