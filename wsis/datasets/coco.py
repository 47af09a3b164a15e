"""MS COCO: instances, stuff tags from the panoptic annotations, and the subsets that share VOC's classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from wsis.data.index import keep_images, read_coco, read_stuff
from wsis.data.module import DataModule
from wsis.datasets._long_tail import draw_long_tail
from wsis.datasets.voc import VOC_CLASSES
from wsis.errors import InputError
from wsis.types import Index, Record

__all__ = ["COCO", "COCO_VOC_CLASSES"]

_VOC_AS_COCO = {
    "aeroplane": "airplane",
    "diningtable": "dining table",
    "motorbike": "motorcycle",
    "pottedplant": "potted plant",
    "sofa": "couch",
    "tvmonitor": "tv",
}
# The COCO-VOC set of DeepCO3 has 12 of VOC's classes; neither its paper nor CCGR's prints which. These are the animals and
# the vehicles but boat, which makes exactly twelve.
# fmt: off
COCO_VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "bus", "car", "cat", "cow", "dog", "horse", "motorbike", "sheep", "train",
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
    """MS COCO: 80 classes, or those it shares with VOC; 118,287 training and 5,000 validation images in 2017's lists.

    Training leaves out images without any of the classes; validation keeps every image. 2017's training list is 2014's
    training list with "valminusminival", so papers on either are served by 2017's files.

    Args:
        root: Folder of annotations and the image folders (train2017, val2017 or train2014, val2014).
        classes: "all", "voc" (the 20 classes of VOC, under its names) or "coco-voc" (12 of them, animals and vehicles).
        year: "2017" or "2014"; "auto" takes the first that is found.
        panoptic: Also read stuff classes and stuff tags from panoptic_*.json.
        long_tail: Draw a long-tailed training set of at most 1,200 images a class.
    """

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
        wanted = None if names is None else [_VOC_AS_COCO.get(name, name) for name in names]
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
            if not self.relabelled:  # else the labels say which images
                index = keep_images(index, {image for image, found in index.tags.items() if found})
            if self.long_tail:
                index = keep_images(
                    index, set(draw_long_tail(index.tags, len(index.categories), maximum=1200))
                )
        return index

    @property
    def stuff(self) -> list[Record]:
        """The stuff classes in order: id and name; empty unless `panoptic`."""
        return super().stuff if self.panoptic else []

    def _find(self, split: str) -> tuple[Path, Path]:
        years = ("2017", "2014") if self.year == "auto" else (self.year,)
        for name, images in _FILES[split]:
            path = self.folder / "annotations" / f"{name}.json"
            if path.is_file() and name.endswith(years):
                return path, self.folder / images
        raise InputError(
            f"no COCO {split} annotations in {self.folder}; fetch annotations_trainval2017.zip, train2017.zip and val2017.zip "
            f"from https://cocodataset.org/#download and unpack them there: annotations/instances_{split}2017.json, "
            f"{split}2017/*.jpg"
        )
