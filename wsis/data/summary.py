"""What a data set holds, and what its tags cannot teach, said before training."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from wsis.coco.objects import kind_of
from wsis.types import Index

__all__ = ["brief", "describe"]

FEW = 10
"""Images of a class below which little is to be expected of it."""
SHOWN = 20
"""Most classes that are listed with their counts."""
NOTHING = ("background", "none", "nothing", "empty", "negative", "unlabeled", "unlabelled")


def describe(index: Index) -> list[str]:
    """Return what reading noted, lines of counts, and a line for each thing tags cannot teach.

    Args:
        index: a training set.
    """
    names = [category["name"] for category in index.categories]
    tags = np.zeros((len(index.images), len(names)), bool)
    for row, image in enumerate(index.images):
        tags[row, list(index.tags.get(image["id"]) or ())] = True
    counts = tags.sum(0)
    each = [f"{name} {count}" for name, count in zip(names, counts, strict=True)]
    listed = ", ".join(each[:SHOWN]) + (", ..." if len(each) > SHOWN else "")
    none = int((~tags.any(1)).sum())
    words = "class" if len(names) == 1 else "classes"
    lines = [f"{len(tags)} images, {len(names)} {words}: {listed}; {none} images without any"]
    return [*index.notes, *lines, *_kinds(index)] + [
        f"note: {line}" for line in (*_names(names), *_tags(names, tags, counts))
    ]


def brief(splits: Mapping[str, Index]) -> str:
    """Return the sizes of splits, and the classes of the first: "9 train images, 1 class: cat"."""
    sizes = " and ".join(f"{len(index.images)} {split}" for split, index in splits.items())
    names = [category["name"] for category in next(iter(splits.values())).categories]
    words = "class" if len(names) == 1 else "classes"
    listed = ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
    return f"{sizes} images, {len(names)} {words}: {listed}"


def _kinds(index: Index) -> Iterator[str]:
    """Yield how many objects are known by what, if that differs from boxes and masks alone."""
    counts = Counter(kind_of(a) for found in index.annotations.values() for a in found)
    if counts["point"]:
        known = ", ".join(f"{kind} {counts[kind]}" for kind in ("mask", "box", "point"))
        yield f"objects by what is known of them: {known}"


def _names(names: Sequence[str]) -> Iterator[str]:
    """Yield what is odd about the names of classes."""
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault(_plain(name), []).append(name)
    for group in alike.values():
        for one, other in combinations(group, 2):
            yield f'"{one}" and "{other}" are two classes; give them one spelling if they are one'
    if names and all(name.isdigit() for name in names):
        yield "classes are called by numbers; if 1 means yes, head its column with the class's name"
    for name in names:
        if any(sign in name for sign in ",;|"):
            yield f'"{name}" is one class; write a semicolon between tags if it is several'
        if _plain(name) in NOTHING:
            yield f'"{name}" is a class like others; leave the tags of images without objects empty'


def _tags(names: Sequence[str], tags: NDArray[np.bool_], counts: NDArray[np.int_]) -> Iterator[str]:
    """Yield what cannot be learned from tags (N,C)."""
    for name, count in zip(names, counts, strict=True):
        if count == len(tags):
            yield f'every image has "{name}", so nothing tells it from its surroundings; add others'
    together = tags.T.astype(np.float32) @ tags  # exact up to 2**24 images, and by BLAS
    for c, name in enumerate(names):
        always = [o for o in range(len(names)) if o != c and 0 < counts[c] == together[c, o]]
        companions = [names[o] for o in always if counts[o] < len(tags)]
        if companions:
            yield (
                f'"{name}" is only in images of "{companions[0]}", so nothing tells them apart; '
                "add images of one alone"
            )
    few = [f"{name} {n}" for name, n in zip(names, counts, strict=True) if n < FEW]
    if few:
        yield f"expect little of classes in fewer than {FEW} images: {', '.join(few)}"


def _plain(name: str) -> str:
    """Return a name without case, accents, and separators."""
    text = unicodedata.normalize("NFKD", name).casefold()
    return "".join(letter for letter in text if letter.isalnum())
