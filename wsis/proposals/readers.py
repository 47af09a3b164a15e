"""What other people's proposal files say, image by image, with their conventions noted and nothing changed yet."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.io
from numpy.typing import NDArray
from pycocotools import mask as rle

from wsis.errors import InputError
from wsis.files import read_json, read_pickle

__all__ = ["Found", "Masks", "read_foreign"]

Array = NDArray[Any]


class Masks(NamedTuple):
    """Masks as sets of superpixels."""

    labels: NDArray[np.int32]
    """(H,W) 0-based superpixel of each pixel, -1 = none."""
    members: NDArray[np.bool_]
    """(P,S)."""


class Found(NamedTuple):
    """The proposals of one image as its file has them."""

    key: str | int
    """An image's id, or text: its file's stem, or the digits in that."""
    scores: Array | None
    """(P,), None where the format has none; higher is better."""
    boxes: Array | None = None
    """(P,4) as in the file."""
    rows_first: bool = False
    """Whether the format writes y before x."""
    base: int = 0
    """Number of the first pixel."""
    inclusive: bool = False
    """Whether x2, y2 belong to the box."""
    masks: Masks | None = None


def read_foreign(path: Path) -> Iterator[Found]:
    """Read any known format: a folder with a file per image, or one file (.mat, .pkl, .json) for all.

    Raises:
        InputError: unreadable, or a file that is none of the known formats.
    """
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in _READERS)
        if not files:
            raise InputError(
                f"{path} has no {', '.join(_READERS)} files; give the folder that holds one per image"
            )
        for file in files:
            yield from _read_file(file)
    else:
        yield from _read_file(path)


def _read_file(path: Path) -> Iterator[Found]:
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise InputError(
            f"{path} is no known proposal format; give .mat, .pkl, .json, or a folder of them"
        )
    try:
        yield from reader(path)
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{path}: the fields are not as the format has them ({error!r}); fetch it again"
        ) from error


def _read_mat(path: Path) -> Iterator[Found]:
    """MCG (proposals, boxes, im2mcg), COB, selective search and EdgeBoxes."""
    fields = _mat_fields(path)
    boxes = fields.get("boxes", fields.get("bboxes"))
    scores = next(
        (fields[name].ravel() for name in ("scores", "bboxes_scores") if name in fields), None
    )
    if "images" in fields and boxes is not None:
        found_scores = fields.get("boxScores")
        for i, name in enumerate(fields["images"].ravel()):
            own = None if found_scores is None else found_scores.ravel()[i].ravel()
            yield Found(Path(_text(name)).stem, own, boxes.ravel()[i].reshape(-1, 4), True, 1, True)
    elif "superpixels" in fields and "labels" in fields:
        yield Found(
            path.stem, scores, masks=_from_ids(fields["superpixels"], fields["labels"].ravel())
        )
    elif "maskmat" in fields:
        stack = fields["maskmat"]
        stack = stack.ravel()[0] if stack.dtype == object else stack
        stack = stack[..., None] if stack.ndim == 2 else stack
        yield Found(path.stem, scores, masks=refine(stack[..., i] for i in range(stack.shape[-1])))
    elif boxes is not None:
        yield Found(path.stem, scores, boxes.reshape(-1, 4), True, 1, True)
    else:
        raise InputError(
            f"{path} is no known proposal format: it holds {', '.join(sorted(fields)) or 'nothing'}"
        )


def _mat_fields(path: Path) -> dict[str, Array]:
    """The variables of a MATLAB file, those of a struct as if they stood alone."""
    try:
        content = scipy.io.loadmat(path)
    except NotImplementedError as error:
        raise InputError(
            f"{path} is a MATLAB 7.3 file; save it again in MATLAB with -v7"
        ) from error
    except OSError as error:
        raise InputError(
            f"cannot read {path}: {error.strerror or error}; check the path"
        ) from error
    except Exception as error:  # a damaged .mat can raise nearly any exception
        raise InputError(f"{path} is damaged ({error}); fetch it again") from error
    fields: dict[str, Array] = {}
    for name, value in content.items():
        if isinstance(value, np.ndarray) and value.dtype.names and value.size == 1:
            fields |= {inner: value[inner].ravel()[0] for inner in value.dtype.names}
        elif not name.startswith("__"):
            fields[name] = value
    return fields


def _read_pkl(path: Path) -> Iterator[Found]:
    """detectron, detectron2, wetectron, pcl.pytorch: one file for all; JTSM: one per image."""
    content = read_pickle(path)
    if not isinstance(content, dict) or "boxes" not in content:
        raise InputError(f'{path} is no known proposal format: no dict with "boxes"')
    if "superpixels" in content:
        masks = Masks(
            np.asarray(content["superpixels"]).astype(np.int32),
            np.asarray(content["oh_labels"]).astype(bool),
        )
        yield Found(
            str(_key(content.get("indexes", path.stem))),
            np.asarray(content["scores"]).ravel(),
            masks=masks,
        )
        return
    names = (
        map(_key, content["ids"])
        if "ids" in content
        else (str(_key(name)) for name in content["indexes"])
    )
    scores, logits = content.get("scores"), content.get("objectness_logits")
    wide = int(content.get("bbox_mode", 0)) == 1  # XYWH_ABS
    for i, (name, found) in enumerate(zip(names, content["boxes"], strict=True)):
        boxes = np.asarray(found, np.float64).reshape(-1, 4)
        if wide:
            boxes[:, 2:] += boxes[:, :2]
        own = None if scores is None else np.asarray(scores[i]).ravel()
        if own is None and logits is not None:
            own = 1 / (1 + np.exp(-np.asarray(logits[i], np.float64).ravel()))
        yield Found(name, own, boxes)


def _read_json(path: Path) -> Iterator[Found]:
    """COCO results (a list over all images) and Segment Anything (one image) with run-length masks."""
    content = read_json(path)
    if isinstance(content, dict):
        image = content.get("image", {})
        key = (
            Path(image["file_name"]).stem
            if "file_name" in image
            else _key(image.get("image_id", path.stem))
        )
        grouped = {key: content["annotations"]}
    else:
        named = bool(content) and "image_id" in content[0]
        grouped = {} if named else {path.stem: content}
        for entry in content if named else []:
            grouped.setdefault(_key(entry["image_id"]), []).append(entry)
    for key, entries in grouped.items():
        scores = np.array(
            [entry.get("score", entry.get("predicted_iou", 1.0)) for entry in entries], np.float64
        )
        yield Found(
            key,
            scores,
            masks=refine(_decode(entry["segmentation"]) for entry in entries) if entries else None,
        )


def _decode(mask: Any) -> Array:
    if isinstance(mask["counts"], list):
        mask = rle.frPyObjects(mask, *mask["size"])
    decoded: Array = rle.decode(mask)
    return decoded


def refine(masks: Iterable[Array]) -> Masks:
    """Write masks (H,W) as sets of superpixels: the areas on which all of them are constant."""
    rng = np.random.default_rng(0)
    names: Any = np.uint64(0)
    packed = []
    for mask in masks:
        inside = np.asarray(mask) != 0
        names = names + inside * rng.integers(
            0, 2**64, dtype=np.uint64
        )  # equal sums mean equal sets of masks
        packed.append(np.packbits(inside))
    _, first, labels = np.unique(names, return_index=True, return_inverse=True)
    byte, bit = np.divmod(first, 8)
    members = (np.stack(packed)[:, byte] >> (7 - bit).astype(np.uint8)) & 1
    return Masks(labels.reshape(inside.shape).astype(np.int32), members.astype(bool))


def _from_ids(superpixels: Array, sets: Array) -> Masks:
    """1-based superpixels and, per proposal, the 1-based ids of its own."""
    labels = superpixels.astype(np.int32) - 1
    members = np.zeros((len(sets), int(labels.max()) + 1), bool)
    rows = np.repeat(np.arange(len(sets)), [np.size(ids) for ids in sets])
    columns = np.concatenate([np.ravel(ids) for ids in sets]) if len(sets) else np.zeros(0)
    members[rows, columns.astype(np.int64) - 1] = True
    return Masks(labels, members)


def _key(name: Any) -> str | int:
    """An image's id, or its file's stem."""
    value = np.asarray(name).ravel()[0]
    return Path(value).stem if isinstance(value, str) else int(value)


def _text(name: Any) -> str:
    while isinstance(name, np.ndarray):
        name = name.ravel()[0]
    return str(name)


_READERS = {".mat": _read_mat, ".pkl": _read_pkl, ".pickle": _read_pkl, ".json": _read_json}
