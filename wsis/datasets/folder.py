"""A user's images, with tags in a csv file or with boxes or masks in a COCO json."""

from __future__ import annotations

import csv
import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wsis.data.index import read_coco
from wsis.data.module import DataModule
from wsis.errors import InputError
from wsis.images.read import SUFFIXES, image_size, pictures
from wsis.types import Index, Record

__all__ = ["Folder", "index_of_folder", "read_tags"]

_NAMES = {"train": ("labels.csv", "labels.json"), "val": ("val.csv", "val.json")}


class Folder(DataModule):
    """Your own images, labelled by csv lines `image.jpg,cat;dog` or by a COCO json.

    An image with nothing after the comma has none of the classes. Without validation labels there
    is no validation, and predictions are made for the training images.

    Args:
        root: Folder of the images; label files name images relative to it.
        labels: Training labels, relative to root; empty takes labels.csv, else labels.json.
        val_labels: Validation labels, relative to root; empty takes val.csv, val.json or none.
        classes: Class names in order; empty takes the sorted tags or the json's categories.
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

    @property
    def has_val(self) -> bool:
        """Whether there are validation labels."""
        return self._file("val") is not None

    def read(self, split: str) -> Index:
        """Read the labels of a split and check the header of every image."""
        path = self._file(split)
        if path is None:
            raise InputError(
                f"no {split} labels in {self.folder}; write {self.folder / _NAMES[split][0]} with "
                f"lines like image.jpg,cat;dog or put a COCO json there as {_NAMES[split][1]}"
            )
        classes = self.classes if split == "train" else self.class_names
        if path.suffix.lower() != ".json":
            return read_tags(path, self.folder, classes)
        index = read_coco(path, self.folder, classes or None, name="folder")
        for image in index.images:
            image_size(index.root / image["file_name"])
        if split == "train" and not any(index.tags.values()):
            raise InputError(f"{path} has no annotation; nothing can be learned from it, add some")
        return index

    def _file(self, split: str) -> Path | None:
        if self.folder.is_file():
            raise InputError(
                f"{self.folder} is a file; give its folder, --data.root {self.folder.parent}, and "
                f"--data.labels {self.folder.name}"
            )
        given = self.labels[split]
        if given:
            if not (self.folder / given).is_file():
                raise InputError(f"no label file {self.folder / given}; give one that is there")
            return self.folder / given
        return next(
            (path for name in _NAMES[split] if (path := self.folder / name).is_file()), None
        )


def read_tags(path: Path, root: Path, classes: Sequence[str] = ()) -> Index:
    """Read lines `file,tag;tag` as an index without annotations; `file,tags` is a heading.

    Args:
        path: the csv file.
        root: folder that its images are relative to.
        classes: the classes in order, and the only tags allowed; empty takes the sorted tags.

    Raises:
        InputError: a malformed line, a duplicate, missing or broken image, an unknown tag, or a
            file without tags.
    """
    rows = _rows(path)
    occurring = sorted({tag for _, _, tags in rows for tag in tags})
    names = list(classes) or occurring
    if not occurring:
        raise InputError(f"{path} has no tag; write lines like image.jpg,cat;dog")
    position = {name: place for place, name in enumerate(names)}
    images: list[Record] = []
    known: dict[int, list[int]] = {}
    seen: dict[str, int] = {}
    for line, file_name, tags in rows:
        if file_name in seen:
            raise InputError(
                f"{path}:{line}: {file_name} is there already in line {seen[file_name]}; give "
                "each image one line"
            )
        seen[file_name] = line
        if not (root / file_name).is_file():
            raise InputError(
                f"{path}:{line}: no image {root / file_name}; add it or remove the line"
            )
        unknown = [tag for tag in tags if tag not in position]
        if unknown:
            raise InputError(
                f'{path}:{line}: unknown tag "{unknown[0]}"; {_suggestion(unknown[0], names)}'
            )
        height, width = image_size(root / file_name)
        image: Record = {"id": len(seen), "file_name": file_name, "height": height, "width": width}
        images.append(image)
        known[image["id"]] = sorted({position[tag] for tag in tags})
    categories = [{"id": k + 1, "name": name} for k, name in enumerate(names)]
    nothing: dict[int, list[Record]] = {image: [] for image in known}
    return Index(
        name="folder",
        root=root,
        images=images,
        categories=categories,
        annotations=nothing,
        tags=known,
    )


def _rows(path: Path) -> list[tuple[int, str, list[str]]]:
    """Return the number, file and tags of each line."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = [
                (number, row)
                for number, row in enumerate(csv.reader(file, skipinitialspace=True), 1)
                if any(row)
            ]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(
            f"cannot read {path} ({error}); it must be a text file in UTF-8 with lines like "
            "image.jpg,cat;dog"
        ) from error
    rows = []
    for number, row in lines:
        if len(row) != 2 or not row[0].strip():
            raise InputError(
                f"{path}:{number}: expected image.jpg,cat;dog but found {','.join(row)}; write "
                "one comma"
            )
        rows.append(
            (number, row[0].strip(), [tag.strip() for tag in row[1].split(";") if tag.strip()])
        )
    return rows[1:] if rows and rows[0][1].lower() in ("file", "file_name", "image") else rows


def _suggestion(word: str, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, names, 1)
    return f'did you mean "{near[0]}"?' if near else f"the classes are {', '.join(names)}"


def index_of_folder(folder: Path) -> Index:
    """Index the images anywhere under a folder, without annotations.

    Raises:
        InputError: there are no images, or one cannot be read.
    """
    files = pictures(folder)
    if not files:
        raise InputError(
            f"no images in {folder}; give a folder with {', '.join(sorted(SUFFIXES))} files"
        )
    images: list[Record] = []
    for number, path in enumerate(files, 1):
        height, width = image_size(path)
        name = str(path.relative_to(folder))
        images.append({"id": number, "file_name": name, "height": height, "width": width})
    return Index(name="folder", root=folder, images=images, categories=[])
