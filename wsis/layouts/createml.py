"""Apple's Create ML: a json list of images with boxes around centres, or with labels alone."""

from __future__ import annotations

from wsis.layouts.labels import Labels, Layout, Photo, Source
from wsis.types import Record

__all__ = ["LAYOUT"]


def _matches(source: Source) -> bool:
    if source.suffix != ".json" or not source.head.startswith("["):
        return False
    return any(source.has(*keys) for keys in (("image", "annotations"), ("imagefilename",)))


def _read(source: Source) -> Labels:
    return Labels([_photo(entry, source) for entry in source.json], source.path.parent)


def _photo(entry: Record, source: Source) -> Photo:
    file = entry.get("image") or entry["imagefilename"]
    objects = entry["annotations"] if "annotations" in entry else entry.get("annotation", [])
    return Photo(file, f"{source.path}: {file}", objects=[_object(item) for item in objects])


def _object(item: Record) -> Record:
    if not item.get("coordinates"):
        return {"name": item["label"]}
    x, y, width, height = (float(item["coordinates"][key]) for key in ("x", "y", "width", "height"))
    return {"name": item["label"], "bbox": [x - width / 2, y - height / 2, width, height]}


LAYOUT = Layout("Create ML", "_annotations.createml.json", _matches, _read)
