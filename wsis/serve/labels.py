"""The label of one image as the page sends it: its tags, objects and refusals, checked."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Iterable, Sequence
from typing import Any, Required, TypedDict

import msgspec

from wsis.coco.masks import checked_mask
from wsis.coco.objects import covers
from wsis.coco.records import Flag, Name, RunLengths, describe_fault
from wsis.errors import InputError
from wsis.layouts.index import CELL_ERRORS, NEGATIVES
from wsis.layouts.text import tidy
from wsis.types import Record

__all__ = ["EMPTY", "Label", "LabelledObject", "Refusal", "check_class", "checked", "version_of"]

MOST = 1000
"""Most objects of an image."""
SEPARATORS = ";|,"
"""Characters that part tags in labels.csv."""


class LabelledObject(TypedDict, total=False):
    """An object: a class, and at least one of box, mask and points."""

    name: Required[Name]
    bbox: list[float]
    """[x, y, width, height] in pixels of the image."""
    segmentation: list[list[float]] | RunLengths
    points: list[list[float]]
    """[x, y, label]; label 1 is in the object, 0 outside of it."""
    iscrowd: Flag
    ignore: Flag
    bag: int
    score: float | None
    source: Any


class Refusal(TypedDict):
    """A place where there is no object of a class, whatever a model says."""

    name: Name
    point: list[float]
    """[x, y] in pixels of the image."""


class Label(TypedDict):
    """What is known of an image."""

    done: bool
    """Whether all is said: classes that are not in `tags` are absent."""
    tags: list[Name]
    """Classes in the image, in the order of the classes; those of all objects are among them."""
    objects: list[LabelledObject]
    refused: list[Refusal]


EMPTY: Label = {"done": False, "tags": [], "objects": [], "refused": []}
"""The label of an image that nobody has looked at."""


def version_of(label: Label) -> str:
    """Return a digest of a label: equal labels have equal versions, also after a restart."""
    return hashlib.sha256(msgspec.json.encode(label, order="sorted")).hexdigest()[:16]


def checked(given: Any, size: tuple[int, int], classes: Sequence[str], place: str) -> Label:
    """Return a label that may be stored: its tags in order, with those of its objects.

    Args:
        given: what a page sent, or a file holds.
        size: (height, width) of the image.
        classes: names of all classes.
        place: file name of the image, for messages.

    Raises:
        InputError: a field is missing, of the wrong type or out of the image; a class is unknown.
    """
    try:
        label: Label = msgspec.convert(given, Label)
    except msgspec.ValidationError as error:
        raise InputError(describe_fault(error, given, Label, place)) from error
    if len(label["objects"]) > MOST or len(label["refused"]) > MOST:
        raise InputError(f"{place}: more than {MOST} objects; label fewer")
    objects = [_checked_object(thing, size, place) for thing in label["objects"]]
    for refusal in label["refused"]:
        _check_point([*refusal["point"], 0], size, place)
    tags = {*label["tags"], *(thing["name"] for thing in objects)}
    _check_known({*tags, *(refusal["name"] for refusal in label["refused"])}, classes, place)
    ordered = [name for name in classes if name in tags]
    return {**label, "tags": ordered, "objects": objects}


def check_class(name: str, known: Collection[str]) -> str:
    """Return the name of a new class, tidied.

    Raises:
        InputError: it is there already, empty, or not a name that labels.csv can hold.
    """
    name = tidy(name)
    if not name or not name.isprintable() or len(name) > 100:
        raise InputError("the name of a class has 1 to 100 letters, without control characters")
    if set(name) & set(SEPARATORS):
        raise InputError(f'"{name}": the name of a class cannot have , ; or |, which part tags')
    if name.casefold() in NEGATIVES or name.upper() in CELL_ERRORS:
        raise InputError(f'"{name}" says that an image has no class; choose another name')
    if name in known:
        raise InputError(f'there is a class "{name}" already')
    return name


def _check_known(names: Iterable[str], classes: Sequence[str], place: str) -> None:
    for name in sorted(set(names) - {*classes}):
        raise InputError(f'{place}: unknown class "{name}"; the classes are {", ".join(classes)}')


def _checked_object(thing: LabelledObject, size: tuple[int, int], place: str) -> LabelledObject:
    """Return an object with fields that can be read again, without those that are empty.

    Raises:
        InputError: a box, mask or point is not one of the image, or there is none of them.
    """
    kept: Record = {key: value for key, value in thing.items() if value not in (None, [])}
    kept = {key: value for key, value in kept.items() if value or key not in ("iscrowd", "ignore")}
    if "bbox" in kept:
        box = kept["bbox"]
        if len(box) != 4 or not all(map(math.isfinite, box)) or not covers(box, size):
            raise InputError(f"{place}: {box[:5]} is not a box [x, y, width, height] in the image")
    if "segmentation" in kept:
        kept["segmentation"] = checked_mask(kept["segmentation"], size, place)
        if kept["segmentation"] is None:
            raise InputError(f"{place}: no polygon has three corners")
    points = kept.get("points", [])
    for point in points:
        _check_point(point, size, place)
    if not kept.keys() & {"bbox", "segmentation"} and not any(label for _, _, label in points):
        raise InputError(f"{place}: an object has neither a box, nor a mask, nor a point in it")
    return kept  # type: ignore[return-value]


def _check_point(point: Sequence[float], size: tuple[int, int], place: str) -> None:
    height, width = size
    inside = len(point) == 3 and 0 <= point[0] < width and 0 <= point[1] < height
    if not inside or point[2] not in (0, 1):
        raise InputError(f"{place}: {list(point)[:4]} is not a point [x, y, 0 or 1] in the image")
