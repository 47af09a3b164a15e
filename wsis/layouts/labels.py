"""What the readers of all layouts return, and the file or folder that they read."""

from __future__ import annotations

import codecs
import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from wsis.errors import InputError
from wsis.files import read_bytes, read_json
from wsis.layouts.pictures import files_of
from wsis.layouts.text import decode
from wsis.types import Record

__all__ = [
    "Labels",
    "Layout",
    "Photo",
    "Source",
    "one_line",
    "parse_json",
    "read_labels",
    "read_text",
    "refuse_damaged",
    "size_of",
]

_HEAD = 1 << 16  # bytes that tell one layout from another
_WEB_PAGE = re.compile(
    r"(?:<\?xml[^>]*>|<!--.*?-->|\s)*+<(?:!doctype\s+html|html|head|body)\b",
    re.IGNORECASE | re.DOTALL,
)


class Photo(NamedTuple):
    """The labels of one image, as in the file."""

    file: str
    """Name of the image as the label tool wrote it: with folders, an address, or bare."""
    where: str
    """Place of the label for error messages, such as "labels.csv:3"."""
    tags: Sequence[str] = ()
    objects: Sequence[Record] = ()
    """COCO annotations with `name` in place of `category_id`.

    `bbox` may be missing beside a segmentation. `points` are [x, y, 1 in the object, else 0].
    """
    size: tuple[int, int] | None = None
    """(H, W) that the objects are drawn on, if it is known."""
    relative: bool = False
    """Whether boxes, polygons and points are fractions of the image's width and height."""
    id: int | None = None
    complete: Sequence[str] | None = None
    """Names of the classes of which every object is labelled; None if all are."""


class Labels(NamedTuple):
    """The labels of a split."""

    photos: Sequence[Photo]
    folder: Path
    """Folder that names of images are relative to; they are searched for elsewhere if need be."""
    categories: Sequence[Record] = ()
    """id and name of the classes in the file's order; empty if the file has no list of them."""
    notes: Sequence[str] = ()
    """What the user should know of the reading."""


class Source:
    """A file or folder that may hold labels; what is looked at is read once.

    Of a folder, `only` the label files of one suffix may be wanted.
    """

    def __init__(self, path: Path, root: Path, split: str, only: str = "") -> None:
        self.path, self.root, self.split, self.only = path, root, split, only
        self.classes: Sequence[str] = ()

    @property
    def name(self) -> str:
        """The path relative to the data set's folder, for messages."""
        inside = self.path.is_relative_to(self.root) and self.path != self.root
        return str(self.path.relative_to(self.root) if inside else self.path)

    @property
    def is_mixed(self) -> bool:
        """Whether it is a folder that holds more than the validation split asked for."""
        return self.split == "val" and self.path == self.root

    @property
    def suffix(self) -> str:
        """The suffix of a file in lower case; empty for a folder."""
        return "" if self.path.is_dir() else self.path.suffix.lower()

    @cached_property
    def _beginning(self) -> bytes:
        try:
            with self.path.open("rb") as file:
                return file.read(_HEAD)
        except OSError:
            return b""

    @property
    def encoding(self) -> str:
        """The encoding of a file: UTF-16 if it has its mark, else UTF-8."""
        marks = {codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}
        return marks.get(self._beginning[:2], "utf-8")

    @cached_property
    def head(self) -> str:
        """The beginning of a file as text; empty for a folder."""
        return self._beginning.decode(self.encoding, "replace").lstrip("\ufeff \t\r\n")

    @cached_property
    def files(self) -> list[Path]:
        """The files anywhere in a folder, without those of another split."""
        return files_of(self.path, self.split) if self.path.is_dir() else []

    def of_kind(self, suffix: str) -> list[Path]:
        """Return the files in a folder with a suffix in lower case, if it is wanted."""
        if self.only not in ("", suffix):
            return []
        return [path for path in self.files if path.suffix.lower() == suffix]

    def has(self, *words: str) -> bool:
        """Return whether all words occur as keys or strings in the head of a json file."""
        return all(f'"{word}"' in self.head for word in words)

    @property
    def text(self) -> str:
        """The file as text, in whatever encoding."""
        return read_text(self.path)

    @property
    def json(self) -> Any:
        """The content of a json file."""
        return read_json(self.path)


class Layout(NamedTuple):
    """A way to store labels."""

    name: str
    example: str
    """A file or folder that is looked for, for messages."""
    matches: Callable[[Source], bool]
    """Returns whether a file or folder has the layout; it never raises an error."""
    read: Callable[[Source], Labels]
    """Reads it; errors of missing or wrong fields are made InputError by `read_labels`."""
    suffix: str = ""
    """That of its files where a folder has one for each image."""


def read_text(path: Path) -> str:
    """Read a text file in UTF-8, UTF-16 or Windows-1252.

    Raises:
        InputError: it cannot be read, or is no text.
    """
    content = read_bytes(path)
    try:
        return decode(content)
    except ValueError as error:
        raise InputError(f"{path} is no text ({error}); save it as CSV in UTF-8") from error


def refuse_damaged(path: Path) -> None:
    """Raise InputError for an empty file, or one of another kind than its name says."""
    head = Source(path, path.parent, "").head
    if not head:
        raise InputError(f"{path} is empty; export it again, or delete it")
    if head.startswith("PK\x03\x04"):
        raise InputError(
            f"{path} is a spreadsheet or an archive under another name; save it as CSV, or "
            "unpack it"
        )
    if _WEB_PAGE.match(head):
        raise InputError(f"{path} is a web page, perhaps of a login; download the labels again")


def read_labels(layout: Layout, source: Source) -> Labels:
    """Read labels in a layout.

    Raises:
        InputError: a file is damaged or its fields are not those of the layout.
    """
    with one_line(layout, source):
        return layout.read(source)


@contextmanager
def one_line(layout: Layout, source: Source) -> Iterator[None]:
    """Turn what missing fields and wrong types raise into an InputError."""
    try:
        yield
    except InputError:
        raise
    except RecursionError as error:
        raise InputError(f"{source.path} is nested too deeply; export it again") from error
    except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError, OSError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise InputError(
            f"{source.path}: the fields are not those of {layout.name} ({reason}); export it again"
        ) from error


def size_of(height: Any, width: Any, where: str) -> tuple[int, int]:
    """Return the size (H, W) of an image that a label file states in numbers or texts.

    Raises:
        InputError: it is no size that an image can have.
    """
    sides = float(height), float(width)
    limit = Image.MAX_IMAGE_PIXELS or math.inf
    if not (min(sides) >= 1 and sides[0] * sides[1] <= limit and sum(sides) % 1 == 0):
        raise InputError(
            f"{where}: an image of {width} x {height} pixels cannot be; export the labels again"
        )
    return int(sides[0]), int(sides[1])


def parse_json(text: str, where: str) -> Any:
    """Parse a cell or line of json.

    Raises:
        InputError: it is not json.
    """
    try:
        return json.loads(text)
    except ValueError as error:
        raise InputError(
            f"{where}: {text[:40]!r} is not json ({error}); export it again"
        ) from error
