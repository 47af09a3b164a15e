"""Readers of proposals as json records: COCO instances and results, Segment Anything's lists.

Records have `segmentation` (polygons or run lengths), or else `bbox` [x, y, width, height], and may
have `score`, or `predicted_iou` and `stability_score`. Masks alone count where an image has any.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Required, TypedDict

import msgspec
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as rle

from wsis.coco.records import Name, RunLengths, Side, describe_fault, read_records
from wsis.errors import InputError
from wsis.proposals.found import Found, Outlines, Reader, Source

__all__ = ["READERS", "encode", "of_records"]

Record = Mapping[str, Any]
Id = int | str


class Segment(TypedDict, total=False):
    """A mask or a box."""

    id: Id | None
    segmentation: list[list[float]] | RunLengths | None
    bbox: list[float] | None
    score: float | None
    predicted_iou: float | None
    stability_score: float | None


class Result(Segment):
    """A segment in a list for many images."""

    image_id: Required[Id]


class Annotation(Result, total=False):
    """A segment of an instances file."""

    segments_info: Any


class Image(TypedDict, total=False):
    """An image; a size that is missing or 0 is not known."""

    id: Required[Id]
    file_name: Required[Name]
    height: Side | None
    width: Side | None


class Instances(TypedDict):
    """An instances file; its classes do not matter."""

    images: list[Image]
    annotations: list[Annotation]


class OneImage(TypedDict, total=False):
    """The image of a file for one."""

    image_id: Id
    file_name: Name
    height: Side | None
    width: Side | None


class OfOneImage(TypedDict, total=False):
    """A file of Segment Anything's data set."""

    image: OneImage
    annotations: Required[list[Segment]]


class Prompted(TypedDict, total=False):
    """What Segment Anything 3 found in an image."""

    original_image_path: Name
    orig_img_h: Required[Side]
    orig_img_w: Required[Side]
    pred_masks: Required[list[str | RunLengths]]
    pred_scores: Required[list[float]]


def encode(mask: NDArray[Any]) -> dict[str, Any]:
    """Return a mask (H,W), nonzero inside, as a run length."""
    coded: dict[str, Any] = rle.encode(np.asfortranarray(np.asarray(mask) != 0, np.uint8))
    return coded


def of_records(key: str | int, records: Sequence[Record], place: str) -> Found:
    """Return the proposals of one image from records of a mask generator.

    Args:
        key: of the image.
        records: as Segment Anything's generator returns them, with masks of any form: run lengths,
            polygons or arrays (H,W).
        place: where they are, for errors.

    Raises:
        InputError: a record is not as described, or has no mask.
    """
    coded = [_plain(record) for record in records]
    try:
        known = msgspec.convert(coded, list[Segment], strict=False)
    except msgspec.ValidationError as error:
        raise InputError(describe_fault(error, coded, list[Segment], place)) from error
    return _found(key, known, [f"{place}, result {k}" for k in range(1, len(known) + 1)])


def _plain(record: Record) -> dict[str, Any]:
    """Return a record without numpy."""
    fields = [name for name in Segment.__annotations__ if name in record and name != "id"]
    plain = {name: record[name] for name in fields}
    mask = plain.get("segmentation")
    if isinstance(mask, np.ndarray):
        plain["segmentation"] = mask = encode(mask)
    if isinstance(mask, dict) and isinstance(mask.get("counts"), bytes):
        plain["segmentation"] = {**mask, "counts": mask["counts"].decode("latin1")}
    others = {name: value for name, value in plain.items() if isinstance(value, np.generic)}
    return plain | {name: value.item() for name, value in others.items()}


def _found(
    key: str | int,
    records: Sequence[Record],
    places: Sequence[str],
    size: tuple[int, int] | None = None,
    tags: bool = False,
) -> Found:
    """Return the proposals of an image: masks if there are any, else boxes.

    Raises:
        InputError: a record has neither, though it is no tag.
    """
    for k, record in enumerate(records if not tags else ()):
        if "segmentation" not in record and "bbox" not in record:
            raise InputError(f"{places[k]} has no segmentation and no bbox; give it one of them")
    kept = [k for k, record in enumerate(records) if record.get("segmentation")]
    boxed = [k for k, record in enumerate(records) if record.get("bbox")]
    left_out = len({*boxed} - {*kept}) if kept else 0
    chosen = [records[k] for k in kept or boxed]
    where = [places[k] for k in kept or boxed]
    scores, stability = _scores(chosen, where), _column(chosen, where, "stability_score")
    if boxed and not kept:
        boxes = np.array([_box(*each) for each in zip(chosen, where, strict=True)])
        return Found(key, scores, boxes, sure=True, size=size)
    outlines = Outlines([record["segmentation"] for record in chosen], where)
    return Found(
        key,
        scores,
        outlines=outlines,
        ranked=False,
        stability=stability,
        size=size,
        left_out=left_out,
    )


def _box(record: Record, place: str) -> list[float]:
    """Return a box as xyxy."""
    if len(record["bbox"]) != 4 or not math.isfinite(sum(record["bbox"])):
        raise InputError(f"{place}: bbox is {record['bbox'][:5]}; give [x, y, width, height]")
    x, y, width, height = record["bbox"]
    return [x, y, x + width, y + height]


def _scores(records: Sequence[Record], places: Sequence[str]) -> NDArray[Any] | None:
    """Return the scores; predicted overlaps end at 1, though networks predict a little more."""
    scores = _column(records, places, "score")
    if scores is not None:
        return scores
    scores = _column(records, places, "predicted_iou")
    return None if scores is None else np.clip(scores, 0, 1)


def _column(records: Sequence[Record], places: Sequence[str], name: str) -> NDArray[Any] | None:
    """Return a number of each record, 1 where it is missing; None if it always is."""
    values = [record.get(name) for record in records]
    if all(value is None for value in values):
        return None
    column = np.array([1.0 if value is None else value for value in values])
    for k in np.flatnonzero(~np.isfinite(column))[:1]:
        raise InputError(f"{places[k]}: {name} is {column[k]}; give a number")
    return column


def _read_instances(source: Source) -> Iterator[Found]:
    """Read a COCO instances file; images of one file name are one image."""
    content = read_records(source.path, Instances)
    files = {str(image["id"]): image["file_name"] for image in content["images"]}
    sizes = {image["file_name"]: _size(image) for image in content["images"]}
    found: dict[str, tuple[list[Record], list[str]]] = {name: ([], []) for name in sizes}
    for annotation in content["annotations"]:
        image = annotation["image_id"]
        place = f"{source.path}, annotation {annotation.get('id')!r} of image {image!r}"
        if "segments_info" in annotation:
            raise InputError(
                f"{place} is of a panoptic file, whose masks are pictures; give a COCO instances "
                "or results file"
            )
        if str(image) not in files:
            raise InputError(f'{place}: that image is not under "images"; add it')
        records, places = found[files[str(image)]]
        records.append(annotation)
        places.append(place)
    for name, (records, places) in found.items():
        yield _found(name, records, places, sizes[name], tags=True)


def _read_results(source: Source) -> Iterator[Found]:
    """Read a list of the masks or boxes of many images (COCO results)."""
    found: dict[Id, tuple[list[Record], list[str]]] = {}
    for k, result in enumerate(read_records(source.path, list[Result]), 1):
        image = result["image_id"]
        records, places = found.setdefault(image, ([], []))
        records.append(result)
        places.append(f"{source.path}, result {k} (image {image!r})")
    for image, (records, places) in found.items():
        yield _found(image, records, places)


def _read_one_image(source: Source) -> Iterator[Found]:
    """Read the masks of one image (Segment Anything's data set)."""
    content = read_records(source.path, OfOneImage)
    image = content.get("image", {})
    key = image.get("file_name", image.get("image_id", source.path.stem))
    places = [
        f"{source.path}, annotation {record.get('id', k)!r}"
        for k, record in enumerate(content["annotations"], 1)
    ]
    yield _found(key, content["annotations"], places, _size(image))


def _read_list(source: Source) -> Iterator[Found]:
    """Read a list of the masks of one image (Segment Anything's mask generator)."""
    records = read_records(source.path, list[Segment])
    places = [f"{source.path}, result {k}" for k in range(1, len(records) + 1)]
    yield _found(source.path.stem, records, places)


def _read_prompted(source: Source) -> Iterator[Found]:
    """Read the masks of one image, found by words (Segment Anything 3)."""
    content = read_records(source.path, Prompted)
    size = content["orig_img_h"], content["orig_img_w"]
    masks, scores = content["pred_masks"], content["pred_scores"]
    if len(masks) != len(scores):
        raise InputError(
            f"{source.path} has {len(masks)} pred_masks but {len(scores)} pred_scores; give each "
            "mask its score"
        )
    coded = [m if isinstance(m, dict) else {"size": size, "counts": m} for m in masks]
    records = [{"segmentation": m, "score": s} for m, s in zip(coded, scores, strict=True)]
    places = [f"{source.path}, result {k}" for k in range(1, len(records) + 1)]
    yield _found(content.get("original_image_path", source.path.stem), records, places, size)


def _size(image: Record) -> tuple[int, int] | None:
    height, width = image.get("height"), image.get("width")
    return (height, width) if height and width else None


def _has(source: Source, kind: type, *names: str) -> bool:
    found, known = source.outline
    return found is kind and {*names} <= {*known}


_JSON = (".json",)

READERS = [
    Reader(_JSON, lambda source: _has(source, dict, "images", "annotations"), _read_instances),
    Reader(_JSON, lambda source: _has(source, dict, "pred_masks"), _read_prompted),
    Reader(_JSON, lambda source: _has(source, dict, "annotations"), _read_one_image),
    Reader(_JSON, lambda source: _has(source, list, "image_id"), _read_results),
    Reader(_JSON, lambda source: _has(source, list), _read_list),
]
