"""ImageNet (ILSVRC 2012) for pre-training a classifier: a folder of images for each class."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from wsis.data.module import DataModule
from wsis.errors import InputError
from wsis.images.read import SUFFIXES, image_size
from wsis.machine import cores
from wsis.types import Index, Record

__all__ = ["ImageNet"]


class ImageNet(DataModule):
    """ImageNet, with 1,281,167 training and 50,000 validation images of 1,000 classes.

    Any images sorted into train/CLASS/ and val/CLASS/ will do; each image has the tag of its
    folder. Without val/ there is no validation.

    Args:
        root: Folder that holds train/ and val/.
    """

    writes_beside = False
    licence = "ImageNet: for research and education that are not commercial"

    def __init__(self, root: Path = Path("data/imagenet"), **settings: Any) -> None:
        super().__init__("imagenet", Path(root), **settings)

    @property
    def has_val(self) -> bool:
        """Whether there is a folder of validation images."""
        return (self.folder / "val").is_dir()

    def read(self, split: str) -> Index:
        """List the images of a split and read their sizes.

        Raises:
            InputError: there is no folder of classes with images, a class of val/ is not one of
                train/, or an image cannot be read.
        """
        root = self.folder / split
        files = {folder.name: _pictures(folder) for folder in _folders(root)}
        names = [name for name, found in files.items() if found]
        if not names:
            raise InputError(
                f"no images in {root}/CLASS/; sort ImageNet's into a folder for each class, as in "
                f"{root}/n01440764/1.jpg, the validation images, too"
            )
        known = names if split == "train" else self.class_names
        if unknown := sorted({*names} - {*known}):
            raise InputError(
                f"{root} has the class {unknown[0]}, which {self.folder / 'train'} does not have; "
                "give both the same folders"
            )
        label = {name: k for k, name in enumerate(known)}
        tagged = [(path, label[name]) for name in names for path in files[name]]
        with ThreadPoolExecutor(cores()) as pool:
            sizes = list(pool.map(lambda pair: image_size(pair[0]), tagged))
        images: list[Record] = []
        for number, ((path, _), (height, width)) in enumerate(zip(tagged, sizes, strict=True), 1):
            name = path.relative_to(root).as_posix()
            images.append({"id": number, "file_name": name, "height": height, "width": width})
        tags = {number: [label] for number, (_, label) in enumerate(tagged, 1)}
        categories = [{"id": k, "name": name} for k, name in enumerate(known, 1)]
        return Index(
            name="imagenet",
            root=root,
            images=images,
            categories=categories,
            tags=tags,
        )


def _folders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []


def _pictures(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
