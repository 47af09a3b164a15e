"""MS COCO: instances, stuff tags from the panoptic annotations, subsets with VOC's classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from wsis.data.index import keep_images, read_coco, read_stuff
from wsis.data.module import DataModule
from wsis.datasets._long_tail import draw_long_tail
from wsis.datasets.voc import VOC_CLASSES
from wsis.errors import InputError
from wsis.types import Index, Record

__all__ = ["COCO", "COCO_VOC_CLASSES", "VOC_AS_COCO"]

VOC_AS_COCO = {
    "aeroplane": "airplane",
    "diningtable": "dining table",
    "motorbike": "motorcycle",
    "pottedplant": "potted plant",
    "sofa": "couch",
    "tvmonitor": "tv",
}
"""COCO's names of VOC's classes, where they differ."""
# DeepCO3's COCO-VOC set has 12 of VOC's classes; neither its paper nor CCGR's lists them. The
# animals and the vehicles except boat are exactly twelve.
# fmt: off
COCO_VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "bus", "car", "cat",
    "cow", "dog", "horse", "motorbike", "sheep", "train",
)
# fmt: on
_SUBSETS = {"voc": VOC_CLASSES, "coco-voc": COCO_VOC_CLASSES}
_FILES = {
    "train": (("instances_train2017", "train2017"), ("instances_train2014", "train2014")),
    "val": (
        ("instances_val2017", "val2017"),
        ("instances_minival2014", "val2014"),
        ("instances_val2014", "val2014"),
    ),
}


class COCO(DataModule):
    """MS COCO with all 80 classes, or with those that it shares with VOC.

    The 2017 lists have 118,287 training and 5,000 validation images. Training images without any of
    the classes are left out; all validation images are kept. The training list of 2017 is that of
    2014 plus "valminusminival", so the 2017 files serve papers on either year.

    Args:
        root: Folder that holds annotations/ and the image folders, such as train2017/.
        classes: "all", "voc" (the 20 VOC classes) or "coco-voc" (12 of them: animals and vehicles).
        year: "2017" or "2014"; "auto" takes the first that exists.
        panoptic: Also read stuff classes and stuff tags from panoptic_*.json.
        long_tail: Draw a long-tailed training set of up to 1,200 images per class.
    """

    licence = "MS COCO: annotations CC BY 4.0, images under Flickr's terms of use"

    def __init__(
        self,
        root: Path = Path("data/coco"),
        classes: Literal["all", "voc", "coco-voc"] = "all",
        year: Literal["auto", "2017", "2014"] = "auto",
        panoptic: bool = False,
        long_tail: bool = False,
        **settings: Any,
    ) -> None:
        super().__init__("coco", Path(root), **settings)
        self.classes, self.year, self.panoptic, self.long_tail = classes, year, panoptic, long_tail

    def read(self, split: str) -> Index:
        """Read a split's instances file."""
        annotations, images_dir = self._find(split)
        names = _SUBSETS.get(self.classes)
        wanted = None if names is None else [VOC_AS_COCO.get(name, name) for name in names]
        index = read_coco(annotations, images_dir, wanted)
        if names is not None:
            renamed = [
                {**category, "name": name}
                for category, name in zip(index.categories, names, strict=True)
            ]
            index = index._replace(categories=renamed)
        if self.panoptic:
            index = read_stuff(
                annotations.with_name(annotations.name.replace("instances", "panoptic")), index
            )
        if split == "train":
            if not self.relabelled:  # otherwise the labels select the images
                index = keep_images(index, {image for image, found in index.tags.items() if found})
            if self.long_tail:
                index = keep_images(
                    index, set(draw_long_tail(index.tags, len(index.categories), maximum=1200))
                )
        return index

    @property
    def stuff(self) -> list[Record]:
        """The stuff classes in order, each with id and name; empty unless `panoptic`."""
        return super().stuff if self.panoptic else []

    def _find(self, split: str) -> tuple[Path, Path]:
        years = ("2017", "2014") if self.year == "auto" else (self.year,)
        for name, images in _FILES[split]:
            path = self.folder / "annotations" / f"{name}.json"
            if path.is_file() and name.endswith(years):
                return path, self.folder / images
        raise InputError(
            f"no COCO {split} annotations in {self.folder}; fetch annotations_trainval2017.zip, "
            "train2017.zip and val2017.zip from https://cocodataset.org/#download and unpack them "
            f"there: annotations/instances_{split}2017.json, {split}2017/*.jpg"
        )
