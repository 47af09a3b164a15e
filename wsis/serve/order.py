"""Which image comes next: the one whose label is expected to tell most for a second of work."""

from __future__ import annotations

import heapq
import math
import random
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Literal, NamedTuple

from wsis.data import simulated
from wsis.serve.labels import Label
from wsis.serve.suggestions import Found

__all__ = ["Order", "Seconds", "bits_of", "by_worth", "next_images", "seconds_of"]

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


def bits_of(found: Sequence[tuple[str, float]], threshold: float, label: Label) -> dict[str, float]:
    """Return the uncertainty of a model about an image, in bits for each class.

    Each detection of a class that is not known to be absent is a question whose answer has the
    entropy of its score. A tag of whose class nothing is found is one bit: the model is wrong, and
    does not know where.
    """
    open_classes = {name for name, _ in found}
    if label["done"]:
        open_classes &= {*label["tags"]}
    bits: dict[str, float] = defaultdict(float)
    for name, score in found:
        if name in open_classes:
            bits[name] += _entropy(_chance(score, threshold))
    for name in _missed(found, threshold, label):
        bits[name] += 1
    return dict(bits)


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

    Photos of what is labelled already tell less: the bits of a class are divided by one more than
    the number of photos of it that are done or come before, as the logarithm of a number grows.

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
        known: Counter[str] = Counter()
        for label in labels.values():
            known.update(label["tags"] if label["done"] else ())
        told = {name: _told_by(name, labels[name], found, classes) for name in shuffled}
        again = [n for n in shuffled if labels[n]["done"] and told[n].bits and n not in shown]
        left = by_worth({name: told[name] for name in [*left, *again]}, known)
    return sorted(left, key=lambda name: name in shown)


class Told(NamedTuple):
    """What a label is expected to tell, and what it costs."""

    bits: Mapping[str, float]
    """By class."""
    seconds: float

    def worth(self, known: Mapping[str, int]) -> float:
        """Return the bits a second, of which those of known classes count less."""
        bits = sum(value / (1 + known.get(name, 0)) for name, value in self.bits.items())
        return bits / self.seconds


def by_worth(told: Mapping[str, Told], known: Mapping[str, int]) -> list[str]:
    """Return images in the order in which the next one always is worth most.

    An image's worth only falls while others are chosen, so that most need not be looked at again
    (Minoux, 1978).

    Args:
        told: what each image's label is expected to tell; of equal ones, the first comes first.
        known: number of images of each class that are labelled already.
    """
    counts = Counter(known)
    waiting = [(-each.worth(counts), k, name) for k, (name, each) in enumerate(told.items())]
    heapq.heapify(waiting)
    order = []
    while waiting:
        _, k, name = waiting[0]
        now = (-told[name].worth(counts), k, name)
        if now > waiting[0]:
            heapq.heapreplace(waiting, now)
            continue
        heapq.heappop(waiting)
        order.append(name)
        counts.update(told[name].bits.keys())
    return order


def _told_by(name: str, label: Label, found: Found, classes: int) -> Told:
    """Return what an image tells: nothing if it is done, unless a tag of it is found nowhere."""
    scores = [(s["name"], s["score"]) for s in found.objects.get(name, ())]
    seconds = seconds_of(scores, found.threshold, label, classes)
    if label["done"] and not _missed(scores, found.threshold, label):
        return Told({}, seconds)
    return Told(bits_of(scores, found.threshold, label), seconds)
