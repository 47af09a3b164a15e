"""Files that label tools and training programs import: YOLO, Label Studio, CVAT."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.etree import ElementTree

import numpy as np
import yaml
from numpy.typing import NDArray

from wsis.files import atomic_write
from wsis.images.outlines import single_ring
from wsis.reports.found import Found
from wsis.types import Index

__all__ = ["write_brushes", "write_cvat", "write_polygons", "write_yolo"]

_Record = dict[str, Any]


def write_yolo(folder: Path, index: Index, found: Sequence[Found]) -> list[Path]:
    """Write yolo/: data.yaml, a text file per image with a polygon per object, links to images.

    A line is the class and the corners, x and y as fractions of width and height. YOLO has one
    polygon for an object: parts and holes are joined by lines of no width.
    """
    place = folder / "yolo"
    for image in found:
        lines = (_yolo_line(image, k) for k in range(len(image.objects.boxes)))
        with atomic_write(place / "labels" / f"{image.name}.txt") as scratch:
            scratch.write_text("".join(lines))
        _link(place / "images" / f"{image.name}{image.path.suffix}", image.path)
    names = {c: category["name"] for c, category in enumerate(index.categories)}
    content = {"train": "images", "val": "images", "names": names}
    with atomic_write(place / "data.yaml") as scratch:
        text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
        scratch.write_text(text, encoding="utf-8")
    return [place]


def _yolo_line(image: Found, k: int) -> str:
    height, width = image.objects.size
    corners = single_ring(image.parts(k)) / (width, height)
    numbers = " ".join(f"{value:.6f}" for value in corners.flatten())
    return f"{int(image.objects.labels[k])} {numbers}\n"


def _link(path: Path, target: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.symlink_to(target.resolve())


def write_brushes(folder: Path, index: Index, found: Sequence[Found]) -> list[Path]:
    """Write label_studio.json, tasks with brush masks, and label_studio.xml, their interface."""
    return _write_tasks(folder, "label_studio", "Brush", _brush, index, found)


def write_polygons(folder: Path, index: Index, found: Sequence[Found]) -> list[Path]:
    """Write the same with a polygon per object; parts and holes are joined as for YOLO."""
    return _write_tasks(folder, "label_studio_polygons", "Polygon", _polygon, index, found)


def _write_tasks(
    folder: Path,
    name: str,
    kind: str,
    value_of: Callable[[Found, int], _Record],
    index: Index,
    found: Sequence[Found],
) -> list[Path]:
    tasks, interface = folder / f"{name}.json", folder / f"{name}.xml"
    classes = [category["name"] for category in index.categories]
    with atomic_write(tasks) as scratch:
        scratch.write_text(json.dumps([_task(image, kind, value_of, classes) for image in found]))
    view = ElementTree.Element("View")
    ElementTree.SubElement(view, "Image", name="image", value="$image")
    for control in (kind, "Rectangle"):
        names = {"name": control.lower(), "toName": "image"}
        labels = ElementTree.SubElement(view, f"{control}Labels", names)
        for each in classes:
            ElementTree.SubElement(labels, "Label", value=_plain(each))
    _write_xml(interface, view, declared=False)  # its declaration is refused by Label Studio's SDK
    return [tasks, interface]


def _task(
    image: Found, kind: str, value_of: Callable[[Found, int], _Record], classes: Sequence[str]
) -> _Record:
    """Return a task whose prediction has the objects; the image is a file of the server's."""
    scores = image.objects.scores.tolist()
    results = []
    for k, label in enumerate(image.objects.labels.tolist()):
        masked = image.mask(k) is not None
        control, value = (kind, value_of(image, k)) if masked else ("Rectangle", _box(image, k))
        results.append(_result(image, k, control, value, classes[label]))
    prediction = {"model_version": "wsis", "score": max(scores, default=0.0), "result": results}
    file = quote(os.fsencode(image.path.resolve()).lstrip(b"/"))
    return {"data": {"image": f"/data/local-files/?d={file}"}, "predictions": [prediction]}


def _result(image: Found, k: int, control: str, value: _Record, label: str) -> _Record:
    height, width = image.objects.size
    kind = f"{control.lower()}labels"
    return {
        "id": f"{image.image['id']}-{k + 1}",
        "from_name": control.lower(),
        "to_name": "image",
        "type": kind,
        "score": float(image.objects.scores[k]),
        "original_width": width,
        "original_height": height,
        "image_rotation": 0,
        "value": {**value, kind: [label]},
    }


def _brush(image: Found, k: int) -> _Record:
    return {"format": "rle", "rle": _packed_runs(image.mask_or_box(k))}


def _polygon(image: Found, k: int) -> _Record:
    height, width = image.objects.size
    points = single_ring(image.parts(k)) / (width, height) * 100
    return {"points": points.round(5).tolist(), "closed": True}


def _box(image: Found, k: int) -> _Record:
    height, width = image.objects.size
    x1, y1, x2, y2 = image.box(k)
    place = {"x": 100 * x1 / width, "y": 100 * y1 / height, "rotation": 0}
    return {**place, "width": 100 * (x2 - x1) / width, "height": 100 * (y2 - y1) / height}


_SIZES = (3, 4, 8, 16)
"""Bits of the four kinds of run lengths in Label Studio's brush masks."""


def _packed_runs(mask: NDArray[np.bool_]) -> list[int]:
    """Return the bytes of a mask (H,W) as Label Studio's brush stores it: rle-pack of thi.ng.

    The mask is packed as an RGBA image whose four channels are all 255 or all 0. A header of 53
    bits has the number of values, the bits of a value less 1, and the four kinds of run lengths,
    less 1. Each run has the bit 1, two bits for the kind of its length, the length less 1, and the
    value.
    """
    bits = [f"{4 * mask.size:032b}{8 - 1:05b}", *(f"{size - 1:04b}" for size in _SIZES)]
    for k, pixels in enumerate(_runs(mask)):
        value = "11111111" if k % 2 else "00000000"
        for length in _pieces(4 * pixels, 2 ** _SIZES[-1]):
            kind = next(i for i, size in enumerate(_SIZES) if length <= 2**size)
            bits.append(f"1{kind:02b}{length - 1:0{_SIZES[kind]}b}{value}")
    text = "".join(bits)
    return np.packbits(np.frombuffer(text.encode(), np.uint8) - ord("0")).tolist()


def _pieces(length: int, most: int) -> Iterator[int]:
    while length > 0:
        yield min(length, most)
        length -= most


def _runs(mask: NDArray[np.bool_]) -> list[int]:
    """Return the lengths of the runs of a mask (H,W), row by row; the first is of False."""
    flat = mask.ravel()
    starts = np.flatnonzero(np.diff(flat, prepend=False))
    return np.diff(starts, prepend=0, append=flat.size).tolist()


def write_cvat(folder: Path, index: Index, found: Sequence[Found]) -> list[Path]:
    """Write cvat.xml, "CVAT for images 1.1", with masks; the best score lies on top.

    CVAT finds an image by the end of its path, so that images are named without their folders,
    unless two would have one name.
    """
    root = ElementTree.Element("annotations")
    ElementTree.SubElement(root, "version").text = "1.1"
    task = ElementTree.SubElement(ElementTree.SubElement(root, "meta"), "task")
    labels = ElementTree.SubElement(task, "labels")
    classes = [category["name"] for category in index.categories]
    for name in classes:
        label = ElementTree.SubElement(labels, "label")
        ElementTree.SubElement(label, "name").text = _plain(name)
        ElementTree.SubElement(label, "attributes")
    taken = Counter(image.path.name for image in found)
    for number, image in enumerate(found):
        name = image.path.name if taken[image.path.name] == 1 else image.image["file_name"]
        height, width = image.objects.size
        place = {
            "id": str(number),
            "name": _plain(name),
            "width": str(width),
            "height": str(height),
        }
        parent = ElementTree.SubElement(root, "image", place)
        for k, c in enumerate(image.objects.labels.tolist()):
            _add_shape(parent, image, k, _plain(classes[c]))
    _write_xml(folder / "cvat.xml", root)
    return [folder / "cvat.xml"]


def _add_shape(parent: ElementTree.Element, image: Found, k: int, label: str) -> None:
    mask, above = image.mask(k), len(image.objects.boxes) - k
    shared = {"label": label, "source": "auto", "occluded": "0", "z_order": str(above)}
    if mask is None:
        sides = zip(("xtl", "ytl", "xbr", "ybr"), image.box(k), strict=True)
        box = {name: f"{value:.2f}" for name, value in sides}
        ElementTree.SubElement(parent, "box", {**shared, **box})
        return
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    top, left = int(rows[0]), int(columns[0])
    inside = mask[top : rows[-1] + 1, left : columns[-1] + 1]
    lengths = {"rle": ", ".join(map(str, _runs(inside)))}
    place = {"left": left, "top": top, "width": inside.shape[1], "height": inside.shape[0]}
    numbers = {name: str(value) for name, value in place.items()}
    ElementTree.SubElement(parent, "mask", {**shared, **lengths, **numbers})


def _plain(text: str) -> str:
    """Replace what XML cannot hold: control characters, and bytes in names that are no UTF-8."""
    return re.sub("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]", "\ufffd", text)


def _write_xml(path: Path, root: ElementTree.Element, declared: bool = True) -> None:
    ElementTree.indent(root)
    with atomic_write(path) as scratch, open(scratch, "wb") as file:
        ElementTree.ElementTree(root).write(file, "utf-8", xml_declaration=declared)
        file.write(os.linesep.encode())
