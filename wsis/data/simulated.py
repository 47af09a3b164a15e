"""Weaker labels of a data set with masks, as people would have given them: drawn by share and seed.

Of each object the mask, the box or points are kept; of the images for tags, the classes.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as rle

from wsis.coco.masks import run_length
from wsis.coco.objects import kind_of
from wsis.data.index import keep_images
from wsis.errors import InputError
from wsis.types import Index, Record
from wsis.values import COUNT, FRACTION, NOT_NEGATIVE, WHOLE, check_ranges

__all__ = ["Seconds", "Simulation", "draw_pixels", "seconds_of", "simulate", "within"]

KINDS = ("mask", "box", "point", "tag")
KEPT = {"mask": ("bbox", "segmentation", "area"), "box": ("bbox",), "point": ()}
"""What a kind of label keeps of an annotation."""

Bar = Callable[[Sequence[Record]], Iterable[Record]]
Mask = NDArray[np.bool_]
Rng = np.random.Generator


@dataclass(frozen=True)
class Seconds:
    """How long people take for a label, by default as the literature measured it.

    Args:
        tag: Seconds to ask whether an image has a class; not of classes of which an object has a
            point, box or mask (Bearman et al., ECCV 2016).
        point: Seconds for the first point on a class in an image (the same).
        next_point: Seconds for each further point (the same).
        box: Seconds for a box, by extreme points (Papadopoulos et al., ICCV 2017).
        mask: Seconds for a mask (COCO, ECCV 2014).
    """

    tag: float = 1.0
    point: float = 2.4
    next_point: float = 0.9
    box: float = 7.0
    mask: float = 79.2

    def __post_init__(self) -> None:
        """Raise InputError for a negative number."""
        check_ranges("seconds", vars(self), {NOT_NEGATIVE: tuple(vars(self))})


_SECONDS = Seconds()


@dataclass(frozen=True)
class Simulation:
    """What labels to draw. Shares of less than 1 in all leave the rest of the images out.

    Args:
        mask: Share of masks.
        box: Share of boxes.
        point: Share of points.
        tag: Share of images of which only the classes are known.
        by: What shares are counted in: "object" draws a kind for each object of the images that are
            not for tags alone, "image" one for all objects of an image.
        points: Points in each object, drawn uniformly from the pixels of its mask, or of its box if
            that has none.
        negatives: Points outside of each object, drawn from the other pixels of its box.
        box_points: Points in each box, drawn from all of its pixels and labelled by the mask, as in
            PointSup.
        budget: Seconds of labelling to spend: images are labelled in random order until the next
            one would take more. 0 labels all images.
        seed: Seed of all draws. An object has the same points whatever the shares are.
    """

    mask: float = 0.0
    box: float = 0.0
    point: float = 0.0
    tag: float = 0.0
    by: Literal["object", "image"] = "object"
    points: int = 1
    negatives: int = 0
    box_points: int = 0
    budget: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Raise InputError for numbers out of range, and shares that are 0 or above 1 in all."""
        counts = ("negatives", "box_points", "seed")
        ranges = {FRACTION: KINDS, COUNT: ("points",), WHOLE: counts, NOT_NEGATIVE: ("budget",)}
        check_ranges("simulate", vars(self), ranges)
        total = sum(getattr(self, kind) for kind in KINDS)
        if not 0 < total <= 1 + 1e-9:
            raise InputError(
                f"simulate: the shares are {total:g} in all; give mask, box, point or tag, above "
                "0 and at most 1 together"
            )


def simulate(index: Index, how: Simulation, bar: Bar = iter, seconds: Seconds = _SECONDS) -> Index:
    """Return the images that are labelled, with what is known of their objects.

    A class of an image that no object tells of is an annotation without a place: a tag. Crowds keep
    their `iscrowd`.

    Args:
        index: with masks of all objects that are to have a mask or points.
        how: what to draw.
        bar: shows how far the images are.
        seconds: for each label, of which the budget is spent.

    Raises:
        InputError: the shares or the budget are too small for an image, or an object has no mask or
            box to draw from.
    """
    drawn = _draw_kinds(index, how)
    images: list[Record] = []
    annotations: dict[int, list[Record]] = {}
    for place, image in enumerate(bar(index.images)):
        number = image["id"]
        if number not in drawn:
            continue
        labels = []
        for k, (annotation, kind) in enumerate(
            zip(index.annotations.get(number, ()), drawn[number], strict=True)
        ):
            where = f"{index.name}: {image['file_name']}, object {k + 1}"
            rng = np.random.default_rng([how.seed, place, k])
            if kind != "tag":
                labels.append(_label(annotation, kind, image, how, rng, where))
        images.append(image)
        annotations[number] = [*labels, *_tags(labels, number, index)]
    if not images:
        raise InputError(f"simulate: the shares of {len(index.images)} images are none; give more")
    made = index._replace(images=images, annotations=annotations)
    return within(made, how.budget, how.seed, seconds) if how.budget else made


def within(index: Index, budget: float, seed: int, seconds: Seconds = _SECONDS) -> Index:
    """Return the images, in random order, whose labels take at most `budget` seconds.

    Args:
        index: as `simulate` returns it.
        budget: in seconds.
        seed: of the order.
        seconds: for each label.

    Raises:
        InputError: one image takes more.
    """
    each = [sum(_seconds_of_image(index, image, seconds).values()) for image in index.images]
    order = np.random.default_rng(seed).permutation(len(each))
    spent = np.cumsum(np.array(each)[order])
    kept = np.sort(order[: np.searchsorted(spent, budget, side="right")])
    if not len(kept):
        raise InputError(
            f"simulate: budget {budget:g}: labels of one image take {spent[0]:.0f}; give more"
        )
    return keep_images(index, {index.images[i]["id"] for i in kept})


def seconds_of(index: Index, seconds: Seconds) -> dict[str, tuple[int, float]]:
    """Return the number of labels of each kind and the seconds that they take.

    Tags are counted in images. Every image takes the time to ask for the classes that no object
    tells of, as Bearman et al. count.

    Args:
        index: as `simulate` returns it.
        seconds: for each label.
    """
    counts, spent = Counter({"tag": len(index.images)}), Counter[str]()
    for image in index.images:
        spent.update(_seconds_of_image(index, image, seconds))
        counts.update(map(kind_of, _placed(index, image)))
    return {kind: (counts[kind], spent[kind]) for kind in KINDS}


def draw_pixels(mask: Mask, count: int, rng: Rng) -> list[list[float]]:
    """Return [x, y], the centres of `count` pixels of a mask (H,W), or of all if it has fewer."""
    pixels = np.flatnonzero(mask.T)  # decoded masks have their columns one after another
    chosen = rng.choice(len(pixels), min(count, len(pixels)), replace=False)
    centres: list[list[float]] = (np.stack(np.divmod(pixels[chosen], len(mask)), 1) + 0.5).tolist()
    return centres


def _placed(index: Index, image: Record) -> list[Record]:
    """Return an image's annotations without those that are tags alone."""
    return [a for a in index.annotations.get(image["id"], ()) if kind_of(a) != "tag"]


def _seconds_of_image(index: Index, image: Record, seconds: Seconds) -> dict[str, float]:
    """Return the seconds that the labels of each kind of an image take."""
    spent = dict.fromkeys(KINDS, 0.0)
    placed = _placed(index, image)
    classes = {a["category_id"] for a in placed}
    asked = index.complete.get(image["id"], index.categories)
    spent["tag"] = seconds.tag * max(len(asked) - len(classes), 0)
    clicked: set[int] = set()
    for annotation in placed:
        kind, category = kind_of(annotation), annotation["category_id"]
        clicks = len(annotation.get("points", ()))
        if kind == "point" and category not in clicked:
            spent[kind] += seconds.point + seconds.next_point * (clicks - 1)
            clicked.add(category)
        else:
            first = {"mask": seconds.mask, "box": seconds.box, "point": 0.0}[kind]
            spent[kind] += first + seconds.next_point * clicks
    return spent


def _draw_kinds(index: Index, how: Simulation) -> dict[int, list[str]]:
    """Return the kind of label of each object, by image; images that are left out are missing."""
    rng = np.random.default_rng(how.seed)
    objects = {i["id"]: len(index.annotations.get(i["id"], ())) for i in index.images}
    shares = {kind: getattr(how, kind) for kind in KINDS}
    if how.by == "image":
        of_image = _allot(len(objects), shares, rng)
        each = zip(objects.items(), of_image, strict=True)
        return {number: [kind] * count for (number, count), kind in each if kind}
    placed = sum(shares[kind] for kind in KINDS[:3])
    of_image = _allot(len(objects), {"placed": placed, "tag": how.tag}, rng)
    groups = dict(zip(objects, of_image, strict=True))
    total = sum(objects[number] for number, group in groups.items() if group == "placed")
    of_object = iter(_allot(total, {kind: shares[kind] / (placed or 1) for kind in KINDS[:3]}, rng))
    return {
        number: ["tag" if group == "tag" else next(of_object) for _ in range(objects[number])]
        for number, group in groups.items()
        if group
    }


def _allot(count: int, shares: Mapping[str, float], rng: Rng) -> list[str]:
    """Return a kind for each of `count` things, as many of each as its share; "" for the rest."""
    ends = np.round(np.cumsum([*shares.values()]) * count).astype(int)
    ranks = rng.permutation(count)
    names = np.array([*shares, ""])
    return names[np.searchsorted(ends, ranks, side="right")].tolist()


def _label(
    annotation: Record, kind: str, image: Record, how: Simulation, rng: Rng, where: str
) -> Record:
    """Return what a kind of label keeps of an object."""
    keys = ["category_id", "iscrowd", "ignore", *KEPT[kind]]
    label = {key: annotation[key] for key in keys if key in annotation}
    if "bbox" not in annotation or (kind == "mask" and not annotation.get("segmentation")):
        raise InputError(f"{where} has no {'mask' if kind == 'mask' else 'box'}; annotate it")
    if kind == "point" or (kind == "box" and how.box_points):
        if not annotation.get("segmentation"):
            raise InputError(f"{where} has no mask to draw points from; annotate it")
        size = image["height"], image["width"]
        mask = rle.decode(run_length(annotation["segmentation"], size)).astype(bool)
        clicks = _clicks if kind == "point" else _clicks_in_box
        label["points"] = clicks(mask, annotation["bbox"], how, rng)
    return label


def _tags(labels: Sequence[Record], image: int, index: Index) -> list[Record]:
    """Return annotations without a place, for classes of an image of which no label tells."""
    told = {label["category_id"] for label in labels}
    present = [index.categories[place]["id"] for place in index.tags.get(image, ())]
    return [{"category_id": category} for category in present if category not in told]


def _clicks(mask: Mask, box: Sequence[float], how: Simulation, rng: Rng) -> list[list[float]]:
    """Return points in a mask (H,W), or in its box if it has no pixel, and outside of it there."""
    filled = _filled(box, mask)
    points = draw_pixels(mask if mask.any() else filled, how.points, rng)
    negatives = draw_pixels(filled & ~mask, how.negatives, rng)
    return [[x, y, label] for label, part in ((1, points), (0, negatives)) for x, y in part]


def _clicks_in_box(
    mask: Mask, box: Sequence[float], how: Simulation, rng: Rng
) -> list[list[float]]:
    """Return points in a box, labelled by the mask (H,W)."""
    points = draw_pixels(_filled(box, mask), how.box_points, rng)
    return [[x, y, int(mask[int(y), int(x)])] for x, y in points]


def _filled(box: Sequence[float], mask: Mask) -> Mask:
    """Return the mask (H,W) of a box [x, y, width, height], with pixels that it covers in part."""
    x, y, width, height = box
    filled = np.zeros_like(mask)
    top, left = max(math.floor(y), 0), max(math.floor(x), 0)
    filled[top : math.ceil(y + height), left : math.ceil(x + width)] = True
    return filled
