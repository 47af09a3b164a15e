"""Images sorted into a folder for each class, as for ImageNet.

Folders called `_none`, `none`, `background`, `negative` or `empty` hold images of none of the
classes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from wsis.errors import InputError
from wsis.images.read import SUFFIXES
from wsis.layouts.labels import Labels, Layout, Photo, Source
from wsis.layouts.pictures import SPLITS, split_of

__all__ = ["LAYOUT"]

_NOT_CLASSES = {
    *("images", "image", "img", "imgs", "jpegimages", "photos", "pictures", "data"),
    *("labels", "label", "annotations", "annotation", "masks", "mask", "overlays", "predictions"),
}
"""Folders that hold images of all classes, in lower case."""

_WORDS = "|".join(word for words in SPLITS.values() for word in words)
_SPLIT = re.compile(rf"(?<![a-z])({_WORDS})(?![a-z])")


def _photos(source: Source) -> list[tuple[str, str]]:
    """Return the class and the file of each image, relative to the folder."""
    pictures = (path for path in source.files if path.suffix.lower() in SUFFIXES)
    names = [path.relative_to(source.path) for path in pictures]
    return [(name.parts[0] if len(name.parts) > 1 else "", str(name)) for name in names]


def _matches(source: Source) -> bool:
    if source.is_mixed:
        return False
    classes = {name for name, _ in _photos(source)} - {""}
    enough = 1 if source.split == "val" else 2  # one folder may be anything
    return len(classes) >= enough and not any(
        name.lower() in _NOT_CLASSES or split_of(name) for name in classes
    )


def _refuse_splits(names: Iterable[str], source: Source) -> None:
    """Raise InputError for folders that differ in the word for a split: pets-train, pets-val."""
    first: dict[str, str] = {}
    for name in sorted(names):
        rest = _SPLIT.sub("", name.lower())
        if rest != name.lower() and first.setdefault(rest, name) != name:
            raise InputError(
                f"{source.path} has the folders {first[rest]} and {name}; call them train and val "
                "if they are splits, or otherwise if they are classes"
            )


def _read(source: Source) -> Labels:
    photos = _photos(source)
    _refuse_splits({name for name, _ in photos}, source)
    outside = [file for name, file in photos if not name]
    if outside:
        raise InputError(
            f"{source.path / outside[0]} and {len(outside) - 1} more lie beside the folders of "
            "classes; move them into one, or into _none if they show none of the classes"
        )
    return Labels(
        [Photo(file, str(source.path / file), [name]) for name, file in photos], source.path
    )


LAYOUT = Layout("folders of classes", "cat/, dog/, _none/", _matches, _read)
