"""Boxes in a table with a line for each, as TensorFlow's tutorials and Roboflow write it."""

from __future__ import annotations

from wsis.errors import InputError
from wsis.layouts.labels import Labels, Layout, Photo, Source
from wsis.layouts.tables import FILE, TAGS, Table, column_of, read_table

__all__ = ["LAYOUT"]

_SIDES = ("xmin", "ymin", "xmax", "ymax")


def _matches(source: Source) -> bool:
    if source.suffix not in (".csv", ".tsv", ".txt"):
        return False
    try:
        return len(_columns(read_table(source.path))) == 4
    except InputError:
        return False


def _columns(table: Table) -> list[int]:
    names = [name.lower() for name in table.heading]
    return [names.index(side) for side in _SIDES if side in names]


def _read(source: Source) -> Labels:
    table, path = read_table(source.path), source.path
    columns = _columns(table)
    file, label = column_of(table.heading, FILE), column_of(table.heading, TAGS)
    if file is None or label is None:
        raise InputError(f"{path} needs the columns filename, class, {', '.join(_SIDES)}")
    photos = []
    for number, row in table.rows:
        where = f"{path}:{number}"
        if not any(row[n] for n in (label, *columns)):  # an image without objects
            photos.append(Photo(row[file], where))
            continue
        x1, y1, x2, y2 = (float(row[n]) for n in columns)
        annotation = {"name": row[label], "bbox": [x1, y1, x2 - x1, y2 - y1]}
        photos.append(Photo(row[file], where, objects=[annotation]))
    return Labels(photos, path.parent)


LAYOUT = Layout("box table", "_annotations.csv", _matches, _read)
