"""Readers of other tools' proposal files; values stay as in the file, with its conventions noted.

To add a format, write two functions of a `Source`, one that returns whether the file has the format
and one that yields `Found` for each of its images, and add a `Reader` to READERS.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.io
from numpy.typing import NDArray

from wsis.coco.masks import decode_foreign
from wsis.errors import InputError
from wsis.files import read_json, read_pickle

__all__ = ["READERS", "Found", "Masks", "Reader", "Source", "read_foreign", "refine"]

Array = NDArray[Any]


class Masks(NamedTuple):
    """Masks as sets of superpixels."""

    labels: NDArray[np.int32]
    """(H,W) 0-based superpixel of each pixel, -1 for none."""
    members: NDArray[np.bool_]
    """(P,S) the superpixels of each proposal."""


class Found(NamedTuple):
    """The proposals of one image, as in the file."""

    key: str | int
    """The image's id, or as text its file's stem or the digits of the stem."""
    scores: Array | None
    """(P,), higher is better; None if the format has none."""
    boxes: Array | None = None
    """(P,4) as in the file."""
    rows_first: bool = False
    """Whether y comes before x."""
    base: int = 0
    """Number of the first pixel."""
    inclusive: bool = False
    """Whether the pixels at x2 and y2 belong to the box."""
    masks: Masks | None = None


class Source:
    """A file of another tool, which is parsed once, on first access."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def matlab(self) -> dict[str, Array]:
        """Variables of a MATLAB file, with the fields of a struct as variables."""
        return _variables(self.path)

    @cached_property
    def pickled(self) -> dict[str, Any]:
        """The dict that a pickle holds; empty if it holds something else."""
        content = read_pickle(self.path)
        return content if isinstance(content, dict) else {}

    @cached_property
    def json(self) -> Any:
        """Content of a json file."""
        return read_json(self.path)


class Reader(NamedTuple):
    """A format of proposal files."""

    suffixes: tuple[str, ...]
    """File suffixes in lower case."""
    matches: Callable[[Source], bool]
    """Returns whether a file with one of the suffixes has the format."""
    read: Callable[[Source], Iterator[Found]]
    """Yields the proposals of each image in the file."""


def read_foreign(path: Path) -> Iterator[Found]:
    """Read proposals of any known format from one file or from a folder with a file per image.

    Raises:
        InputError: a file cannot be read or has no known format.
    """
    if not path.is_dir():
        yield from _read_file(path)
        return
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in _suffixes())
    if not files:
        raise InputError(
            f"{path} has no {', '.join(_suffixes())} files; give the folder that holds one per "
            "image"
        )
    for file in files:
        yield from _read_file(file)


def _suffixes() -> list[str]:
    return list(dict.fromkeys(suffix for reader in READERS for suffix in reader.suffixes))


def _read_file(path: Path) -> Iterator[Found]:
    source = Source(path)
    try:
        yield from _reader_of(source).read(source)
    except (LookupError, TypeError, AttributeError, ValueError, OverflowError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{path}: the fields are not as the format has them ({error!r}); fetch it again"
        ) from error


def _reader_of(source: Source) -> Reader:
    suffix = source.path.suffix.lower()
    for reader in READERS:
        if suffix in reader.suffixes and reader.matches(source):
            return reader
    known = ", ".join(_suffixes())
    raise InputError(
        f"{source.path} is no known proposal format{_fields(source)}; "
        f"give {known}, or a folder of them, as the tools of the known formats write them"
    )


def _fields(source: Source) -> str:
    """Return the names in a file, for an error message."""
    suffix = source.path.suffix.lower()
    if suffix not in (*_MATLAB, *_PICKLE):
        return ""
    names = sorted(source.matlab if suffix in _MATLAB else map(str, source.pickled))
    return f": it holds {', '.join(names) or 'no named fields'}"


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
    masks = refine(stack[..., i] for i in range(stack.shape[-1]))
    yield Found(source.path.stem, _scores(fields), masks=masks)


def _read_boxes(source: Source) -> Iterator[Found]:
    """Read boxes of an image (MCG)."""
    boxes = _boxes(source.matlab)
    corners = None if boxes is None else boxes.reshape(-1, 4)
    yield Found(source.path.stem, _scores(source.matlab), corners, True, 1, True)


def _variables(path: Path) -> dict[str, Array]:
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


def _read_coco(source: Source) -> Iterator[Found]:
    """Read a list of the run-length masks of all images (COCO results)."""
    by_image: dict[str | int, list[Any]] = {}
    for entry in source.json:
        by_image.setdefault(_key(entry["image_id"]), []).append(entry)
    for key, entries in by_image.items():
        yield _run_lengths(source, key, entries)


def _read_segment_anything(source: Source) -> Iterator[Found]:
    """Read the run-length masks of one image (Segment Anything's data set)."""
    image = source.json.get("image", {})
    named = "file_name" in image
    key = Path(image["file_name"]).stem if named else _key(image.get("image_id", source.path.stem))
    yield _run_lengths(source, key, source.json["annotations"])


def _read_list(source: Source) -> Iterator[Found]:
    """Read a list of the run-length masks of one image (Segment Anything's mask generator)."""
    yield _run_lengths(source, source.path.stem, source.json)


def _run_lengths(source: Source, key: str | int, entries: list[Any]) -> Found:
    scores = [entry.get("score", entry.get("predicted_iou", 1.0)) for entry in entries]
    place = f"{source.path}, a mask of image {key}"
    decoded = (decode_foreign(entry["segmentation"], place) for entry in entries)
    masks = refine(decoded) if entries else None
    return Found(key, np.array(scores, np.float64), masks=masks)


def refine(masks: Iterable[Array]) -> Masks:
    """Return masks (H,W) as sets of superpixels, the areas on which all masks are constant."""
    rng = np.random.default_rng(0)
    names: Any = np.uint64(0)
    packed = []
    for mask in masks:
        inside = np.asarray(mask) != 0
        # equal sums mean equal sets of masks
        names = names + inside * rng.integers(0, 2**64, dtype=np.uint64)
        packed.append(np.packbits(inside))
    _, first, labels = np.unique(names, return_index=True, return_inverse=True)
    byte, bit = np.divmod(first, 8)
    members = (np.stack(packed)[:, byte] >> (7 - bit).astype(np.uint8)) & 1
    return Masks(labels.reshape(inside.shape).astype(np.int32), members.astype(bool))


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


_MATLAB, _PICKLE, _JSON = (".mat",), (".pkl", ".pickle"), (".json",)

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
    Reader(
        _PICKLE, lambda source: {"boxes", "superpixels"} <= set(source.pickled), _read_memberships
    ),
    Reader(_PICKLE, lambda source: "boxes" in source.pickled, _read_detectron),
    Reader(_JSON, lambda source: isinstance(source.json, dict), _read_segment_anything),
    Reader(
        _JSON,
        lambda source: bool(source.json) and "image_id" in source.json[0],
        _read_coco,
    ),
    Reader(_JSON, lambda source: isinstance(source.json, list), _read_list),
]
"""Tried in order; the first reader that matches reads the file."""
