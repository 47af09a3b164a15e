"""The generated data set: eight thing classes on three stuff classes, in COCO and VOC layouts.

Nothing is downloaded: `_scene` paints the scenes from a seed, in seconds, and they are written once
to a folder named after the settings. The same images are written as COCO (`train2017/`,
`annotations/instances_train2017.json`, panoptic) and as VOC (`VOCdevkit/VOC2012/...`). A
salient-object set (`images/`, `masks/`) is made on request, in a separate folder.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as rle

from wsis.data.index import read_coco, read_stuff
from wsis.data.module import DataModule, Loading
from wsis.data.simulated import draw_pixels
from wsis.data.transforms import Augment
from wsis.datasets._scene import (
    SALIENT,
    SIZE,
    STUFF,
    THINGS,
    Scene,
    SceneSettings,
    paint_salient,
    paint_scene,
)
from wsis.errors import InputError
from wsis.files import short_name
from wsis.fingerprint import digest
from wsis.nn.masks import run_lengths
from wsis.types import Index, Record
from wsis.values import COUNT, FRACTION, WHOLE, Range, check_ranges

__all__ = ["Shapes"]

_VERSION = 2  # raise it whenever the same settings would produce other files
_TAIL = 20  # long-tailed draw: ratio of the most frequent to the rarest class
_AUGMENT = Augment()
_LOADING = Loading(workers=0)  # a sample takes a millisecond, starting a worker takes seconds
_CATEGORIES = [{"id": k + 1, "name": kind.name} for k, kind in enumerate(THINGS)]
_STUFF_CATEGORIES = [{"id": 101 + k, "name": name} for k, name in enumerate(STUFF)]

_RANGES = {
    COUNT: ("train",),
    WHOLE: ("val", "salient", "seed"),
    FRACTION: ("mark",),
    Range(0, round(math.pi, 2)): ("rotation",),
}


class Shapes(DataModule):
    """Generated scenes: learnable from tags in minutes on a CPU, with the usual difficulties.

    Each object has a mask, a box and a point, which is drawn from the pixels of it that are seen.

    Args:
        root: Folder for generated data sets.
        train: Number of training images.
        val: Number of validation images.
        salient: Number of salient images for BoxCaseg: single objects of other classes, with masks.
        seed: Seed of the generated data. Report results on a seed that was not used for tuning.
        long_tail: Draw the training classes twenty times as often at the head as at the tail.
        mark: Radius of the mark that tells two similar classes apart, in half object lengths.
        rotation: Maximum rotation of an object in either direction, in radians.
        augment: Augmentation of training images.
        loading: Settings of the data loader.
    """

    licence = "none: the images are generated"
    is_generated = True

    def __init__(
        self,
        root: Path = Path("data/shapes"),
        train: int = 300,
        val: int = 100,
        salient: int = 200,
        seed: int = 0,
        long_tail: bool = False,
        mark: float = 0.3,
        rotation: float = 0.3,
        augment: Augment = _AUGMENT,
        loading: Loading = _LOADING,
        **settings: Any,
    ) -> None:
        given = {"train": train, "val": val, "salient": salient, "seed": seed}
        check_ranges("data", given | {"mark": mark, "rotation": rotation}, _RANGES)
        scenes = SceneSettings(mark=mark, rotation=rotation)
        self._scenes: Record = {
            "seed": seed,
            "train": train,
            "val": val,
            "long_tail": long_tail,
            "scenes": asdict(scenes),
        }
        self._salient: Record = {"seed": seed, "salient": salient}
        folder = Path(root) / _key(self._scenes)
        super().__init__("shapes", folder, augment=augment, loading=loading, **settings)

    @property
    def categories(self) -> list[Record]:
        """The thing classes in order, each with id and name."""
        return [dict(category) for category in _CATEGORIES]

    @property
    def stuff(self) -> list[Record]:
        """The stuff classes in order, each with id and name."""
        return [dict(category) for category in _STUFF_CATEGORIES]

    def salient_folder(self) -> Path:
        """Return the folder of the salient images, generating them if they do not exist."""
        folder = self.folder.parent / _key(self._salient)
        _once(folder, self._salient, _write_salient)
        return folder

    def read(self, split: str) -> Index:
        """Read a split, generating the data set if it does not exist."""
        _once(self.folder, self._scenes, _write_scenes)
        annotations = self.folder / "annotations"
        index = read_coco(
            annotations / f"instances_{split}2017.json", self.folder / f"{split}2017", name="shapes"
        )
        return read_stuff(annotations / f"panoptic_{split}2017.json", index)


def _key(settings: Record) -> str:
    return digest([_VERSION, settings])[:12]


def _once(folder: Path, settings: Record, write: Callable[[Path, Record], None]) -> None:
    """Create `folder` with `write`, unless it exists.

    A scratch folder is filled and renamed, so that concurrent processes never see half a data set.
    """
    if folder.is_dir():
        return
    scratch = folder.parent / f".{short_name(folder.name, 100)}.{uuid.uuid4().hex[:8]}"
    try:
        scratch.mkdir(parents=True)
        write(scratch, settings)
        (scratch / "settings.json").write_text(json.dumps(settings, indent=1))
        os.rename(scratch, folder)
    except OSError as error:
        if not folder.is_dir():
            raise InputError(
                f"cannot write {folder}: {error.strerror or error}; give another --data.root, "
                "with room"
            ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _write_scenes(folder: Path, settings: Record) -> None:
    for split in ("train", "val"):
        _write_split(folder, split, settings)


def _write_split(folder: Path, split: str, settings: Record) -> None:
    images: list[Record] = []
    annotations: list[Record] = []
    panoptic: list[Record] = []
    voc = folder / "VOCdevkit" / "VOC2012"
    pictures = folder / f"{split}2017"
    panoptic_folder = folder / "annotations" / f"panoptic_{split}2017"
    voc_folders = [voc / name for name in ("JPEGImages", "Annotations", *_VOC_MAPS)]
    for path in (pictures, panoptic_folder, *voc_folders):
        path.mkdir(parents=True, exist_ok=True)
    for number, scene, rng in _scenes(split, settings):
        stem = f"{number:012d}"
        found = _annotate(scene, number, len(annotations), rng)
        images.append({"id": number, "file_name": f"{stem}.jpg", "height": SIZE, "width": SIZE})
        annotations += found
        panoptic.append(_write_panoptic(panoptic_folder / f"{stem}.png", scene, number))
        _write_jpeg(pictures / f"{stem}.jpg", scene.image)
        shutil.copyfile(pictures / f"{stem}.jpg", voc / "JPEGImages" / f"{stem}.jpg")
        _write_voc(voc, stem, scene, found)
    for name in ("Main", "Segmentation"):
        (voc / "ImageSets" / name).mkdir(parents=True, exist_ok=True)
        (voc / "ImageSets" / name / f"{split}.txt").write_text(
            "".join(f"{i['file_name'][:-4]}\n" for i in images)
        )
    things = [
        {**c, "supercategory": THINGS[k].outline, "isthing": 1} for k, c in enumerate(_CATEGORIES)
    ]
    stuff = [{**c, "supercategory": "ground", "isthing": 0} for c in _STUFF_CATEGORIES]
    instances = {"images": images, "annotations": annotations, "categories": things}
    (folder / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(instances))
    scenery = {"images": images, "annotations": panoptic, "categories": things + stuff}
    (folder / "annotations" / f"panoptic_{split}2017.json").write_text(json.dumps(scenery))


def _scenes(split: str, settings: Record) -> Iterator[tuple[int, Scene, np.random.Generator]]:
    """Paint the scenes of a split, each from its own generator; numbers are unique over splits."""
    part = ("train", "val").index(split)
    shares = np.full(len(THINGS), 1.0)
    if settings["long_tail"] and split == "train":
        shares = _TAIL ** -np.linspace(0, 1, len(THINGS))
    shares /= shares.sum()
    scenes = SceneSettings(**settings["scenes"])
    for k, main in enumerate(_spread(shares, settings[split])):
        rng = np.random.default_rng([settings["seed"], part, k])
        yield part * 500_000 + k + 1, paint_scene(rng, scenes, main, shares), rng


def _spread(shares: NDArray[np.float64], count: int) -> list[int]:
    """Return `count` classes in proportion to `shares`, each spread evenly over the list."""
    given = np.zeros(len(shares))
    classes = []
    for k in range(count):
        classes.append(int(np.argmax((k + 1) * shares - given)))
        given[classes[-1]] += 1
    return classes


def _annotate(scene: Scene, image: int, before: int, rng: np.random.Generator) -> list[Record]:
    """Return a COCO annotation of the visible part of each object, and of a point drawn in it."""
    annotations = []
    for k, label in enumerate(scene.labels):
        seen = scene.owner == k + 1
        lengths = run_lengths(seen)
        annotations.append(
            {
                "id": before + k + 1,
                "image_id": image,
                "category_id": label + 1,
                "bbox": rle.toBbox(lengths).tolist(),
                "area": int(rle.area(lengths)),
                "iscrowd": 0,
                "points": [[*pixel, 1] for pixel in draw_pixels(seen, 1, rng)],
                "segmentation": {"size": lengths["size"], "counts": lengths["counts"].decode()},
            }
        )
    return annotations


def _write_jpeg(path: Path, image: NDArray[np.uint8]) -> None:
    options = [
        cv2.IMWRITE_JPEG_QUALITY,
        95,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
    ]
    path.write_bytes(cv2.imencode(".jpg", image[..., ::-1], options)[1].tobytes())


def _write_panoptic(path: Path, scene: Scene, image: int) -> Record:
    """Write the panoptic png (segment id = R + 256 G + 65536 B) and return its json entry."""
    ids = np.where(scene.owner > 0, scene.owner + 10, scene.stuff.astype(int) + 1)
    zeros = np.zeros_like(ids)
    path.write_bytes(
        cv2.imencode(".png", np.stack([zeros, zeros, ids], -1).astype(np.uint8))[1].tobytes()
    )
    category = {k + 11: label + 1 for k, label in enumerate(scene.labels)}
    category |= {k + 1: 101 + k for k in range(len(STUFF))}
    segments = [_segment(int(k), category[int(k)], ids == k) for k in np.unique(ids)]
    return {"image_id": image, "file_name": path.name, "segments_info": segments}


def _segment(number: int, category: int, mask: NDArray[np.bool_]) -> Record:
    lengths = run_lengths(mask)
    box, area = [int(v) for v in rle.toBbox(lengths)], int(rle.area(lengths))
    return {"id": number, "category_id": category, "bbox": box, "area": area, "iscrowd": 0}


_VOC_MAPS = ("SegmentationObject", "SegmentationClass")


def _write_voc(voc: Path, stem: str, scene: Scene, annotations: Sequence[Record]) -> None:
    """Write VOC's object and class maps, and boxes with 1-based inclusive corners."""
    classes = np.array([0, *(label + 1 for label in scene.labels)])
    for name, labels in zip(_VOC_MAPS, (scene.owner, classes[scene.owner]), strict=True):
        picture = Image.fromarray(labels.astype(np.uint8)).convert("P")
        picture.putpalette(_voc_palette())
        picture.save(voc / name / f"{stem}.png")
    objects = "".join(
        _VOC_OBJECT.format(_CATEGORIES[a["category_id"] - 1]["name"], *_voc_corners(a["bbox"]))
        for a in annotations
    )
    (voc / "Annotations" / f"{stem}.xml").write_text(_VOC_FILE.format(stem, SIZE, objects))


_VOC_FILE = """<annotation>
  <folder>VOC2012</folder>
  <filename>{0}.jpg</filename>
  <size><width>{1}</width><height>{1}</height><depth>3</depth></size>
  <segmented>1</segmented>
{2}</annotation>
"""
_VOC_OBJECT = """  <object>
    <name>{}</name>
    <difficult>0</difficult>
    <bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox>
  </object>
"""


def _voc_corners(box: Sequence[float]) -> list[int]:
    x, y, width, height = map(int, box)
    return [x + 1, y + 1, x + width, y + height]


def _voc_palette() -> list[int]:
    """Return VOC's colour map: an index's bits, dealt to the channels from the highest bit down."""
    indices = np.arange(256)[:, None]
    colours = np.zeros((256, 3), int)
    for k in range(8):
        colours |= (indices >> (3 * k + np.arange(3)) & 1) << (7 - k)
    return [int(value) for value in colours.ravel()]


def _write_salient(folder: Path, settings: Record) -> None:
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for k in range(settings["salient"]):
        scene = paint_salient(np.random.default_rng([settings["seed"], 2, k]), k % len(SALIENT))
        _write_jpeg(folder / "images" / f"{k + 1:06d}.jpg", scene.image)
        mask = np.where(scene.owner > 0, 255, 0).astype(np.uint8)
        (folder / "masks" / f"{k + 1:06d}.png").write_bytes(cv2.imencode(".png", mask)[1].tobytes())
