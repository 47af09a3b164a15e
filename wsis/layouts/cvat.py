"""CVAT for images 1.1: boxes, polygons, ellipses, masks and tags in an xml file."""

from __future__ import annotations

import numpy as np

from wsis.errors import InputError
from wsis.layouts.labels import Labels, Layout, Photo, Source, size_of
from wsis.layouts.shapes import ellipse, outline, turned
from wsis.layouts.xml import Element, parse_xml
from wsis.nn.masks import run_lengths
from wsis.types import Record

__all__ = ["LAYOUT"]


def _matches(source: Source) -> bool:
    return source.suffix == ".xml" and "<annotations>" in source.head


def _read(source: Source) -> Labels:
    root = parse_xml(source.path)
    if root.find("track") is not None:
        raise InputError(f'{source.path} is of a video; export it as "CVAT for images 1.1"')
    names = list(dict.fromkeys(name for label in root.iter("label") if (name := _name(label))))
    categories: list[Record] = [{"id": n, "name": name} for n, name in enumerate(names, 1)]
    where = f"{source.path}: image"
    photos = [_photo(image, f"{where} {image.get('id')}") for image in root.iter("image")]
    return Labels(photos, source.path.parent, categories)


def _name(label: Element) -> str:
    return (label.findtext("name") or "").strip()


def _photo(image: Element, where: str) -> Photo:
    size = size_of(image.attrib["height"], image.attrib["width"], where)
    tags = [item.attrib["label"] for item in image.iter("tag")]
    objects = [
        {"name": item.attrib["label"], **_drawn(item, size, where)}
        for item in image
        if item.tag != "tag" and "label" in item.attrib
    ]
    return Photo(image.attrib["name"], where, tags, objects, size)


def _drawn(item: Element, size: tuple[int, int], where: str) -> Record:
    """Return the annotation of a shape; points and lines are tags alone."""

    def numbers(*names: str) -> list[float]:
        return [float(item.attrib[name]) for name in names]

    degrees = float(item.get("rotation", 0))
    if item.tag == "box":
        x1, y1, x2, y2 = numbers("xtl", "ytl", "xbr", "ybr")
        box = [x1, y1, x2 - x1, y2 - y1]
        return {"bbox": turned(box, degrees, ((x1 + x2) / 2, (y1 + y2) / 2)) if degrees else box}
    if item.tag == "polygon":
        pairs = (pair.split(",") for pair in item.attrib["points"].split(";"))
        return {"segmentation": [outline((float(x), float(y)) for x, y in pairs)]}
    if item.tag == "ellipse":
        x, y, rx, ry = numbers("cx", "cy", "rx", "ry")
        return {"segmentation": [ellipse((x, y), (rx, ry), degrees)]}
    if item.tag == "mask":
        return {"segmentation": run_lengths(_mask(item, size, where))}
    return {}


def _mask(item: Element, size: tuple[int, int], where: str) -> np.ndarray:
    """Return a mask (H,W) bool of run lengths along the rows of a window, background first."""
    left, top, width, height = (int(item.attrib[key]) for key in ("left", "top", "width", "height"))
    lengths = [int(number) for number in item.attrib["rle"].split(",")]
    inside = left >= 0 <= top and left + width <= size[1] and top + height <= size[0]
    if not inside or min(lengths) < 0 or sum(lengths) != width * height:
        raise InputError(
            f"{where}: the run lengths of a mask sum to {sum(lengths)}, not to its {width} x "
            f"{height} pixels in an image of {size[1]} x {size[0]}; export it again"
        )
    values = np.arange(len(lengths)) % 2 == 1
    mask = np.zeros(size, bool)
    window = np.repeat(values, lengths).reshape(height, width)
    mask[top : top + height, left : left + width] = window
    return mask


LAYOUT = Layout("CVAT for images", "annotations.xml", _matches, _read)
