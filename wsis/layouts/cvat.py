"""CVAT for images 1.1: boxes, polygons, ellipses, masks, points and tags in an xml file."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from wsis.errors import InputError
from wsis.layouts.labels import Labels, Layout, Photo, Source, size_of
from wsis.layouts.pictures import SPLITS
from wsis.layouts.shapes import ellipse, outline, turned
from wsis.layouts.text import counted
from wsis.layouts.xml import Element, parse_xml, text_of
from wsis.nn.masks import run_lengths
from wsis.types import Record

__all__ = ["LAYOUT"]


def _matches(source: Source) -> bool:
    return source.suffix == ".xml" and "<annotations>" in source.head


def _read(source: Source) -> Labels:
    root = parse_xml(source.path)
    if root.find("track") is not None:
        raise InputError(f'{source.path} is of a video; export it as "CVAT for images 1.1"')
    # the parts of a skeleton have a parent, and are no classes
    whole = [label for label in root.iter("label") if not text_of(label, "parent")]
    names = list(dict.fromkeys(name for label in whole if (name := text_of(label, "name"))))
    categories: list[Record] = [{"id": n, "name": name} for n, name in enumerate(names, 1)]
    where = f"{source.path}: image"
    images = list(root.iter("image"))
    kept = _of_split(images, source.split)
    photos = [_photo(image, f"{where} {image.get('id')}") for image in kept]
    left = len(images) - len(kept)
    notes = [f"{counted(left, 'image')} of other subsets left out"] if left else []
    return Labels(photos, source.path.parent, categories, notes)


def _of_split(images: Sequence[Element], split: str) -> list[Element]:
    """Return the images whose subset is the split's; without such subsets, those of no other."""
    subsets = [image.get("subset", "").lower() for image in images]
    pairs = list(zip(images, subsets, strict=True))
    own = [image for image, subset in pairs if subset in SPLITS[split]]
    if own and split == "val":
        return own
    others = {name for key in SPLITS.keys() - {split} for name in SPLITS[key]}
    return [image for image, subset in pairs if subset not in others]


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
    """Return the annotation of a shape; lines and skeletons are tags alone."""

    def numbers(*names: str) -> list[float]:
        return [float(item.attrib[name]) for name in names]

    degrees = float(item.get("rotation", 0))
    if item.tag == "box":
        x1, y1, x2, y2 = numbers("xtl", "ytl", "xbr", "ybr")
        box = [x1, y1, x2 - x1, y2 - y1]
        return {"bbox": turned(box, degrees, ((x1 + x2) / 2, (y1 + y2) / 2)) if degrees else box}
    if item.tag in ("polygon", "points"):
        pairs = (pair.split(",") for pair in item.attrib["points"].split(";"))
        corners = [(float(x), float(y)) for x, y in pairs]
        if item.tag == "points":
            return {"points": [[x, y, 1] for x, y in corners]}
        return {"segmentation": [outline(corners)]}
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
