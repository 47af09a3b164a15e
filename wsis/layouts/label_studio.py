"""Label Studio's JSON, JSON-MIN and CSV: choices, rectangles, ellipses, polygons, brushes, points.

JSON has a list of results for each task; JSON-MIN and CSV have a field for each control of the
labelling page, with the values of the results.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from wsis.errors import InputError
from wsis.layouts.brush import decode_brush
from wsis.layouts.labels import Labels, Layout, Photo, Source, parse_json, size_of
from wsis.layouts.pictures import is_picture_name
from wsis.layouts.shapes import ellipse, outline, turned
from wsis.layouts.tables import TAGS, column_of, read_table
from wsis.nn.masks import run_lengths
from wsis.types import Record

__all__ = ["CSV", "JSON"]

_NAMES = (
    *("rectanglelabels", "polygonlabels", "brushlabels", "ellipselabels", "keypointlabels"),
    *("labels", "choices", "taxonomy", "hypertextlabels"),
)
"""Fields of a value that hold its classes."""
# fmt: off
_OWN = frozenset({
    "id", "annotator", "annotation_id", "created_at", "updated_at", "lead_time", "completed_by",
    "reviews", "task",
})
# fmt: on
"""Fields of JSON-MIN and CSV that are no control."""
_MARKS = ("annotator", "annotation_id", "lead_time")


def _matches_json(source: Source) -> bool:
    if source.suffix != ".json" or not source.head.startswith("["):
        return False
    has_tasks = source.has("data") and (source.has("annotations") or source.has("predictions"))
    has_tasks |= source.has("annotations", "result")
    has_rows = any(source.has(word) for word in (*_MARKS, *_NAMES[:5], "choice"))
    has_rows |= source.has("format", "rle")  # a brush may fill the head
    return has_tasks or (has_rows and not source.has("coordinates"))


def _read_json(source: Source) -> Labels:
    tasks = source.json
    if not isinstance(tasks, list):
        raise InputError(f"{source.path} is no list of tasks; export it again as JSON")
    places = [f"{source.path}: task {task.get('id', n)}" for n, task in enumerate(tasks, 1)]
    if not any("annotations" in task or "data" in task for task in tasks):
        return _labels_of_rows(list(zip(places, tasks, strict=True)), source)
    is_done = any(task.get("annotations") for task in tasks)
    if not is_done and any(task.get("predictions") for task in tasks):
        raise InputError(
            f"{source.path} has predictions alone, which nobody accepted; submit them in Label "
            "Studio and export again"
        )
    photos = [_photo_of_task(task, place) for task, place in zip(tasks, places, strict=True)]
    return Labels(photos, source.path.parent)


def _matches_csv(source: Source) -> bool:
    if source.suffix not in (".csv", ".tsv"):
        return False
    first = source.head.split("\n", 1)[0]
    return any(mark in first for mark in _MARKS[:2])


def _read_csv(source: Source) -> Labels:
    table = read_table(source.path)
    rows = []
    for number, row in table.rows:
        where = f"{source.path}:{number}"
        cells = dict(zip(table.heading, row, strict=False))
        values = {
            name: parse_json(cell, where) if cell[:1] in ("[", "{") else cell
            for name, cell in cells.items()
        }
        rows.append((where, values))
    return _labels_of_rows(rows, source)


def _labels_of_rows(rows: Sequence[tuple[str, Record]], source: Source) -> Labels:
    """Return the labels of rows of JSON-MIN or CSV; the first row of a task counts."""
    rows = list({row.get("id", where): (where, row) for where, row in reversed(rows)}.values())[
        ::-1
    ]
    images = [_image_in(row, where) for where, row in rows]
    controls = _controls([row for _, row in rows], images, source)
    photos = []
    for (where, row), image in zip(rows, images, strict=True):
        values = [value for name in controls for value in _values(row.get(name))]
        photos.append(_photo(image, values, where))
    return Labels(photos, source.path.parent)


def _controls(rows: Sequence[Record], images: Sequence[str], source: Source) -> list[str]:
    """Return the fields that hold labels.

    Raises:
        InputError: there are only texts, any of which may be the choice.
    """
    drawn: dict[str, int] = {}
    texts: dict[str, int] = {}
    for row, image in zip(rows, images, strict=True):
        filled = {name: v for name, v in row.items() if v and v != image and name not in _OWN}
        drawn |= {name: 0 for name, value in filled.items() if isinstance(value, list | dict)}
        texts |= {name: 0 for name, value in filled.items() if isinstance(value, str)}
    for name in texts:  # a choice may be one text here and several elsewhere
        if column_of([name], TAGS | {"choice", "choices"}) is not None:
            drawn[name] = 0
    if not drawn and len(texts) > 1:
        raise InputError(
            f"{source.path} has the fields {', '.join(texts)}, any of which may be the class; call "
            "that one choice"
        )
    return list(drawn or texts)


def _photo_of_task(task: Record, where: str) -> Photo:
    """Return the labels of a task of the full JSON; those of cancelled annotations do not count."""
    done = [a for a in task.get("annotations") or [] if not a.get("was_cancelled")]
    results = [result for annotation in done[:1] for result in annotation["result"]]
    values = [{**result, **result["value"]} for result in results if "value" in result]
    data = task["data"]
    return _photo(_image_in(data, where), _regions(values, where), where)


def _regions(values: Sequence[Record], where: str) -> list[Record]:
    """Drop choices that describe one region, which share its `id`, and points that are its parts.

    Raises:
        InputError: a region has no class, or its image was turned in Label Studio.
    """
    names = {value.get("id"): name for value in values for name in _classes(value)}
    drawn = {value.get("id") for value in values if {"x", "points", "rle"} & value.keys()} - {None}
    for value in values:
        if value.get("image_rotation"):
            raise InputError(
                f"{where}: its image was turned by {value['image_rotation']} degrees in Label "
                "Studio; turn the photo itself"
            )
        if value.get("id") in drawn and value.get("id") not in names:
            raise InputError(f"{where}: a {value.get('type', 'region')} has no class; give it one")
    remarks = ("choices", "taxonomy")
    whole = [v for v in values if not (v.get("keypointlabels") and v.get("parentID"))]
    return [v for v in whole if v.get("type") not in remarks or v.get("id") not in drawn]


def _values(content: Any) -> list[Record]:
    """Return the values of a control; a choice is a text or a dictionary of several."""
    if isinstance(content, str):
        return [{"choices": [content]}]
    if isinstance(content, list):
        if all(isinstance(value, str) for value in content):
            return [{"choices": content}]
        return [value for value in content if isinstance(value, dict)]
    return [content] if isinstance(content, dict) else []


def _image_in(fields: Mapping[str, Any], where: str) -> str:
    """Return the field that names an image: called image or so, or ending like one."""
    texts = {name: text for name, text in fields.items() if isinstance(text, str)}
    for name in ("image", "img", "photo", "picture"):
        if name in texts:
            return texts[name]
    named = [text for text in texts.values() if is_picture_name(text.split("?")[0])]
    if not named:
        raise InputError(f"{where} names no image; export a project of images")
    return named[0]


def _photo(image: str, values: Sequence[Record], where: str) -> Photo:
    tags: list[str] = []
    objects: list[Record] = []
    size = None
    for value in values:
        names = _classes(value)
        if "original_width" in value:
            size = size_of(value["original_height"], value["original_width"], where)
        drawn = _drawn(value, size, where)
        tags += [] if drawn else names
        objects += [{"name": name, **drawn} for name in names if drawn]
    return Photo(image, where, tags, objects, size, relative=True)


def _classes(value: Record) -> list[str]:
    """Return the classes of a value, those of a taxonomy by its last level."""
    found: Any = next((value[name] for name in _NAMES if value.get(name)), [])
    return [name[-1] if isinstance(name, list) else name for name in _as_list(found)]


def _as_list(value: Any) -> Iterable[Any]:
    return value if isinstance(value, list) else [value]


def _drawn(value: Record, size: tuple[int, int] | None, where: str) -> Record:
    """Return box, mask or point in fractions of the image; empty for what is a tag alone."""
    if value.get("rle"):
        if size is None:
            raise InputError(f"{where}: a brush has no original_width; export it again")
        return {"segmentation": run_lengths(decode_brush(value["rle"], size))}
    if value.get("points"):
        points = [(float(x) / 100, float(y) / 100) for x, y in value["points"]]
        return {"segmentation": [outline(points)]} if len(points) > 2 else {}
    if "radiusX" in value:
        return {"segmentation": [_ellipse(value, size)]}
    if value.get("keypointlabels"):  # its width is that of the dot
        return {"points": [[float(value["x"]) / 100, float(value["y"]) / 100, 1]]}
    if "width" not in value or "height" not in value or "x" not in value:
        return {}
    box = [float(value[key]) / 100 for key in ("x", "y", "width", "height")]
    if value.get("rotation"):
        height, width = size or (1, 1)
        scale = (width, height, width, height)
        pixels = [side * factor for side, factor in zip(box, scale, strict=True)]
        around = turned(pixels, value["rotation"], (pixels[0], pixels[1]))
        box = [side / factor for side, factor in zip(around, scale, strict=True)]
    return {"bbox": box}


def _ellipse(value: Record, size: tuple[int, int] | None) -> list[float]:
    """Return an ellipse in fractions of the image; it turns in pixels."""
    height, width = size or (1, 1)
    x, y, rx, ry = (float(value[key]) / 100 for key in ("x", "y", "radiusX", "radiusY"))
    corners = ellipse((x * width, y * height), (rx * width, ry * height), value.get("rotation", 0))
    return [number / (height if n % 2 else width) for n, number in enumerate(corners)]


JSON = Layout("Label Studio JSON", "project-1.json", _matches_json, _read_json)
CSV = Layout("Label Studio CSV", "project-1.csv", _matches_csv, _read_csv)
