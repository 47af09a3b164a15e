"""COCO panoptic results: panoptic.json, and beside it panoptic/ with one png of ids per image."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wsis.coco.records import Panoptic, read_records
from wsis.errors import InputError
from wsis.files import atomic_write
from wsis.images.panoptic import PanopticMaps, write_map
from wsis.types import Prediction, class_of

__all__ = ["PANOPTIC", "read_panoptic", "store_map", "write_panoptic"]

Record = dict[str, Any]
PANOPTIC = "panoptic.json"
_SCRATCH = ".panoptic"
_INFO = {"description": "panoptic predictions of wsis"}


def store_map(folder: Path, prediction: Prediction, category_ids: Sequence[int]) -> Record | None:
    """Store a prediction's panoptic map for `write_panoptic`, and return its annotation.

    Args:
        folder: the later folder of panoptic.json.
        prediction: of an image.
        category_ids: the data set's id of each class, things first.

    Returns:
        The annotation; None if the prediction has no map.
    """
    if prediction.panoptic is None:
        return None
    name = f"{prediction.image_id:012d}.png"
    segments = write_map(folder / _SCRATCH / name, prediction.panoptic)
    info = [
        {"id": number, "category_id": category_ids[label], "area": area}
        for number, label, area in segments
    ]
    return {"image_id": prediction.image_id, "file_name": name, "segments_info": info}


def write_panoptic(
    folder: Path,
    annotations: Sequence[Record],
    categories: Sequence[Record],
    stuff: Sequence[Record],
) -> None:
    """Replace older results by the maps that `store_map` stored on all ranks, possibly none.

    The old json is deleted first and the new one written last, so that a json always has its pngs.
    Files that this function did not write are left alone.

    Args:
        folder: gets panoptic.json and panoptic/.
        annotations: those that `store_map` returned.
        categories: the data set's things.
        stuff: the data set's stuff.

    Raises:
        InputError: the folder cannot be written or the disk is full.
    """
    maps, scratch = folder / "panoptic", folder / _SCRATCH
    _remove(folder)
    if annotations:
        maps.mkdir(exist_ok=True)
        for annotation in annotations:
            (scratch / annotation["file_name"]).replace(maps / annotation["file_name"])
        known = [{**category, "isthing": 1} for category in categories]
        known += [{**category, "isthing": 0} for category in stuff]
        with atomic_write(folder / PANOPTIC) as file:
            content = {"info": _INFO, "annotations": list(annotations), "categories": known}
            file.write_text(json.dumps(content, separators=(",", ":")))
    shutil.rmtree(scratch, ignore_errors=True)


def _remove(folder: Path) -> None:
    """Delete the results that `write_panoptic` wrote, but no files of the user."""
    try:
        content = json.loads((folder / PANOPTIC).read_bytes())
    except (OSError, ValueError):
        return
    if not isinstance(content, dict) or content.get("info") != _INFO:
        return
    (folder / PANOPTIC).unlink()
    maps = folder / "panoptic"
    for annotation in content["annotations"]:
        (maps / Path(annotation["file_name"]).name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # the folder holds other files, too
        maps.rmdir()


def read_panoptic(
    path: Path, images: Sequence[Record], categories: Sequence[Record], stuff: Sequence[Record]
) -> PanopticMaps:
    """Read a COCO panoptic results file; maps are read one by one, when they are used.

    Args:
        path: the json; its pngs lie in the folder of the same name without suffix.
        images: `id`, `height`, `width` of the data set's images.
        categories: `id` of the data set's things, in order.
        stuff: `id` of its stuff classes, in order.

    Raises:
        InputError: no such file, not a panoptic json, a record with a fault, or results of other
            images or classes.
    """
    annotations = read_records(path, Panoptic)["annotations"]
    known, classes = {image["id"] for image in images}, class_of([*categories, *stuff])
    for annotation in annotations:
        if annotation["image_id"] not in known:
            raise InputError(
                f"{path} is of image {annotation['image_id']}, not in this data set; check --data "
                "and --split"
            )
        used = [segment["category_id"] for segment in annotation["segments_info"]]
        unknown = [category for category in used if category not in classes]
        if unknown:
            raise InputError(
                f"{path} has category {unknown[0]}, not in this data set ({len(classes)} "
                "classes); check --data"
            )
    return PanopticMaps(path.with_suffix(""), annotations, classes, len(categories))
