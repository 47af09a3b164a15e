"""What average precision is lost to: the six errors of TIDE (Bolya et al., ECCV 2020), and what mending each would give.

Detections take objects of their class in order of score, at an IoU of `foreground` or more. One that gets none is, the first
that holds: of *localisation* (it overlaps an object of its class, by `background` or more but too little), *classification*
(it fits an object of another class), *duplicate* (it fits an object that a surer one has), *background* (it overlaps nothing)
or *both* (wrong class and too little overlap). An object is *missed* if no detection has it, and none would have it with
class or place mended. All images are worked on at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from pycocotools import mask as rle_masks

from wsis.metrics.states import Array, box_iou, packed
from wsis.types import Prediction, Truth

__all__ = ["ERRORS", "KINDS", "Breakdown", "break_down"]

ERRORS = ("classification", "localisation", "both", "duplicate", "background", "missed")
KINDS = ("correct", *ERRORS[:5], "ignored")
"""What a detection can be; ignored is one on a crowd."""
_RECALLS = np.linspace(0, 1, 101)


class Breakdown(NamedTuple):
    """Errors of a set of predictions."""

    ap: float
    """Average precision at IoU `foreground`: 101 recall points, mean over classes; nan without truth."""
    gains: dict[str, float]
    """Error -> what average precision would gain (dAP) if all of this error, and no other, were mended."""
    counts: dict[str, int]
    """Error -> how many there are."""
    sure: float
    """Score from which on F1 of detections of all classes together is best; infinite where none is correct."""
    kinds: list[Array]
    """For each prediction, positions in KINDS of its detections (n,)."""


class _Table(NamedTuple):
    """Detections of all images, best first, objects, and which overlap."""

    labels: Array
    """(N,) class of each detection."""
    scores: Array
    """(N,)."""
    ignored: Array
    """(N,) bool: would be ignored if it had no object."""
    place: Array
    """(N,) position of each in the order they were given in."""
    objects: Array
    """(T,) class of each object."""
    pairs: tuple[Array, Array, Array]
    """Detection, object and IoU of pairs with an IoU of at least `background`, detections ascending, greatest IoU first."""


def break_down(
    predictions: Sequence[Prediction],
    truths: Sequence[Truth],
    classes: int,
    foreground: float = 0.5,
    background: float = 0.1,
) -> Breakdown:
    """Sort errors by kind; of masks, or of boxes where some have no mask.

    Args:
        predictions: one per image.
        truths: of the same images.
        classes: how many there are.
        foreground: least IoU of a hit.
        background: least IoU of a detection that is about an object at all.
    """
    table = _tabulate(predictions, truths, foreground, background)
    detection, thing, iou = table.pairs
    same = table.labels[detection] == table.objects[thing]
    may = same & (iou >= foreground)
    hit = _match(detection[may], thing[may], len(table.objects))
    correct = np.isin(np.arange(len(table.labels)), hit)
    own, own_object = _best(table, same)
    other, other_object = _best(table, ~same)
    ignored = table.ignored & ~correct
    wrong = (
        (own >= background) & (own < foreground),
        other >= foreground,
        own >= foreground,
        np.maximum(own, other) < background,
    )
    names = ("localisation", "classification", "duplicate", "background")
    kind = np.select(
        (correct, ignored, *wrong),
        [KINDS.index(n) for n in ("correct", "ignored", *names)],
        KINDS.index("both"),
    )
    free = hit < 0
    claims = {
        name: np.where(kind == KINDS.index(name), of, -1)
        for name, of in (("localisation", own_object), ("classification", other_object))
    }
    missed = free & ~np.isin(np.arange(len(free)), np.concatenate(list(claims.values())))
    ap, gains = _gains(table, kind, correct, free, claims, missed, classes)
    counts = {name: int((kind == KINDS.index(name)).sum()) for name in ERRORS[:5]} | {
        "missed": int(missed.sum())
    }
    kinds = np.empty_like(kind)
    kinds[table.place] = kind
    ends = np.cumsum([len(p.labels) for p in predictions])[:-1]
    return Breakdown(
        ap, gains, counts, _surest(table, kind), np.split(kinds, ends) if len(predictions) else []
    )


def _tabulate(
    predictions: Sequence[Prediction], truths: Sequence[Truth], foreground: float, background: float
) -> _Table:
    by_mask = all(
        len(p.masks) == len(p.labels) and len(t.masks) == len(t.labels)
        for p, t in zip(predictions, truths, strict=True)
    )
    columns: list[list[Array]] = [[], [], []]
    ignored: list[Array] = [np.zeros(0, bool)]
    detections = objects = 0
    for prediction, truth in zip(predictions, truths, strict=True):
        iou, on_crowd = _overlaps(prediction, truth, by_mask)
        at = np.nonzero(iou >= background)
        for column, values in zip(
            columns, (at[0] + detections, at[1] + objects, iou[at]), strict=True
        ):
            column.append(values)
        ignored.append(np.any(on_crowd >= foreground, axis=1))
        detections, objects = detections + iou.shape[0], objects + iou.shape[1]
    labels, scores = (
        _joined([getattr(p, name).cpu().numpy() for p in predictions])
        for name in ("labels", "scores")
    )
    place = np.argsort(-scores, kind="stable")
    rank = np.empty_like(place)
    rank[place] = np.arange(len(place))
    detection, thing, overlap = (
        rank[_joined(columns[0]).astype(int)],
        _joined(columns[1]).astype(int),
        _joined(columns[2]),
    )
    order = np.lexsort((-overlap, detection))
    wanted = _joined([truth.labels[~truth.crowd].cpu().numpy() for truth in truths]).astype(int)
    pairs = detection[order], thing[order], overlap[order]
    return _Table(
        labels[place].astype(int),
        scores[place],
        np.concatenate(ignored)[place],
        place,
        wanted,
        pairs,
    )


def _overlaps(prediction: Prediction, truth: Truth, by_mask: bool) -> tuple[Array, Array]:
    """IoU with objects (n,m), and the share of each detection that lies on each crowd of its class (n,k)."""
    crowd = truth.crowd.cpu().numpy().astype(bool)
    if not by_mask:
        overlap = box_iou(prediction.boxes, truth.boxes)
        crowded = overlap[:, crowd]  # boxes of hard objects are ignored as objects are hit
    else:
        found, there = (
            [packed(mask) for mask in prediction.masks],
            [packed(mask) for mask in truth.masks],
        )
        overlap = np.zeros((len(found), len(there)))
        if found and there:
            overlap = np.asarray(rle_masks.iou(found, there, crowd.astype(np.uint8)))
        crowded = overlap[:, crowd]
    same = prediction.labels.cpu().numpy()[:, None] == truth.labels.cpu().numpy()[crowd]
    return overlap[:, ~crowd], np.where(same, crowded, 0.0)


def _match(detection: Array, thing: Array, objects: int) -> Array:
    """Give each object (T,) the detection that has it, -1 for none: in order of score each takes the best that is free.

    All choose at once, and an object stays with the best of those that choose it; the others choose again (deferred
    acceptance, which for one common ranking gives what taking turns does).

    Args:
        detection: (K,) of pairs that may match, ascending.
        thing: (K,) objects, for each detection the best first.
        objects: how many there are.
    """
    nobody = np.iinfo(np.int64).max
    while True:
        first = np.flatnonzero(np.diff(detection, prepend=-1))
        holder = np.full(objects, nobody)
        np.minimum.at(holder, thing[first], detection[first])
        alive = detection <= holder[thing]
        if alive.all():
            return np.where(holder == nobody, -1, holder)
        detection, thing = detection[alive], thing[alive]


def _best(table: _Table, chosen: Array) -> tuple[Array, Array]:
    """Greatest IoU (N,) of each detection over the chosen pairs, and the object (N,) it is with; 0 and -1 without pair."""
    detection, thing, iou = (column[chosen] for column in table.pairs)
    first = np.flatnonzero(np.diff(detection, prepend=-1))
    best, of = np.zeros(len(table.labels)), np.full(len(table.labels), -1)
    best[detection[first]], of[detection[first]] = iou[first], thing[first]
    return best, of


def _gains(
    table: _Table,
    kind: Array,
    correct: Array,
    free: Array,
    claims: dict[str, Array],
    missed: Array,
    classes: int,
) -> tuple[float, dict[str, float]]:
    """Average precision as it is, and what it gains by each error mended.

    A mended detection is correct if it is the surest that claims a free object, else it goes; so do the errors that have
    no object to be right about. What is missed leaves the truth (section 2.3 of the paper).
    """
    totals = np.bincount(table.objects, minlength=classes)[:classes]
    counted, there = kind != KINDS.index("ignored"), totals > 0
    known = _average_precision(table.labels[counted], correct[counted], totals, there)
    gains = {}
    for name in ERRORS[:5]:
        labels, hits, kept = table.labels, correct, counted & (kind != KINDS.index(name))
        if name in claims:
            claim = claims[name]
            claiming = np.flatnonzero(claim >= 0)
            claiming = claiming[free[claim[claiming]]]
            winners = claiming[np.unique(claim[claiming], return_index=True)[1]]
            labels, hits, kept = labels.copy(), hits.copy(), kept.copy()
            labels[winners], hits[winners], kept[winners] = (
                table.objects[claim[winners]],
                True,
                True,
            )
        gains[name] = _average_precision(labels[kept], hits[kept], totals, there) - known
    left = totals - np.bincount(table.objects[missed], minlength=classes)[:classes]
    found = np.bincount(table.labels[counted], minlength=classes)[:classes] > 0
    judged = there & (
        (left > 0) | found
    )  # neither truth nor detection is left: as the authors' code, not in the mean
    gains["missed"] = (
        _average_precision(table.labels[counted], correct[counted], left, judged) - known
        if there.any()
        else 0.0
    )
    return known, {name: 0.0 if np.isnan(gains[name]) else gains[name] for name in ERRORS}


def _average_precision(labels: Array, hits: Array, totals: Array, judged: Array) -> float:
    """Mean over the judged classes of COCO's average precision; detections come best first."""
    values = []
    for c in np.flatnonzero(judged):
        right = np.cumsum(hits[labels == c])
        precision = np.append(right / np.arange(1, len(right) + 1), 0.0)
        envelope = np.maximum.accumulate(precision[::-1])[::-1]
        reached = np.searchsorted(right / max(totals[c], 1), _RECALLS, side="left")
        values.append(envelope[reached].mean() if totals[c] else 0.0)
    return float(np.mean(values)) if values else float("nan")


def _surest(table: _Table, kind: Array) -> float:
    """Score at which the F1 of what is kept is best, its ties included."""
    counted = kind != KINDS.index("ignored")
    scores, right = table.scores[counted], np.cumsum(kind[counted] == KINDS.index("correct"))
    if not len(right) or not right[-1]:
        return float("inf")
    harmonic = 2 * right / (np.arange(1, len(right) + 1) + len(table.objects))
    ends = np.append(scores[1:] != scores[:-1], True)
    return float(scores[np.where(ends, harmonic, -1).argmax()])


def _joined(parts: Sequence[Array]) -> Array:
    return np.concatenate(parts) if len(parts) else np.empty(0)
