"""COCO instances, also as Roboflow, CVAT and Label Studio export them."""

from __future__ import annotations

import mmap
from collections.abc import Iterable

from wsis.data.index import read_coco
from wsis.layouts.labels import Labels, Layout, Photo, Source
from wsis.types import Index, Record

__all__ = ["LAYOUT"]


def _matches(source: Source) -> bool:
    """Look for COCO's lists anywhere in the file, which may be too large to parse twice."""
    if source.suffix != ".json" or not source.head.startswith("{"):
        return False
    try:
        with source.path.open("rb") as file:
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError):
        return False
    with content:
        has = {
            key: content.find(f'"{key}"'.encode(source.encoding)) >= 0
            for key in ("images", "annotations", "categories", "segments_info")
        }
    return not has.pop("segments_info") and all(has.values())  # captions have no categories


def _read(source: Source) -> Labels:
    index = read_coco(source.path, source.path.parent, name="folder", check_images=False)
    categories, notes = _without_dummy(index)
    name = {category["id"]: category["name"] for category in index.categories}
    photos = []
    for image in index.images:
        found = index.annotations[image["id"]]
        tags = [index.categories[place]["name"] for place in index.tags[image["id"]]]
        photos.append(
            Photo(
                image["file_name"],
                f"{source.path}: image {image['id']}",
                tags,
                [{"name": name[a["category_id"]], **_without_category(a)} for a in found],
                (image["height"], image["width"]),
                id=image["id"],
                complete=_named(index, image["id"]),
            )
        )
    return Labels(photos, source.path.parent, categories, notes)


def _named(index: Index, image: int) -> list[str] | None:
    """Return the names of the complete classes of an image; None if all are."""
    places = index.complete.get(image)
    return None if places is None else [index.categories[place]["name"] for place in places]


def _without_dummy(index: Index) -> tuple[list[Record], list[str]]:
    """Leave out the category 0 without annotations that Roboflow names after the project."""
    used = _used(index.tags.values())
    first = next((n for n, c in enumerate(index.categories) if c["id"] == 0), None)
    if first is None or first in used or not used:
        return index.categories, []
    name = index.categories[first]["name"]
    rest = [category for category in index.categories if category["id"] != 0]
    return rest, [f'category 0, "{name}", has no annotation and is left out']


def _used(tags: Iterable[Iterable[int]]) -> set[int]:
    return {place for present in tags for place in present}


def _without_category(annotation: Record) -> Record:
    return {key: value for key, value in annotation.items() if key != "category_id"}


LAYOUT = Layout("COCO", "labels.json", _matches, _read)
