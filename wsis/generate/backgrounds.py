"""From images to backgrounds: describe, substitute, paint, compare, keep the best; what is done already is not done again."""

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
from tqdm import tqdm

from wsis.errors import InputError
from wsis.files import whole
from wsis.fingerprint import digest
from wsis.generate._progress import Progress
from wsis.generate.pictures import is_blank
from wsis.generate.selection import select
from wsis.generate.words import prompts, substitute
from wsis.images.read import read_image

__all__ = ["Backgrounds", "Compare", "Describe", "Paint", "found_in"]

Record = dict[str, Any]
_BATCH = 32  # pictures that CLIP sees at once


class Describe(Protocol):
    """Gives captions of an image; `settings` (json) is all that they depend on."""

    settings: Mapping[str, Any]

    def __call__(self, image: Image.Image, seed: int) -> Sequence[str]:
        """Describe an image, the same way for the same seed."""
        ...


class Paint(Protocol):
    """Gives one picture per seed, or None; `settings` (json) is all that they depend on."""

    settings: Mapping[str, Any]

    def __call__(self, caption: str, seeds: Sequence[int]) -> Sequence[Image.Image | None]:
        """Paint a caption, the same way for the same seed."""
        ...


class Compare(Protocol):
    """Gives similarities (images, texts); `settings` (json) is all that they depend on."""

    settings: Mapping[str, Any]

    def __call__(self, images: Sequence[Image.Image], texts: Sequence[str]) -> Tensor:
        """Compare each image with each text."""
        ...


class Backgrounds:
    """A folder of backgrounds in the making.

    `backgrounds/` has the pictures that are kept, `candidates/` all that were painted; generated.json says of each its source,
    caption before and after substitution, seed, similarities, and whether it is kept.

    Args:
        out: the folder.
        classes: names of the classes that no picture is to show.
        progress: what has been done already, with these settings or others.
        seed: of captions and pictures.
    """

    def __init__(
        self, out: Path, classes: Sequence[str], progress: Progress, seed: int = 0
    ) -> None:
        self.out, self.classes, self.progress, self.seed = out, list(classes), progress, seed
        self.made_by: dict[str, Any] = {}
        """What captions and pictures are from, for generated.json."""
        self.skipped: Counter[str] = Counter()
        """How often what gave nothing."""

    def describe(
        self, images: Iterable[tuple[str, Path]], captioner: Describe
    ) -> Iterator[tuple[str, Sequence[str]]]:
        """Give the captions of images, which are known by their names, wherever they lie."""
        self.made_by["captioner"] = dict(captioner.settings)
        for name, path in images:
            seed = _seed(self.seed, name)
            size = path.stat().st_size if path.is_file() else 0
            key = {
                "captioner": dict(captioner.settings),
                "image": name,
                "bytes": size,
                "seed": seed,
            }
            captions = self.progress.recall(key, partial(_describe, path, captioner, seed))
            if captions is None:
                self.skipped["images that cannot be read"] += 1
            else:
                yield name, captions or [""]

    def paint(
        self, captions: Iterable[tuple[str, Sequence[str]]], painter: Paint, count: int
    ) -> Iterator[list[Record]]:
        """Give the pictures of each caption, `count` at most, after words for the classes are substituted in it."""
        self.made_by["painter"] = dict(painter.settings)
        for source, texts in captions:
            for number, original in enumerate(texts):
                if not original.strip():
                    self.skipped["empty captions"] += 1
                    continue
                caption = substitute(original, self.classes)
                seeds = [_seed(self.seed, source, number, k) for k in range(count)]
                key = {"painter": dict(painter.settings), "caption": caption, "seeds": seeds}
                files = self.progress.recall(
                    key, partial(self._paint, key, painter), self._all_there
                )
                self.skipped["pictures that are missing or of one colour"] += files.count(None)
                about = {"source": source, "original_caption": original, "caption": caption}
                yield [
                    {"file": file, **about, "seed": seed}
                    for file, seed in zip(files, seeds, strict=True)
                    if file
                ]

    def finish(
        self, groups: Iterable[Sequence[Record]], clip: Compare | None, keep: int, of: int
    ) -> Path:
        """Choose among the pictures of each caption and put the chosen into `backgrounds`; says what gave nothing.

        Args:
            groups: pictures of one caption each, or pictures without a caption.
            clip: compares pictures with texts; None keeps every picture.
            keep: how many pictures of a caption are kept.
            of: of pictures without a caption, `keep` of so many are kept.

        Returns:
            generated.json.

        Raises:
            InputError: there is no picture at all.
        """
        pictures: list[Record] = []
        for group in groups:
            compared = group if clip is None else self._compare(group, clip)
            captioned = all("caption" in picture for picture in compared)
            count = keep if captioned else math.ceil(len(compared) * keep / of)
            chosen = set(
                range(len(compared)) if clip is None else _select(compared, captioned, count)
            )
            pictures += [{**picture, "kept": i in chosen} for i, picture in enumerate(compared)]
        for what, times in sorted((+self.skipped).items()):
            warnings.warn(f"left out: {times} {what}", stacklevel=2)
        if not pictures:
            raise InputError(
                f"nothing was generated for {self.out}; look at the captions, or give other models"
            )
        self._place(pictures)
        made_by = {**self.made_by, "clip": None if clip is None else dict(clip.settings)}
        content = {
            "classes": self.classes,
            "seed": self.seed,
            "keep": keep,
            **made_by,
            "skipped": dict(+self.skipped),
        }
        with whole(self.out / "generated.json") as scratch:
            scratch.write_text(
                json.dumps({**content, "pictures": pictures}, indent=1), encoding="utf-8"
            )
        return self.out / "generated.json"

    def _paint(self, key: Record, painter: Paint) -> list[str | None]:
        """Store the pictures of a caption; gives their files."""
        files: list[str | None] = [None] * len(key["seeds"])
        name = digest(key)
        for k, picture in enumerate(painter(key["caption"], key["seeds"])):
            if picture is not None and not is_blank(picture):
                file = f"candidates/{name[:2]}/{name}-{k}.jpg"  # 200,000 files are too many for one folder
                with whole(self.out / file) as scratch:
                    picture.convert("RGB").save(scratch, "JPEG", quality=95)
                files[k] = file
        return files

    def _all_there(self, files: Sequence[str | None]) -> bool:
        return all((self.out / file).is_file() for file in files if file)

    def _compare(self, group: Sequence[Record], clip: Compare) -> list[Record]:
        """Add the similarities to those of the pictures that have any."""
        found: list[Record] = []
        starts = range(0, len(group), _BATCH)
        with tqdm(
            starts, "similarities", unit="batch", disable=len(starts) < 2
        ) as bar:  # closed before an error is told
            for start in bar:
                batch = group[start : start + _BATCH]
                texts = [
                    *prompts(self.classes),
                    *[text for text in [batch[0].get("caption")] if text],
                ]
                files = [
                    [picture["file"], (self.out / picture["file"]).stat().st_size]
                    for picture in batch
                ]
                key = {"clip": dict(clip.settings), "pictures": files, "texts": texts}
                similarities = self.progress.recall(key, partial(self._similarities, key, clip))
                found += [
                    {**a, **self._named(row)}
                    for a, row in zip(batch, similarities, strict=True)
                    if row
                ]
        self.skipped["pictures that cannot be read or compared"] += len(group) - len(found)
        return found

    def _similarities(self, key: Record, clip: Compare) -> list[list[float] | None]:
        """For each picture the nearest class, its similarity and the caption's; None where there is no telling."""
        images = [_read(self.out / file) for file, _ in key["pictures"]]
        readable = [image for image in images if image is not None]
        rows = iter(clip(readable, key["texts"]).tolist() if readable else [])
        count = len(self.classes)
        found: list[list[float] | None] = []
        for image in images:
            row = next(rows) if image is not None else [math.nan]
            nearest = (
                max(range(count), key=row.__getitem__) if all(map(math.isfinite, row)) else None
            )
            found.append(None if nearest is None else [nearest, row[nearest], *row[count:]])
        return found

    def _named(self, row: Sequence[float]) -> Record:
        named = {"nearest_class": self.classes[int(row[0])], "class_similarity": row[1]}
        return named | ({"caption_similarity": row[2]} if len(row) > 2 else {})

    def _place(self, pictures: Sequence[Record]) -> None:
        """Make `backgrounds` have the kept pictures, and none of an earlier choice."""
        folder = self.out / "backgrounds"
        folder.mkdir(parents=True, exist_ok=True)
        kept = {_name(self.out / a["file"]): self.out / a["file"] for a in pictures if a["kept"]}
        for path in folder.iterdir():
            if re.match(r"[0-9a-f]{16}-", path.name) and path.name not in kept:
                path.unlink()
        for name, source in kept.items():
            if not (folder / name).is_file():
                _link(source, folder / name)


def found_in(files: Sequence[Path]) -> list[Record]:
    """A group of pictures that are there already."""
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
    """A number of 32 bits that differs between images, captions and pictures."""
    return zlib.crc32("\n".join(map(str, words)).encode())


def _name(file: Path) -> str:
    """What a picture is called among the backgrounds: the same for the same picture, and never that of another."""
    if re.fullmatch(r"[0-9a-f]{16}-\d+\.jpg", file.name):
        return file.name
    state = file.stat()
    return f"{digest({'file': str(file), 'bytes': state.st_size, 'written': state.st_mtime_ns})}-{file.name}"


def _link(source: Path, target: Path) -> None:
    """The same file in another place; a copy where the file system cannot."""
    try:
        os.link(source, target)
    except OSError:
        with whole(target) as scratch:
            shutil.copyfile(source, scratch)
