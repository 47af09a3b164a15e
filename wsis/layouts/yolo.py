"""YOLO's text files of boxes and polygons, with data.yaml, obj.data, classes.txt or obj.names.

An image without a text file has none of the classes, as in YOLO.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from wsis.errors import InputError
from wsis.images.read import SUFFIXES
from wsis.layouts.labels import Labels, Layout, Photo, Source, read_text
from wsis.layouts.pictures import HASH, SPLITS, files_of, is_picture_name
from wsis.layouts.text import counted, key_of
from wsis.types import Record

__all__ = ["LAYOUT"]

_SETTINGS = (".yaml", ".yml", ".data")
_NAME_FILES = ("classes.txt", "obj.names")
_TOLERANCE = 0.01  # of rounding beyond the image's border


def _matches(source: Source) -> bool:
    if source.suffix in _SETTINGS:
        return "names" in (setting := _settings(source)) and bool(
            source.split == "train" or _images(source, setting)
        )
    if source.suffix == "" and (names := _name_file(source)):
        has_labels = any(path != names for path in source.of_kind(".txt"))
        return has_labels and not _settings_beside(names) and bool(_in_folder(source))
    return False


def _settings_beside(path: Path) -> bool:
    return any(other.suffix.lower() in _SETTINGS for other in path.parent.iterdir())


def _name_file(source: Source) -> Path | None:
    """Return the list of class names of a folder, which may lie a level higher."""
    folders = [source.path, source.path / "labels"]
    folders += [source.path.parent] if source.path != source.root else []
    places = [folder / name for folder in folders for name in _NAME_FILES]
    others = sorted(source.path.glob("*.names")) if source.path.is_dir() else []
    places += others if len(others) == 1 else []  # Darknet's coco.names, voc.names
    return next((path for path in places if path.is_file()), None)


def _settings(source: Source) -> Mapping[str, Any]:
    """Return the content of a data.yaml or of Darknet's obj.data, whose names are a file."""
    try:
        if source.suffix == ".data":
            pairs = (line.split("=", 1) for line in source.text.splitlines() if "=" in line)
            content = {key.strip(): value.strip() for key, value in pairs}
            names = _found(content.get("names", ""), [source.path.parent])
            return content | {"names": _lines(names)} if names else {}
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
        names = dict(enumerate(_lines(_name_file(source) or source.path)))
        images, has_points = _in_folder(source), False
    if not images:
        raise InputError(f"{source.path} leads to no {source.split} images; mend its paths")
    texts, left = _texts_of(images)
    rows = {path: _rows(text) if text else [] for path, text in texts.items()}
    photos = [_photo(path, text, rows[path], names, has_points) for path, text in texts.items()]
    empty = sum(not photo.objects for photo in photos)
    again = sum(map(len, rows.values())) - sum(len(photo.objects) for photo in photos)
    notes = []
    if empty:
        notes.append(f"{counted(empty, 'image')} without boxes: they have none of the classes")
    if again:
        notes.append(f"{counted(again, 'line')} written twice in a file, kept once")
    if left:  # the images of labels may be those of another split
        stems = {key_of(file.stem) for file in _pictures(source.root)}
        left = [path for path in left if key_of(path.stem) not in stems]
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
        path = _found(entry, places)
        found += _pictures(path) if path else []
    return found


def _found(name: str, places: Sequence[Path]) -> Path | None:
    """Return the file or folder of a name; its first folders may be missing, or a level too high.

    Darknet's names begin with `data/`, Roboflow's with `../`.
    """
    parts = PurePosixPath(name.replace("\\", "/")).parts
    ends = (Path(*parts[n:]) for n in range(len(parts)))
    paths = (place / end for end in ends for place in places)
    return next((path for path in paths if path.exists()), None)


def _pictures(path: Path) -> list[Path]:
    """Return the pictures in a folder or a list of them."""
    if path.is_dir():
        return [file for file in files_of(path) if file.suffix.lower() in SUFFIXES]
    return [_found(line, [path.parent]) or path.parent / line for line in _lines(path)]


def _lines(path: Path) -> list[str]:
    return [line.strip() for line in read_text(path).splitlines() if line.strip()]


def _in_folder(source: Source) -> list[Path]:
    """Return the pictures of the split in a folder without a data.yaml.

    A list called train.txt or valid.txt says which they are, and so does a folder in images/.
    """
    lists = (source.path / f"{name}.txt" for name in SPLITS[source.split])
    listed = next((path for path in lists if path.is_file() and _is_list(path)), None)
    if listed:
        return _pictures(listed)
    parts = [source.path / "images" / name for name in SPLITS[source.split]]
    part = next((path for path in parts if path.is_dir()), None)
    if part is None and source.is_mixed:
        return []
    return _pictures(part) if part else [p for p in source.files if p.suffix.lower() in SUFFIXES]


def _is_list(path: Path) -> bool:
    """Return whether a text file begins with the name of a picture."""
    try:
        return any(map(is_picture_name, _lines(path)[:1]))
    except InputError:
        return False


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


def _rows(path: Path) -> list[tuple[int, tuple[str, ...]]]:
    """Return number and words of the lines of a file that are not empty."""
    lines = enumerate(read_text(path).splitlines(), 1)
    return [(number, tuple(line.split())) for number, line in lines if line.strip()]


def _photo(
    image: Path,
    path: Path | None,
    rows: Sequence[tuple[int, tuple[str, ...]]],
    names: Mapping[int, str],
    has_points: bool,
) -> Photo:
    file, where = os.path.abspath(image), str(path or image)
    once: dict[tuple[str, ...], int] = {}
    for number, words in rows:
        once.setdefault(words, number)
    objects = [
        _object(words, names, f"{where}:{number}", has_points) for words, number in once.items()
    ]
    return Photo(file, where, objects=objects, relative=True)


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


LAYOUT = Layout("YOLO", "data.yaml or classes.txt", _matches, _read, ".txt")
