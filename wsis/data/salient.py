"""Salient-object sets (DUTS, ECSSD, ...): one class and one mask per image.

Images whose mask shows no object or several objects are left out.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import cv2
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as rle

from wsis.data.module import DataModule
from wsis.data.samples import Samples
from wsis.errors import InputError
from wsis.images.read import image_size, pictures, read_grey
from wsis.nn.masks import run_lengths
from wsis.types import Index, Record

__all__ = ["BringsSalient", "Salient", "read_salient"]

_CATEGORY: Record = {"id": 1, "name": "salient"}
# ours, ECSSD's, DUTS's
_LAYOUTS = (
    ("images", "masks"),
    ("images", "ground_truth_mask"),
    ("*-Image", "*-Mask"),
)
# parts of a mask below this fraction of its largest part are not objects of their own
_SPECK = 0.05
# fraction of pixels; the edges of DUTS's masks are grey, ECSSD's masks have no grey at all
_MOSTLY_GREY = 0.1
_MASKS = frozenset({"tags", "boxes", "masks"})


@runtime_checkable
class BringsSalient(Protocol):
    """A data set that comes with salient images."""

    def salient_folder(self) -> Path:
        """Return their folder, as `read_salient` takes it."""


class Salient(DataModule):
    """Salient images, loaded beside another training set; their masks are always known.

    Args:
        folder: Folder of images and masks.
        limit: Number of images to use, the same each time; 0 uses all.
    """

    def __init__(self, folder: Path, limit: int = 0, **settings: Any) -> None:
        super().__init__("salient", Path(folder), proposals="none", **settings)
        self.limit = limit

    @property
    def has_val(self) -> bool:
        """Return False: there is no validation split."""
        return False

    def read(self, split: str) -> Index:
        """Read images and masks."""
        return read_salient(self.folder, self.limit)

    def samples(
        self,
        split: str,
        train: bool,
        supervision: AbstractSet[str] | None = None,
        segments: bool | None = None,
    ) -> Samples:
        """Return the samples, with tags, boxes and masks unless `supervision` is given."""
        fields = _MASKS if supervision is None else supervision
        return super().samples(split, train, fields, segments)


def read_salient(folder: Path, limit: int = 0) -> Index:
    """Read images, and the masks of the same names, as an index of one class.

    A mask's pixels above half of white are salient. As in DUTS-Single (BoxCaseg, section 4), images
    whose mask shows no object or several objects are left out; one warning gives their number.

    Args:
        folder: folder that holds images/ and masks/, images/ and ground_truth_mask/ (ECSSD), or
            X-Image/ and X-Mask/ (DUTS).
        limit: number of images, drawn by the hashes of their names, so that a smaller draw is part
            of a larger one; 0 takes all.

    Raises:
        InputError: a folder, a mask or an image is missing, sizes differ, a mask is coloured or
            grey, or no image is left.
    """
    if limit < 0:
        raise InputError(f"salient_limit {limit} is negative; 0 takes all images")
    images_dir, masks_dir = _folders(Path(folder))
    images, masks = _directly_in(images_dir), {path.stem: path for path in _directly_in(masks_dir)}
    for path in images:
        if path.stem not in masks:
            raise InputError(
                f"no mask for {path}; add {masks_dir / path.stem}.png or remove the image"
            )
    with ThreadPoolExecutor() as pool:  # DUTS has 10,553 images
        annotations = list(pool.map(lambda path: _annotate(path, masks[path.stem]), images))
    kept = [
        (number, path.name, a)
        for number, (path, a) in enumerate(zip(images, annotations, strict=True), 1)
        if a
    ]
    if not kept:
        raise InputError(
            f"none of {len(images)} images in {images_dir} has a mask of one object; give another "
            "salient set"
        )
    if len(kept) < len(images):
        left = len(images) - len(kept)
        warnings.warn(
            f"{folder}: {left} of {len(images)} images are left out, their masks are not of one "
            "object",
            stacklevel=2,
        )
    if limit:
        kept = sorted(
            sorted(kept, key=lambda image: hashlib.sha256(image[1].encode()).digest())[:limit]
        )
    records = []
    for number, name, annotation in kept:
        height, width = annotation["segmentation"]["size"]
        records.append({"id": number, "file_name": name, "height": height, "width": width})
    return Index(
        name="salient",
        root=images_dir,
        images=records,
        categories=[_CATEGORY],
        annotations={number: [annotation] for number, _, annotation in kept},
        tags={number: [0] for number, _, _ in kept},
    )


def _folders(folder: Path) -> tuple[Path, Path]:
    """Return the one pair of folders of images and masks."""
    pairs = [
        (place, folder / masks.replace("*", place.name.removesuffix("-Image")))
        for images, masks in _LAYOUTS
        for place in sorted(folder.glob(images))
    ]
    pairs = [pair for pair in pairs if all(path.is_dir() for path in pair)]
    if len(pairs) != 1:
        raise InputError(
            f"{len(pairs) or 'no'} salient sets in {folder}; give a folder with one of these "
            "pairs, and equal names in both: "
            + ", ".join(f"{images}/ and {masks}/" for images, masks in _LAYOUTS)
        )
    return pairs[0]


def _directly_in(folder: Path) -> list[Path]:
    return [path for path in pictures(folder) if path.parent == folder]


def _annotate(image: Path, path: Path) -> Record | None:
    """Return the annotation of an image's salient object; None unless there is exactly one."""
    mask = _read_mask(path)
    if mask.shape != image_size(image):
        raise InputError(f"{path} has another size than its image {image}; make them equal")
    lengths = run_lengths(mask)
    left, top, width, height = (int(side) for side in rle.toBbox(lengths))
    if not _is_one(mask[top : top + height, left : left + width]):
        return None
    return {
        "bbox": [left, top, width, height],
        "category_id": 1,
        "iscrowd": 0,
        "segmentation": lengths,
    }


def _read_mask(path: Path) -> NDArray[np.bool_]:
    grey = read_grey(path)
    if grey.max(initial=0) == 1:  # 0 and 1, not 0 and 255
        return grey.astype(bool)
    if np.count_nonzero((grey >= 64) & (grey < 192)) > _MOSTLY_GREY * grey.size:
        raise InputError(
            f"{path} is neither black nor white in many places; give masks of objects, not maps "
            "of probability"
        )
    return grey > 127


def _is_one(mask: NDArray[np.bool_]) -> bool:
    """Return whether a mask is one connected object, ignoring specks."""
    if not mask.any():
        return False
    areas = cv2.connectedComponentsWithStats(mask.astype(np.uint8))[2][1:, cv2.CC_STAT_AREA]
    return int((areas >= _SPECK * areas.max()).sum()) == 1
