"""Read and write COCO json files; every data set is held as an `Index`, which is checked here."""

from __future__ import annotations

import json
import math
import os
import reprlib
import warnings
from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from wsis.errors import InputError
from wsis.files import atomic_write, read_lists
from wsis.images.panoptic import PanopticMaps
from wsis.types import Index, Record, class_of

__all__ = [
    "drop_empty",
    "keep_images",
    "read_coco",
    "read_stuff",
    "tags_of",
    "write_coco",
]


def tags_of(
    annotations: Mapping[int, Iterable[Record]], categories: Iterable[Record]
) -> dict[int, list[int]]:
    """Return the classes (0-based positions, sorted) among each image's annotations."""
    position = class_of(categories)
    return {
        image: sorted({position[a["category_id"]] for a in found})
        for image, found in annotations.items()
    }


def read_coco(
    path: Path,
    images_dir: Path,
    categories: Sequence[str] | None = None,
    *,
    name: str = "coco",
    check_images: bool = True,
) -> Index:
    """Read a COCO instances file.

    Tags include the class of every annotation, even if its box is dropped, so they never depend on
    boxes. Polygons with fewer than three corners are left out.

    Args:
        path: the instances json.
        images_dir: folder that `file_name` is relative to.
        categories: names to keep, in this order; None keeps all in the file's order.
        name: name of the index.
        check_images: check that every image file exists.

    Raises:
        InputError: unreadable json; a missing or duplicate category, image or file; or a mask whose
            size differs from its image's.
    """
    content = read_lists(path, ("images", "annotations", "categories"))
    kept = _select(content["categories"], categories, path)
    known, wanted = {c["id"] for c in content["categories"]}, class_of(kept)
    images = [_image(record, path) for record in content["images"]]
    _refuse_duplicates(images, ("id", "file_name"), "image", path)
    sizes = {image["id"]: [image["height"], image["width"]] for image in images}
    if check_images:
        check_files(images, images_dir, path)
    found: dict[int, list[Record]] = {image["id"]: [] for image in images}
    for annotation in content["annotations"]:
        image, category = _place(annotation, sizes, known, path)
        if category in wanted:
            found[image].append(_with_usable_mask(annotation, sizes[image], path))
    tags = tags_of(found, kept)
    return Index(
        name=name,
        root=images_dir,
        images=images,
        categories=kept,
        annotations=drop_empty(found, images, path),
        tags=tags,
    )


def write_coco(path: Path, index: Index) -> None:
    """Write `index` as a COCO instances file.

    Annotations get the ids 1, 2, ...; a missing area is the area of the box.
    """
    annotations: list[Record] = []
    for image in index.images:
        for annotation in index.annotations.get(image["id"], []):
            complete = {
                "area": annotation["bbox"][2] * annotation["bbox"][3],
                "iscrowd": 0,
                **annotation,
            }
            annotations.append({**complete, "id": len(annotations) + 1, "image_id": image["id"]})
    content = {"images": index.images, "annotations": annotations, "categories": index.categories}
    with atomic_write(path) as scratch:
        # compressed run lengths may be bytes
        scratch.write_text(json.dumps(content, default=bytes.decode))


def read_stuff(path: Path, index: Index) -> Index:
    """Add the stuff classes, stuff tags and panoptic maps of a COCO panoptic file to `index`.

    The maps are png files in a folder named like the json file. Things whose class `index` lacks
    are void.
    """
    content = read_lists(path, ("annotations", "categories"))
    stuff = [{"id": c["id"], "name": c["name"]} for c in content["categories"] if not c["isthing"]]
    position = class_of(stuff)
    tags = {
        a["image_id"]: sorted(
            {position[s["category_id"]] for s in a["segments_info"] if s["category_id"] in position}
        )
        for a in content["annotations"]
    }
    classes = class_of([*index.categories, *stuff])
    return index._replace(
        stuff=stuff,
        stuff_tags={i["id"]: tags[i["id"]] for i in index.images if i["id"] in tags},
        panoptic=PanopticMaps(
            path.with_suffix(""), content["annotations"], classes, len(index.categories)
        ),
    )


def check_files(images: Sequence[Record], folder: Path, source: Path) -> None:
    """Raise InputError if images of a list are missing from `folder`."""
    folders = {os.path.dirname(image["file_name"]) for image in images}
    present = {os.path.join(f, name) for f in folders for name in _names(folder / f)}
    absent = [image["file_name"] for image in images if image["file_name"] not in present]
    if absent:
        more = f" and {len(absent) - 1} more" if len(absent) > 1 else ""
        raise InputError(
            f"{source} names {absent[0]}{more}, not found in {folder}; add the images or remove "
            "them from the list"
        )


def drop_empty(
    annotations: Mapping[int, list[Record]], images: Sequence[Record], source: Path
) -> dict[int, list[Record]]:
    """Drop annotations whose box has no area in the image, and warn once with their number.

    Raises:
        InputError: an annotation without a box.
    """
    kept = {
        image["id"]: [
            a
            for a in annotations[image["id"]]
            if _has_area(a, image["width"], image["height"], source)
        ]
        for image in images
    }
    dropped = sum(map(len, annotations.values())) - sum(map(len, kept.values()))
    if dropped:
        warnings.warn(
            f"{source}: {dropped} annotations with a box of no area in the image are left out",
            stacklevel=3,
        )
    return kept


def _has_area(annotation: Record, width: float, height: float, source: Path) -> bool:
    """Return whether an annotation's box covers part of an image; False for NaN."""
    try:
        x, y, w, h = annotation["bbox"]
        return bool(0 < w < math.inf and 0 < h < math.inf and -w < x < width and -h < y < height)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{source}: annotation {annotation.get('id')} has no bbox [x, y, width, height]; add it"
        ) from error


def _select(
    all_categories: Sequence[Record], names: Sequence[str] | None, path: Path
) -> list[Record]:
    categories = [_category(record, path) for record in all_categories]
    _refuse_duplicates(categories, ("id", "name"), "category", path)
    if names is None:
        return categories
    by_name = {c["name"]: c for c in categories}
    unknown = [name for name in names if name not in by_name]
    if unknown:
        raise InputError(f'{path} has no category "{unknown[0]}"; it has {", ".join(by_name)}')
    return [by_name[name] for name in names]


def _image(record: Record, path: Path) -> Record:
    try:
        image = {key: record[key] for key in ("id", "file_name", "height", "width")}
    except (KeyError, TypeError) as error:
        raise InputError(
            f"{path}: image {record} has no {error}; an image has id, file_name, height, width"
        ) from error
    if not isinstance(image["id"], int) or not isinstance(image["file_name"], str):
        raise InputError(
            f"{path}: image {image['file_name']!r} has the id {image['id']!r}; name the file and "
            "number the images"
        )
    sides = image["height"], image["width"]
    if not all(isinstance(side, (int, float)) and side > 0 and side % 1 == 0 for side in sides):
        raise InputError(
            f"{path}: image {image['file_name']} is {image['width']} x {image['height']}; give "
            "its size in pixels"
        )
    return {**image, "height": int(sides[0]), "width": int(sides[1])}


def _category(record: Any, path: Path) -> Record:
    if (
        not isinstance(record, dict)
        or not isinstance(record.get("id"), int)
        or not isinstance(record.get("name"), str)
    ):
        raise InputError(f"{path}: category {record!r} needs a number as id and a name; add them")
    return {"id": record["id"], "name": record["name"]}


def _refuse_duplicates(
    records: Sequence[Record], keys: Sequence[str], what: str, path: Path
) -> None:
    for key in keys:
        twice = [
            value
            for value, count in Counter(record[key] for record in records).items()
            if count > 1
        ]
        if twice:
            raise InputError(f"{path}: {what} {key} {twice[0]} is there twice; keep one of them")


def _place(
    annotation: Any, images: Container[int], categories: Container[int], path: Path
) -> tuple[int, int]:
    """Return the image and category ids of an annotation; both must be known."""
    try:
        number, image, category = (annotation.get(key) for key in ("id", "image_id", "category_id"))
        there, named = image in images, category in categories
    except (AttributeError, TypeError) as error:
        raise InputError(
            f"{path}: {reprlib.repr(annotation)} is no annotation with image_id and category_id; "
            "mend it"
        ) from error
    if not there:
        raise InputError(
            f'{path}: annotation {number} is of image {image}, which is not under "images"; add it'
        )
    if not named:
        raise InputError(
            f'{path}: annotation {number} has category {category}, not under "categories"; add it'
        )
    return image, category


def _with_usable_mask(annotation: Record, size: list[int], path: Path) -> Record:
    """Return an annotation without degenerate polygons.

    Raises:
        InputError: the mask is malformed or its size differs from the image's.
    """
    mask, number = annotation.get("segmentation"), annotation.get("id")
    if not mask:
        return annotation
    if isinstance(mask, dict) and isinstance(mask.get("counts"), (str, list)):
        if mask.get("size") != size:
            raise InputError(
                f"{path}: the mask of annotation {number} is {mask.get('size')}, but its image is "
                f"{size} (height, width); make masks at the image's size"
            )
        return annotation
    if not isinstance(mask, list) or not all(map(_is_polygon, mask)):
        raise InputError(
            f"{path}: the mask of annotation {number} is neither polygons [[x, y, x, y, ...]] nor "
            "run lengths; mend it"
        )
    usable = [polygon for polygon in mask if len(polygon) >= 6]
    return (
        annotation if len(usable) == len(mask) else {**annotation, "segmentation": usable or None}
    )


def _is_polygon(value: Any) -> bool:
    """Return whether a value is a list of an even number of finite coordinates."""
    try:
        return isinstance(value, list) and len(value) % 2 == 0 and math.isfinite(sum(value))
    except TypeError:
        return False


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def keep_images(index: Index, kept: set[int]) -> Index:
    """Keep only the images whose ids are in `kept`."""
    images = [image for image in index.images if image["id"] in kept]
    annotations = {image: found for image, found in index.annotations.items() if image in kept}
    tags, stuff_tags = (
        {i: t for i, t in part.items() if i in kept} for part in (index.tags, index.stuff_tags)
    )
    return index._replace(images=images, annotations=annotations, tags=tags, stuff_tags=stuff_tags)
