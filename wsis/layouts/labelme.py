"""LabelMe's json files, one for each image."""

from __future__ import annotations

import base64
import io
import math
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as rle

from wsis.errors import InputError
from wsis.files import read_json
from wsis.layouts.labels import Labels, Layout, Photo, Source, refuse_damaged, size_of
from wsis.layouts.shapes import around, ellipse, outline
from wsis.nn.masks import run_lengths
from wsis.types import Record

__all__ = ["LAYOUT"]


_RECTANGLES = ("rectangle", "rotation", "oriented_rectangle")  # the latter of X-AnyLabeling
_TAGS = ("polygon", "line", "linestrip")  # a polygon of fewer than three corners


def _matches(source: Source) -> bool:
    return not source.is_mixed and any(map(_is_labelme, source.of_kind(".json")))


def _is_labelme(path: Path) -> bool:
    head = Source(path, path.parent, "")
    return head.has("shapes") and head.head.startswith("{")


def _read(source: Source) -> Labels:
    files = []
    for path in source.of_kind(".json"):
        if _is_labelme(path):
            files.append(path)
        else:
            refuse_damaged(path)
    contents = [(path, read_json(path)) for path in files]
    # flags are classes of whole images where nothing is drawn, else remarks
    has_shapes = any(content["shapes"] for _, content in contents)
    photos = [_photo(path, source.path, content, has_shapes) for path, content in contents]
    return Labels(photos, source.path)


def _photo(path: Path, folder: Path, content: Record, has_shapes: bool) -> Photo:
    height, width = content.get("imageHeight"), content.get("imageWidth")
    size = size_of(height, width, str(path)) if height and width else None
    written = str(content.get("imagePath") or path.stem).replace("\\", "/")
    flags = content.get("flags") or {}
    tags = [] if has_shapes else [name for name, is_set in flags.items() if is_set]
    groups: dict[Any, Record] = {}
    for number, shape in enumerate(content["shapes"]):
        group = shape.get("group_id")
        key = number if group is None else (shape["label"], str(group))
        drawn = _drawn(shape, size, str(path))
        groups[key] = _joined(groups[key], drawn, str(path)) if key in groups else drawn
    objects = list(groups.values())
    name = path.relative_to(folder).parent / Path(written)
    return Photo(str(name), str(path), tags, objects, size)


def _joined(one: Record, other: Record, where: str) -> Record:
    """Return one object of two shapes of a group, with all points; it has a mask if both have one.

    Raises:
        InputError: one is a mask, and the other a polygon or a box.
    """
    points = [*one.get("points", ()), *other.get("points", ())]
    if points:
        whole = _joined(_without_points(one), _without_points(other), where)
        return {**whole, "points": points}
    shapes = [a for a in (one, other) if a.get("segmentation") or a.get("bbox")]
    if len(shapes) < 2:
        return shapes[0] if shapes else one
    parts: list[Any] = [shape.get("segmentation") for shape in shapes]
    masks = sum(isinstance(part, dict) for part in parts)
    if masks == 1:
        raise InputError(
            f'{where}: a group of "{one["name"]}" has a mask and another shape; draw both as masks'
        )
    if masks:
        return {"name": one["name"], "segmentation": rle.merge(parts)}
    boxes = [shape["bbox"] for shape in shapes]
    box = around([[x, y, x + width, y + height] for x, y, width, height in boxes])
    polygons = [polygon for part in parts for polygon in part] if all(parts) else None
    return {"name": one["name"], "segmentation": polygons, "bbox": box}


def _without_points(annotation: Record) -> Record:
    return {key: value for key, value in annotation.items() if key != "points"}


def _drawn(shape: Record, size: tuple[int, int] | None, where: str) -> Record:
    """Return the annotation of a shape; lines are tags alone.

    Raises:
        InputError: a shape of a kind that is not known.
    """
    name, kind, points = shape["label"], shape.get("shape_type") or "polygon", shape["points"]
    result: Record = {"name": name}
    if kind == "mask":
        return {**result, "segmentation": _mask(shape, size, where)}
    if kind == "polygon" and len(points) >= 3:
        result["segmentation"] = [outline(points)]
    elif kind in ("point", "points"):
        return {**result, "points": [[x, y, 1] for x, y in points]}
    elif kind in _RECTANGLES:
        return {**result, "bbox": around([outline(points)])}
    elif kind == "circle":
        (x, y), edge = points
        radius = math.dist((x, y), edge)
        result["segmentation"] = [ellipse((x, y), (radius, radius))]
    elif kind not in _TAGS:
        raise InputError(f'{where}: the shape "{kind}" of "{name}" is not known; draw a polygon')
    if "segmentation" in result:
        result["bbox"] = around(result["segmentation"])
    return result


def _mask(shape: Record, size: tuple[int, int] | None, where: str) -> Any:
    """Return the run lengths of a mask, a png of the part of the image between two points."""
    if size is None:
        raise InputError(f"{where} has a mask but no imageHeight and imageWidth; save it again")
    (x, y), _ = shape["points"]
    try:
        with Image.open(io.BytesIO(base64.b64decode(shape["mask"]))) as image:
            part = np.asarray(image.convert("L")) > 0
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"{where}: a mask is no whole png ({error}); save it again") from error
    whole = np.zeros(size, bool)
    left, top = round(x), round(y)
    target = whole[max(top, 0) : top + part.shape[0], max(left, 0) : left + part.shape[1]]
    target |= part[: target.shape[0], : target.shape[1]]
    return run_lengths(whole)


LAYOUT = Layout("LabelMe", "a folder of image.json", _matches, _read, ".json")
