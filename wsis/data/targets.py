"""The fields of a label: one table defines how each is read, cropped, flipped and pasted.

A method names the fields that it learns from (`Method.supervision`). A training set keeps only the
parts of the labels that these fields may use. An object is a row of a label if any of the fields
knows it; what each row is known by follows from the tensors: `ignore_mask`, boxes of NaN, point
labels of -1. To add a kind of label, add an entry to `FIELDS` and its tensors to
`wsis.types.Target`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, cast

import torch
from pycocotools import mask as rle
from torch import Tensor

from wsis.coco.masks import run_length
from wsis.data.points import cover_points, cut_points, middle_points, stack_points
from wsis.data.transforms import Cut, cut_maps, visible
from wsis.errors import InputError
from wsis.nn.masks import tight_boxes
from wsis.types import Index, Record, Target

__all__ = [
    "FIELDS",
    "Classes",
    "Field",
    "check_fields",
    "cover_target",
    "cut_target",
    "join_targets",
    "keep_objects",
    "read_objects",
    "read_target",
    "require_labels",
    "target_of_masks",
]


class Classes(NamedTuple):
    """The classes of a data set."""

    things: Mapping[int, int]
    """Class (0-based position) of each category id."""
    stuff: int
    """Number of stuff classes."""


@dataclass(frozen=True)
class Field:
    """How to make and change the tensors of one field of a label.

    Args:
        tensors: Names of the field's tensors in `Target`.
        read: `read(record, classes)` returns the tensors of an image's record, which
            `wsis.data.records.record_of` makes.
        of_masks: `of_masks(masks, labels, like)` returns the tensors of objects, such as pasted
            ones, from their masks (M,H,W) bool and classes (M,); `like` is another label of the
            same data set.
        image_keys: Parts of an index that the field may use: "tags", "stuff_tags", "complete".
        keys: Keys of an annotation that the field may use. A field with keys has a row per object.
        needed: Key that an annotation must have for the field to know it, and at least one to train
            a method on the field. None if the field knows all annotations.
        cut: `cut(target, cut)` returns the tensors after a crop, a scale and a flip, and which
            objects (M,) bool remain visible. None if cuts change nothing.
        cover: `cover(target, covered)` returns the tensors after other objects were pasted over
            the pixels `covered` (H,W) bool. None if that changes nothing.
    """

    tensors: tuple[str, ...]
    read: Callable[[Record, Classes], Target]
    of_masks: Callable[[Tensor, Tensor, Target], Target]
    image_keys: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    needed: str | None = None
    cut: Callable[[Target, Cut], tuple[Target, Tensor]] | None = None
    cover: Callable[[Target, Tensor], Target] | None = None


def read_target(record: Record, fields: Iterable[Field], classes: Classes) -> Target:
    """Return the given fields of an image's record, without fields that have no label."""
    target: Target = {}
    for field in fields:
        target |= field.read(record, classes)
    return target


def cut_target(target: Target, cut: Cut) -> Target:
    """Cut a target and drop objects that vanish; labels of the whole image do not change."""
    result: dict[str, Tensor] = {**target}  # type: ignore[dict-item]
    keep = None
    for field in _fields_of(target):
        if field.cut is not None:
            tensors, seen = field.cut(target, cut)
            result |= cast(dict[str, Tensor], tensors)
            keep = seen if keep is None else keep & seen
    return cast(Target, result) if keep is None else keep_objects(cast(Target, result), keep)


def cover_target(target: Target, covered: Tensor) -> Target:
    """Change a target as pasting over the pixels `covered` (H,W) bool does; no object is lost."""
    result: dict[str, Tensor] = {**target}  # type: ignore[dict-item]
    for field in _fields_of(target):
        if field.cover is not None:
            result |= cast(dict[str, Tensor], field.cover(target, covered))
    return cast(Target, result)


def keep_objects(target: Target, keep: Tensor) -> Target:
    """Return a target with the objects `keep` (M,) bool; labels of the image do not change."""
    tensors = cast(dict[str, Tensor], target)
    rows = {name for field in _fields_of(target) if field.keys for name in field.tensors}
    kept = {name: tensors[name][keep] for name in rows & tensors.keys()}
    return cast(Target, tensors | kept)


def target_of_masks(like: Target, masks: Tensor, labels: Tensor) -> Target:
    """Return the fields of `like` for objects of masks (M,H,W) bool and classes (M,)."""
    target: Target = {}
    for field in _fields_of(like):
        target |= field.of_masks(masks, labels, like)
    return target


def join_targets(first: Target, second: Target) -> Target:
    """Return a label with the objects of both targets: rows are concatenated, tags united."""
    one, other = cast(dict[str, Tensor], first), cast(dict[str, Tensor], second)
    joined = {}
    for field in _fields_of(second):
        for name in [name for name in field.tensors if name in one and name in other]:
            both = one[name], other[name]
            joined[name] = torch.cat(both) if field.keys else torch.maximum(*both)
    return cast(Target, joined)


def check_fields(names: Collection[str]) -> None:
    """Raise InputError for a name that is not a field of a label."""
    wrong = [names] if isinstance(names, str) else sorted(set(names) - FIELDS.keys())
    if wrong:
        raise InputError(
            f"supervision '{wrong[0]}' is no set of fields of a label; fields are "
            f"{', '.join(FIELDS)}"
        )


def require_labels(index: Index, supervision: AbstractSet[str], labels: Path | None) -> None:
    """Check that a training set has labels.

    Args:
        index: The data set.
        supervision: Names of fields.
        labels: The file of its annotations, if they are not the data set's own.

    Raises:
        InputError: No annotation has the key that a field needs.
    """
    needed = {name: field.needed for name, field in FIELDS.items() if name in supervision}
    known = {key for found in index.annotations.values() for a in found for key in a if a[key]}
    if missing := {name: key for name, key in needed.items() if key and key not in known}:
        keys = " or ".join(map(repr, missing.values()))
        drawn = ", draw points from masks (wsis.simulate --point 1)" if "points" in missing else ""
        raise InputError(
            f"{index.name} has no {' and no '.join(missing)} to train with in "
            f"{labels or index.root}: no annotation has {keys}; add them{drawn} or take a model "
            "for tags"
        )


def read_objects(
    annotations: Sequence[Record], classes: Mapping[int, int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return boxes (M,4) xyxy, NaN if unknown, labels (M,) and crowd (M,) of COCO annotations."""
    unknown = [math.nan] * 4
    boxes = torch.tensor([a.get("bbox", unknown) for a in annotations], dtype=torch.float32)
    boxes = boxes.view(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    labels = torch.tensor([classes[a["category_id"]] for a in annotations], dtype=torch.int64)
    crowd = torch.tensor([bool(a.get("iscrowd")) for a in annotations], dtype=torch.bool)
    return boxes, labels, crowd


def _read_tags(record: Record, classes: Classes) -> Target:
    return {"tags": _one_hot(record["tags"] or (), len(classes.things))}


def _tags_of_masks(masks: Tensor, labels: Tensor, like: Target) -> Target:
    return {"tags": _one_hot(labels.tolist(), len(like["tags"]))}


def _read_stuff_tags(record: Record, classes: Classes) -> Target:
    known = record["stuff_tags"]
    return {} if known is None else {"stuff_tags": _one_hot(known, classes.stuff)}


def _no_stuff(masks: Tensor, labels: Tensor, like: Target) -> Target:
    return {"stuff_tags": torch.zeros_like(like["stuff_tags"])}


def _read_complete(record: Record, classes: Classes) -> Target:
    return {"complete": _one_hot(record["complete"], len(classes.things)).bool()}


def _complete_of_like(masks: Tensor, labels: Tensor, like: Target) -> Target:
    return {"complete": like["complete"]}


def _cut_complete(target: Target, cut: Cut) -> tuple[Target, Tensor]:
    """Return the classes without those of objects of which the crop may show a part, but no point.

    All that is known of such an object is a point that the crop left out.
    """
    complete, everything = target["complete"].clone(), torch.tensor(True)
    if "points" in target:
        _, seen = _cut_points(target, cut)
        complete[target["labels"][~seen]] = False
    return {"complete": complete}, everything


def _read_points(record: Record, classes: Classes) -> Target:
    annotations = record["annotations"]
    points, point_labels = stack_points([a.get("points") or () for a in annotations])
    _, labels, crowd = read_objects(annotations, classes.things)
    return {"points": points, "point_labels": point_labels, "labels": labels, "crowd": crowd}


def _points_of_masks(masks: Tensor, labels: Tensor, like: Target) -> Target:
    points, point_labels = middle_points(masks, like["points"].shape[1])
    crowd = torch.zeros(len(masks), dtype=torch.bool)
    return {"points": points, "point_labels": point_labels, "labels": labels, "crowd": crowd}


def _cut_points(target: Target, cut: Cut) -> tuple[Target, Tensor]:
    """Return the points in the crop; an object without box and mask goes with its last one."""
    points, labels = cut_points(target["points"], target["point_labels"], cut)
    seen = (labels == 1).any(1)
    if "boxes" in target:
        seen |= ~target["boxes"].isnan().any(1)
    if "masks" in target:
        seen |= ~target["ignore_mask"]
    return {"points": points, "point_labels": labels}, seen


def _cover_points(target: Target, covered: Tensor) -> Target:
    points, labels = cover_points(target["points"], target["point_labels"], covered)
    return {"points": points, "point_labels": labels}


def _read_boxes(record: Record, classes: Classes) -> Target:
    image, annotations = record["image"], record["annotations"]
    boxes, labels, crowd = read_objects(annotations, classes.things)
    boxes, _ = visible(boxes, (image["height"], image["width"]))
    target: Target = {"boxes": boxes, "labels": labels, "crowd": crowd}
    if annotations and all("bag" in a for a in annotations):
        target["bag"] = torch.tensor([a["bag"] for a in annotations])
    return target


def _boxes_of_masks(masks: Tensor, labels: Tensor, like: Target) -> Target:
    crowd = torch.zeros(len(masks), dtype=torch.bool)
    return {"boxes": tight_boxes(masks), "labels": labels, "crowd": crowd}


def _cut_boxes(target: Target, cut: Cut) -> tuple[Target, Tensor]:
    boxes, seen = visible(cut.view.to_input(target["boxes"]), cut.size)
    return {"boxes": boxes}, seen | boxes.isnan().any(1)


def _cover_boxes(target: Target, covered: Tensor) -> Target:
    """Return boxes around what is visible; an object of unknown mask keeps its box."""
    if "masks" not in target:
        return {}
    around = tight_boxes(target["masks"] & ~covered)
    return {"boxes": torch.where(target["ignore_mask"][:, None], target["boxes"], around)}


def _read_masks(record: Record, classes: Classes) -> Target:
    annotations = record["annotations"]
    size = record["image"]["height"], record["image"]["width"]
    masks = [_mask(annotation, size) for annotation in annotations]
    ignore_mask = [bool(a.get("ignore") or not a.get("segmentation")) for a in annotations]
    return {
        "masks": torch.stack(masks) if masks else torch.zeros((0, *size)).bool(),
        "ignore_mask": torch.tensor(ignore_mask, dtype=torch.bool),
    }


def _masks_of_masks(masks: Tensor, labels: Tensor, like: Target) -> Target:
    return {"masks": masks, "ignore_mask": torch.zeros(len(masks), dtype=torch.bool)}


def _cut_masks(target: Target, cut: Cut) -> tuple[Target, Tensor]:
    masks = cut_maps(target["masks"], cut)
    seen = masks.flatten(1).any(1)
    ignore_mask = target.get("ignore_mask", torch.zeros_like(seen))
    return {"masks": masks, "ignore_mask": ignore_mask}, seen | ignore_mask


def _cover_masks(target: Target, covered: Tensor) -> Target:
    return {"masks": target["masks"] & ~covered}


def _mask(annotation: Record, size: tuple[int, int]) -> Tensor:
    """Return a mask (H,W) bool, empty where the annotation has none."""
    if not annotation.get("segmentation"):
        return torch.zeros(size, dtype=torch.bool)
    return torch.from_numpy(rle.decode(run_length(annotation["segmentation"], size))).bool()


def _one_hot(classes: Sequence[int], count: int) -> Tensor:
    tags = torch.zeros(count)
    tags[list(classes)] = 1
    return tags


def _fields_of(target: Target) -> list[Field]:
    return [field for name, field in FIELDS.items() if name in target]


FIELDS: dict[str, Field] = {
    "tags": Field(("tags",), _read_tags, _tags_of_masks, image_keys=("tags",)),
    "stuff_tags": Field(("stuff_tags",), _read_stuff_tags, _no_stuff, image_keys=("stuff_tags",)),
    "complete": Field(
        ("complete",),
        _read_complete,
        _complete_of_like,
        image_keys=("complete",),
        cut=_cut_complete,
    ),
    "points": Field(
        ("points", "point_labels", "labels", "crowd"),
        _read_points,
        _points_of_masks,
        keys=("points", "category_id", "iscrowd"),
        needed="points",
        cut=_cut_points,
        cover=_cover_points,
    ),
    "boxes": Field(
        ("boxes", "labels", "crowd", "bag"),
        _read_boxes,
        _boxes_of_masks,
        keys=("bbox", "category_id", "iscrowd", "bag"),
        needed="bbox",
        cut=_cut_boxes,
        cover=_cover_boxes,
    ),
    "masks": Field(
        ("masks", "ignore_mask"),
        _read_masks,
        _masks_of_masks,
        keys=("segmentation", "ignore"),
        needed="segmentation",
        cut=_cut_masks,
        cover=_cover_masks,
    ),
}
"""The fields of a label that a method can learn from, by name."""
