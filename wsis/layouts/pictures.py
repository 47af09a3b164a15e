"""The pictures of a folder, and which of them a label is about."""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from urllib.parse import parse_qs, unquote, urlsplit

from wsis.errors import InputError
from wsis.files import is_utf8, shown
from wsis.images.read import SUFFIXES, files_in
from wsis.layouts.text import counted, key_of

__all__ = ["HASH", "SPLITS", "Pictures", "files_of", "is_picture_name", "other_kinds", "split_of"]

SPLITS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
"""Words for a split in names of folders and files."""
_PLAIN = {"data", "dataset", "image", "images", "img", "imgs", "photos", "pictures", "seg", "set"}
"""Words that may stand beside them in the name of a folder: images_train, Training Set."""

# fmt: off
_OTHERS = frozenset({
    ".avif", ".jxl", ".jp2", ".svg", ".psd", ".dng", ".cr2", ".cr3",
    ".nef", ".arw", ".raw", ".dcm", ".mp4", ".mov",
})
# fmt: on
"""Pictures that are not taken where a folder is searched."""
HASH = re.compile(r"^[0-9a-f]{8}-(?=.)")
"""What Label Studio puts before names of uploaded files."""


def files_of(folder: Path, split: str = "") -> list[Path]:
    """List the files anywhere in a folder, sorted, without hidden ones.

    Args:
        folder: where to search.
        split: "train" or "val" leaves out the folders of other splits; empty leaves out none.
    """
    return files_in(folder, lambda name: bool(split) and split_of(name) not in ("", split))


def split_of(name: str) -> str:
    """Return the split that a folder's name says: train2017, images_val; empty if it says none."""
    words = {word for word in re.split(r"[^a-z]+", name.lower()) if word} - _PLAIN
    return next((split for split, own in SPLITS.items() if len(words) == 1 and words <= {*own}), "")


def is_picture_name(name: str) -> bool:
    """Return whether a name ends as pictures' names do."""
    return PurePosixPath(name.strip().lower()).suffix in SUFFIXES | _OTHERS


def other_kinds(files: Sequence[Path], named: set[str], root: Path) -> str:
    """Return a line on pictures of other kinds that no label names; empty if there are none."""
    kinds = Counter(
        path.suffix.lower()
        for path in files
        if path.suffix.lower() in _OTHERS and _relative(path, root) not in named
    )
    if not kinds:
        return ""
    suffixes = ", ".join(sorted(kinds))
    return f"{counted(kinds.total(), 'file')} left out: {suffixes}; convert to JPEG what you need"


class Pictures:
    """The pictures anywhere in a folder, found by the names that label tools give them."""

    def __init__(self, root: Path) -> None:
        self.root, self.files = root, files_of(root)
        self.names = [_relative(p, root) for p in self.files if p.suffix.lower() in SUFFIXES]
        for name in self.names:
            if not is_utf8(name):
                raise InputError(f"{root}/{shown(name)}: the name is not UTF-8; rename the file")
        self._folders = {str(folder) for name in self.names for folder in Path(name).parents}
        self._by_name: dict[str, list[str]] = defaultdict(list)
        self._by_stem: dict[str, list[str]] = defaultdict(list)
        for name in self.names:
            parts = PurePosixPath(key_of(name))
            self._by_name[parts.name].append(name)
            self._by_stem[parts.stem].append(name)

    def find(self, written: str, folder: Path, where: str) -> str:
        """Return the picture that a label names, relative to the root.

        It may be written with backslashes, in another case, in folders of another computer, with
        Label Studio's digits before it, or without its suffix, if only one picture fits. Folders of
        pictures that the label names are not left for others.

        Args:
            written: name in the label file.
            folder: folder that it should be relative to.
            where: place of the label.

        Raises:
            InputError: no picture fits, or several do.
        """
        name = _path(written)
        for place in (folder, self.root):
            if name and os.path.isfile(place / name):
                return _relative(place / name, self.root)
        absolute = Path("/", name)  # Label Studio's local files are without the first stroke
        if name and absolute.is_relative_to(os.path.realpath(self.root)) and absolute.is_file():
            return _relative(absolute, Path(os.path.realpath(self.root)))
        parts = PurePosixPath(key_of(name))
        homes = [_relative(place / Path(name).parent, self.root) for place in (folder, self.root)]
        home = next((place for place in homes if place in self._folders), ".")
        plain = key_of(unquote(parts.name))  # %20 is a blank, unless a file is called so
        for table, last in (
            (self._by_name, parts.name),
            (self._by_name, HASH.sub("", parts.name)),
            (self._by_name, plain),
            (self._by_name, HASH.sub("", plain)),
            (self._by_stem, parts.name),
        ):
            inside = [n for n in table.get(last, []) if home == "." or n.startswith(f"{home}/")]
            fitting = _nearest(inside, parts.parent)
            if len(fitting) == 1:
                return fitting[0]
            if fitting:
                raise InputError(
                    f"{where}: {_short(written)} may be {fitting[0]} or {fitting[1]}; write its "
                    "folder too"
                )
        near = self._by_stem.get(parts.stem)
        hint = f'did you mean "{near[0]}"?' if near else "add it or remove its label"
        raise InputError(f"{where}: no image {_short(written)} in {self.root}; {hint}")


def _nearest(names: Sequence[str], folder: PurePosixPath) -> list[str]:
    """Return the names whose folders agree best with `folder`, from the last folder on."""
    agreement = {name: _common(PurePosixPath(key_of(name)).parent, folder) for name in names}
    best = max(agreement.values(), default=0)
    return [name for name, count in agreement.items() if count == best]


def _common(one: PurePosixPath, other: PurePosixPath) -> int:
    """Count the equal parts of two paths from their ends on."""
    pairs = list(zip(reversed(one.parts), reversed(other.parts), strict=False))
    return next((n for n, (a, b) in enumerate(pairs) if a != b), len(pairs))


def _path(written: str) -> str:
    """Return the path in a name that may be an address or one of Windows."""
    name = written.strip().replace("\0", "")
    if "://" in name or name.startswith("/data/local-files/"):
        address = urlsplit(name)
        name = parse_qs(address.query).get("d", [unquote(address.path)])[0]
    return os.path.normpath(name.replace("\\", "/")) if name else ""


def _relative(path: Path, root: Path) -> str:
    """Return a path relative to the root, or absolute if it lies elsewhere."""
    name = os.path.relpath(path, root)
    return os.path.abspath(path) if name.startswith("..") else name


def _short(written: str) -> str:
    line = " ".join(written.split())
    return line if len(line) < 200 else f"{line[:200]}..."
