"""Read and write COCO json files; every data set is held as an `Index`, which is checked here."""

from __future__ import annotations

import json
import os
import warnings
from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from pathlib import Path

from wsis.coco.objects import are_fractions, area_of, complete, covers
from wsis.coco.records import LARGEST, Panoptic, instances_with, read_records
from wsis.data.targets import FIELDS
from wsis.errors import InputError
from wsis.files import atomic_write
from wsis.images.panoptic import PanopticMaps
from wsis.images.read import image_size
from wsis.types import Index, Record, class_of

__all__ = [
    "drop_empty",
    "keep_images",
    "read_coco",
    "read_stuff",
    "refuse_fractions",
    "tags_of",
    "write_coco",
]

_COMPLETENESS = ("neg_category_ids", "not_exhaustive_category_ids")


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

    Tags include the class of every annotation, even if it has neither box, mask nor points or its
    box is dropped. Polygons with fewer than three corners are left out. A box that is missing or
    has no area in the image is that of the mask; an image's missing size is that of its file.

    A class is not complete in an image if an annotation of it is a tag alone, or by LVIS's fields:
    it is one of `not_exhaustive_category_ids`, or there are `neg_category_ids`, and it is neither
    among them nor annotated.

    Args:
        path: the instances json.
        images_dir: folder that `file_name` is relative to.
        categories: names to keep, in this order; None keeps all in the file's order.
        name: name of the index.
        check_images: check that every image file exists.

    Raises:
        InputError: unreadable json; a record with a fault; a missing or duplicate category, image
            or file; or a mask or point that is not one of its image.
    """
    keys = {key for field in FIELDS.values() for key in field.keys}
    content = read_records(path, instances_with(frozenset(keys)))
    kept = _select(content["categories"], categories, path)
    _refuse_duplicates(content["images"], ("id", "file_name"), "image", path)
    if check_images:
        check_files(content["images"], images_dir, path)
    images = [_sized(image, images_dir, path) for image in content["images"]]
    found = _by_image({**content, "images": images}, {c["id"] for c in kept}, path)
    return Index(
        name=name,
        root=images_dir,
        images=[_without_completeness(image) for image in images],
        categories=kept,
        annotations=drop_empty(_without_tags(found, path), images, path),
        tags=tags_of(found, kept),
        complete=_complete_classes(images, found, kept),
    )


def _by_image(content: Record, wanted: Container[int], path: Path) -> dict[int, list[Record]]:
    """Return the annotations of the wanted categories by image, each checked and complete."""
    refuse_fractions(content["annotations"], path)
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    known = {category["id"] for category in content["categories"]}
    found: dict[int, list[Record]] = {image: [] for image in sizes}
    for annotation in content["annotations"]:
        image = annotation["image_id"]
        _check_place(annotation, sizes, known, path)
        if annotation["category_id"] in wanted:
            complete(annotation, sizes[image], path)
            found[image].append(annotation)
    return found


def refuse_fractions(annotations: Iterable[Record], source: Path) -> None:
    """Raise InputError if boxes, polygons and points are fractions of the image, not pixels."""
    if are_fractions(annotations):
        raise InputError(
            f"{source}: all boxes, polygons and points lie between 0 and 1; multiply them by the "
            "width and height of the image, as the format has pixels"
        )


def write_coco(path: Path, index: Index) -> None:
    """Write `index` as a COCO instances file.

    Annotations get the ids 1, 2, ...; a missing area is that of the mask, or of the box. Where not
    all classes are complete, the image has LVIS's fields.
    """
    annotations: list[Record] = []
    for image in index.images:
        size = image["height"], image["width"]
        for annotation in index.annotations.get(image["id"], []):
            written = {"iscrowd": 0, **annotation, "image_id": image["id"]}
            if "area" not in annotation and annotation.get("bbox"):
                written["area"] = area_of(annotation, size)
            annotations.append({**written, "id": len(annotations) + 1})
    images = [{**image, **_completeness(image["id"], index)} for image in index.images]
    content = {"images": images, "annotations": annotations, "categories": index.categories}
    with atomic_write(path) as scratch:
        # compressed run lengths may be bytes
        scratch.write_text(json.dumps(content, default=bytes.decode))


def read_stuff(path: Path, index: Index) -> Index:
    """Add the stuff classes, stuff tags and panoptic maps of a COCO panoptic file to `index`.

    The maps are png files in a folder named like the json file. Things whose class `index` lacks
    are void.

    Raises:
        InputError: unreadable json, a record with a fault, or a missing or duplicate category.
    """
    content = read_records(path, Panoptic)
    categories, maps = content.get("categories", []), content["annotations"]
    _refuse_duplicates(categories, ("id", "name"), "category", path)
    _check_segments(maps, {category["id"] for category in categories}, path)
    stuff = [{"id": c["id"], "name": c["name"]} for c in categories if not c["isthing"]]
    position = class_of(stuff)
    tags = {
        a["image_id"]: sorted(
            {position[s["category_id"]] for s in a["segments_info"] if s["category_id"] in position}
        )
        for a in maps
    }
    classes = class_of([*index.categories, *stuff])
    return index._replace(
        stuff=stuff,
        stuff_tags={i["id"]: tags[i["id"]] for i in index.images if i["id"] in tags},
        panoptic=PanopticMaps(path.with_suffix(""), maps, classes, len(index.categories)),
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


def _has_area(annotation: Record, width: int, height: int, source: Path) -> bool:
    """Return whether an annotation's box covers part of an image; False for NaN.

    An object that is known by points alone counts as if it had one.
    """
    if annotation.get("points") and annotation.get("bbox") is None:
        return True
    try:
        return covers(annotation["bbox"], (height, width))
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{source}: annotation {annotation.get('id')} has no bbox [x, y, width, height]; add it"
        ) from error


def _select(categories: Sequence[Record], names: Sequence[str] | None, path: Path) -> list[Record]:
    _refuse_duplicates(categories, ("id", "name"), "category", path)
    by_name = {category["name"]: category for category in categories}
    unknown = [name for name in names or () if name not in by_name]
    if unknown:
        raise InputError(f'{path} has no category "{unknown[0]}"; it has {", ".join(by_name)}')
    return [by_name[name] for name in (by_name if names is None else names)]


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


def _sized(image: Record, folder: Path, path: Path) -> Record:
    """Return an image with its size, by default that of its file."""
    if not image.get("height") or not image.get("width"):
        try:
            height, width = image_size(folder / image["file_name"])
        except InputError as error:
            raise InputError(
                f"{path}: image {image['file_name']} has no height and width; give its size in "
                f"pixels, or the file ({error})"
            ) from error
        image = {**image, "height": height, "width": width}
    if image["height"] * image["width"] > LARGEST:
        raise InputError(
            f"{path}: image {image['file_name']} is {image['width']} x {image['height']}; give its "
            f"size in pixels, at most {LARGEST} in all"
        )
    return image


def _check_place(
    annotation: Record, images: Container[int], categories: Container[int], path: Path
) -> None:
    """Raise InputError if an annotation is of an unknown image or category."""
    place = f"{path}, annotation {annotation.get('id')!r}"
    image, category = annotation["image_id"], annotation["category_id"]
    if image not in images:
        raise InputError(f'{place}: it is of image {image}, which is not under "images"; add it')
    if category not in categories:
        raise InputError(f'{place}: it has category {category}, not under "categories"; add it')


def _check_segments(maps: Iterable[Record], categories: Container[int], path: Path) -> None:
    """Raise InputError for a segment of an unknown category."""
    for one in maps:
        for segment in one["segments_info"]:
            if segment["category_id"] not in categories:
                raise InputError(
                    f"{path}: segment {segment['id']} of image {one['image_id']} has category "
                    f'{segment["category_id"]}, not under "categories"; add it'
                )


def _without_tags(found: Mapping[int, list[Record]], path: Path) -> dict[int, list[Record]]:
    """Return the annotations of objects; warn if others, which are tags, are among them."""
    placed = {image: [a for a in those if _is_placed(a)] for image, those in found.items()}
    objects = sum(map(len, placed.values()))
    tags = sum(map(len, found.values())) - objects
    if objects and tags:
        warnings.warn(
            f"{path}: {tags} annotations have neither a box, a mask nor points, and are tags alone",
            stacklevel=3,
        )
    return placed


def _is_placed(annotation: Record) -> bool:
    return "bbox" in annotation or "points" in annotation


def _complete_classes(
    images: Iterable[Record], found: Mapping[int, list[Record]], categories: Sequence[Record]
) -> dict[int, list[int]]:
    """Return the complete classes (0-based, sorted) of images in which not all are complete."""
    position = class_of(categories)
    result = {}
    for image in images:
        annotations, absent = found[image["id"]], image.get("neg_category_ids")
        more = {a["category_id"] for a in annotations if not _is_placed(a)}
        more |= {*(image.get("not_exhaustive_category_ids") or ())}
        if absent is None and not more:
            continue
        whole = position.keys() - more
        if absent is not None:
            whole &= {*absent, *(a["category_id"] for a in annotations)}
        if len(whole) < len(position):
            result[image["id"]] = sorted(position[category] for category in whole)
    return result


def _completeness(image: int, index: Index) -> Record:
    """Return LVIS's fields of an image; none if all classes are complete."""
    if image not in index.complete:
        return {}
    whole = {index.categories[place]["id"] for place in index.complete[image]}
    annotated = {a["category_id"] for a in index.annotations.get(image, ())}
    return dict(
        zip(_COMPLETENESS, (sorted(whole - annotated), sorted(annotated - whole)), strict=True)
    )


def _without_completeness(image: Record) -> Record:
    """Return an image without LVIS's fields: training samples may not hold what they say."""
    return {key: value for key, value in image.items() if key not in _COMPLETENESS}


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def keep_images(index: Index, kept: set[int]) -> Index:
    """Keep only the images whose ids are in `kept`."""
    images = [image for image in index.images if image["id"] in kept]
    annotations = {image: found for image, found in index.annotations.items() if image in kept}
    tags, stuff_tags, complete = (
        {i: classes for i, classes in part.items() if i in kept}
        for part in (index.tags, index.stuff_tags, index.complete)
    )
    return index._replace(
        images=images,
        annotations=annotations,
        tags=tags,
        stuff_tags=stuff_tags,
        complete=complete,
    )
