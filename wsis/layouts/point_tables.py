"""Points in a table with a line for each: file, class, x, y, and maybe label and object.

Label 0 is a point outside of the object. Lines with the same object, a name or number in their
image, are one object; without that column each point in an object is one of its own, and those
outside belong to all objects of the class in the image. Coordinates none of which is above 1 are
fractions of the image.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from wsis.errors import InputError
from wsis.layouts.labels import Labels, Layout, Photo, Source
from wsis.layouts.tables import FILE, TAGS, Table, column_of, read_table
from wsis.types import Record

__all__ = ["LAYOUT"]

_SIZES = {"w", "h", "width", "height"}
"""Columns that make x and y corners of boxes."""


class _Columns(NamedTuple):
    """Places of the columns; None for those that are missing."""

    file: int
    name: int
    x: int
    y: int
    label: int | None
    object: int | None


class _Line(NamedTuple):
    """A line with a point or, without x and y, a tag."""

    where: str
    name: str
    point: list[float] | None
    object: str


def _matches(source: Source) -> bool:
    if source.suffix not in (".csv", ".tsv", ".txt"):
        return False
    try:
        return _columns(read_table(source.path)) is not None
    except InputError:
        return False


def _columns(table: Table) -> _Columns | None:
    """Return the columns of a table of points; None for another table."""
    names = [name.lower() for name in table.heading]
    file = column_of(table.heading, FILE)
    classes = [n for n, name in enumerate(names) if column_of([name], TAGS) is not None]
    place = {name: n for n, name in reversed(list(enumerate(names)))}
    if file is None or not classes or not {"x", "y"} <= place.keys() or _SIZES & place.keys():
        return None
    # beside a class, "label" says on which side of the outline a point is
    label = place.get("label") if len(classes) > 1 else None
    name = next(n for n in classes if n != label)
    return _Columns(file, name, place["x"], place["y"], label, place.get("object"))


def _read(source: Source) -> Labels:
    table, path = read_table(source.path), source.path
    columns = _columns(table)
    if columns is None:
        raise InputError(f"{path} needs the columns file, class, x, y; add them")
    by_file: dict[str, list[_Line]] = {}
    for number, row in table.rows:
        lines = by_file.setdefault(row[columns.file], [])
        if row[columns.name]:  # else an image without objects
            lines.append(_line(row, columns, f"{path}:{number}"))
    found = [line.point for lines in by_file.values() for line in lines if line.point]
    relative = max((max(x, y) for x, y, _ in found), default=2) <= 1
    photos = [_photo(file, lines, path, relative) for file, lines in by_file.items()]
    return Labels(photos, path.parent)


def _line(row: Sequence[str], columns: _Columns, where: str) -> _Line:
    name, x, y = row[columns.name], row[columns.x], row[columns.y]
    group = "" if columns.object is None else row[columns.object]
    if not x and not y:
        return _Line(where, name, None, group)
    label = "" if columns.label is None else row[columns.label]
    return _Line(where, name, [float(x), float(y), float(label or 1)], group)


def _photo(file: str, lines: Sequence[_Line], path: Path, relative: bool) -> Photo:
    """Return the labels of an image.

    Raises:
        InputError: a point is outside of an object that has no point inside.
    """
    objects: dict[tuple[str, str], Record] = {}
    for n, line in enumerate(lines):
        if line.point and line.point[2]:
            key = line.name, line.object or f"line {n}"
            objects.setdefault(key, {"name": line.name, "points": []})["points"].append(line.point)
    for line in lines:
        if not line.point or line.point[2]:
            continue
        owners = [
            found
            for (name, group), found in objects.items()
            if name == line.name and line.object in ("", group)
        ]
        if not owners:
            raise InputError(
                f'{line.where}: a point outside of "{line.name}" and none inside; add one inside'
            )
        for found in owners:
            found["points"].append(line.point)
    tags = [{"name": line.name} for line in lines if line.point is None]
    return Photo(file, f"{path}: {file}", objects=[*objects.values(), *tags], relative=relative)


LAYOUT = Layout("point table", "labels.csv", _matches, _read)
