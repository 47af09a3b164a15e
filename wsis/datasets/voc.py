"""PASCAL VOC 2012 and 2007, with SBD's instance masks for the training list trainaug."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from xml.etree import ElementTree

import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools import mask as rle
from scipy.io import loadmat
from scipy.io.matlab import MatReadError
from torch import Tensor

from wsis.data.index import drop_empty, keep_images, tags_of
from wsis.data.module import DataModule
from wsis.datasets._long_tail import draw_long_tail
from wsis.errors import InputError
from wsis.files import atomic_write, cache_folder, read_json
from wsis.fingerprint import digest
from wsis.images.read import image_size, read_labels
from wsis.nn.masks import run_lengths
from wsis.types import Index, Record

__all__ = ["VOC", "VOC_CLASSES", "read_voc"]

# fmt: off
VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
    "tvmonitor",
)
# fmt: on
_LISTS = {
    ("2012", "segmentation"): ("trainaug", "val"),
    ("2012", "detection"): ("train", "val"),
    ("2007", "segmentation"): ("trainval", "test"),
    ("2007", "detection"): ("trainval", "test"),
}
_STUFF: list[Record] = [{"id": 0, "name": "background"}]
_HOST = "http://host.robots.ox.ac.uk/pascal/VOC/voc{year}/"
_SBD_HOST = "http://home.bharathh.info/pubs/codes/SBD/download.html"


class VOC(DataModule):
    """PASCAL VOC with 20 classes: instance segmentation with SBD's masks, or detection.

    For segmentation, VOC 2012 has 10,582 training images (trainaug) and 1,449 validation images.
    Tags are the classes of the objects in the xml files that are not difficult. "segmentation"
    takes masks and their boxes from the png and SBD files; "detection" takes boxes from the xml
    files and ignores difficult objects in evaluation. Images of a list in Main, such as Main/train,
    have boxes and no masks for either task.

    Args:
        root: Folder that holds VOCdevkit (and, for trainaug, SBD or benchmark_RELEASE).
        year: "2012" or "2007".
        task: "segmentation" has instance masks, "detection" has boxes and longer lists.
        train_list: Training list in ImageSets; empty takes trainaug, trainval (2007) or train.
        val_list: Validation list in ImageSets; empty takes val, or test for 2007.
        long_tail: Draw a long-tailed training set of up to 800 images per class.
    """

    licence = "PASCAL VOC: images under Flickr's terms of use"

    def __init__(
        self,
        root: Path = Path("data/voc"),
        year: Literal["2012", "2007"] = "2012",
        task: Literal["segmentation", "detection"] = "segmentation",
        train_list: str = "",
        val_list: str = "",
        long_tail: bool = False,
        **settings: Any,
    ) -> None:
        super().__init__("voc", Path(root), **settings)
        train, val = _LISTS[year, task]
        self.lists = {"train": train_list or train, "val": val_list or val}
        self.year, self.task, self.long_tail = year, task, long_tail

    @property
    def categories(self) -> list[Record]:
        """The twenty classes in order, each with id and name."""
        return [{"id": position + 1, "name": name} for position, name in enumerate(VOC_CLASSES)]

    @property
    def stuff(self) -> list[Record]:
        """The stuff class background; none for "detection"."""
        return list(_STUFF) if self.task == "segmentation" else []

    def read(self, split: str) -> Index:
        """Read the list and the annotations of a split."""
        devkit = _devkit(self.folder, self.year)
        usual = "Segmentation" if self.task == "segmentation" else "Main"
        folder, _, name = self.lists[split].rpartition("/")
        masks = (folder or usual) == "Segmentation"
        places = [self.folder / place / "inst" for place in _SBD_PLACES if masks]
        sbd = next((path for path in places if path.is_dir()), None)
        stems = _stems(self.folder, devkit, folder or usual, name, sbd)
        index = read_voc(devkit, stems, VOC_CLASSES, masks=masks, sbd=sbd)
        if self.task == "segmentation":
            index = _with_background(index)
        if self.long_tail and split == "train":
            index = keep_images(
                index, set(draw_long_tail(index.tags, len(VOC_CLASSES), maximum=800))
            )
        return index


_SBD_PLACES = ("SBD", "sbd", "SBD/dataset", "benchmark_RELEASE/dataset", "VOCdevkit/SBD")


def read_voc(
    devkit: Path, stems: Sequence[str], classes: Sequence[str], masks: bool, sbd: Path | None = None
) -> Index:
    """Read VOC annotations of the images `stems`, and cache them until a file changes.

    Args:
        devkit: folder with JPEGImages, Annotations, SegmentationObject and SegmentationClass.
        stems: image names without suffix.
        classes: class names in order.
        masks: read instances from png or SBD files instead of boxes from the xml files.
        sbd: SBD's folder `inst`, for images without a png.

    Raises:
        InputError: an image or annotation is missing or broken, sizes differ, or a class is
            unknown.
    """
    sources = [_sources(devkit, stem, masks, sbd) for stem in stems]
    key = _key(
        [
            list(classes),
            masks,
            [[(p.name, s.st_size, s.st_mtime_ns) for p in f for s in [p.stat()]] for f in sources],
        ]
    )
    cached = cache_folder() / "voc" / f"{key}.json"
    images_dir = devkit / "JPEGImages"
    categories = [{"id": position + 1, "name": name} for position, name in enumerate(classes)]
    records = None
    with contextlib.suppress(InputError):  # there is none yet, or a damaged one
        records = read_json(cached)
    if records is None:
        records = [
            _read_image(stem, files, categories) for stem, files in zip(stems, sources, strict=True)
        ]
        # the cache is optional: a failure to write it is not an error
        with contextlib.suppress(InputError), atomic_write(cached) as scratch:
            scratch.write_text(json.dumps(records))
    images = [{"id": n, **image} for n, (image, _, _) in zip(_numbers(stems), records, strict=True)]
    found = {
        image["id"]: annotations for image, (_, annotations, _) in zip(images, records, strict=True)
    }
    tags = {image["id"]: given for image, (_, _, given) in zip(images, records, strict=True)}
    index = Index(
        name="voc",
        root=images_dir,
        images=images,
        categories=categories,
        annotations=drop_empty(found, images, devkit),
        tags=tags,
    )
    if not masks:
        return index
    return _with_background(index._replace(panoptic=_PanopticMaps(devkit, sbd, len(classes))))


def _with_background(index: Index) -> Index:
    """Tag every image with the stuff class background, which is always present."""
    return index._replace(
        stuff=list(_STUFF), stuff_tags={image["id"]: [0] for image in index.images}
    )


def _devkit(root: Path, year: str) -> Path:
    places = (root / "VOCdevkit" / f"VOC{year}", root / f"VOC{year}", root)
    for place in places:
        if (place / "JPEGImages").is_dir() and (place / "ImageSets").is_dir():
            return place
    raise InputError(
        f"no VOC {year} in {root}; fetch the archives from {_HOST.format(year=year)} and unpack "
        f"them there, so that {places[0]} holds JPEGImages, Annotations, ImageSets and "
        "SegmentationObject"
    )


def _stems(root: Path, devkit: Path, kind: str, name: str, sbd: Path | None) -> list[str]:
    folder = devkit / "ImageSets" / kind
    if (folder / f"{name}.txt").is_file():
        return _list(folder / f"{name}.txt")
    if name != "trainaug":
        raise InputError(
            f"no list {folder / name}.txt; name one that is there or add it (one image name a line)"
        )
    if sbd is None:
        raise InputError(
            f"trainaug needs the masks of SBD and {root} has none; unpack benchmark.tgz from "
            f"{_SBD_HOST} there, so that {root / 'benchmark_RELEASE/dataset/inst'} is there, or "
            "set train_list to train"
        )
    augmented = [stem for part in ("train", "val") for stem in _list(sbd.parent / f"{part}.txt")]
    return sorted({*_list(folder / "train.txt"), *augmented} - set(_list(folder / "val.txt")))


def _list(path: Path) -> list[str]:
    try:
        names = [line.split()[0] for line in path.read_text().splitlines() if line.strip()]
    except OSError as error:
        raise InputError(
            f"cannot read the list {path}: {error.strerror}; unpack the archive it comes in"
        ) from error
    if len(set(names)) < len(names):
        twice = next(name for position, name in enumerate(names) if name in names[:position])
        raise InputError(f"{path} names {twice} twice; keep it once")
    return names


def _sources(devkit: Path, stem: str, masks: bool, sbd: Path | None) -> list[Path]:
    """Return an image and its annotation files, all of which exist."""
    xml, picture = devkit / "Annotations" / f"{stem}.xml", devkit / "JPEGImages" / f"{stem}.jpg"
    pngs = [devkit / name / f"{stem}.png" for name in ("SegmentationObject", "SegmentationClass")]
    files = [picture]
    if masks:
        mat = None if sbd is None else sbd / f"{stem}.mat"
        files += [mat] if mat is not None and not pngs[0].exists() else pngs
    files += [xml] if xml.exists() or not masks else []
    for path in files:
        if not path.is_file():
            raise InputError(
                f"no {path}, though the list names {stem}; unpack the archive again or shorten "
                "the list"
            )
    return files


def _key(content: Any) -> str:
    return digest([1, content])


def _numbers(stems: Sequence[str]) -> list[int]:
    """Return image ids: the digits of the names, or list positions if those are not unique."""
    digits = [int("0" + "".join(filter(str.isdigit, stem))) for stem in stems]
    return digits if len(set(digits)) == len(digits) else list(range(1, len(stems) + 1))


def _read_image(
    stem: str, files: Sequence[Path], categories: Sequence[Record]
) -> tuple[Record, list[Record], list[int]]:
    height, width = image_size(files[0])
    image = {"file_name": files[0].name, "height": height, "width": width}
    by_suffix = {path.suffix: path for path in files[1:]}
    boxes = _read_boxes(by_suffix[".xml"], categories) if ".xml" in by_suffix else None
    masked = len(files) > 1 and files[1].suffix != ".xml"
    annotations = (
        _read_masks(files[1:], (height, width), len(categories)) if masked else boxes or []
    )
    tagged = annotations if boxes is None else [box for box in boxes if not box["iscrowd"]]
    return image, annotations, tags_of({0: tagged}, categories)[0]


def _read_boxes(path: Path, categories: Sequence[Record]) -> list[Record]:
    """Read the objects of an xml file; difficult ones count as crowd."""
    number = {category["name"]: category["id"] for category in categories}
    try:
        return [_read_object(item, number) for item in ElementTree.parse(path).iter("object")]
    except KeyError as error:
        raise InputError(
            f"{path} names the unknown class {error}; the classes are {', '.join(number)}"
        ) from error
    except (ElementTree.ParseError, TypeError, ValueError) as error:
        raise InputError(f"{path} is not a VOC annotation ({error}); fetch it again") from error


def _read_object(item: ElementTree.Element, number: dict[str, int]) -> Record:
    x1, y1, x2, y2 = (
        float(item.findtext(f"bndbox/{side}") or "") for side in ("xmin", "ymin", "xmax", "ymax")
    )
    difficult = int(item.findtext("difficult") or 0)
    return {
        # VOC counts pixels from 1 and includes the last
        "bbox": [x1 - 1, y1 - 1, x2 - x1 + 1, y2 - y1 + 1],
        "category_id": number[(item.findtext("name") or "").strip()],
        "iscrowd": difficult,
    }


def _read_masks(files: Sequence[Path], size: tuple[int, int], classes: int) -> list[Record]:
    """Read instances from an SBD .mat, or from an object png and a class png."""
    objects, category = _read_objects(files, size, classes)
    annotations = []
    for number, label in category.items():
        lengths = run_lengths(objects == number)
        segmentation = {"size": lengths["size"], "counts": lengths["counts"].decode()}
        annotations.append(
            {
                "bbox": rle.toBbox(lengths).tolist(),
                "category_id": label,
                "iscrowd": 0,
                "segmentation": segmentation,
            }
        )
    return annotations


@dataclass(frozen=True)
class _PanopticMaps:
    """Reads panoptic maps: objects, void borders, and background as the only stuff class."""

    devkit: Path
    sbd: Path | None
    classes: int

    def __call__(self, image: Record) -> Tensor:
        files = _sources(self.devkit, Path(image["file_name"]).stem, True, self.sbd)[1:]
        objects, category = _read_objects(files, (image["height"], image["width"]), self.classes)
        table = np.tile(np.array([-1, 0], np.int32), (256, 1))
        table[0] = self.classes, 0
        for instance, (number, label) in enumerate(category.items(), 1):
            table[number] = label - 1, instance
        return torch.from_numpy(table[objects])


def _read_objects(
    files: Sequence[Path], size: tuple[int, int], classes: int
) -> tuple[NDArray[np.uint8], dict[int, int]]:
    """Read the map of object numbers and the class of each number, counted from 1.

    In the map, 0 is background and 255 is a void border.
    """
    path = files[0]
    objects, category = _read_sbd(path) if path.suffix == ".mat" else _read_pngs(*files[:2])
    if objects.shape != size:
        raise InputError(f"{path} has another size than its image; fetch both again")
    for number, label in category.items():
        if not 1 <= label <= classes:
            raise InputError(
                f"{path}: object {number} has class {label}, not 1 to {classes}; fetch it again"
            )
    return objects, category


def _read_pngs(objects_path: Path, classes_path: Path) -> tuple[NDArray[np.uint8], dict[int, int]]:
    objects, classes = read_labels(objects_path), read_labels(classes_path)
    if objects.shape != classes.shape:
        raise InputError(f"{objects_path} and {classes_path} differ in size; fetch both again")
    numbers = [int(n) for n in np.unique(objects) if n not in (0, 255)]
    return objects, {
        n: int(np.bincount(classes[(objects == n) & (classes != 255)], minlength=1).argmax())
        for n in numbers
    }


def _read_sbd(path: Path) -> tuple[NDArray[np.uint8], dict[int, int]]:
    try:
        instances = loadmat(path, squeeze_me=True, struct_as_record=False)["GTinst"]
        objects = np.asarray(instances.Segmentation, np.uint8)
        categories = np.atleast_1d(instances.Categories)
    except (MatReadError, OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise InputError(f"{path} is not an SBD instance file ({error}); fetch it again") from error
    return objects, {
        number + 1: int(label)
        for number, label in enumerate(categories)
        if (objects == number + 1).any()
    }
