"""Objects found in images, in forms that other programs read: tables, masks, label tools' files."""

from __future__ import annotations

import csv
import io
import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as rle

from wsis.coco.masks import box_of
from wsis.data.index import write_coco
from wsis.files import atomic_write, short_name
from wsis.images.outlines import outlines, rings
from wsis.images.read import read_image
from wsis.metrics.results import to_annotations
from wsis.reports._label_tools import write_brushes, write_cvat, write_polygons, write_yolo
from wsis.reports._sheet import write_sheet
from wsis.reports.found import Found
from wsis.types import Index, Prediction, Record

__all__ = ["Format", "export", "file_names"]

Format = Literal[
    "csv",
    "sheet",
    "png",
    "cutouts",
    "coco",
    "polygons",
    "yolo",
    "label_studio",
    "label_studio_polygons",
    "cvat",
]


def export(
    folder: Path,
    index: Index,
    predictions: Sequence[Prediction],
    formats: Sequence[Format],
) -> list[Path]:
    """Write objects in each format, and return the files and folders.

    NAME is an image's name by `file_names`; objects are numbered from 1, the best score first.

    * `csv`: objects.csv has a row per object with its image, number, class, score, area in pixels
      and box; counts.csv a row per image with the number of objects of each class.
    * `sheet`: sheet.jpg is one picture of the images, at most 64, with their objects and counts.
    * `png`: masks/NAME.png has the number of the object at each pixel, 0 for none; where masks
      overlap, the higher score is on top.
    * `cutouts`: cutouts/NAME-NUMBER.png is the object, cut out of its image, with alpha.
    * `coco`: coco.json has the masks as run lengths, and their boxes. Of images without a common
      root, names are relative to the folder that all are in.
    * `polygons`: polygons.json is a COCO file of polygons, with holes as `outlines.rings` cuts them
      open.
    * `yolo`: yolo/ has data.yaml, labels/NAME.txt with a polygon per object, and images/, links to
      the images.
    * `label_studio`: label_studio.json has tasks with brush masks, label_studio.xml the labelling
      interface that they need. `label_studio_polygons` likewise, with polygons.
    * `cvat`: cvat.xml is "CVAT for images 1.1" with masks.

    Objects without a mask are written as boxes, in `png` not at all.

    Args:
        folder: to write to.
        index: the images and their classes.
        predictions: the objects of each image.
        formats: what to write.

    Raises:
        InputError: the folder cannot be written, or an image not be read.
    """
    names = file_names(index)
    found = [
        Found(image, name, index.root / image["file_name"], prediction)
        for image, name, prediction in zip(index.images, names, predictions, strict=True)
    ]
    wanted = [name for name in get_args(Format) if name in formats]
    return list(chain.from_iterable(_WRITERS[name](folder, index, found) for name in wanted))


def file_names(index: Index) -> list[str]:
    """Return a name for the files made of each image: its stem, with its id if others have that.

    Long names are shortened, so that a number and a suffix can follow.
    """
    stems = [Path(image["file_name"]).stem for image in index.images]
    numbered = [f"{stem}-{image['id']}" for stem, image in zip(stems, index.images, strict=True)]
    taken = Counter([*stems, *numbered])
    pairs = zip(stems, numbered, strict=True)
    return [short_name(stem if taken[stem] == 1 else number) for stem, number in pairs]


_HEADING = ["image", "number", "class", "score", "area", "x1", "y1", "x2", "y2"]


def _write_tables(folder: Path, index: Index, found: Sequence[Found]) -> list[Path]:
    classes = [category["name"] for category in index.categories]
    objects, counts = folder / "objects.csv", folder / "counts.csv"
    rows = [_rows(image.image["file_name"], image.objects, classes) for image in found]
    _write_csv(objects, [_HEADING, *chain.from_iterable(rows)])
    _write_csv(counts, [["image", *classes], *(_counts(image, len(classes)) for image in found)])
    return [objects, counts]


def _rows(image: str, objects: Prediction, classes: Sequence[str]) -> list[list[Any]]:
    """Return a row per object; the area is that of the mask, or of the box without one."""
    rows = []
    for k, box in enumerate(objects.boxes.tolist()):
        x1, y1, x2, y2 = box
        area = rle.area(objects.masks[k]) if objects.masks else (x2 - x1) * (y2 - y1)
        name, score = classes[int(objects.labels[k])], float(objects.scores[k])
        corners = [f"{value:.1f}" for value in box]
        rows.append([image, k + 1, name, f"{score:.4f}", int(area), *corners])
    return rows


def _counts(image: Found, classes: int) -> list[Any]:
    found = Counter(image.objects.labels.tolist())
    return [image.image["file_name"], *(found[c] for c in range(classes))]


def _write_csv(path: Path, rows: Sequence[Sequence[Any]]) -> None:
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    with atomic_write(path) as scratch:  # file names may hold bytes that are no UTF-8
        scratch.write_bytes(text.getvalue().encode(errors="backslashreplace"))


def _write_numbers(folder: Path, index: Index, found: Sequence[Found]) -> list[Path]:
    for image in found:
        with atomic_write(folder / "masks" / f"{image.name}.png") as scratch:
            Image.fromarray(_numbers(image.objects)).save(scratch, "png")
    return [folder / "masks"]


def _numbers(objects: Prediction) -> NDArray[np.uint16]:
    """Return the number of the object at each pixel (H,W), 0 for none."""
    numbers = np.zeros(objects.size, np.uint16)
    for number in range(len(objects.masks), 0, -1):
        numbers[rle.decode(objects.masks[number - 1]).astype(bool)] = number
    return numbers


def _write_cutouts(folder: Path, index: Index, found: Sequence[Found]) -> list[Path]:
    for image in found:
        if not len(image.objects.boxes):
            continue
        pixels = read_image(image.path, image.objects.size).permute(1, 2, 0).numpy()
        for number in range(1, len(image.objects.boxes) + 1):
            mask = image.mask_or_box(number - 1)
            if mask.any():  # else there is nothing to cut out
                with atomic_write(folder / "cutouts" / f"{image.name}-{number}.png") as scratch:
                    Image.fromarray(_cut_out(pixels, mask)).save(scratch, "png")
    return [folder / "cutouts"]


def _cut_out(pixels: NDArray[np.uint8], mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Return the box of a mask (H,W) as (h,w,4) RGBA, black where it is transparent."""
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    alpha = mask[box][..., None].astype(np.uint8)
    return np.concatenate([pixels[box] * alpha, 255 * alpha], 2)


def _write_coco(folder: Path, index: Index, found: Sequence[Found]) -> list[Path]:
    annotations = {image.image["id"]: _annotations(image, index) for image in found}
    written = index._replace(annotations=annotations, images=_in_one_folder(index))
    write_coco(folder / "coco.json", written)
    return [folder / "coco.json"]


def _in_one_folder(index: Index) -> list[Record]:
    """Return the images, named relative to the data's folder, or if it has none to their own.

    Programs ask for the folder of the images and for names in it.
    """
    if index.root != Path() or not index.images:
        return index.images
    paths = [os.path.abspath(image["file_name"]) for image in index.images]
    folder = os.path.commonpath([os.path.dirname(path) for path in paths])
    names = [Path(os.path.relpath(path, folder)).as_posix() for path in paths]
    return [{**image, "file_name": name} for image, name in zip(index.images, names, strict=True)]


def _annotations(image: Found, index: Index) -> list[Record]:
    """Return the objects as COCO annotations; the box of a mask is the mask's own, as in COCO.

    Programs that keep masks inside their boxes would lose the edges of others.
    """
    annotations = to_annotations(image.objects, index.categories, "prediction")
    for annotation in annotations:
        if "segmentation" in annotation and annotation["area"]:
            annotation["bbox"] = box_of(annotation["segmentation"], image.objects.size)
    return annotations


def _write_coco_polygons(folder: Path, index: Index, found: Sequence[Found]) -> list[Path]:
    """Write a COCO file; an object without a mask has its box alone."""
    annotations: list[Record] = []
    for image in found:
        for k, label in enumerate(_annotations(image, index)):
            mask = image.mask(k)
            polygons = [] if mask is None else rings(outlines(mask))
            place = {"id": len(annotations) + 1, "image_id": image.image["id"]}
            kept = {key: label[key] for key in ("category_id", "bbox", "area", "iscrowd", "score")}
            flat = [ring.flatten().tolist() for ring in polygons]
            annotations.append({**place, **kept, "segmentation": flat})
    categories = [{"id": c["id"], "name": c["name"]} for c in index.categories]
    images = _in_one_folder(index)
    content = {"images": images, "annotations": annotations, "categories": categories}
    with atomic_write(folder / "polygons.json") as scratch:
        scratch.write_text(json.dumps(content))
    return [folder / "polygons.json"]


_WRITERS: dict[str, Callable[[Path, Index, Sequence[Found]], list[Path]]] = {
    "csv": _write_tables,
    "sheet": write_sheet,
    "png": _write_numbers,
    "cutouts": _write_cutouts,
    "coco": _write_coco,
    "polygons": _write_coco_polygons,
    "yolo": write_yolo,
    "label_studio": write_brushes,
    "label_studio_polygons": write_polygons,
    "cvat": write_cvat,
}
