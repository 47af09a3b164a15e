"""Boxes in a table with a line for each, as TensorFlow's tutorials and Roboflow write it.

Corners none of which is above 1 are fractions of the image, as in Google's tables.
"""

from __future__ import annotations

from collections.abc import Sequence

from wsis.errors import InputError
from wsis.layouts.labels import Labels, Layout, Photo, Source, size_of
from wsis.layouts.tables import FILE, TAGS, Table, column_of, read_table

__all__ = ["LAYOUT"]

_SIDES = ("xmin", "ymin", "xmax", "ymax")


def _matches(source: Source) -> bool:
    if source.suffix not in (".csv", ".tsv", ".txt"):
        return False
    try:
        return len(_columns(read_table(source.path), _SIDES)) == 4
    except InputError:
        return False


def _columns(table: Table, wanted: Sequence[str]) -> list[int]:
    names = [name.lower() for name in table.heading]
    return [names.index(name) for name in wanted if name in names]


def _read(source: Source) -> Labels:
    table, path = read_table(source.path), source.path
    columns, sides = _columns(table, _SIDES), _columns(table, ("height", "width"))
    file, label = column_of(table.heading, FILE), column_of(table.heading, TAGS)
    if file is None or label is None:
        raise InputError(f"{path} needs the columns filename, class, {', '.join(_SIDES)}")
    photos, largest = [], 0.0
    for number, row in table.rows:
        where = f"{path}:{number}"
        if not any(row[n] for n in (label, *columns)):  # an image without objects
            photos.append(Photo(row[file], where))
            continue
        corners = [float(row[n]) for n in columns]
        largest = max(largest, *corners)
        size = size_of(row[sides[0]], row[sides[1]], where) if len(sides) == 2 else None
        x1, y1, x2, y2 = corners
        annotation = {"name": row[label], "bbox": [x1, y1, x2 - x1, y2 - y1]}
        photos.append(Photo(row[file], where, objects=[annotation], size=size))
    if largest <= 1:
        photos = [photo._replace(relative=True) for photo in photos]
    return Labels(photos, path.parent)


LAYOUT = Layout("box table", "_annotations.csv", _matches, _read)
