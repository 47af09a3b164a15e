"""Labels of a folder that browsers change: on disk before the answer, none overwrites another."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Sequence
from pathlib import Path
from threading import RLock
from typing import Any

from wsis.errors import InputError
from wsis.images.read import image_size
from wsis.serve.disk import (
    JSON,
    Content,
    clear,
    images_to_label,
    instances,
    keep_original,
    read_content,
    write,
)
from wsis.serve.labels import EMPTY, Label, check_class, checked, version_of

__all__ = ["Conflict", "Store"]


class Conflict(Exception):
    """The label of an image is no longer the one that was changed."""


class Store:
    """The images of a folder and their labels.

    Methods may be called by several threads. One process at a time has a folder, besides those that
    only read it; what another program writes into labels.json is read before the next change.

    Args:
        root: folder of the images.
        given: label file relative to root that is read if there is none of ours.
        classes: classes besides those of the labels.
        read_only: whether labels are only read, also while another process has the folder.

    Raises:
        InputError: no images, labels that cannot be read, or another process has the folder.
    """

    def __init__(
        self, root: Path, given: str = "", classes: Sequence[str] = (), read_only: bool = False
    ) -> None:
        if not root.is_dir():
            raise InputError(f"no folder {root}; give that of your images: --data.root DIR")
        self.root, self._given, self._more = root, given, classes
        self._lock = RLock()
        self._content = Content([], {}, {}, False)
        self._folder = None if read_only else _taken(root)
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        if self._folder is not None:
            clear(self.root)
        self.names = images_to_label(self.root)
        self._numbers = {name: number for number, name in enumerate(self.names)}
        self._read()

    def close(self) -> None:
        """Leave the folder to others."""
        if self._folder is not None:
            os.close(self._folder)

    @property
    def classes(self) -> list[str]:
        """Names of all classes in order."""
        return self._content.classes

    @property
    def done(self) -> int:
        """Number of images of which all is said."""
        labels = self._content.labels
        return sum(labels[name]["done"] for name in self.names if name in labels)

    def number(self, name: str) -> int:
        """Return the position of an image in `names`."""
        return self._numbers[name]

    def snapshot(self) -> bytes:
        """Return the labels of the images that are done, as a COCO instances file."""
        with self._lock:
            self._refresh()
            return instances(self._content)

    def label(self, name: str) -> Label:
        """Return the label of an image."""
        with self._lock:
            self._refresh()
            return self._content.labels.get(name, EMPTY)

    def labels(self) -> dict[str, Label]:
        """Return the labels of all images, by file name."""
        with self._lock:
            self._refresh()
            return {name: self._content.labels.get(name, EMPTY) for name in self.names}

    def size(self, name: str) -> tuple[int, int]:
        """Return the (height, width) of an image, which its label is drawn on.

        Raises:
            InputError: the image cannot be read.
        """
        with self._lock:
            known = self._content.images.get(name)
            return (known["height"], known["width"]) if known else image_size(self.root / name)

    def put(self, name: str, version: str, given: Any) -> Label:
        """Store the label of an image; it is on disk when this returns.

        Args:
            name: file name of the image.
            version: of the label that was changed, from `version_of`.
            given: the new label.

        Raises:
            Conflict: the label has another version by now.
            InputError: the label is none of this image, or cannot be written.
        """
        with self._lock:
            if version != version_of(self.label(name)):
                raise Conflict(name)
            size = self.size(name)
            label = checked(given, size, self.classes, name)
            image = self._content.images.get(name) or {
                "id": 1 + max((i["id"] for i in self._content.images.values()), default=0),
                **{"height": size[0], "width": size[1]},
            }
            labels = {**self._content.labels, name: label}
            images = {**self._content.images, name: image}
            self._write(labels=labels, images=images)
            return label

    def add_class(self, name: str) -> None:
        """Add a class, on disk when this returns.

        Raises:
            InputError: the name is taken or impossible, or it cannot be written.
        """
        with self._lock:
            self._refresh()
            before = self._content
            self._append(check_class(name, self.classes))
            content, self._content = self._content, before
            self._write(categories=content.categories)

    def _append(self, name: str) -> None:
        known = self._content.categories
        number = 1 + max((category["id"] for category in known), default=0)
        self._content = self._content._replace(categories=[*known, {"id": number, "name": name}])

    def _write(self, **changes: Any) -> None:
        """Write the labels with changes; after an error they are as before."""
        if not self._content.is_own:
            keep_original(self.root)
        content = self._content._replace(is_own=True, **changes)
        write(self.root, content)
        self._content, self._seen = content, self._state()

    def _refresh(self) -> None:
        """Read labels.json again if another program has written it."""
        if (self._content.is_own or self._folder is None) and self._state() != self._seen:
            self._read()

    def _read(self) -> None:
        self._seen = self._state()
        self._content = read_content(self.root, self._given)
        for name in self._more:
            if name not in self.classes:
                self._append(check_class(name, self.classes))

    def _state(self) -> tuple[int, int, int] | None:
        """Return what changes when labels.json is written; None if there is none."""
        try:
            found = os.stat(self.root / JSON)
        except FileNotFoundError:
            return None
        return found.st_ino, found.st_size, found.st_mtime_ns


def _taken(folder: Path) -> int:
    """Take a folder until this process ends, and return its descriptor.

    Raises:
        InputError: another process has it.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise InputError(
            f"another process labels {folder}; use its page, or end it first"
        ) from None
    except OSError:  # a file system without locks
        pass
    return descriptor
