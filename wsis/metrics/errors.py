"""The six types of error of TIDE (Bolya et al., ECCV 2020), and the AP gained by fixing each.

Detections are matched to objects of their class in order of score, at an IoU of at least
`foreground`. The error of an unmatched detection is the first of these that applies:

    localisation    IoU with an object of its class is at least `background`, but below `foreground`
    classification  IoU with an object of another class is at least `foreground`
    duplicate       IoU with an object of its class is at least `foreground`, but a detection of
                    higher score is matched to it
    background      IoU with all objects is below `background`
    both            any other: wrong class and poor localisation

An object is *missed* if no detection is matched to it, and none would be with its class or location
fixed. All images are processed at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from pycocotools import mask as rle_masks

from wsis.metrics.states import Array, box_iou, packed
from wsis.metrics.threshold import best_threshold
from wsis.types import GroundTruth, Prediction

__all__ = ["ERRORS", "KINDS", "Breakdown", "break_down"]

ERRORS = ("classification", "localisation", "both", "duplicate", "background", "missed")
KINDS = ("correct", *ERRORS[:5], "ignored")
"""Kinds of detections; those on crowds are ignored."""
_RECALLS = np.linspace(0, 1, 101)


class Breakdown(NamedTuple):
    """Errors of a set of predictions."""

    ap: float
    """AP at IoU `foreground`: 101 recall points, mean over classes; nan without objects."""
    gains: dict[str, float]
    """Error -> dAP, the AP gained if all errors of this type, and no others, were fixed."""
    counts: dict[str, int]
    """Error -> number of errors."""
    sure: float
    """Score threshold of the best F1 over all classes together; infinite if none is correct."""
    kinds: list[Array]
    """For each prediction, the positions in KINDS of its detections (n,)."""


class _Table(NamedTuple):
    """Detections of all images, best first, the objects, and the pairs that overlap."""

    labels: Array
    """(N,) class of each detection."""
    scores: Array
    """(N,)."""
    ignored: Array
    """(N,) bool, whether a detection is ignored unless it is matched."""
    place: Array
    """(N,) position of each detection in the order of the predictions."""
    objects: Array
    """(T,) class of each object."""
    pairs: tuple[Array, Array, Array]
    """Detection, object and IoU (K,) of pairs with IoU >= `background`.

    Detections are ascending; of one detection's pairs, the highest IoU is first.
    """


def break_down(
    predictions: Sequence[Prediction],
    truths: Sequence[GroundTruth],
    classes: int,
    foreground: float = 0.5,
    background: float = 0.1,
) -> Breakdown:
    """Classify the errors of masks, or of boxes if any detection or object lacks a mask.

    Args:
        predictions: one per image.
        truths: of the same images.
        classes: number of classes.
        foreground: lowest IoU of a match.
        background: IoU with all objects below which a detection is an error of background.
    """
    table = _tabulate(predictions, truths, foreground, background)
    detection, thing, iou = table.pairs
    same = table.labels[detection] == table.objects[thing]
    candidate = same & (iou >= foreground)
    hit = _match(detection[candidate], thing[candidate], len(table.objects))
    correct = np.isin(np.arange(len(table.labels)), hit)
    same_iou, same_object = _best(table, same)
    other_iou, other_object = _best(table, ~same)
    conditions = {
        "correct": correct,
        "ignored": table.ignored & ~correct,
        "localisation": (same_iou >= background) & (same_iou < foreground),
        "classification": other_iou >= foreground,
        "duplicate": same_iou >= foreground,
        "background": np.maximum(same_iou, other_iou) < background,
    }
    numbers = [KINDS.index(name) for name in conditions]
    kind = np.select(list(conditions.values()), numbers, KINDS.index("both"))
    free = hit < 0
    claims = {
        "localisation": np.where(kind == KINDS.index("localisation"), same_object, -1),
        "classification": np.where(kind == KINDS.index("classification"), other_object, -1),
    }
    missed = free & ~np.isin(np.arange(len(free)), np.concatenate(list(claims.values())))
    ap, gains = _gains(table, kind, correct, free, claims, missed, classes)
    counts = {name: int((kind == KINDS.index(name)).sum()) for name in ERRORS[:5]}
    counts["missed"] = int(missed.sum())
    kinds = np.empty_like(kind)
    kinds[table.place] = kind
    ends = np.cumsum([len(p.labels) for p in predictions])[:-1]
    by_image = np.split(kinds, ends) if len(predictions) else []
    counted = kind != KINDS.index("ignored")
    right = kind[counted] == KINDS.index("correct")
    threshold = best_threshold(table.scores[counted], right, len(table.objects))
    return Breakdown(ap, gains, counts, threshold, by_image)


def _tabulate(
    predictions: Sequence[Prediction],
    truths: Sequence[GroundTruth],
    foreground: float,
    background: float,
) -> _Table:
    """Return the table of all images, compared by masks if every detection and object has one."""
    by_mask = all(
        len(p.masks) == len(p.labels) and len(t.masks) == len(t.labels)
        for p, t in zip(predictions, truths, strict=True)
    )
    columns: list[list[Array]] = [[], [], []]
    ignored: list[Array] = [np.zeros(0, bool)]
    detections = objects = 0
    for prediction, truth in zip(predictions, truths, strict=True):
        iou, on_crowd = _overlaps(prediction, truth, by_mask)
        pair = np.nonzero(iou >= background)
        columns[0].append(pair[0] + detections)
        columns[1].append(pair[1] + objects)
        columns[2].append(iou[pair])
        ignored.append(np.any(on_crowd >= foreground, axis=1))
        detections, objects = detections + iou.shape[0], objects + iou.shape[1]
    labels = _joined([prediction.labels.cpu().numpy() for prediction in predictions])
    scores = _joined([prediction.scores.cpu().numpy() for prediction in predictions])
    place = np.argsort(-scores, kind="stable")
    rank = np.empty_like(place)
    rank[place] = np.arange(len(place))
    detection = rank[_joined(columns[0]).astype(int)]
    thing = _joined(columns[1]).astype(int)
    overlap = _joined(columns[2])
    order = np.lexsort((-overlap, detection))
    wanted = _joined([truth.labels[~truth.crowd].cpu().numpy() for truth in truths])
    return _Table(
        labels=labels[place].astype(int),
        scores=scores[place],
        ignored=np.concatenate(ignored)[place],
        place=place,
        objects=wanted.astype(int),
        pairs=(detection[order], thing[order], overlap[order]),
    )


def _overlaps(prediction: Prediction, truth: GroundTruth, by_mask: bool) -> tuple[Array, Array]:
    """Return IoU with objects (n,m), and overlap with crowds of a detection's class (n,k).

    The overlap with a crowd is, for masks, the fraction of the detection inside the crowd; for
    boxes it is the IoU, as crowd boxes are then VOC's difficult objects.
    """
    crowd = truth.crowd.cpu().numpy().astype(bool)
    if not by_mask:
        overlap = box_iou(prediction.boxes, truth.boxes)
    else:
        predicted = [packed(mask) for mask in prediction.masks]
        true = [packed(mask) for mask in truth.masks]
        overlap = np.zeros((len(predicted), len(true)))
        if predicted and true:
            overlap = np.asarray(rle_masks.iou(predicted, true, crowd.astype(np.uint8)))
    same = prediction.labels.cpu().numpy()[:, None] == truth.labels.cpu().numpy()[crowd]
    return overlap[:, ~crowd], np.where(same, overlap[:, crowd], 0.0)


def _match(detection: Array, thing: Array, objects: int) -> Array:
    """Match in order of score, each detection to its best free object.

    All detections choose at once, an object keeps the best detection that chooses it, and the
    others choose again: deferred acceptance, which for one common ranking of detections has the
    result of choosing one after the other.

    Args:
        detection: (K,) of pairs that may match, ascending.
        thing: (K,) objects, the best of each detection first.
        objects: number of objects T.

    Returns:
        The detection (T,) of each object, -1 for none.
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
    """Return each detection's highest IoU (N,) among chosen pairs, and the object (N,) of it.

    Detections without a pair have 0 and -1.
    """
    detection, thing, iou = (column[chosen] for column in table.pairs)
    first = np.flatnonzero(np.diff(detection, prepend=-1))
    best = np.zeros(len(table.labels))
    best[detection[first]] = iou[first]
    objects = np.full(len(table.labels), -1)
    objects[detection[first]] = thing[first]
    return best, objects


def _gains(
    table: _Table,
    kind: Array,
    correct: Array,
    free: Array,
    claims: dict[str, Array],
    missed: Array,
    classes: int,
) -> tuple[float, dict[str, float]]:
    """Return average precision, and its gain by fixing each type of error (section 2.3).

    A fixed detection is correct if it has the highest score of those that claim a free object, and
    is removed otherwise, as are errors that claim no object. Missed objects are removed from the
    ground truth.
    """
    totals = np.bincount(table.objects, minlength=classes)[:classes]
    counted, present = kind != KINDS.index("ignored"), totals > 0
    known = _average_precision(table.labels[counted], correct[counted], totals, present)
    gains = {}
    for name in ERRORS[:5]:
        labels, hits, kept = table.labels, correct, counted & (kind != KINDS.index(name))
        if name in claims:
            claim = claims[name]
            claiming = np.flatnonzero(claim >= 0)
            claiming = claiming[free[claim[claiming]]]
            winners = claiming[np.unique(claim[claiming], return_index=True)[1]]
            labels, hits, kept = labels.copy(), hits.copy(), kept.copy()
            labels[winners] = table.objects[claim[winners]]
            hits[winners] = kept[winners] = True
        gains[name] = _average_precision(labels[kept], hits[kept], totals, present) - known
    left = totals - np.bincount(table.objects[missed], minlength=classes)[:classes]
    detected = np.bincount(table.labels[counted], minlength=classes)[:classes] > 0
    # as in the authors' code, a class with neither objects nor detections left is not in the mean
    judged = present & ((left > 0) | detected)
    gains["missed"] = 0.0
    if present.any():
        fixed = _average_precision(table.labels[counted], correct[counted], left, judged)
        gains["missed"] = fixed - known
    return known, {name: 0.0 if np.isnan(gains[name]) else gains[name] for name in ERRORS}


def _average_precision(labels: Array, hits: Array, totals: Array, judged: Array) -> float:
    """Return COCO's average precision, mean over the judged classes; detections are best first."""
    values = []
    for c in np.flatnonzero(judged):
        right = np.cumsum(hits[labels == c])
        precision = np.append(right / np.arange(1, len(right) + 1), 0.0)
        envelope = np.maximum.accumulate(precision[::-1])[::-1]
        reached = np.searchsorted(right / max(totals[c], 1), _RECALLS, side="left")
        values.append(envelope[reached].mean() if totals[c] else 0.0)
    return float(np.mean(values)) if values else float("nan")


def _joined(parts: Sequence[Array]) -> Array:
    return np.concatenate(parts) if len(parts) else np.empty(0)
