"""Photos sorted into folders of classes, as tags: a data set of your own in one file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from wsis.data import DataModule, Index
from wsis.errors import InputError
from wsis.images.read import image_size, pictures


class ClassFolders(DataModule):
    """Photos in folders `train/cat`, `train/dog`, ...: each is tagged with the name of its folder.

    A photo that lies in two folders under the same name has two tags; photos in a folder `none`
    have no tag. Validation images, if there are any, lie in folders of `val`.

    Args:
        root: Folder that holds `train` and maybe `val`.
    """

    def __init__(self, root: Path = Path("data/sorted"), **settings: Any) -> None:
        super().__init__("class_folders", Path(root), **settings)

    @property
    def has_val(self) -> bool:
        """Whether there are validation images."""
        return (self.folder / "val").is_dir()

    @property
    def names(self) -> list[str]:
        """Names of the classes: the folders of `train`, without `none`."""
        folders = sorted(path.name for path in (self.folder / "train").glob("*") if path.is_dir())
        return [name for name in folders if name != "none"]

    def read(self, split: str) -> Index:
        """Return images and tags of a split ("train" or "val")."""
        root, names = self.folder / split, self.names
        folders: dict[str, list[str]] = {}
        for path in pictures(root):
            if path.parent.name not in (*names, "none"):
                raise InputError(
                    f"{path} lies in no folder of a class in {root}; move or delete it"
                )
            folders.setdefault(path.name, []).append(path.parent.name)
        images, tags = [], {}
        for number, (name, found) in enumerate(folders.items(), 1):
            file = Path(found[0], name)
            height, width = image_size(root / file)
            record = {"id": number, "file_name": str(file), "height": height, "width": width}
            images.append(record)
            tags[number] = [names.index(folder) for folder in found if folder != "none"]
        return Index(
            name=self.name,
            root=root,
            images=images,
            categories=[{"id": k, "name": name} for k, name in enumerate(names, 1)],
            tags=tags,
        )
