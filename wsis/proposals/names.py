"""The images that other tools' files mean by a name or a number."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path, PurePosixPath

from wsis.errors import InputError
from wsis.types import Index, Record

__all__ = ["Names"]


class Names:
    """Finds images of an index by their id, file, stem or number."""

    def __init__(self, index: Index) -> None:
        self.ids = {image["id"]: image for image in index.images}
        self.files = {image["file_name"]: image for image in index.images}
        self.others = _by_stem(index)

    def find(self, key: str | int) -> Record | None:
        """Return the image that a file calls `key`; None if there is none.

        Raises:
            InputError: several images have the name.
        """
        if key in self.ids:
            return self.ids[key]
        parts = PurePosixPath(str(key).replace("\\", "/")).parts
        for k in range(len(parts)):
            if (path := "/".join(parts[k:])) in self.files:
                return self.files[path]
        last = parts[-1] if parts else ""
        found = self.others.get(_plain(last)) or self.others.get(_plain(Path(last).stem)) or []
        if len(found) > 1:
            one, two = sorted(image["file_name"] for image in found)[:2]
            raise InputError(
                f"the proposals of {key!r} may be those of {one} or of {two}; name them with the "
                'image\'s folder, as "file_name" in a COCO instances file'
            )
        return found[0] if found else None


def _by_stem(index: Index) -> dict[str, list[Record]]:
    """Map the names that files use for images to the images that may be meant.

    Later kinds of name take precedence: id, last number in the stem, all its digits, the stem.
    """
    known: dict[str, list[Record]] = {}
    for kind in (_id, _last_number, _digits, _stem):
        named: dict[str, list[Record]] = defaultdict(list)
        for image in index.images:
            named[_plain(kind(image))].append(image)
        known |= named
    known.pop("", None)
    return known


def _id(image: Record) -> str:
    return str(image["id"])


def _last_number(image: Record) -> str:
    return "".join(re.findall(r"\d+", _stem(image))[-1:])


def _digits(image: Record) -> str:
    return re.sub(r"\D", "", _stem(image))


def _stem(image: Record) -> str:
    return Path(image["file_name"]).stem


def _plain(name: str) -> str:
    """Return a number without leading zeros, any other name as it is.

    COCO_train2014_000000000009 and 9 are the same image.
    """
    coco = re.fullmatch(r"COCO_\w+?_(\d+)", name)
    name = coco[1] if coco else name
    return str(int(name)) if name.isdecimal() else name
