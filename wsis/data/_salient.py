"""Salient-object sets (ECSSD, DUTS, ...): a folder of images and a folder of masks with the same stems, one class."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pycocotools import mask as rle

from wsis.data._coco_json import Index, Record
from wsis.data._images import image_size, read_labels
from wsis.files import InputError

__all__ = ["read_salient"]

_CATEGORY: Record = {"id": 1, "name": "salient"}


def read_salient(folder: Path) -> Index:
    """Read `folder`/images/NAME.jpg with `folder`/masks/NAME.png (over 127: salient) as an index of one class.

    Raises:
        InputError: a folder, a mask or an image is missing, or sizes differ.
    """
    images_dir, masks_dir = Path(folder) / "images", Path(folder) / "masks"
    if not (images_dir.is_dir() and masks_dir.is_dir()):
        raise InputError(f"no salient set in {folder}; it must hold images/NAME.jpg and masks/NAME.png with equal names")
    masks = {path.stem: path for path in masks_dir.iterdir()}
    index = Index("salient", images_dir, [], {}, [_CATEGORY], [], {}, {})
    for number, path in enumerate(sorted(images_dir.iterdir()), 1):
        if path.stem not in masks:
            raise InputError(f"no mask for {path}; add {masks_dir / path.stem}.png or remove the image")
        height, width = image_size(path)
        mask = read_labels(masks[path.stem]) > 127
        if mask.shape != (height, width):
            raise InputError(f"{masks[path.stem]} has another size than its image {path}; make them equal")
        index.images.append({"id": number, "file_name": path.name, "height": height, "width": width})
        index.annotations[number] = [_annotation(mask)] if mask.any() else []
        index.tags[number] = [0] if mask.any() else []
    return index


def _annotation(mask: np.ndarray[tuple[int, int], np.dtype[np.bool_]]) -> Record:
    lengths = rle.encode(np.asfortranarray(mask, np.uint8))
    return {"bbox": rle.toBbox(lengths).tolist(), "category_id": 1, "iscrowd": 0, "segmentation": lengths}
