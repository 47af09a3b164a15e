"""Convert proposals of other tools to a proposal file: xyxy from 0, x2/y2 exclusive, best first."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from wsis.coco.masks import runs_of_masks
from wsis.errors import InputError
from wsis.machine import bar
from wsis.proposals.file import write
from wsis.proposals.found import Found
from wsis.proposals.names import Names
from wsis.proposals.readers import read_foreign
from wsis.proposals.records import of_records
from wsis.proposals.regions import Masks, measure, order, superpixels
from wsis.types import Index, Proposals

__all__ = ["convert", "from_records", "proposals_of"]

Array = NDArray[Any]


def convert(
    path: str | os.PathLike[str],
    index: Index,
    out: str | os.PathLike[str],
    partial: bool = False,
) -> Path:
    """Read proposals of any known format and write those of the images in `index` to `out`.

    Args:
        path: a file or folder.
        index: the images.
        out: the proposal file to write.
        partial: whether images may lack proposals.

    Raises:
        InputError: an unknown format, an image of another size, an image that two files have, or
            images of `index` without proposals.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"no proposals {path}; give an existing file or folder")
    names, left_out, seen = Names(index), 0, set()
    provenance = {
        "made": "converted",
        "from": path.name,
        "supervision": "unknown",
        "data": index.name,
    }
    with write(out, provenance) as writer:
        for found in bar(read_foreign(path), "convert", unit="image"):
            image = names.find(found.key)
            if image is None:
                continue
            size, name = (image["height"], image["width"]), image["file_name"]
            if name in seen:
                raise InputError(
                    f"{path} has proposals of {name} in two places; give one as a source of its "
                    "own: --from A --from B"
                )
            seen.add(name)
            left_out += found.left_out
            if writer.files.get(name) != size:
                writer.add(name, size, proposals_of(found, size, name))
        missing = [
            image["file_name"] for image in index.images if image["file_name"] not in writer.files
        ]
        if missing and not partial:
            kept = f"those found are in {out}; " if writer.files else ""
            raise InputError(
                f"{path} has no proposals for {len(missing)} of {len(index.images)} images of "
                f"{index.name}, such as {missing[0]}; {kept}for the others, add a source: "
                "--from segments"
            )
    if left_out:
        print(f"{path}: {left_out} boxes without masks left out, beside masks", file=sys.stderr)
    return Path(out)


def from_records(records: Sequence[Mapping[str, Any]], size: tuple[int, int]) -> Proposals:
    """Return the proposals of an image from records of a mask generator, wholes first.

    Args:
        records: of Segment Anything's form: `segmentation` is an array (H,W), a run length or
            polygons; `predicted_iou` or `score`, and `stability_score`, are used if they are there.
        size: (height, width) of the image.

    Raises:
        InputError: a record has another form, or a mask another size.
    """
    return proposals_of(of_records("image", records, "the mask generator"), size)


def proposals_of(found: Found, size: tuple[int, int], name: str = "image") -> Proposals:
    """Convert one image's proposals: clipped, best first, without empty ones or duplicates.

    Raises:
        InputError: they are of an image of another size, or a mask is none.
    """
    _check_size(size, found.size or size, name)
    masks = _masks(found, size, name)
    if masks is None:
        boxes = _boxes(found, size)
        scores = _scores(found, len(boxes), name)
        chosen = _choose(boxes, np.argsort(-scores, kind="stable"), boxes)
        return Proposals(torch.from_numpy(boxes[chosen]), torch.from_numpy(scores[chosen]))
    scores, (boxes, areas) = _scores(found, len(masks.members), name), measure(masks)
    ranking = np.argsort(-scores, kind="stable")
    if not found.ranked:
        ranking = _rank(found, masks.members, areas, scores)
    chosen = _choose(boxes, ranking, np.packbits(masks.members, axis=1))
    return Proposals(
        torch.from_numpy(boxes[chosen]),
        torch.from_numpy(scores[chosen]),
        torch.from_numpy(masks.labels),
        torch.from_numpy(masks.members[chosen]),
    )


def _masks(found: Found, size: tuple[int, int], name: str) -> Masks | None:
    """Return masks without empty superpixels; None for boxes alone."""
    if found.outlines is not None:
        return superpixels(runs_of_masks(found.outlines.segmentations, size, found.outlines.places))
    if found.masks is None:
        return None
    _check_size(size, found.masks.labels.shape, name)
    return _compact(found.masks)


def _check_size(size: tuple[int, ...], theirs: tuple[int, ...], name: str) -> None:
    if tuple(theirs) != tuple(size):
        raise InputError(
            f"{name} is {size[1]} x {size[0]} pixels, its proposals {theirs[1]} x {theirs[0]}: "
            "made for other images; make them at this size"
        )


def _rank(found: Found, members: Array, areas: Array, scores: Array) -> Array:
    """Return the order of masks: by stability times size, else by score, else by size."""
    sizes = members @ areas
    if found.stability is not None:
        return order(members, areas, found.stability * sizes)
    return order(members, areas, sizes if found.scores is None else scores)


def _boxes(found: Found, size: tuple[int, int]) -> Array:
    """Return clipped boxes as xyxy from 0, x2/y2 exclusive.

    The axes are in the order of the format, unless that is not sure and only the other order fits.
    """
    height, width = size
    if found.boxes is None:
        return np.zeros((0, 4), np.float32)
    boxes = found.boxes.astype(np.float32)
    swapped = boxes[:, [1, 0, 3, 2]]
    first, second = (swapped, boxes) if found.rows_first else (boxes, swapped)
    other = not _fits(first, size, found.base) and _fits(second, size, found.base)
    boxes = second if other and not found.sure else first
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
            f"{name}: {count} proposals but {len(scores)} scores; give each proposal its score"
        )
    if len(scores) and (scores.min() < 0 or scores.max() > 1):
        scores = 1 / (1 + np.exp(-scores))
    return scores.astype(np.float32)


def _compact(masks: Masks) -> Masks:
    """Return label map and memberships without empty superpixels."""
    kept = np.flatnonzero(np.bincount(masks.labels.ravel() + 1)[1:])
    if len(kept) == masks.members.shape[1]:
        return masks
    numbers = np.full(masks.members.shape[1] + 1, -1, np.int32)
    numbers[kept] = np.arange(len(kept))
    return Masks(numbers[masks.labels], np.ascontiguousarray(masks.members[:, kept]))


def _choose(boxes: Array, ranking: Array, identity: Array) -> Array:
    """Return the rows to keep in order: boxes with an area, one for each `identity` (P,K)."""
    kept = (boxes[ranking, 2] > boxes[ranking, 0]) & (boxes[ranking, 3] > boxes[ranking, 1])
    ranking = ranking[kept]
    if not len(ranking):
        return ranking
    return ranking[np.sort(np.unique(identity[ranking], axis=0, return_index=True)[1])]
