"""Readers of proposals as arrays: MATLAB files, pickles, npz, and folders of pictures."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsis.coco.masks import runs_of_masks
from wsis.errors import InputError
from wsis.images.read import read_grey
from wsis.proposals.found import Found, Reader, Source
from wsis.proposals.records import encode, of_records
from wsis.proposals.regions import Masks, superpixels

__all__ = ["PICTURES", "READERS", "read_pictures"]

Array = NDArray[Any]
PICTURES = "metadata.csv"
"""The table in a folder of pictures, one for each mask of an image."""
_NOTHING = 255  # in EntitySeg's maps of 8 bits


def _boxes(fields: dict[str, Array]) -> Array | None:
    return fields.get("boxes", fields.get("bboxes"))


def _scores(fields: dict[str, Array]) -> Array | None:
    names = [name for name in ("scores", "bboxes_scores") if name in fields]
    return fields[names[0]].ravel() if names else None


def _read_collection(source: Source) -> Iterator[Found]:
    """Read boxes of all images in one file (selective search, EdgeBoxes)."""
    fields = source.matlab
    boxes, scores = _boxes(fields), fields.get("boxScores")
    if boxes is None:
        raise KeyError("boxes")
    for i, name in enumerate(fields["images"].ravel()):
        values = None if scores is None else scores.ravel()[i].ravel()
        corners = boxes.ravel()[i].reshape(-1, 4)
        yield Found(Path(_text(name)).stem, values, corners, True, 1, True)


def _read_superpixels(source: Source) -> Iterator[Found]:
    """Read superpixels of an image, and the ids of each proposal's superpixels (MCG, COB)."""
    fields = source.matlab
    masks = _from_ids(fields["superpixels"], fields["labels"].ravel())
    yield Found(source.path.stem, _scores(fields), masks=masks)


def _read_stack(source: Source) -> Iterator[Found]:
    """Read a stack of masks (H,W,P) of an image."""
    fields = source.matlab
    stack = fields["maskmat"]
    stack = stack.ravel()[0] if stack.dtype == object else stack
    stack = stack[..., None] if stack.ndim == 2 else stack
    coded = [encode(stack[..., i]) for i in range(stack.shape[-1])]
    runs = runs_of_masks(coded, stack.shape[:2], [str(source.path)] * len(coded))
    yield Found(source.path.stem, _scores(fields), masks=superpixels(runs))


def _read_boxes(source: Source) -> Iterator[Found]:
    """Read boxes of an image (MCG)."""
    boxes = _boxes(source.matlab)
    corners = None if boxes is None else boxes.reshape(-1, 4)
    yield Found(source.path.stem, _scores(source.matlab), corners, True, 1, True)


def _read_memberships(source: Source) -> Iterator[Found]:
    """Read superpixels of an image, and a row of memberships per proposal (JTSM)."""
    content = source.pickled
    labels = np.asarray(content["superpixels"]).astype(np.int32)
    masks = Masks(labels, np.asarray(content["oh_labels"]).astype(bool))
    key = str(_key(content.get("indexes", source.path.stem)))
    yield Found(key, np.asarray(content["scores"]).ravel(), masks=masks)


def _read_detectron(source: Source) -> Iterator[Found]:
    """Read boxes of all images in one file (Detectron, Detectron2, wetectron, pcl.pytorch)."""
    content = source.pickled
    keys: list[str | int] = (
        [_key(name) for name in content["ids"]]
        if "ids" in content
        else [str(_key(name)) for name in content["indexes"]]
    )
    scores, logits = content.get("scores"), content.get("objectness_logits")
    has_sides = int(content.get("bbox_mode", 0)) == 1  # XYWH_ABS
    for i, (key, corners) in enumerate(zip(keys, content["boxes"], strict=True)):
        boxes = np.asarray(corners, np.float64).reshape(-1, 4)
        if has_sides:
            boxes[:, 2:] += boxes[:, :2]
        values = None if scores is None else np.asarray(scores[i]).ravel()
        if values is None and logits is not None:
            values = 1 / (1 + np.exp(-np.asarray(logits[i], np.float64).ravel()))
        yield Found(key, values, boxes)


def _read_pickled_list(source: Source) -> Iterator[Found]:
    """Read a pickled list of the masks of one image (Segment Anything's mask generator)."""
    yield of_records(source.path.stem, source.pickled, str(source.path))


def _read_entities(source: Source) -> Iterator[Found]:
    """Read a map of the visible masks of an image (EntitySeg), with or without scores."""
    fields = source.arrays
    rows = fields["mask_id"] if "mask_id" in fields else fields["map"][0]
    nothing = _NOTHING if "mask_id" in fields else 0
    numbers, inverse = np.unique(rows, return_inverse=True)
    masks = np.eye(len(numbers), dtype=bool)[numbers != nothing]
    scores = fields["scores"].ravel()[numbers[numbers != nothing]] if "mask_id" in fields else None
    labels: NDArray[np.int32] = inverse.reshape(rows.shape).astype(np.int32)
    yield Found(source.path.stem, scores, masks=Masks(labels, masks), ranked=False)


def read_pictures(folder: Path) -> Found:
    """Read a folder of pictures, one for each mask of the image that the folder is called after.

    It is as Segment Anything's script writes it: `metadata.csv`, and ID.png for each of its rows.

    Raises:
        InputError: a picture or a column is missing, or a value is no number.
    """
    table = folder / PICTURES
    with table.open(newline="", encoding="utf-8-sig", errors="replace") as file:
        rows = list(csv.DictReader(file))
    records = []
    for number, row in enumerate(rows, 2):
        if not row.get("id"):
            raise InputError(f"{table}, line {number}: no id; name the picture of each mask")
        picture = folder / f"{row['id']}.png"
        if not picture.is_file():
            raise InputError(
                f"{table}, line {number}: no picture {picture}; add it or remove the row"
            )
        names = [name for name in ("predicted_iou", "stability_score") if row.get(name)]
        values: dict[str, Any] = {name: row[name] for name in names}
        records.append({**values, "segmentation": encode(read_grey(picture))})
    return of_records(folder.name, records, str(table))


def _from_ids(superpixels: Array, sets: Array) -> Masks:
    """Return masks from 1-based superpixels and each proposal's 1-based superpixel ids."""
    labels = superpixels.astype(np.int32) - 1
    members = np.zeros((len(sets), int(labels.max()) + 1), bool)
    rows = np.repeat(np.arange(len(sets)), [np.size(ids) for ids in sets])
    columns = np.concatenate([np.ravel(ids) for ids in sets]) if len(sets) else np.zeros(0)
    members[rows, columns.astype(np.int64) - 1] = True
    return Masks(labels, members)


def _key(name: Any) -> str | int:
    """Return an image's id, or its file's stem."""
    value = np.asarray(name).ravel()[0]
    return Path(value).stem if isinstance(value, str) else int(value)


def _text(name: Any) -> str:
    while isinstance(name, np.ndarray):
        name = name.ravel()[0]
    return str(name)


def _pickled(source: Source, *names: str) -> bool:
    return isinstance(source.pickled, dict) and {*names} <= {*source.pickled}


def _is_list_of_masks(source: Source) -> bool:
    content = source.pickled
    records = content[:1] if isinstance(content, list) else []
    return any(isinstance(record, dict) and "segmentation" in record for record in records)


_MATLAB, _PICKLE, _NPZ = (".mat",), (".pkl", ".pickle"), (".npz",)

READERS = [
    Reader(
        _MATLAB,
        lambda source: "images" in source.matlab and _boxes(source.matlab) is not None,
        _read_collection,
    ),
    Reader(
        _MATLAB, lambda source: {"superpixels", "labels"} <= set(source.matlab), _read_superpixels
    ),
    Reader(_MATLAB, lambda source: "maskmat" in source.matlab, _read_stack),
    Reader(_MATLAB, lambda source: _boxes(source.matlab) is not None, _read_boxes),
    Reader(_PICKLE, lambda source: _pickled(source, "boxes", "superpixels"), _read_memberships),
    Reader(_PICKLE, lambda source: _pickled(source, "boxes"), _read_detectron),
    Reader(_PICKLE, _is_list_of_masks, _read_pickled_list),
    Reader(
        _NPZ,
        lambda source: {"mask_id", "scores"} <= {*source.arrays} or "map" in source.arrays,
        _read_entities,
    ),
]
