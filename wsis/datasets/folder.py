"""A user's images, with tags, points, boxes or masks as label tools and spreadsheets write them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wsis.data.module import DataModule
from wsis.errors import InputError
from wsis.images.read import SUFFIXES, image_size
from wsis.layouts.find import find_labels, read_split
from wsis.layouts.index import index_of
from wsis.layouts.pictures import Pictures, other_kinds
from wsis.layouts.tables import read_tag_table
from wsis.layouts.text import tidy
from wsis.types import Index, Record

__all__ = ["Folder", "index_of_folder", "read_tags"]


class Folder(DataModule):
    """Your own images, labelled by a table of tags or by what a label tool exports.

    The layout is found by looking: csv, folders of classes, COCO, YOLO, Pascal VOC, LabelMe, VIA,
    Label Studio, CVAT, Create ML and Hugging Face. An image without tags has none of the classes.
    Without validation labels there is no validation, and predictions are made for the training
    images.

    Args:
        root: Folder of the images and labels.
        labels: Training labels, relative to root; empty takes labels.csv or looks for others.
        val_labels: Validation labels, relative to root; empty takes val.csv, or looks, or none.
        classes: Class names in order, labels of others are left out; empty takes all classes.
    """

    writes_beside = False  # it holds somebody's photos

    def __init__(
        self,
        root: Path = Path("data/images"),
        labels: str = "",
        val_labels: str = "",
        classes: tuple[str, ...] = (),
        **settings: Any,
    ) -> None:
        super().__init__("folder", Path(root), **settings)
        self.labels, self.classes = {"train": labels, "val": val_labels}, tuple(classes)
        self.tolerant = False
        """Whether training images that cannot be read are left out, and listed by the index."""

    @property
    def has_val(self) -> bool:
        """Whether there are validation labels."""
        return find_labels(self.folder, "val", self.labels["val"]) is not None

    def read(self, split: str) -> Index:
        """Read the labels of a split and check the header of every image."""
        if self.folder.is_file():
            raise InputError(
                f"{self.folder} is a file; give its folder, --data.root {self.folder.parent}, and "
                f"--data.labels {self.folder.name}"
            )
        if not self.folder.is_dir():
            raise InputError(f"no folder {self.folder}; give that of your images: --data.root DIR")
        given = self.labels[split]
        if split == "val":
            known = self.index("train").categories
            return read_split(self.folder, split, given, self.classes, known)
        val = find_labels(self.folder, "val", self.labels["val"])
        return read_split(
            self.folder, split, given, self.classes, other=val, tolerant=self.tolerant
        )


def read_tags(path: Path, root: Path, classes: Sequence[str] = ()) -> Index:
    """Read a table of tags, such as lines `file,tag;tag`, as an index without annotations.

    Args:
        path: the table, in any dialect of CSV.
        root: folder that its images are in.
        classes: the classes in order; other tags are left out. Empty takes the sorted tags.

    Raises:
        InputError: a malformed line, a missing or broken image, or a file without tags.
    """
    labels = read_tag_table(path, [tidy(name) for name in classes])
    return index_of(labels, Pictures(root), path, classes)


def index_of_folder(folder: Path) -> Index:
    """Index the images anywhere under a folder that can be read, without annotations.

    Raises:
        InputError: there are no images, or none can be read.
    """
    found = Pictures(folder)
    if not found.names:
        raise InputError(
            f"no images in {folder}; give a folder with {', '.join(sorted(SUFFIXES))} files"
        )
    images: list[Record] = []
    left_out: dict[str, str] = {}
    for number, name in enumerate(found.names, 1):
        try:
            height, width = image_size(folder / name)
        except InputError as error:
            left_out[name] = str(error)
            continue
        images.append({"id": number, "file_name": name, "height": height, "width": width})
    if not images:
        raise InputError(f"none of the images in {folder} can be read: {left_out[found.names[0]]}")
    others = other_kinds(found.files, set(), folder)
    told = [f"left out: {name} ({reason})" for name, reason in left_out.items()]
    return Index(
        name="folder",
        root=folder,
        images=images,
        categories=[],
        notes=[*([others] if others else []), *told],
        unreadable=left_out,
    )
