"""Make an index of labels: find the images, settle the classes, check and scale the objects."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from pycocotools import mask as rle

from wsis.coco.points import checked_points
from wsis.data.index import drop_empty, refuse_fractions
from wsis.errors import InputError
from wsis.images.read import image_sizes, unreadable
from wsis.layouts.labels import Labels, Photo
from wsis.layouts.pictures import Pictures
from wsis.layouts.shapes import around
from wsis.layouts.text import counted, tidy
from wsis.registry import suggest
from wsis.types import Index, Record

__all__ = ["NEGATIVES", "chosen_names", "index_of", "photos_by_file"]

# fmt: off
NEGATIVES = frozenset({
    "_none", "none", "_negative", "negative", "negatives", "_background", "background", "nothing",
    "empty", "nan", "n/a", "null",
})
# fmt: on
"""Tags and folders of images that have none of the classes, in lower case."""
CELL_ERRORS = frozenset({"#N/A", "#REF!", "#VALUE!", "#NAME?", "#DIV/0!", "#NULL!", "#NUM!"})
"""What spreadsheets write where a formula failed."""
SHOWN = 5
"""Most names that a note lists."""


def index_of(
    labels: Labels,
    pictures: Pictures,
    source: Path,
    classes: Sequence[str] = (),
    known: Sequence[Record] = (),
    tolerant: bool = False,
) -> Index:
    """Make an index of labels.

    Args:
        labels: what a reader returned.
        pictures: those of the data set's folder.
        source: file or folder of the labels, for messages.
        classes: the classes in order; labels of others are left out. Empty takes all.
        known: the categories of the training set, for validation, which has their ids. Another tag
            is an error, in case it is misspelt; of files that list their classes, labels of others
            are left out.
        tolerant: whether to leave out images that cannot be read, which the index then lists.

    Raises:
        InputError: an image is missing, broken or of another size than its labels; a class is not
            known; a box or polygon is no numbers or far outside the image, or a point outside of
            it; or there are no labels.
    """
    chosen = chosen_names(classes, known)
    photos, negatives = _without_negatives(photos_by_file(labels, pictures), chosen)
    found = Counter(name for photo in photos.values() for name in _names(photo))
    if not known:
        _refuse_nothing(found, chosen, source)
    elif not classes and not labels.categories:
        _refuse_unknown(photos, chosen)
    categories = list(known) or _categories(labels, found, chosen)
    left_out = unreadable(pictures.root, list(photos)) if tolerant else {}
    photos = {file: photo for file, photo in photos.items() if file not in left_out}
    if left_out and not photos:
        reason = next(iter(left_out.values()))
        raise InputError(f"none of the images of {source} can be read: {reason}")
    images, annotations, tags, complete = _records(photos, pictures.root, categories)
    if not any(photo.relative for photo in photos.values()):
        refuse_fractions(chain.from_iterable(annotations.values()), source)
    absent = _absent(found, () if known else chosen)
    return Index(
        name="folder",
        root=pictures.root,
        images=images,
        categories=categories,
        annotations=drop_empty(annotations, images, source),
        tags=tags,
        complete=complete,
        notes=(*labels.notes, *negatives, *_left_out(found, chosen), *absent),
        unreadable=left_out,
    )


def _records(
    photos: Mapping[str, Photo], root: Path, categories: Sequence[Record]
) -> tuple[list[Record], dict[int, list[Record]], dict[int, list[int]], dict[int, list[int]]]:
    """Return the images, and the annotations, tags and complete classes by image."""
    number = {category["name"]: category["id"] for category in categories}
    position = {name: place for place, name in enumerate(number)}
    images: list[Record] = []
    annotations: dict[int, list[Record]] = {}
    tags: dict[int, list[int]] = {}
    complete: dict[int, list[int]] = {}
    for n, (file, photo) in enumerate(photos.items(), 1):
        height, width = _size(root / file, photo)
        image: Record = {"id": n if photo.id is None else photo.id, "file_name": file}
        image |= {"height": height, "width": width}
        images.append(image)
        annotations[image["id"]] = _annotations(photo, image, number)
        tags[image["id"]] = sorted(position[name] for name in _names(photo) & position.keys())
        whole = position.keys() - _unplaced(photo, annotations[image["id"]], number)
        if len(whole) < len(position):
            complete[image["id"]] = sorted(position[name] for name in whole)
    return images, annotations, tags, complete


def _unplaced(photo: Photo, placed: Iterable[Record], number: Mapping[str, int]) -> set[str]:
    """Return the classes of which the file says that objects are not labelled, or not their place.

    Args:
        photo: the labels of an image.
        placed: its annotations.
        number: category id of each class.
    """
    rows, all_of = (
        Counter(a["category_id"] for a in placed),
        Counter(a["name"] for a in photo.objects),
    )
    loose = {name for name in number if all_of[name] > rows[number[name]]}
    return loose if photo.complete is None else loose | (number.keys() - {*photo.complete})


def photos_by_file(labels: Labels, pictures: Pictures) -> dict[str, Photo]:
    """Return the labels by file, joined where a file is named more than once, with tidy names.

    Raises:
        InputError: an image is not found, or a label has no class.
    """
    photos: dict[str, Photo] = {}
    for photo in labels.photos:
        file = pictures.find(photo.file, labels.folder, photo.where)
        tags = [_named(tag, photo) for tag in photo.tags]
        objects = [{**a, "name": _named(a["name"], photo)} for a in photo.objects]
        if file in photos:
            first = photos[file]
            if first.size != photo.size:
                raise InputError(f"{photo.where}: {file} has two sizes; export the labels again")
            tags, objects = [*first.tags, *tags], [*first.objects, *objects]
            photo = first
        photos[file] = photo._replace(tags=tags, objects=objects)
    numbers = {photo.id for photo in photos.values()}
    if None in numbers or len(numbers) < len(photos):
        return {file: photo._replace(id=None) for file, photo in photos.items()}
    return photos


def _without_negatives(
    photos: Mapping[str, Photo], chosen: Sequence[str]
) -> tuple[dict[str, Photo], list[str]]:
    """Drop tags that say that there is nothing, unless they are chosen as classes; note them."""
    words = NEGATIVES - {name.casefold() for name in chosen}
    dropped: Counter[str] = Counter()
    kept = {}
    for file, photo in photos.items():
        nothing = {tag for tag in photo.tags if tag.casefold() in words and not photo.objects}
        dropped.update(nothing)
        kept[file] = photo._replace(tags=[tag for tag in photo.tags if tag not in nothing])
    return kept, [
        f'"{tag}" of {counted(count, "image")} is read as none of the classes'
        for tag, count in dropped.items()
    ]


def chosen_names(classes: Sequence[str], known: Sequence[Record]) -> list[str]:
    """Return the names of the classes that labels may have: the known ones, else those given."""
    return [category["name"] for category in known] or [tidy(name) for name in classes]


def _named(name: Any, photo: Photo) -> str:
    if not isinstance(name, str) or not tidy(name):
        raise InputError(f"{photo.where}: a label has no class but {name!r}; give it one")
    if name.strip().upper() in CELL_ERRORS:
        raise InputError(f"{photo.where}: {name} is an error of the spreadsheet; mend the cell")
    return tidy(name)


def _names(photo: Photo) -> set[str]:
    return {*photo.tags, *(annotation["name"] for annotation in photo.objects)}


def _categories(labels: Labels, found: Iterable[str], chosen: Sequence[str]) -> list[Record]:
    """Return id and name of the classes: those chosen, else the file's, else the sorted names."""
    listed = {tidy(category["name"]): category["id"] for category in reversed(labels.categories)}
    ordered = [tidy(category["name"]) for category in labels.categories]
    names = list(dict.fromkeys(chosen or [*ordered, *sorted(set(found) - listed.keys())]))
    if all(name in listed for name in names):
        return [{"id": listed[name], "name": name} for name in names]
    return [{"id": number, "name": name} for number, name in enumerate(names, 1)]


def _refuse_nothing(found: Mapping[str, int], chosen: Sequence[str], source: Path) -> None:
    """Raise InputError for a training set without a label, or without one that is chosen."""
    if not found:
        raise InputError(f"{source} has no label; nothing can be learned from it, add some")
    if chosen and not found.keys() & set(chosen):
        raise InputError(
            f"{source} has none of the classes {_listed(chosen)}; it has {_listed(sorted(found))}"
        )


def _refuse_unknown(photos: Mapping[str, Photo], known: Sequence[str]) -> None:
    for photo in photos.values():
        for name in sorted(_names(photo) - set(known)):
            raise InputError(f'{photo.where}: unknown tag "{name}"{_meant(name, known)}')


def _left_out(found: Mapping[str, int], chosen: Sequence[str]) -> list[str]:
    """Return a note on labels of classes that are not chosen."""
    others = sorted(found.keys() - set(chosen)) if chosen else []
    counts = _listed([f"{name} ({counted(found[name], 'image')})" for name in others])
    return [f"labels of other classes are left out: {counts}"] if others else []


def _absent(found: Mapping[str, int], chosen: Sequence[str]) -> list[str]:
    """Return a note on chosen classes without a label."""
    absent = [name for name in chosen if name not in found]
    if not absent:
        return []
    return [f"no image has {_listed(absent)}{_meant(absent[0], found)}"]


def _meant(name: str, names: Iterable[str]) -> str:
    """Return which of the names was probably meant, or all of them."""
    return suggest(name, names) or f"; the classes are {', '.join(names)}"


def _listed(words: Sequence[str]) -> str:
    return ", ".join(words[:SHOWN]) + (", ..." if len(words) > SHOWN else "")


def _size(path: Path, photo: Photo) -> tuple[int, int]:
    """Return (H, W) of an image as it was labelled, which may be before it is turned upright."""
    size, stored = image_sizes(path)
    if photo.size is None or photo.size in (size, stored):
        return photo.size or size
    (height, width), (tall, wide) = size, photo.size
    raise InputError(
        f"{photo.where}: {os.path.basename(path)} is labelled at {wide} x {tall} pixels but has "
        f"{width} x {height}; use the image that was labelled"
    )


def _annotations(photo: Photo, image: Record, number: Mapping[str, int]) -> list[Record]:
    """Return the annotations of the given classes in pixels, checked, with box and category id.

    What is neither a box, an area nor a point, such as a line, is a tag alone.
    """
    scale = (image["width"], image["height"]) if photo.relative else (1, 1)
    size = image["height"], image["width"]
    result = []
    for given in photo.objects:
        annotation = {"iscrowd": 0, **given}
        name = annotation.pop("name")
        mask = annotation.get("segmentation")
        if isinstance(mask, list):
            mask = [_scaled(polygon, scale, image, photo) for polygon in mask if len(polygon) >= 6]
            annotation["segmentation"] = mask or None
        if annotation.get("bbox") is not None:
            annotation["bbox"] = _scaled(annotation["bbox"], scale, image, photo)
        elif mask:
            is_polygon = isinstance(mask, list)
            annotation["bbox"] = around(mask) if is_polygon else rle.toBbox(mask).tolist()
        if points := annotation.get("points"):
            scaled = [[*_scaled((x, y), scale, image, photo), sign] for x, y, sign in points]
            annotation["points"] = checked_points(scaled, size, photo.where)
        if name in number and (points or annotation.get("bbox") is not None):
            result.append({**annotation, "category_id": number[name]})
    return result


def _scaled(
    values: Sequence[float], scale: tuple[float, float], image: Record, photo: Photo
) -> list[float]:
    """Return coordinates x, y, ... in pixels.

    Raises:
        InputError: one is no number or far outside the image.
    """
    result = [float(value) * scale[n % 2] for n, value in enumerate(values)]
    for n, value in enumerate(result):
        side = image["height"] if n % 2 else image["width"]
        if not -side <= value <= 2 * side:
            raise InputError(
                f"{photo.where}: the coordinate {value:g} is far outside {image['file_name']} of "
                f"{image['width']} x {image['height']} pixels; mend the label"
            )
    return result
