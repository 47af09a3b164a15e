"""The part of an image's label that a sample may know: nothing else is stored for training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet

from wsis.data.targets import FIELDS, Field
from wsis.types import Index, Record, class_of

__all__ = ["record_of", "unseen"]


def record_of(
    index: Index, image: Record, supervision: Iterable[str], truth: bool = False
) -> Record:
    """Return an image's file entry and the parts of its label that the fields may use.

    Args:
        index: The data set.
        image: The image's entry in the index.
        supervision: Names of fields.
        truth: Whether to add all annotations as `truth`, for evaluation.
    """
    number, fields = image["id"], [FIELDS[name] for name in supervision]
    found = index.annotations.get(number, [])
    seen = _known_to(fields, found)
    keys = {key for field in fields for key in field.keys}
    image_keys = {key for field in fields for key in field.image_keys}
    label = {key: getattr(index, key).get(number) for key in image_keys}
    if "complete" in image_keys:
        label["complete"] = _complete(index, number, seen)
    record = {"image": image, "annotations": [_only(a, keys) for a in seen], **label}
    return {**record, "truth": found} if truth else record


def unseen(index: Index, supervision: AbstractSet[str]) -> int:
    """Return the number of objects that no field with a row per object knows.

    To a method on these fields they are background, unless it learns what is `complete`; 0 if no
    field has a row per object.
    """
    fields = [FIELDS[name] for name in supervision]
    if "complete" in supervision or not any(field.keys for field in fields):
        return 0
    found = index.annotations.values()
    return sum(len(those) - len(_known_to(fields, those)) for those in found)


def _known_to(fields: Sequence[Field], annotations: list[Record]) -> list[Record]:
    """Return the annotations that any of the fields with rows knows."""
    rows = [field for field in fields if field.keys]
    needed = [field.needed for field in rows if field.needed]
    if len(needed) < len(rows):
        return annotations
    return [a for a in annotations if any(a.get(key) for key in needed)]


def _complete(index: Index, image: int, seen: Sequence[Record]) -> list[int]:
    """Return the classes of which all objects in an image are among the annotations `seen`."""
    position = class_of(index.categories)
    total = Counter(a["category_id"] for a in index.annotations.get(image, ()))
    rows = Counter(a["category_id"] for a in seen)
    hidden = {position[category] for category in total - rows}
    placed = {position[category] for category in rows}
    unplaced = {*(index.tags.get(image) or ())} - placed
    known = index.complete.get(image, range(len(position)))
    return sorted({*known} - hidden - unplaced)


def _only(annotation: Record, keys: set[str]) -> Record:
    return {key: value for key, value in annotation.items() if key in keys}
