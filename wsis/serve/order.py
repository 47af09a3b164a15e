"""Which image comes next: the one whose label is expected to tell most for a second of work."""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Mapping, Sequence
from typing import Literal, NamedTuple

from wsis.data import simulated
from wsis.serve.labels import Label
from wsis.serve.suggestions import Found

__all__ = ["Order", "Seconds", "bits_of", "next_images", "seconds_of", "worth"]

Order = Literal["worth", "random", "name"]


_LABELS = simulated.Seconds()


class Seconds(NamedTuple):
    """What a label costs, as in `wsis.data.simulated.Seconds`, and an answer."""

    tag: float = _LABELS.tag
    """For each class: is it in the image?"""
    point: float = _LABELS.point
    """On an object."""
    box: float = _LABELS.box
    """Around an object."""
    answer: float = 1.0
    """To accept or refuse a suggestion; assumed to be that of a tag."""


SECONDS = Seconds()


def worth(
    found: Sequence[tuple[str, float]],
    threshold: float,
    label: Label,
    classes: int,
    seconds: Seconds = SECONDS,
) -> float:
    """Return the bits that the label of an image is expected to tell, for each second it takes.

    Args:
        found: class and score of each detection.
        threshold: score from which on a detection is more likely right than wrong.
        label: what is known of the image.
        classes: number of classes.
        seconds: what parts of a label cost.
    """
    bits = bits_of(found, threshold, label)
    return bits / seconds_of(found, threshold, label, classes, seconds)


def bits_of(found: Sequence[tuple[str, float]], threshold: float, label: Label) -> float:
    """Return the uncertainty of a model about an image, in bits.

    Each detection of a class that is not known to be absent is a question whose answer has the
    entropy of its score. A tag of whose class nothing is found is one bit: the model is wrong, and
    does not know where.
    """
    open_classes = {name for name, _ in found}
    if label["done"]:
        open_classes &= {*label["tags"]}
    asked = sum(_entropy(_chance(s, threshold)) for name, s in found if name in open_classes)
    return asked + len(_missed(found, threshold, label))


def seconds_of(
    found: Sequence[tuple[str, float]],
    threshold: float,
    label: Label,
    classes: int,
    seconds: Seconds = SECONDS,
) -> float:
    """Return how long the label of an image takes: tags, answers, and points on what is missed."""
    tags = 0.0 if label["done"] else classes * seconds.tag
    answers = sum(score >= threshold for _, score in found) * seconds.answer
    points = len(_missed(found, threshold, label)) * seconds.point
    return max(tags + answers + points, seconds.answer)


def _missed(found: Sequence[tuple[str, float]], threshold: float, label: Label) -> set[str]:
    """Return tagged classes of which neither the label nor the model has an object."""
    seen = {name for name, score in found if score >= threshold}
    return {*label["tags"]} - seen - {thing["name"] for thing in label["objects"]}


def _chance(score: float, threshold: float) -> float:
    """Return the chance that a detection is right: 1/2 at the threshold, else by its odds."""
    right, wrong = score * (1 - threshold), (1 - score) * threshold
    return right / (right + wrong) if right + wrong > 0 else 0.5


def _entropy(chance: float) -> float:
    """Return the entropy of an answer in bits."""
    return -sum(p * math.log2(p) for p in (chance, 1 - chance) if p > 0)


def next_images(
    names: Sequence[str],
    labels: Mapping[str, Label],
    found: Found | None,
    classes: int,
    order: Order = "worth",
    shown: Collection[str] = (),
    seed: int = 0,
) -> list[str]:
    """Return the images that are worth a look, the next one first.

    Those that are done come only for tags of which nothing is found, and only by their worth. What
    was shown comes last. Without a run, all are worth the same, and come at random.

    Args:
        names: file names of the images.
        labels: by file name.
        found: what a run found.
        classes: number of classes.
        order: by worth, random, or name.
        shown: images that were shown already.
        seed: of the random order, which does not depend on what is labelled.
    """
    if order == "name":
        ranked = [name for name in sorted(names) if not labels[name]["done"]]
        return sorted(ranked, key=lambda name: name in shown)
    shuffled = sorted(names)
    random.Random(seed).shuffle(shuffled)
    left = [name for name in shuffled if not labels[name]["done"]]
    if order == "worth" and found is not None:
        value = {name: _worth_of(name, labels[name], found, classes) for name in shuffled}
        again = [n for n in shuffled if labels[n]["done"] and value[n] > 0 and n not in shown]
        left = sorted([*left, *again], key=lambda name: -value[name])
    return sorted(left, key=lambda name: name in shown)


def _worth_of(name: str, label: Label, found: Found, classes: int) -> float:
    """Return the worth of an image; 0 if it is done, unless nothing is found of one of its tags."""
    scores = [(s["name"], s["score"]) for s in found.objects.get(name, ())]
    if label["done"] and not _missed(scores, found.threshold, label):
        return 0.0
    return worth(scores, found.threshold, label, classes)
