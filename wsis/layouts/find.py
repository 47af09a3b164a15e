"""Find the labels of a folder by looking, and read them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from wsis.errors import InputError
from wsis.layouts import (
    box_tables,
    class_folders,
    coco,
    createml,
    cvat,
    label_studio,
    labelme,
    metadata,
    tables,
    via,
    voc_xml,
    yolo,
)
from wsis.layouts.index import index_of, photos_by_file
from wsis.layouts.labels import Layout, Source, one_line, read_labels
from wsis.layouts.pictures import SPLITS, Pictures, other_kinds
from wsis.layouts.text import counted, tidy
from wsis.types import Index

__all__ = ["LAYOUTS", "Labelled", "find_labels", "read_split"]

LAYOUTS = (
    coco.LAYOUT,
    via.JSON,
    via.CSV,
    label_studio.JSON,
    label_studio.CSV,
    createml.LAYOUT,
    metadata.LAYOUT,
    cvat.LAYOUT,
    yolo.LAYOUT,
    box_tables.LAYOUT,
    tables.LAYOUT,
    voc_xml.LAYOUT,
    labelme.LAYOUT,
)
"""The first that matches a file or folder is taken."""

_NAMES = {"train": "labels", "val": "val"}
_SUFFIXES = (".csv", ".json", ".tsv", ".jsonl", ".xml", ".yaml", ".yml")
_SPREADSHEETS = (".xlsx", ".xls", ".ods", ".numbers")
_OTHER_SPLITS = {
    "train": {*SPLITS["val"], *SPLITS["test"]},
    "val": {*SPLITS["train"], *SPLITS["test"]},
}

Labelled = tuple[Layout, Source]


def read_split(
    root: Path,
    split: str,
    given: str = "",
    classes: Sequence[str] = (),
    known: Sequence[str] = (),
    other: Labelled | None = None,
) -> Index:
    """Read the labels of a split.

    Args:
        root: folder of the data set.
        split: "train" or "val".
        given: label file or folder relative to root; empty looks for it.
        classes: the classes in order; labels of others are left out. Empty takes all.
        known: the classes of the training set, for validation.
        other: labels of the other split, whose images are not without a label.

    Raises:
        InputError: no or several labels are found, or they cannot be read.
    """
    found = find_labels(root, split, given)
    if found is None:
        raise _nothing(root, split)
    layout, source = found
    source.classes = [tidy(name) for name in classes or known]
    pictures = Pictures(root)
    with one_line(layout, source):
        index = index_of(layout.read(source), pictures, source.path, classes, known)
    what = "labels" if split == "train" else "validation labels"
    images = counted(len(index.images), "image")
    taken = f"{what}: {images} in {layout.name} format, {source.name}"
    left = _left_out(index, pictures, other) if split == "train" else []
    return index._replace(notes=(taken, *index.notes, *left))


def _nothing(root: Path, split: str) -> InputError:
    """Return an error that says what was looked for."""
    sheets = [path for path in root.glob("*") if path.suffix.lower() in _SPREADSHEETS]
    if sheets:
        return InputError(f"{sheets[0]} is a spreadsheet; save it as CSV, {_NAMES[split]}.csv")
    names = dict.fromkeys(layout.name for layout in LAYOUTS)
    return InputError(
        f"no {split} labels in {root}; write {root / _NAMES[split]}.csv with lines like "
        f"image.jpg,cat;dog, or put there a folder for each class or an export as "
        f"{', '.join(names)}"
    )


def _left_out(index: Index, pictures: Pictures, other: Labelled | None) -> list[str]:
    """Return notes on pictures without a label, those for tests aside, and of other kinds."""
    named = {image["file_name"] for image in index.images}
    if other is not None:
        named |= photos_by_file(read_labels(*other), pictures).keys()
    notes = [other_kinds(pictures.files, named, pictures.root)]
    names = [name for name in pictures.names if name not in named]
    left = [name for name in names if Path(name).parts[0].lower() not in SPLITS["test"]]
    if left:
        notes.append(
            f"{counted(len(left), 'image')} without a label left out, such as {left[0]}; label "
            "images of no class by an empty tag"
        )
    return [note for note in notes if note]


def find_labels(root: Path, split: str, given: str = "") -> Labelled | None:
    """Return the layout and the file or folder of a split's labels, or None if there are none.

    A file called labels.csv, labels.json or the like (val.csv for validation) is taken before any
    other.

    Raises:
        InputError: several files or layouts fit, or the given file has no known layout.
    """
    if given:
        if not (root / given).exists():
            raise InputError(f"no label file {root / given}; give one that is there")
        return _of(Source(root / given, root, split))
    for suffix in _SUFFIXES:
        path = root / f"{_NAMES[split]}{suffix}"
        if path.is_file():
            return _of(Source(path, root, split))
    sources = [Source(path, root, split) for path in _candidates(root, split)]
    found = [(layout, source) for source in sources if (layout := _match(source))]
    if len(found) > 1:
        listed = ", ".join(f"{source.name} ({layout.name})" for layout, source in found[:5])
        flag = "labels" if split == "train" else "val_labels"
        raise InputError(
            f"{root} has {split} labels more than once: {listed}; choose with --data.{flag} "
            f"{found[0][1].name}"
        )
    if found:
        return found[0]
    for source in sources:
        if class_folders.LAYOUT.matches(source):
            return class_folders.LAYOUT, source
    return None


def _of(source: Source) -> Labelled:
    layout = _match(source)
    if layout is None and class_folders.LAYOUT.matches(source):
        layout = class_folders.LAYOUT
    if layout is None:
        raise InputError(
            f"{source.path} has no known layout; known are "
            f"{', '.join(f'{layout.name} ({layout.example})' for layout in LAYOUTS)}"
        )
    return layout, source


def _match(source: Source) -> Layout | None:
    return next((layout for layout in LAYOUTS if layout.matches(source)), None)


def _candidates(root: Path, split: str) -> Iterator[Path]:
    """Yield the files, then the folder, that may hold the labels of a split."""
    folders = _folders(root)
    own = [path for path in folders if path.name.lower() in SPLITS[split]]
    for folder in (root, *(path for path in folders if path.name.lower() == "annotations")):
        yield from (path for path in _files(folder) if _may_be_of(path, split))
    for folder in own:
        yield from _files(folder)
    yield own[0] if own else root


def _may_be_of(path: Path, split: str) -> bool:
    """Return whether a file's name is of the split: val.json, instances_val2017.json."""
    words = set(re.split(r"[^a-z]+", path.stem.lower()))
    if path.suffix.lower() in (".yaml", ".yml"):  # names both splits
        return True
    return not words & _OTHER_SPLITS[split] and (split == "train" or bool(words & {*SPLITS["val"]}))


def _files(folder: Path) -> list[Path]:
    try:
        paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES)
    except OSError:
        return []
    return [path for path in paths if path.is_file() and not path.name.startswith(".")]


def _folders(root: Path) -> list[Path]:
    try:
        return sorted(path for path in root.iterdir() if path.is_dir())
    except OSError:
        return []
