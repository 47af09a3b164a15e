"""Salient-object sets (DUTS, ECSSD, ...): images with a mask each, of one class; those that show one object are kept."""

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
_LAYOUTS = (
    ("images", "masks"),
    ("images", "ground_truth_mask"),
    ("*-Image", "*-Mask"),
)  # ours, ECSSD's, DUTS's
_SPECK = 0.05  # smaller parts of a mask, as a share of its largest, are no object of their own
_MOSTLY_GREY = (
    0.1  # share of pixels; edges make DUTS's masks grey in parts, ECSSD's have no grey at all
)


_MASKS = frozenset({"tags", "boxes", "masks"})


@runtime_checkable
class BringsSalient(Protocol):
    """A data set that has salient images of its own."""

    def salient_folder(self) -> Path:
        """Return their folder, as `read_salient` takes it."""


class Salient(DataModule):
    """Salient images as a training set, to be loaded beside another; their masks are known whatever the other's labels.

    Args:
        folder: Folder of images and masks.
        limit: Number of images to use, the same each time; 0 uses all.
    """

    def __init__(self, folder: Path, limit: int = 0, **settings: Any) -> None:
        super().__init__("salient", Path(folder), proposals="none", **settings)
        self.limit = limit

    @property
    def has_val(self) -> bool:
        """Whether there is a validation split: no."""
        return False

    def read(self, split: str) -> Index:
        """Read images and masks."""
        return read_salient(self.folder, self.limit)

    def samples(
        self, split: str, train: bool, supervision: AbstractSet[str] | None = None
    ) -> Samples:
        """Return the samples, with masks unless `supervision` says otherwise."""
        return super().samples(split, train, _MASKS if supervision is None else supervision)


def read_salient(folder: Path, limit: int = 0) -> Index:
    """Read images and masks (over half white: salient) of equal names as an index of one class.

    As in DUTS-Single (BoxCaseg, section 4), images whose mask shows no object or several are left out, with one counted
    warning.

    Args:
        folder: of images/ and masks/, of images/ and ground_truth_mask/ (ECSSD), or of X-Image/ and X-Mask/ (DUTS).
        limit: so many images, drawn by their names, so that fewer are a part of more; 0 takes all.

    Raises:
        InputError: a folder, a mask or an image is missing, sizes differ, a mask is coloured or grey, or no image is left.
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
    with ThreadPoolExecutor() as pool:  # 10,553 of DUTS
        found = list(pool.map(lambda path: _annotate(path, masks[path.stem]), images))
    kept = [
        (number, path.name, a)
        for number, (path, a) in enumerate(zip(images, found, strict=True), 1)
        if a
    ]
    if not kept:
        raise InputError(
            f"none of {len(images)} images in {images_dir} has a mask of one object; give another salient set"
        )
    if len(kept) < len(images):
        left = len(images) - len(kept)
        warnings.warn(
            f"{folder}: {left} of {len(images)} images are left out, their masks are not of one object",
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
    """Find the one pair of folders of images and of masks."""
    pairs = [
        (place, folder / masks.replace("*", place.name.removesuffix("-Image")))
        for images, masks in _LAYOUTS
        for place in sorted(folder.glob(images))
    ]
    pairs = [pair for pair in pairs if all(path.is_dir() for path in pair)]
    if len(pairs) != 1:
        raise InputError(
            f"{len(pairs) or 'no'} salient sets in {folder}; give a folder with one of these pairs, and equal names in both: "
            + ", ".join(f"{images}/ and {masks}/" for images, masks in _LAYOUTS)
        )
    return pairs[0]


def _directly_in(folder: Path) -> list[Path]:
    return [path for path in pictures(folder) if path.parent == folder]


def _annotate(image: Path, path: Path) -> Record | None:
    """Describe the salient object of an image; None where there is none or more than one."""
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
    if grey.max(initial=0) == 1:  # 0 and 1 instead of black and white
        return grey.astype(bool)
    if np.count_nonzero((grey >= 64) & (grey < 192)) > _MOSTLY_GREY * grey.size:
        raise InputError(
            f"{path} is neither black nor white in many places; give masks of objects, not maps of probability"
        )
    return grey > 127


def _is_one(mask: NDArray[np.bool_]) -> bool:
    """Say whether a mask is one connected object, specks aside."""
    if not mask.any():
        return False
    areas = cv2.connectedComponentsWithStats(mask.astype(np.uint8))[2][1:, cv2.CC_STAT_AREA]
    return int((areas >= _SPECK * areas.max()).sum()) == 1
