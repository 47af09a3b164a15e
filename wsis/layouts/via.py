"""VGG Image Annotator: JSON (version 1, 2, or a project) and CSV."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from wsis.errors import InputError
from wsis.layouts.labels import Labels, Layout, Photo, Source, parse_json
from wsis.layouts.shapes import around, ellipse, outline
from wsis.layouts.tables import read_table
from wsis.types import Record

__all__ = ["CSV", "JSON"]

_PREFERRED = ("label", "class", "category", "type", "name", "object", "tag", "tags", "species")
"""Names of the attribute that is the class, where there are several."""
_NOT_CLASSES = ("caption", "public_domain", "image_url")  # file attributes that VIA begins with


def _matches_json(source: Source) -> bool:
    if source.suffix != ".json" or not source.head.startswith("{"):
        return False
    return any(
        source.has(*keys)
        for keys in (("filename", "regions"), ("_via_img_metadata",), ("data_format_version",))
    )


def _read_json(source: Source) -> Labels:
    content = source.json
    if "data_format_version" in content.get("project", {}):
        raise InputError(f"{source.path} is of VIA 3; draw in VIA 2, or write it as COCO")
    entries = list(content.get("_via_img_metadata", content).values())
    return _labels(entries, source.path, content.get("_via_attributes") or {})


def _matches_csv(source: Source) -> bool:
    return source.suffix == ".csv" and "region_shape_attributes" in source.head.split("\n", 1)[0]


def _read_csv(source: Source) -> Labels:
    table = read_table(source.path)
    by_file: dict[str, Record] = {}
    for number, row in table.rows:
        cells = dict(zip(table.heading, row, strict=False))
        name = cells.get("filename") or cells["#filename"]
        parts = ("region_shape_attributes", "region_attributes", "file_attributes")
        shape, region, whole = (
            parse_json(cells[part] or "{}", f"{source.path}:{number}") for part in parts
        )
        entry = by_file.setdefault(name, {"filename": name, "regions": []})
        entry["file_attributes"] = whole
        if shape:
            entry["regions"].append({"shape_attributes": shape, "region_attributes": region})
    return _labels(list(by_file.values()), source.path)


def _labels(entries: Sequence[Record], path: Path, declared: Record | None = None) -> Labels:
    """Return the labels of images; those without regions have the classes of the whole file.

    Args:
        entries: of the images.
        path: of the file.
        declared: attributes of a project, with the options of each.
    """
    regions = [region for entry in entries for region in _regions(entry)]
    if regions:
        attribute = _attribute([region["region_attributes"] for region in regions], path)
    else:
        attribute = _attribute([entry.get("file_attributes") or {} for entry in entries], path)
    options = ((declared or {}).get("region" if regions else "file") or {}).get(attribute) or {}
    words = {str(key): text for key, text in (options.get("options") or {}).items()}
    photos = []
    for entry in entries:
        given = (entry.get("file_attributes") or {}).get(attribute)
        tags = [] if _regions(entry) else _classes(given, words)
        objects = [
            {"name": name, **_drawn(region["shape_attributes"])}
            for region in _regions(entry)
            for name in _classes(region["region_attributes"].get(attribute), words) or [""]
        ]
        photos.append(Photo(entry["filename"], f"{path}: {entry['filename']}", tags, objects))
    return Labels(photos, path.parent)


def _regions(entry: Record) -> list[Record]:
    """Return the regions of an image, a dictionary in version 1."""
    regions = entry.get("regions") or []
    return list(regions.values()) if isinstance(regions, dict) else regions


def _attribute(attributes: Iterable[Record], path: Path) -> str:
    """Return the attribute that holds the classes.

    Raises:
        InputError: there are several, none of which is called as if it did.
    """
    items = itertools.chain.from_iterable(given.items() for given in attributes)
    names = sorted({name for name, value in items if value} - set(_NOT_CLASSES))
    preferred = [name for name in _PREFERRED if name in {other.lower() for other in names}]
    if preferred:
        return next(name for name in names if name.lower() == preferred[0])
    if len(names) > 1:
        raise InputError(
            f"{path} has the attributes {', '.join(names)}, any of which may be the class; call "
            "that one class"
        )
    return names[0] if names else ""


def _classes(value: Any, words: Mapping[str, str]) -> list[str]:
    """Return the classes of an attribute, which may be boxes that are ticked.

    An option called by a number is the class that its description says.
    """
    if isinstance(value, dict):
        names = [str(name) for name, is_set in value.items() if is_set]
    else:
        names = [str(value)] if value not in (None, "") else []
    return [words.get(name) or name if name.isdigit() else name for name in names]


def _drawn(shape: Record) -> Record:
    """Return the annotation of a shape; lines are tags alone."""
    kind = shape["name"]
    if kind == "point":
        return {"points": [[shape["cx"], shape["cy"], 1]]}
    if kind == "rect":
        return {"bbox": [float(shape[key]) for key in ("x", "y", "width", "height")]}
    if kind == "polygon":
        points = zip(shape["all_points_x"], shape["all_points_y"], strict=True)
        polygon = outline(points)
    elif kind == "circle":
        polygon = ellipse((shape["cx"], shape["cy"]), (shape["r"], shape["r"]))
    elif kind == "ellipse":
        radii, degrees = (shape["rx"], shape["ry"]), math.degrees(shape.get("theta", 0))
        polygon = ellipse((shape["cx"], shape["cy"]), radii, degrees)
    else:
        return {}
    return {"segmentation": [polygon], "bbox": around([polygon])}


JSON = Layout("VIA JSON", "via_region_data.json", _matches_json, _read_json)
CSV = Layout("VIA CSV", "via_region_data.csv", _matches_csv, _read_csv)
