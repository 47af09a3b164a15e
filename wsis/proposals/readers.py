"""Find out which format a file of proposals of another tool has, and read it.

To add a format, write two functions of a `Source`, one that returns whether the file has the format
and one that yields `Found` for each of its images, and add a `Reader` to READERS.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from wsis.errors import InputError
from wsis.proposals import arrays, records
from wsis.proposals.found import Found, Reader, Source

__all__ = ["READERS", "read_foreign"]

READERS = [*arrays.READERS, *records.READERS]
"""Tried in order; the first reader that matches reads the file."""


def read_foreign(path: Path) -> Iterator[Found]:
    """Read proposals of any known format from one file or from a folder.

    A folder holds a file for each image, files for many, or a folder of pictures for each image;
    or it is such a folder of pictures itself.

    Raises:
        InputError: a file cannot be read or has no known format.
    """
    if not path.is_dir():
        yield from _read_file(path)
        return
    inside = [path, *sorted(path.iterdir())]
    files = [file for file in inside[1:] if file.suffix.lower() in _suffixes()]
    folders = [folder for folder in inside if (folder / arrays.PICTURES).is_file()]
    if not files and not folders:
        pictures = any(folder.is_dir() and any(folder.glob("*.png")) for folder in inside)
        raise InputError(
            f"{path} has pictures without {arrays.PICTURES}; add it, with a column id that names "
            "the picture of each mask"
            if pictures
            else f"{path} has no {', '.join(_suffixes())} files, and no folders of pictures with "
            f"{arrays.PICTURES}; give a folder that has"
        )
    for file in files:
        yield from _read_file(file)
    for folder in folders:
        yield arrays.read_pictures(folder)


def _suffixes() -> list[str]:
    return list(dict.fromkeys(suffix for reader in READERS for suffix in reader.suffixes))


def _read_file(path: Path) -> Iterator[Found]:
    source = Source(path)
    reader = _reader_of(source)
    try:
        yield from reader.read(source)
    except KeyError as error:
        what = (reader.read.__doc__ or "").partition("\n")[0].removeprefix("Read ").rstrip(".")
        raise InputError(
            f"{path} has no {error.args[0]!r}, which belongs to {what}; write it with that field"
        ) from error
    except (LookupError, TypeError, AttributeError, ValueError, OverflowError) as error:
        if isinstance(error, InputError):
            raise
        what = (reader.read.__doc__ or "").partition("\n")[0].removeprefix("Read ").rstrip(".")
        raise InputError(
            f"{path}: the fields are not as those of {what} ({' '.join(str(error).split())}); "
            "write them in that form"
        ) from error


def _reader_of(source: Source) -> Reader:
    suffix = source.path.suffix.lower()
    for reader in READERS:
        if suffix in reader.suffixes and reader.matches(source):
            return reader
    held = f": it holds {_content(source)}" if suffix in _suffixes() else ""
    raise InputError(
        f"{source.path} is no known proposal format{held}; give {', '.join(_suffixes())}, or a "
        "folder of them, in a form that docs/benchmarks.md lists"
    )


def _content(source: Source) -> str:
    """Return the names in a file, for an error message."""
    suffix = source.path.suffix.lower()
    if suffix == ".json":
        kind, names = source.outline
        found = names or (f"a json {kind.__name__}",)
    elif suffix == ".npz":
        found = tuple(source.arrays)
    elif suffix == ".mat":
        found = tuple(sorted(source.matlab))
    else:
        pickled = source.pickled
        found = tuple(map(str, pickled)) if isinstance(pickled, dict) else ("no dict of fields",)
    return ", ".join(found) or "no named fields"
