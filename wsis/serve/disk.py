"""The two files that labels are kept in, labels.json and labels.csv, which `--data folder` reads.

labels.json is a COCO instances file of the images that are done, complete: tags are annotations
without box. Under "wsis", which other readers leave out, it also has the images that are begun, and
refusals. labels.csv has the tags alone, and is made from it.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import msgspec

from wsis.coco.objects import area_of
from wsis.coco.records import Category, Id, Name, Side, instances_with, read_records
from wsis.errors import InputError
from wsis.files import atomic_write, read_bytes
from wsis.layouts.find import find_labels, read_split
from wsis.layouts.index import photos_by_file
from wsis.layouts.labels import read_labels
from wsis.layouts.pictures import Pictures, split_of
from wsis.layouts.text import tidy
from wsis.serve.labels import EMPTY, SEPARATORS, Label, LabelledObject, Refusal, checked
from wsis.types import Record

__all__ = ["CSV", "JSON", "Content", "clear", "images_to_label", "instances"]
__all__ += ["keep_original", "read_content", "write"]

JSON, CSV, ORIGINAL = "labels.json", "labels.csv", ".before"
OF_OBJECTS = LabelledObject.__annotations__.keys() - {"name"}


class Content(NamedTuple):
    """What is known of the images of a folder."""

    categories: list[Record]
    """id and name of each class."""
    images: dict[str, Record]
    """id, height and width by file name, of images with a label."""
    labels: dict[str, Label]
    """By file name."""
    is_own: bool
    """Whether labels.json is one of ours, and not the export of a label tool."""

    @property
    def classes(self) -> list[str]:
        """Names of the classes in order."""
        return [category["name"] for category in self.categories]


class _Begun(TypedDict):
    """An image that is begun, and its label."""

    id: Id
    file_name: Name
    height: Side
    width: Side
    label: Label


class _Own(TypedDict):
    begun: list[_Begun]
    refused: dict[str, list[Refusal]]


class _File(TypedDict, total=False):
    categories: list[Category]
    wsis: _Own


def images_to_label(root: Path) -> list[str]:
    """Return the names of the images of a folder, without those for validation and tests.

    Raises:
        InputError: there are none, or a name has a line break or another control character.
    """
    pictures = Pictures(root)
    val = find_labels(root, "val")
    held_out = photos_by_file(read_labels(*val), pictures).keys() if val else set()
    names = [name for name in pictures.names if name not in held_out and _is_train(name)]
    for name in names:
        if not name.isprintable():
            raise InputError(f"{root / name!r}: the name has control characters; rename the file")
    if not names:
        raise InputError(f"no images to label in {root}; put some there")
    return names


def _is_train(name: str) -> bool:
    return not {split_of(part) for part in Path(name).parts[:-1]} & {"val", "test"}


def read_content(root: Path, given: str = "") -> Content:
    """Read the labels of a folder: our own file, else whatever `--data folder` takes.

    Args:
        root: folder of the images.
        given: label file relative to root, if there is none of our own.

    Raises:
        InputError: labels cannot be read, or labels.csv was changed after labels.json.
    """
    path = root / JSON
    own = read_records(path, _File).get("wsis") if path.is_file() else None
    if own is not None:
        content = _read_own(path, own)
        _refuse_edited(root, content)
        return content
    if find_labels(root, "train", given) is None:
        return Content([], {}, {}, False)
    return _imported(root, given)


def _read_own(path: Path, own: _Own) -> Content:
    content = read_records(path, instances_with(frozenset(OF_OBJECTS)))
    categories = [{"id": c["id"], "name": c["name"]} for c in content["categories"]]
    name_of = {c["id"]: c["name"] for c in categories}
    classes = list(name_of.values())
    found: dict[int, Label] = {i["id"]: _new(done=True) for i in content["images"]}
    for annotation in content["annotations"]:
        if annotation["image_id"] not in found or annotation["category_id"] not in name_of:
            raise InputError(f"{path}: annotation {annotation.get('id')} is of no image or class")
        _add(found[annotation["image_id"]], annotation, name_of[annotation["category_id"]])
    images: dict[str, Record] = {}
    labels: dict[str, Label] = {}
    for image in content["images"]:
        name = image["file_name"]
        images[name] = {key: image[key] for key in ("id", "height", "width")}
        labels[name] = {**found[image["id"]], "refused": own["refused"].get(name, [])}
    for begun in own["begun"]:
        name, label = begun["file_name"], begun["label"]
        images[name] = {"id": begun["id"], "height": begun["height"], "width": begun["width"]}
        labels[name] = label
    for name, label in labels.items():
        size = images[name]["height"], images[name]["width"]
        labels[name] = checked(label, size, classes, f"{path}: {name}")
    return Content(categories, images, labels, True)


def _new(done: bool) -> Label:
    return {**EMPTY, "done": done, "tags": [], "objects": [], "refused": []}


def _add(label: Label, annotation: Record, name: str) -> None:
    """Add an annotation to a label: as an object, or without box, mask and points as a tag."""
    label["tags"].append(name)
    known = {key: annotation[key] for key in OF_OBJECTS if annotation.get(key) is not None}
    if known.keys() & {"bbox", "segmentation", "points"}:
        label["objects"].append({"name": name, **known})  # type: ignore[typeddict-item]


def _refuse_edited(root: Path, content: Content) -> None:
    """Raise InputError if labels.csv says something else than labels.json, and is the newer one.

    After a kill between the two it is the older one, and is written again.
    """
    path = root / CSV
    if not path.is_file() or path.stat().st_mtime_ns <= (root / JSON).stat().st_mtime_ns:
        return
    if read_bytes(path) != _table(content):
        raise InputError(
            f"{path} was changed after {root / JSON}, which is read; delete the one that you do "
            "not want"
        )


def _imported(root: Path, given: str) -> Content:
    """Return labels of any layout; images with a label are done."""
    index = read_split(root, "train", given)
    names = [category["name"] for category in index.categories]
    for name in names:
        if set(name) & set(SEPARATORS):
            raise InputError(f'{root}: class "{name}" has a , ; or |, which part tags; rename it')
    images: dict[str, Record] = {}
    labels: dict[str, Label] = {}
    name_of = {category["id"]: category["name"] for category in index.categories}
    for image in index.images:
        label, file = _new(done=True), image["file_name"]
        for annotation in index.annotations.get(image["id"], ()):
            _add(label, annotation, name_of[annotation["category_id"]])
        label["tags"] += [names[place] for place in index.tags.get(image["id"], ())]
        images[file] = {key: image[key] for key in ("id", "height", "width")}
        size = image["height"], image["width"]
        labels[file] = checked(label, size, names, f"{root}: {file}")
    categories = [{"id": c["id"], "name": tidy(c["name"])} for c in index.categories]
    return Content(categories, images, labels, False)


def clear(root: Path) -> None:
    """Delete what a killed process left of files that it was writing."""
    for name in (JSON, CSV):
        for scratch in root.glob(f".{name}." + 8 * "[0-9a-f]"):
            scratch.unlink(missing_ok=True)


def keep_original(root: Path) -> None:
    """Copy labels that are not ours to labels.json.before and labels.csv.before, once."""
    for name in (JSON, CSV):
        path, copy = root / name, root / f"{name}{ORIGINAL}"
        if path.is_file() and not copy.exists():
            with atomic_write(copy) as scratch:
                scratch.write_bytes(read_bytes(path))


def write(root: Path, content: Content) -> None:
    """Write labels.json, and labels.csv if the tags have changed, each whole or not at all.

    Raises:
        InputError: the folder cannot be written, or the disk is full.
    """
    own = {"begun": _begun(content), "refused": _refused(content)}
    _write(root / JSON, msgspec.json.encode({**_instances(content), "wsis": own}))
    table = _table(content)
    if not (root / CSV).is_file() or read_bytes(root / CSV) != table:
        _write(root / CSV, table)


def _write(path: Path, text: bytes) -> None:
    with atomic_write(path) as scratch:
        scratch.write_bytes(text)


def instances(content: Content) -> bytes:
    """Return the images that are done as a COCO instances file."""
    return msgspec.json.encode(_instances(content))


def _instances(content: Content) -> Record:
    done = [name for name, label in content.labels.items() if label["done"]]
    annotations: list[Record] = []
    for name in done:
        found = _annotations(content.labels[name], content.images[name], content.categories)
        annotations += [{**a, "id": len(annotations) + n} for n, a in enumerate(found, 1)]
    images = [{"file_name": name, **content.images[name]} for name in done]
    return {"images": images, "annotations": annotations, "categories": content.categories}


def _begun(content: Content) -> list[Record]:
    labels = content.labels.items()
    begun = [(name, label) for name, label in labels if not label["done"]]
    return [{"file_name": name, **content.images[name], "label": label} for name, label in begun]


def _refused(content: Content) -> Record:
    labels = content.labels.items()
    return {n: label["refused"] for n, label in labels if label["done"] and label["refused"]}


def _annotations(
    label: Label, image: Mapping[str, Any], categories: Sequence[Record]
) -> list[Record]:
    """Return the COCO annotations of an image; a tag without an object is one without box."""
    number = {category["name"]: category["id"] for category in categories}
    made: list[Record] = []
    for thing in label["objects"]:
        known: Record = {key: value for key, value in thing.items() if key != "name"}
        if known.keys() & {"bbox", "segmentation"}:
            known["area"] = area_of(known, (image["height"], image["width"]))
        made.append({"iscrowd": 0, **known, "category_id": number[thing["name"]]})
    named = {thing["name"] for thing in label["objects"]}
    made += [{"category_id": number[n], "iscrowd": 0} for n in label["tags"] if n not in named]
    return [{"image_id": image["id"], **annotation} for annotation in made]


def _table(content: Content) -> bytes:
    """Return labels.csv: a line `file,tag;tag` for each image that is done."""
    text = io.StringIO(newline="")
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["file", "tags"])
    for name, label in content.labels.items():
        if label["done"]:
            rows.writerow([name, ";".join(label["tags"])])
    return text.getvalue().encode()
