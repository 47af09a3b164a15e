"""Generation of backgrounds from images: caption, substitute, paint, compare, keep the best.

Results are stored as they are made, and not made again.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import warnings
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from PIL import Image
from torch import Tensor

from wsis import machine
from wsis.errors import InputError
from wsis.files import atomic_write, short_name
from wsis.fingerprint import digest
from wsis.generate._progress import Progress
from wsis.generate.pictures import is_blank
from wsis.generate.selection import select
from wsis.generate.words import prompts, substitute
from wsis.images.read import read_image

__all__ = ["Backgrounds", "Compare", "Describe", "Paint", "found_in"]

Record = dict[str, Any]
_BATCH = 32  # pictures compared by CLIP at once


class Describe(Protocol):
    """Captions an image; captions depend on `settings` (json) alone."""

    settings: Mapping[str, Any]

    def __call__(self, image: Image.Image, seed: int) -> Sequence[str]:
        """Return captions of an image, the same for the same seed."""
        ...


class Paint(Protocol):
    """Paints a caption; pictures depend on `settings` (json) alone."""

    settings: Mapping[str, Any]

    def __call__(self, caption: str, seeds: Sequence[int]) -> Sequence[Image.Image | None]:
        """Return a picture or None for each seed, the same for the same seed."""
        ...


class Compare(Protocol):
    """Compares images with texts; similarities depend on `settings` (json) alone."""

    settings: Mapping[str, Any]

    def __call__(self, images: Sequence[Image.Image], texts: Sequence[str]) -> Tensor:
        """Return similarities (images, texts)."""
        ...


class Backgrounds:
    """A folder of backgrounds being generated.

    `candidates/` holds all pictures painted, `backgrounds/` those kept; generated.json records for
    each its source, caption before and after substitution, seed, similarities, and whether it is
    kept.

    Args:
        out: the folder.
        classes: names of the classes that no picture should show.
        progress: results so far, with these settings or others.
        seed: of captions and pictures.
    """

    def __init__(
        self, out: Path, classes: Sequence[str], progress: Progress, seed: int = 0
    ) -> None:
        self.out, self.classes, self.progress, self.seed = out, list(classes), progress, seed
        self.made_by: dict[str, Any] = {}
        """Sources of captions and pictures, for generated.json."""
        self.skipped: Counter[str] = Counter()
        """Numbers of inputs left out, by reason."""

    def describe(
        self, images: Iterable[tuple[str, Path]], captioner: Describe
    ) -> Iterator[tuple[str, Sequence[str]]]:
        """Yield the captions of images; images are identified by name, wherever their files are."""
        self.made_by["captioner"] = dict(captioner.settings)
        for name, path in images:
            seed = _seed(self.seed, name)
            size = path.stat().st_size if path.is_file() else 0
            settings = dict(captioner.settings)
            key = {"captioner": settings, "image": name, "bytes": size, "seed": seed}
            captions = self.progress.recall(key, partial(_describe, path, captioner, seed))
            if captions is None:
                self.skipped["images that cannot be read"] += 1
            else:
                yield name, captions or [""]

    def paint(
        self, captions: Iterable[tuple[str, Sequence[str]]], painter: Paint, count: int
    ) -> Iterator[list[Record]]:
        """Substitute words for the classes in each caption, and yield at most `count` pictures."""
        self.made_by["painter"] = dict(painter.settings)
        for source, texts in captions:
            for number, original in enumerate(texts):
                if not original.strip():
                    self.skipped["empty captions"] += 1
                    continue
                caption = substitute(original, self.classes)
                seeds = [_seed(self.seed, source, number, k) for k in range(count)]
                key = {"painter": dict(painter.settings), "caption": caption, "seeds": seeds}
                paint = partial(self._paint, key, painter)
                files = self.progress.recall(key, paint, self._all_exist)
                self.skipped["pictures that are missing or of one colour"] += files.count(None)
                about = {"source": source, "original_caption": original, "caption": caption}
                painted = [pair for pair in zip(files, seeds, strict=True) if pair[0]]
                yield [{"file": file, **about, "seed": seed} for file, seed in painted]

    def finish(
        self, groups: Iterable[Sequence[Record]], clip: Compare | None, keep: int, of: int
    ) -> Path:
        """Select among the pictures of each caption, and put the selected into `backgrounds`.

        Inputs that were left out are counted in warnings.

        Args:
            groups: pictures of one caption each, or pictures without a caption.
            clip: compares pictures with texts; None keeps every picture.
            keep: number of pictures to keep per caption.
            of: of pictures without a caption, the fraction `keep / of` is kept.

        Returns:
            generated.json.

        Raises:
            InputError: there are no pictures.
        """
        pictures: list[Record] = []
        for group in groups:
            compared = group if clip is None else self._compare(group, clip)
            captioned = all("caption" in picture for picture in compared)
            count = keep if captioned else math.ceil(len(compared) * keep / of)
            selected = set(range(len(compared)))
            if clip is not None:
                selected = set(_select(compared, captioned, count))
            pictures += [{**picture, "kept": i in selected} for i, picture in enumerate(compared)]
        for reason, times in sorted((+self.skipped).items()):
            warnings.warn(f"left out: {times} {reason}", stacklevel=2)
        if not pictures:
            raise InputError(
                f"nothing was generated for {self.out}; look at the captions, or give other models"
            )
        self._place(pictures)
        content = {
            "classes": self.classes,
            "seed": self.seed,
            "keep": keep,
            **self.made_by,
            "clip": None if clip is None else dict(clip.settings),
            "skipped": dict(+self.skipped),
            "pictures": pictures,
        }
        with atomic_write(self.out / "generated.json") as scratch:
            scratch.write_text(json.dumps(content, indent=1), encoding="utf-8")
        return self.out / "generated.json"

    def _paint(self, key: Record, painter: Paint) -> list[str | None]:
        """Paint and store the pictures of a caption, and return their files."""
        files: list[str | None] = [None] * len(key["seeds"])
        name = digest(key)
        for k, picture in enumerate(painter(key["caption"], key["seeds"])):
            if picture is not None and not is_blank(picture):
                # 200,000 files are too many for one folder
                file = f"candidates/{name[:2]}/{name}-{k}.jpg"
                with atomic_write(self.out / file) as scratch:
                    picture.convert("RGB").save(scratch, "JPEG", quality=95)
                files[k] = file
        return files

    def _all_exist(self, files: Sequence[str | None]) -> bool:
        return all((self.out / file).is_file() for file in files if file)

    def _compare(self, group: Sequence[Record], clip: Compare) -> list[Record]:
        """Return the pictures that can be compared, with their similarities."""
        compared: list[Record] = []
        starts = range(0, len(group), _BATCH)
        # the bar is closed before an error is printed
        with machine.bar(starts, "similarities", unit="batch", disable=len(starts) < 2) as bar:
            for start in bar:
                batch = group[start : start + _BATCH]
                texts = prompts(self.classes)
                if batch[0].get("caption"):
                    texts.append(batch[0]["caption"])
                files = [picture["file"] for picture in batch]
                sizes = [[file, (self.out / file).stat().st_size] for file in files]
                key = {"clip": dict(clip.settings), "pictures": sizes, "texts": texts}
                similarities = self.progress.recall(key, partial(self._similarities, key, clip))
                for picture, row in zip(batch, similarities, strict=True):
                    if row:
                        compared.append({**picture, **self._named(row)})
        self.skipped["pictures that cannot be read or compared"] += len(group) - len(compared)
        return compared

    def _similarities(self, key: Record, clip: Compare) -> list[list[float] | None]:
        """Return the nearest class, its similarity and the caption's for each picture.

        A picture that cannot be read or has similarities that are not finite has None.
        """
        images = [_read(self.out / file) for file, _ in key["pictures"]]
        readable = [image for image in images if image is not None]
        rows = iter(clip(readable, key["texts"]).tolist() if readable else [])
        count = len(self.classes)
        similarities: list[list[float] | None] = []
        for image in images:
            row = next(rows) if image is not None else [math.nan]
            if all(map(math.isfinite, row)):
                nearest = max(range(count), key=row.__getitem__)
                similarities.append([nearest, row[nearest], *row[count:]])
            else:
                similarities.append(None)
        return similarities

    def _named(self, row: Sequence[float]) -> Record:
        named = {"nearest_class": self.classes[int(row[0])], "class_similarity": row[1]}
        return named | ({"caption_similarity": row[2]} if len(row) > 2 else {})

    def _place(self, pictures: Sequence[Record]) -> None:
        """Put the kept pictures into `backgrounds`, and delete those of an earlier selection."""
        folder = self.out / "backgrounds"
        folder.mkdir(parents=True, exist_ok=True)
        files = [self.out / picture["file"] for picture in pictures if picture["kept"]]
        kept = {_name(file): file for file in files}
        for path in folder.iterdir():
            if re.match(r"[0-9a-f]{16}-", path.name) and path.name not in kept:
                path.unlink()
        for name, source in kept.items():
            if not (folder / name).is_file():
                _link(source, folder / name)


def found_in(files: Sequence[Path]) -> list[Record]:
    """Return a group of existing pictures."""
    return [{"file": str(path.resolve())} for path in files]


def _select(group: Sequence[Record], captioned: bool, count: int) -> list[int]:
    captions = [picture["caption_similarity"] for picture in group] if captioned else None
    return select([picture["class_similarity"] for picture in group], captions, count)


def _describe(path: Path, captioner: Describe, seed: int) -> list[str] | None:
    image = _read(path)
    return None if image is None else list(captioner(image, seed))


def _read(path: Path) -> Image.Image | None:
    try:
        return Image.fromarray(read_image(path).permute(1, 2, 0).numpy())
    except InputError as error:
        warnings.warn(f"left out: {error}", stacklevel=2)
        return None


def _seed(*words: object) -> int:
    """Return a seed of 32 bits that differs between images, captions and pictures."""
    return zlib.crc32("\n".join(map(str, words)).encode())


def _name(file: Path) -> str:
    """Return the name of a picture in `backgrounds`: unique, and the same for the same picture."""
    if re.fullmatch(r"[0-9a-f]{16}-\d+\.jpg", file.name):
        return file.name
    state = file.stat()
    key = {"file": str(file), "bytes": state.st_size, "written": state.st_mtime_ns}
    return f"{digest(key)}-{short_name(file.stem, 200)}{file.suffix}"


def _link(source: Path, target: Path) -> None:
    """Link a file to another place, or copy it if the file system has no links."""
    try:
        os.link(source, target)
    except OSError:
        with atomic_write(target) as scratch:
            shutil.copyfile(source, scratch)
