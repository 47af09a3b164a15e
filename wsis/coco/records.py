"""The records of COCO's instances, results, panoptic and caption files, checked as they are parsed.

A file is decoded into plain dicts with the fields below; other fields are left out. Numbers written
as text are numbers, as are NaN and Infinity where a field may be any number.
"""

from __future__ import annotations

import gc
import json
import os
import re
import reprlib
from functools import cache
from types import GenericAlias
from typing import Annotated, Any, Required, TypedDict, get_origin, get_type_hints

import msgspec
from msgspec import Meta

from wsis.errors import InputError
from wsis.files import not_whole_json, read_bytes

__all__ = [
    "LARGEST",
    "Captions",
    "Detections",
    "Instances",
    "Panoptic",
    "RunLengths",
    "Sources",
    "describe_fault",
    "instances_with",
    "read_records",
]

LARGEST = 178_956_970
"""Most pixels of an image; Pillow opens no larger one."""

Id = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
Side = Annotated[int, Meta(ge=0, le=LARGEST)]
Run = Annotated[int, Meta(ge=0, le=LARGEST)]
Flag = int | bool | None
# no control characters, line breaks or halves of characters: paths and messages cannot have them
_PLAIN = r"^[^\x00-\x1f\x7f\x85\u2028\u2029\ud800-\udfff]+\Z"
Name = Annotated[str, Meta(pattern=_PLAIN)]


class RunLengths(TypedDict):
    """A mask as run lengths down the columns, background first."""

    size: Annotated[list[Side], Meta(min_length=2, max_length=2)]
    counts: list[Run] | str


class Image(TypedDict, total=False):
    """An image; a size that is missing or 0 is that of the file.

    LVIS (Gupta et al., CVPR 2019) lists the classes that are known to be absent, and those that may
    have more objects than are annotated.
    """

    id: Required[Id]
    file_name: Required[Name]
    height: Side | None
    width: Side | None
    neg_category_ids: list[Id] | None
    not_exhaustive_category_ids: list[Id] | None


class Category(TypedDict):
    """A class."""

    id: Id
    name: Name


class Annotation(TypedDict, total=False):
    """An object; without box, mask and points it is a tag."""

    id: int | str | None
    image_id: Required[Id]
    category_id: Required[Id]
    bbox: list[float] | None
    segmentation: list[list[float]] | RunLengths | None
    points: list[list[float]] | None
    point: list[float] | None
    point_coords: list[list[float]] | None
    point_labels: list[float] | None
    area: float | None
    iscrowd: Flag
    ignore: Flag
    score: float | None
    bag: Id
    source: Any


class Instances(TypedDict):
    """An instances file."""

    images: list[Image]
    annotations: list[Annotation]
    categories: list[Category]


class Detection(TypedDict, total=False):
    """A detection, with a box, a mask or both."""

    image_id: Required[Id]
    category_id: Required[Id]
    score: Required[float]
    bbox: list[float] | None
    segmentation: RunLengths | None


Detections = list[Detection]
"""A results file."""


class Segment(TypedDict, total=False):
    """A segment of a panoptic map; its id is the pixels' colour, 24 bits."""

    id: Required[Annotated[int, Meta(ge=0, lt=1 << 24)]]
    category_id: Required[Id]
    iscrowd: Flag


class Map(TypedDict):
    """A panoptic map of an image."""

    image_id: Id
    file_name: Name
    segments_info: list[Segment]


class PanopticCategory(Category):
    """A class of things or of stuff."""

    isthing: int | bool


class Panoptic(TypedDict, total=False):
    """A panoptic file; results need no categories."""

    annotations: Required[list[Map]]
    categories: list[PanopticCategory]


class Caption(TypedDict):
    """A caption."""

    image_id: Id
    caption: str


class Captions(TypedDict):
    """A captions file."""

    annotations: list[Caption]


class Source(TypedDict, total=False):
    """An annotation's source."""

    source: Any


class Sources(TypedDict, total=False):
    """The sources of the annotations of an instances file."""

    annotations: list[Source]


@cache
def instances_with(keys: frozenset[str]) -> Any:
    """Return the schema `Instances` with more fields of annotations, which may hold anything."""
    typed_dict: Any = TypedDict  # type checkers do not know fields that are made here
    known = get_type_hints(Annotation, include_extras=True)
    fields = {**dict.fromkeys(keys, Any), **known}
    annotation = typed_dict("Annotation", fields, total=False)
    lists = {**get_type_hints(Instances), "annotations": GenericAlias(list, annotation)}
    return typed_dict("Instances", lists)


def read_records(path: str | os.PathLike[str], schema: Any) -> Any:
    """Read a COCO file.

    Args:
        path: the json.
        schema: `Instances`, `Detections`, `Panoptic`, `Captions`, or `instances_with`.

    Raises:
        InputError: no such file, not json, or a record with a fault, whose place and value it says.
    """
    data = read_bytes(path)
    collects = gc.isenabled()
    gc.disable()  # each collection would look through all records so far, none of which is garbage
    try:
        return msgspec.json.decode(data, type=schema, strict=False)
    except (ValueError, RecursionError):
        return _read_slowly(path, data, schema)
    finally:
        if collects:
            gc.enable()


def describe_fault(error: msgspec.ValidationError, content: Any, schema: Any, place: str) -> str:
    """Return one line on a record with a fault: where it is, its value and what is expected.

    Args:
        error: what msgspec says.
        content: what was validated.
        schema: what it should have been.
        place: where the content is, for people.
    """
    says, _, where = str(error).partition(" - at `$")
    where = where.rstrip("`").lstrip(".")
    whole = not where
    for key in re.findall(r"\[(\d+)\]|(\w+)", where):
        content = content[int(key[0])] if key[0] else content[key[1]]
    if first := re.match(r"\[(\d+)\]\.?", where):
        place, where = f"{place}, result {int(first[1]) + 1}", where[first.end() :]
    place, value = f"{place}: {where}" if where else place, reprlib.repr(content)
    if missing := re.search("required field `(.*)`", says):
        return f"{place} has no {missing[1]}{'' if whole else f': {value}'}; add it"
    if whole:
        keys = "" if get_origin(schema) else f" with {', '.join(get_type_hints(schema))}"
        return f"{place} is a json {type(content).__name__}; {_in_words(says)}{keys}"
    return f"{place} is {value}; {_in_words(says)}"


def _read_slowly(path: str | os.PathLike[str], data: bytes, schema: Any) -> Any:
    """Read what Python's json takes, too (NaN, UTF-16, a byte order mark), or say what is wrong."""
    try:
        content = json.loads(data)
        return msgspec.convert(content, schema, strict=False)
    except msgspec.ValidationError as error:
        raise InputError(describe_fault(error, content, schema, str(path))) from error
    except RecursionError as error:
        raise InputError(f"{path} is nested too deeply for a COCO file; give one") from error
    except ValueError as error:
        raise not_whole_json(path, error) from error


def _in_words(says: str) -> str:
    """Return what msgspec expects in plain words: "Expected `int`, got `str`" -> "expected ..."."""
    if "regex" in says:
        return "expected text without control characters"
    if "Expected" not in says:
        return says.lower()
    words = {"Expected": "expected", "int": "a whole number", "float": "a number", "str": "text"}
    words |= {"array": "a list", "object": "an object", "bool": "true or false", "|": "or"}
    parts = says.partition(", got")[0].replace(" | null", "").replace("`", "").split()
    return " ".join(words.get(part, part) for part in parts)
