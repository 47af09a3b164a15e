"""Find the labels of a folder by looking, and read them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from os.path import exists, isdir, isfile  # pathlib's raise an error for a loop of links
from pathlib import Path

from wsis.errors import InputError
from wsis.files import read_json
from wsis.images.read import SUFFIXES
from wsis.layouts import (
    box_tables,
    class_folders,
    coco,
    createml,
    cvat,
    label_studio,
    labelme,
    metadata,
    point_tables,
    tables,
    via,
    voc_xml,
    yolo,
)
from wsis.layouts.index import chosen_names, index_of, photos_by_file
from wsis.layouts.labels import Layout, Source, one_line, read_labels, refuse_damaged
from wsis.layouts.pictures import SPLITS, Pictures, files_of, other_kinds, split_of
from wsis.layouts.text import counted, key_of
from wsis.layouts.xml import parse_xml
from wsis.types import Index, Record

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
    point_tables.LAYOUT,
    tables.LAYOUT,
    voc_xml.LAYOUT,
    labelme.LAYOUT,
)
"""The first that matches a file is taken; all that match a folder are found."""

_NAMES = {"train": "labels", "val": "val"}
_SUFFIXES = (".csv", ".json", ".tsv", ".jsonl", ".xml", ".yaml", ".yml", ".data")
_LISTS = (".yaml", ".yml", ".data")
"""Suffixes of YOLO's files that name both splits."""
_UNREAD = {
    **dict.fromkeys((".xlsx", ".xls", ".ods", ".numbers"), "a spreadsheet; save it as CSV"),
    **dict.fromkeys(
        (".parquet", ".arrow"), "a table of pandas or Hugging Face; write images and CSV from it"
    ),
    **dict.fromkeys((".tfrecord", ".tfrecords"), "of TensorFlow; export as COCO or CSV"),
    **dict.fromkeys((".zip", ".rar", ".7z", ".tar", ".tgz", ".gz"), "an archive; unpack it"),
}
"""What files of other kinds are, and what to do."""
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
    known: Sequence[Record] = (),
    other: Labelled | None = None,
    tolerant: bool = False,
) -> Index:
    """Read the labels of a split.

    Args:
        root: folder of the data set.
        split: "train" or "val".
        given: label file or folder relative to root; empty looks for it.
        classes: the classes in order; labels of others are left out. Empty takes all.
        known: the categories of the training set, for validation.
        other: labels of the other split, whose images are not without a label.
        tolerant: whether to leave out images that cannot be read, which the index then lists.

    Raises:
        InputError: no or several labels are found, or they cannot be read.
    """
    found = find_labels(root, split, given)
    if found is None:
        raise _nothing(_home(root), split)
    layout, source = found
    source.classes = chosen_names(classes, known)
    pictures = Pictures(root)
    with one_line(layout, source):
        index = index_of(layout.read(source), pictures, source.path, classes, known, tolerant)
    what = "labels" if split == "train" else "validation labels"
    images = counted(len(index.images), "image")
    taken = f"{what}: {images} in {layout.name} format, {source.name}"
    left = _left_out(index, pictures, found, other) if split == "train" else []
    return index._replace(notes=(taken, *index.notes, *left))


def _nothing(root: Path, split: str) -> InputError:
    """Return an error that says what is there that is not read, or what was looked for."""
    for path in _candidates(root, split):
        if isfile(path):
            _refuse_unread(path)
    for path in files_of(root, split):
        if path.suffix.lower() in _UNREAD:
            return InputError(f"{path} is {_UNREAD[path.suffix.lower()]}")
    if split == "train" and (one := _split_or_class(root)):
        return InputError(
            f"{one} may be a split or a class; move the folders of classes into one "
            f"folder, and give that: --data.labels FOLDER"
        )
    names = dict.fromkeys(layout.name for layout in LAYOUTS)
    return InputError(
        f"no {split} labels in {root}; write {root / _NAMES[split]}.csv with lines like "
        f"image.jpg,cat;dog, or put there a folder for each class or an export as "
        f"{', '.join(names)}{'; or take the training images: --split train' * (split == 'val')}"
    )


def _split_or_class(root: Path) -> Path | None:
    """Return a folder called train that holds images, beside folders that are no split."""
    folders = [path for path in _entries(root) if isdir(path)]
    others = [path for path in folders if not split_of(path.name)]
    own = (path for path in folders if split_of(path.name) == "train")
    return next(
        (
            path
            for path in own
            if others and any(file.suffix.lower() in SUFFIXES for file in _entries(path))
        ),
        None,
    )


def _left_out(
    index: Index, pictures: Pictures, found: Labelled, other: Labelled | None
) -> list[str]:
    """Return notes on pictures without a label, those for tests aside, and of other kinds."""
    named = {image["file_name"] for image in index.images}
    if other is not None:
        named |= photos_by_file(read_labels(*other), pictures).keys()
    notes = [other_kinds(pictures.files, named, pictures.root)]
    names = [name for name in pictures.names if name not in named]
    left = [name for name in names if "test" not in map(split_of, Path(name).parts[:-1])]
    if left:
        notes.append(
            f"{counted(len(left), 'image')} without a label left out, such as {left[0]}; label "
            "images of no class by an empty tag"
        )
        notes.append(_unread(left, pictures, *found))
    return [note for note in notes if note]


def _unread(left: Sequence[str], pictures: Pictures, layout: Layout, source: Source) -> str:
    """Return a note on label files of another layout for pictures without a label, if any."""
    suffixes = {other.suffix for other in LAYOUTS} - {"", layout.suffix}
    stems = {key_of(Path(name).stem) for name in left}
    files = [path for path in pictures.files if path.suffix.lower() in suffixes]
    files = [path for path in files if key_of(path.stem) in stems and path != source.path]
    if not files:
        return ""
    first = files[0].relative_to(pictures.root)
    return (
        f"{counted(len(files), 'file')} named like images without a label, such as {first}, not "
        f"read: the labels are those in {layout.name} format, {source.name}; write all in one"
    )


def find_labels(root: Path, split: str, given: str = "") -> Labelled | None:
    """Return the layout and the file or folder of a split's labels, or None if there are none.

    A file called labels.csv, labels.json or the like (val.csv for validation) is taken before any
    other. A folder that holds nothing but another folder is entered.

    Args:
        root: folder of the data set.
        split: "train" or "val".
        given: file or folder relative to root, or "*.xml" for those of the files beside the images.

    Raises:
        InputError: several files or layouts fit, or the given file has no known layout.
    """
    if given:
        path = root / given
        if path.name in _patterns():
            return _of([Source(path.parent, root, split, path.suffix)], root, split, path)
        if not exists(path):
            raise InputError(f"no label file {path}; give one that is there")
        return _of([Source(path, root, split)], root, split, path)
    home = _home(root)
    for suffix in _SUFFIXES:
        path = home / f"{_NAMES[split]}{suffix}"
        if isfile(path):
            return _of([Source(path, home, split)], root, split, path)
    return _of([Source(path, home, split) for path in _candidates(home, split)], root, split)


def _of(
    sources: Sequence[Source], root: Path, split: str, given: Path | None = None
) -> Labelled | None:
    """Return the one layout that fits; None if none does.

    Raises:
        InputError: several fit, or none fits what is given.
    """
    if given is not None and isfile(given):
        refuse_damaged(given)
    found = [(layout, source) for source in sources for layout in _fitting(source)]
    if len(found) > 1:
        names = [_written(layout, source, root) for layout, source in found[:5]]
        kinds = [f"{name} ({layout.name})" for name, (layout, _) in zip(names, found, strict=False)]
        flag = "labels" if split == "train" else "val_labels"
        raise InputError(
            f"{root} has {split} labels more than once: {', '.join(kinds)}; choose with "
            f'--data.{flag} "{names[0]}"'
        )
    if found:
        if given is None:
            _refuse_strays(*found[0])
        return found[0]
    for source in sources:
        if class_folders.LAYOUT.matches(source):
            return class_folders.LAYOUT, source
    if given is None:
        return None
    if isfile(given):
        _refuse_unread(given)
    raise InputError(
        f"{given} has no known layout; known are "
        f"{', '.join(f'{layout.name} ({layout.example})' for layout in LAYOUTS)}"
    )


def _refuse_strays(layout: Layout, source: Source) -> None:
    """Raise InputError for label files of some images only, in folders that may be classes."""
    if not layout.suffix or not isdir(source.path) or not class_folders.LAYOUT.matches(source):
        return
    files = source.of_kind(layout.suffix)
    pictures = [path for path in source.files if path.suffix.lower() in SUFFIXES]
    if len(files) < len(pictures):
        pattern = _written(layout, source, source.root)
        flag = "labels" if source.split == "train" else "val_labels"
        labels = f"{counted(len(files), 'label file')} in {layout.name} format"
        raise InputError(
            f"{source.path} has folders of classes and {labels}, such as {files[0]}, for "
            f"{counted(len(pictures), 'image')}; if the folders are the classes, delete the label "
            f'files, else give --data.{flag} "{pattern}"'
        )


def _fitting(source: Source) -> list[Layout]:
    """Return the first layout that fits a file, and all that fit a folder."""
    found = [layout for layout in LAYOUTS if layout.matches(source)]
    return found if isdir(source.path) else found[:1]


def _patterns() -> set[str]:
    return {f"*{layout.suffix}" for layout in LAYOUTS if layout.suffix}


def _written(layout: Layout, source: Source, root: Path) -> str:
    """Return what chooses labels: a file, or a pattern of those beside the images."""
    path = source.path / f"*{layout.suffix}" if isdir(source.path) else source.path
    return str(path.relative_to(root))


def _refuse_unread(path: Path) -> None:
    """Raise InputError for a file that no layout fits, if it is damaged or its kind is known."""
    suffix = path.suffix.lower()
    if suffix in _UNREAD:
        raise InputError(f"{path} is {_UNREAD[suffix]}")
    refuse_damaged(path)
    if suffix == ".json":
        read_json(path)
    elif suffix == ".xml":
        parse_xml(path)


def _home(folder: Path, split: str = "") -> Path:
    """Enter folders that hold nothing but another folder, for a split those that are named so."""
    inside = _entries(folder)
    while len(inside) == 1 and isdir(inside[0]) and split in ("", split_of(inside[0].name)):
        folder = inside[0]
        inside = _entries(folder)
    return folder


def _candidates(root: Path, split: str) -> Iterator[Path]:
    """Yield the files, then the folders, that may hold the labels of a split."""
    folders = [path for path in _entries(root) if isdir(path)]
    own = [_home(path, split) for path in folders if split_of(path.name) == split]
    places = [path for path in folders if path.name.lower() in ("annotations", "labels")]
    for folder in (root, *places):
        yield from (path for path in _files(folder) if _may_be_of(path, split))
    for folder in own:
        yield from _files(folder)
    yield from own or [root]


def _may_be_of(path: Path, split: str) -> bool:
    """Return whether a file's name is of the split: val.json, instances_val2017.json."""
    words = set(re.split(r"[^a-z]+", path.stem.lower()))
    if path.suffix.lower() in _LISTS:
        return True
    if "submission" in path.stem.lower():  # Kaggle's sample_submission.csv
        return False
    return not words & _OTHER_SPLITS[split] and (split == "train" or bool(words & {*SPLITS["val"]}))


def _files(folder: Path) -> list[Path]:
    paths = [path for path in _entries(folder) if path.suffix.lower() in _SUFFIXES]
    return [path for path in paths if isfile(path)]


def _entries(folder: Path) -> list[Path]:
    """Return what is in a folder, without hidden files and what macOS adds to archives."""
    try:
        paths = sorted(folder.iterdir())
    except OSError:
        return []
    return [path for path in paths if not path.name.startswith((".", "__MACOSX"))]
