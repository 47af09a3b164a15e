"""Convert proposals of other tools to a proposal file: xyxy from 0, x2/y2 exclusive, best first."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from wsis.errors import InputError
from wsis.machine import bar
from wsis.proposals.file import write
from wsis.proposals.readers import Found, Masks, read_foreign
from wsis.types import Index, Proposals, Record

__all__ = ["convert", "proposals_of"]

Array = NDArray[Any]


def convert(path: str | os.PathLike[str], index: Index, out: str | os.PathLike[str]) -> Path:
    """Read proposals of any known format and write those of the images in `index` to `out`.

    Raises:
        InputError: an unknown format, an image of another size, or images of `index` without
            proposals.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"no proposals {path}; give an existing file or folder")
    numbered = {image["id"]: image for image in index.images}
    named = _by_name(index)
    provenance = {
        "made": "converted",
        "from": path.name,
        "supervision": "unknown",
        "data": index.name,
    }
    with write(out, provenance) as writer:
        for found in bar(read_foreign(path), "convert", unit="image"):
            image = numbered.get(found.key) or named.get(_plain(str(found.key)))
            if image is None:
                continue
            size = image["height"], image["width"]
            if writer.files.get(image["file_name"]) != size:
                writer.add(image["file_name"], size, proposals_of(found, size, image["file_name"]))
        missing = [
            image["file_name"] for image in index.images if image["file_name"] not in writer.files
        ]
    if missing:
        raise InputError(
            f"{path} has no proposals for {len(missing)} of {len(index.images)} images of "
            f"{index.name}, such as {missing[0]}; those found are in {out}"
        )
    return Path(out)


def proposals_of(found: Found, size: tuple[int, int], name: str = "image") -> Proposals:
    """Convert one image's proposals: clipped, sorted by score, without empty ones or duplicates."""
    if found.masks is None:
        boxes = _boxes(found, size)
        scores = _scores(found, len(boxes), name)
        chosen = _choose(boxes, scores, boxes)
        return Proposals(torch.from_numpy(boxes[chosen]), torch.from_numpy(scores[chosen]))
    masks = found.masks
    if masks.labels.shape != tuple(size):
        height, width = masks.labels.shape
        raise InputError(
            f"{name} is {size[1]} x {size[0]} pixels, its proposals {width} x {height}: made for "
            "other images"
        )
    scores = _scores(found, len(masks.members), name)
    labels, members = _compact(masks)
    boxes = _mask_boxes(labels, members)
    chosen = _choose(boxes, scores, np.packbits(members, axis=1))
    return Proposals(
        torch.from_numpy(boxes[chosen]),
        torch.from_numpy(scores[chosen]),
        torch.from_numpy(labels),
        torch.from_numpy(members[chosen]),
    )


def _boxes(found: Found, size: tuple[int, int]) -> Array:
    """Return clipped boxes as xyxy from 0, x2/y2 exclusive.

    The axes are in the order of the format, unless only the other order fits the image.
    """
    height, width = size
    if found.boxes is None:
        return np.zeros((0, 4), np.float32)
    boxes = found.boxes.astype(np.float32)
    swapped = boxes[:, [1, 0, 3, 2]]
    first, second = (swapped, boxes) if found.rows_first else (boxes, swapped)
    boxes = (
        second if not _fits(first, size, found.base) and _fits(second, size, found.base) else first
    )
    ends = 1 if found.inclusive else 0
    boxes = boxes + np.array(
        [-found.base, -found.base, ends - found.base, ends - found.base], np.float32
    )
    return np.clip(boxes, 0, np.array([width, height, width, height], np.float32)).astype(
        np.float32
    )


def _fits(boxes: Array, size: tuple[int, int], base: int) -> bool:
    return bool(
        (boxes[:, 2] < size[1] + 1).all()
        and (boxes[:, 3] < size[0] + 1).all()
        and (boxes >= base).all()
    )


def _scores(found: Found, count: int, name: str) -> Array:
    """Return scores (P,) float32 in [0, 1]: 1 without scores, the logistic function of logits."""
    if found.scores is None:
        return np.ones(count, np.float32)
    scores = found.scores.astype(np.float64)
    if len(scores) != count:
        raise InputError(
            f"{name}: {count} proposals but {len(scores)} scores; fetch the file again"
        )
    if len(scores) and (scores.min() < 0 or scores.max() > 1):
        scores = 1 / (1 + np.exp(-scores))
    return scores.astype(np.float32)


def _compact(masks: Masks) -> tuple[Array, Array]:
    """Return the label map and memberships (P,S) without empty superpixels."""
    numbers, labels = np.unique(masks.labels, return_inverse=True)
    kept = numbers[numbers >= 0]
    dense: Array = labels.reshape(masks.labels.shape).astype(np.int32) - int(numbers[0] < 0)
    return dense, np.ascontiguousarray(masks.members[:, kept])


def _mask_boxes(labels: Array, members: Array) -> Array:
    """Return boxes (P,4) around the masks; zeros for an empty mask."""
    rows = _spans(labels, members)
    columns = _spans(labels.T, members)
    return np.stack([columns[0], rows[0], columns[1], rows[1]], 1).astype(np.float32)


def _spans(labels: Array, members: Array) -> tuple[Array, Array]:
    """Return the first row and the last row + 1 (P,) of each mask."""
    count, height = members.shape[1], len(labels)
    inside = labels >= 0
    superpixel, row = labels[inside], np.nonzero(inside)[0]
    low, high = np.full(count, height), np.zeros(count, np.int64)
    np.minimum.at(low, superpixel, row)
    np.maximum.at(high, superpixel, row + 1)
    empty = ~members.any(1)
    first = np.where(members, low, height).min(1, initial=height)
    return np.where(empty, 0, first), np.where(members, high, 0).max(1, initial=0)


def _choose(boxes: Array, scores: Array, identity: Array) -> Array:
    """Return the rows to keep, best first: boxes with an area, one for each `identity` (P,K)."""
    order: Array = np.argsort(-scores, kind="stable")
    order = order[(boxes[order, 2] > boxes[order, 0]) & (boxes[order, 3] > boxes[order, 1])]
    if not len(order):
        return order
    order = order[np.sort(np.unique(identity[order], axis=0, return_index=True)[1])]
    return order


def _by_name(index: Index) -> dict[str, Record]:
    """Map the names that files use for images to the images.

    Later kinds of name take precedence: id, last number in the stem, all its digits, the stem.
    """
    stems = [Path(image["file_name"]).stem for image in index.images]
    kinds = (
        [str(image["id"]) for image in index.images],
        ["".join(re.findall(r"\d+", stem)[-1:]) for stem in stems],
        [re.sub(r"\D", "", stem) for stem in stems],
        stems,
    )
    return {
        _plain(name): image
        for names in kinds
        for name, image in zip(names, index.images, strict=True)
        if name
    }


def _plain(name: str) -> str:
    """Return a number without leading zeros, any other name as it is.

    COCO_train2014_000000000009 and 9 are the same image.
    """
    coco = re.fullmatch(r"COCO_\w+?_(\d+)", name)
    name = coco[1] if coco else name
    return str(int(name)) if name.isdecimal() else name
