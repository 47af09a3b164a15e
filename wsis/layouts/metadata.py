"""Hugging Face's metadata.jsonl: a json object for each image; metadata.csv is a table of tags."""

from __future__ import annotations

from typing import Any

from wsis.errors import InputError
from wsis.layouts.labels import Labels, Layout, Photo, Source, parse_json
from wsis.layouts.tables import FILE, TAGS, column_of
from wsis.types import Record

__all__ = ["LAYOUT"]


def _matches(source: Source) -> bool:
    return source.suffix == ".jsonl" and "file_name" in source.head.split("\n", 1)[0]


def _read(source: Source) -> Labels:
    photos = []
    for number, line in enumerate(source.text.split("\n"), 1):
        if line.strip():
            where = f"{source.path}:{number}"
            photos.append(_photo(parse_json(line, where), where))
    return Labels(photos, source.path.parent)


def _photo(entry: Record, where: str) -> Photo:
    names = list(entry)
    file, label = column_of(names, FILE), column_of(names, TAGS)
    tags = [] if label is None else _texts(entry[names[label]])
    boxes = entry.get("objects") or {}
    objects: list[Record] = []
    if boxes.get("bbox"):
        place = column_of(list(boxes), TAGS)
        if place is None:
            raise InputError(f"{where}: objects have no categories; add them")
        classes = _texts(boxes[list(boxes)[place]])
        pairs = zip(classes, boxes["bbox"], strict=True)
        objects = [{"name": name, "bbox": box} for name, box in pairs]
    return Photo(entry[names[file or 0]], where, tags, objects)


def _texts(value: Any) -> list[str]:
    """Return classes as texts; a number is a class without a name."""
    values = value if isinstance(value, list) else [value]
    return [str(name) for name in values if name not in (None, "")]


LAYOUT = Layout("Hugging Face", "metadata.jsonl", _matches, _read)
