"""YOLO's text files of boxes and polygons, with data.yaml, classes.txt or obj.names.

An image without a text file has none of the classes, as in YOLO.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from wsis.errors import InputError
from wsis.images.read import SUFFIXES
from wsis.layouts.labels import Labels, Layout, Photo, Source, read_text
from wsis.layouts.pictures import HASH, SPLITS, files_of
from wsis.layouts.text import counted, key_of
from wsis.types import Record

__all__ = ["LAYOUT"]

_NAME_FILES = ("classes.txt", "obj.names")
_TOLERANCE = 0.01  # of rounding beyond the image's border


def _matches(source: Source) -> bool:
    if source.suffix in (".yaml", ".yml"):
        return "names" in (setting := _settings(source)) and bool(
            source.split == "train" or _images(source, setting)
        )
    if source.suffix == "" and (names := _name_file(source)):
        has_labels = any(path.suffix.lower() == ".txt" and path != names for path in source.files)
        return has_labels and not _yaml_beside(names) and bool(_in_folder(source))
    return False


def _yaml_beside(path: Path) -> bool:
    return any(path.parent.glob("*.y*ml"))


def _name_file(source: Source) -> Path | None:
    """Return the list of class names of a folder, which may lie a level higher."""
    folders = [source.path, source.path / "labels"]
    folders += [source.path.parent] if source.path != source.root else []
    places = (folder / name for folder in folders for name in _NAME_FILES)
    return next((path for path in places if path.is_file()), None)


def _settings(source: Source) -> Mapping[str, Any]:
    try:
        content = yaml.safe_load(source.text)
    except (yaml.YAMLError, InputError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _read(source: Source) -> Labels:
    if source.suffix:
        setting = _settings(source)
        if "names" not in setting:
            raise InputError(f"{source.path} has no names of classes; add names: [...]")
        names, images = _classes(setting["names"], source.path), _images(source, setting)
        has_points = "kpt_shape" in setting
    else:
        lines = read_text(_name_file(source) or source.path).splitlines()
        names = dict(enumerate(line.strip() for line in lines if line.strip()))
        images, has_points = _in_folder(source), False
    if not images:
        raise InputError(f"{source.path} leads to no {source.split} images; mend its paths")
    texts, left = _texts_of(images)
    photos = [_photo(path, text, names, has_points) for path, text in texts.items()]
    empty = sum(not photo.objects for photo in photos)
    notes = [f"{counted(empty, 'image')} without boxes: they have none of the classes"]
    notes = notes if empty else []
    if left:
        told = f"{counted(len(left), 'label file')} without an image, such as {left[0]}"
        if not any(texts.values()):
            raise InputError(f"{source.path}: {told}; name label files as their images")
        notes.append(f"{told}, left out")
    categories = [{"id": number, "name": name} for number, name in names.items()]
    return Labels(photos, source.path.parent, categories, notes)


def _classes(names: Any, path: Path) -> dict[int, str]:
    """Return the class of each number, from a list or a dictionary.

    Raises:
        InputError: no list, or a name is neither text nor number, such as `no`, which YAML takes
            for false.
    """
    if not isinstance(names, (list, dict)):
        raise InputError(f"{path}: names is {names!r}; write a list of the classes")
    items = list(names.items() if isinstance(names, dict) else enumerate(names))
    for _, name in items:
        if isinstance(name, bool) or not isinstance(name, str | int | float):
            raise InputError(f"{path}: a class is {type(name).__name__}; put its name in quotes")
    return {int(number): str(name) for number, name in items}


def _images(source: Source, setting: Mapping[str, Any]) -> list[Path]:
    """Return the images of the split that a data.yaml names: folders, lists or both."""
    entries: Any = next((setting[key] for key in SPLITS[source.split] if setting.get(key)), [])
    entries = [e for e in (entries if isinstance(entries, list) else [entries]) if type(e) is str]
    home, stated = source.path.parent, setting.get("path")
    places = [home / stated] if isinstance(stated, str) else []
    places += [home, source.root]
    found: list[Path] = []
    for entry in entries:
        inner = entry
        while inner.startswith("../"):  # Roboflow's are a level too high
            inner = inner[3:]
        paths = (place / name for name in (entry, inner) for place in places)
        path = next((path for path in paths if path.exists()), None)
        found += _pictures(path) if path else []
    return found


def _pictures(path: Path) -> list[Path]:
    """Return the pictures in a folder or a list of them."""
    if path.is_dir():
        return [file for file in files_of(path) if file.suffix.lower() in SUFFIXES]
    lines = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    return [path.parent / line for line in lines]


def _in_folder(source: Source) -> list[Path]:
    """Return the pictures of the split in a folder without a data.yaml."""
    parts = [source.path / "images" / name for name in SPLITS[source.split]]
    part = next((path for path in parts if path.is_dir()), None)
    if part is None and source.is_mixed:
        return []
    return _pictures(part) if part else [p for p in source.files if p.suffix.lower() in SUFFIXES]


def _texts_of(images: Sequence[Path]) -> tuple[dict[Path, Path | None], list[Path]]:
    """Return the text file of each image, and those beside them that are of no image.

    Names may differ in case, in the spelling of accents, or in Label Studio's digits before them.
    """
    folders: dict[Path, dict[str, Path]] = {}
    texts = {}
    for image in images:
        places = list(_text_files(image))
        for folder in {path.parent for path in places} - folders.keys():
            folders[folder] = _by_spelling(folder)
        alike = (folders[path.parent].get(key_of(path.name)) for path in places)
        exact = next((path for path in places if path.is_file()), None)
        texts[image] = exact or next(filter(None, alike), None)
    beside = {path for folder in folders.values() for path in folder.values()} - {*texts.values()}
    of_labels = (p for p in sorted(beside) if p.suffix.lower() == ".txt" and _is_label(p))
    return texts, list(of_labels)


def _by_spelling(folder: Path) -> dict[str, Path]:
    """Return the files of a folder by what counts of their names, and by that without digits.

    A name without its digits that another file has, too, is left out.
    """
    paths = sorted(folder.iterdir()) if folder.is_dir() else []
    files = {key_of(path.name): path for path in paths}
    bare = Counter(HASH.sub("", name) for name in files)
    stripped = {HASH.sub("", name): path for name, path in files.items()}
    return {name: path for name, path in stripped.items() if bare[name] == 1} | files


def _is_label(path: Path) -> bool:
    """Return whether a text file begins with a line of at least five numbers."""
    try:
        words = read_text(path).partition("\n")[0].split()
        return len([float(word) for word in words]) >= 5
    except (ValueError, InputError):
        return False


def _photo(image: Path, path: Path | None, names: Mapping[int, str], has_points: bool) -> Photo:
    file = os.path.abspath(image)
    if path is None:
        return Photo(file, file, relative=True)
    objects = [
        _object(line.split(), names, f"{path}:{number}", has_points)
        for number, line in enumerate(read_text(path).splitlines(), 1)
        if line.strip()
    ]
    return Photo(file, str(path), objects=objects, relative=True)


def _text_files(image: Path) -> Iterator[Path]:
    """Yield where the labels of an image may be: under labels/ in place of images/, or beside."""
    parts = list(image.parts)
    for n in reversed(range(len(parts) - 1)):
        if parts[n] == "images":
            yield Path(*parts[:n], "labels", *parts[n + 1 :]).with_suffix(".txt")
    yield image.with_suffix(".txt")
    yield image.parent / "labels" / f"{image.stem}.txt"


def _object(words: Sequence[str], names: Mapping[int, str], where: str, has_points: bool) -> Record:
    """Return the box or polygon of a line, as fractions of the image."""
    try:
        number, *values = map(float, words)
    except ValueError:
        raise InputError(f"{where}: {' '.join(words)[:60]} is no YOLO label; mend it") from None
    if number not in names:
        raise InputError(
            f"{where}: class {words[0]} is not among the {len(names)} names; add its name"
        )
    values = values[:4] if has_points else values
    if len(values) < 4 or len(values) % 2:
        raise InputError(
            f"{where}: {len(words)} numbers are neither a box (class x y width height) nor a "
            "polygon (class x y x y x y ...); mend it"
        )
    if not all(-_TOLERANCE <= value <= 1 + _TOLERANCE for value in values):
        raise InputError(f"{where}: coordinates are fractions of the image, 0 to 1; mend them")
    if len(values) > 4:
        return {"name": names[int(number)], "segmentation": [values]}
    x, y, width, height = values
    return {"name": names[int(number)], "bbox": [x - width / 2, y - height / 2, width, height]}


LAYOUT = Layout("YOLO", "data.yaml or classes.txt", _matches, _read)
