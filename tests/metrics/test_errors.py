"""The six errors: hand-made pictures with answers in closed form, and a plain loop over detections."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as rle_masks

from wsis.metrics import InstanceAP
from wsis.metrics.errors import ERRORS, KINDS, break_down
from wsis.types import GroundTruth, Prediction

SIDE = 40
FG, BG = 0.5, 0.1


def mask(x1, y1, x2, y2):
    picture = np.zeros((SIDE, SIDE), np.uint8, order="F")
    picture[y1:y2, x1:x2] = 1
    return rle_masks.encode(picture)


def sides(found, there, image=1):
    """Prediction and truth from (class, box, score) and (class, box, crowd), boxes as masks too."""
    boxes = torch.tensor([b for _, b, _ in found]).float().reshape(-1, 4)
    scores, labels = (
        torch.tensor([s for *_, s in found]).float(),
        torch.tensor([c for c, *_ in found]).long(),
    )
    prediction = Prediction(
        image, (SIDE, SIDE), boxes, scores, labels, [mask(*b) for _, b, _ in found]
    )
    boxes, labels = (
        torch.tensor([b for _, b, _ in there]).float().reshape(-1, 4),
        torch.tensor([c for c, *_ in there]).long(),
    )
    crowd = torch.tensor([k for *_, k in there]).bool()
    return prediction, GroundTruth(boxes, labels, [mask(*b) for _, b, _ in there], crowd)


def judged(found, there, classes=2):
    prediction, truth = sides(found, there)
    return break_down([prediction], [truth], classes)


A, B, FAR = (0, 0, 10, 10), (20, 20, 30, 30), (30, 0, 40, 10)
HALF = (0, 0, 10, 4)  # IoU 0.4 with A


def named(result):
    return [KINDS[k] for k in result.kinds[0]]


def only(result, **gains):
    """All gains but those given are 0."""
    assert result.gains == pytest.approx({name: gains.get(name, 0) for name in ERRORS}, abs=1e-9)


def test_all_correct():
    result = judged([(0, A, 0.9), (0, B, 0.8)], [(0, A, 0), (0, B, 0)])
    assert result.ap == pytest.approx(1)
    assert named(result) == ["correct", "correct"]
    assert sum(result.counts.values()) == 0
    only(result)
    assert result.sure == pytest.approx(0.8)


def test_wrong_class_is_worth_the_object():
    """Class 0 has its two objects, one of them under the name of class 1, of which there is none: AP is 51 of 101 points."""
    result = judged([(0, A, 0.9), (1, B, 0.8)], [(0, A, 0), (0, B, 0)])
    assert named(result) == ["correct", "classification"]
    assert result.ap == pytest.approx(51 / 101)
    only(result, classification=50 / 101)
    assert result.counts["missed"] == 0  # mending the class would find it


def test_too_little_overlap():
    result = judged([(0, HALF, 0.9)], [(0, A, 0)])
    assert named(result) == ["localisation"]
    assert result.ap == 0
    only(result, localisation=1)
    assert result.sure == float("inf")


def test_wrong_class_and_too_little_overlap_cannot_be_mended_into_a_hit():
    """Without the detection the object is still missed; without the object there is still nothing right."""
    result = judged([(1, HALF, 0.9), (1, B, 0.8)], [(0, A, 0), (1, B, 0)])
    assert named(result) == ["both", "correct"]
    # class 0 has AP 0 and no detection; class 1 has precision 1/2 at all recalls
    assert result.ap == pytest.approx(0.25)
    # without the wrong one class 1 has AP 1; without what is missed class 0 leaves the mean
    only(result, both=0.25, missed=0.25)


def test_duplicate_costs_precision_where_it_comes_before_a_hit():
    found = [(0, A, 0.9), (0, (0, 0, 10, 9), 0.8), (0, B, 0.7)]
    result = judged(found, [(0, A, 0), (0, B, 0)])
    assert named(result) == ["correct", "duplicate", "correct"]
    ap = (51 + 50 * 2 / 3) / 101
    assert result.ap == pytest.approx(ap)
    only(result, duplicate=1 - ap)


def test_background_and_missed():
    result = judged([(0, FAR, 0.9), (0, A, 0.8)], [(0, A, 0), (0, B, 0)])
    assert named(result) == ["background", "correct"]
    assert result.ap == pytest.approx(51 / 101 / 2)
    only(result, background=51 / 101 / 2, missed=0.5 - 51 / 101 / 2)
    assert result.counts == dict.fromkeys(ERRORS, 0) | {"background": 1, "missed": 1}


def test_one_object_mends_one_detection():
    """Of two that could be moved onto an object the surer is; the other goes."""
    result = judged([(0, HALF, 0.9), (0, (0, 6, 10, 10), 0.8)], [(0, A, 0)])
    assert named(result) == ["localisation", "localisation"]
    only(result, localisation=1)


def test_mending_what_has_its_object_already_removes_it():
    result = judged([(0, HALF, 0.9), (0, A, 0.8)], [(0, A, 0)])
    assert result.ap == pytest.approx(0.5)
    only(result, localisation=0.5)


def test_thresholds_are_inclusive_below():
    """IoU .5 is a hit and .1 is about the object."""
    assert named(judged([(0, (0, 0, 10, 5), 0.9)], [(0, A, 0)])) == ["correct"]
    assert named(judged([(0, (0, 0, 10, 1), 0.9)], [(0, A, 0)])) == ["localisation"]
    assert named(judged([(0, (0, 0, 9, 1), 0.9)], [(0, A, 0)])) == ["background"]


def test_detections_on_crowds_of_their_class_do_not_count():
    result = judged([(0, A, 0.95), (1, A, 0.9), (0, B, 0.8)], [(0, (0, 0, 12, 12), 1), (0, B, 0)])
    assert named(result) == ["ignored", "background", "correct"]
    assert result.ap == pytest.approx(1)
    assert result.counts["missed"] == 0


def test_nothing_found_and_nothing_there():
    result = judged([], [(0, A, 0)])
    assert (result.ap, result.counts["missed"], result.sure) == (0, 1, float("inf"))
    assert np.isnan(judged([(0, A, 0.5)], []).ap)
    empty = break_down([], [], 3)
    assert np.isnan(empty.ap)
    assert empty.kinds == []


def test_boxes_are_judged_where_masks_are_missing():
    prediction, truth = sides([(0, HALF, 0.9)], [(0, A, 0)])
    assert [KINDS[k] for k in break_down([prediction._replace(masks=[])], [truth], 1).kinds[0]] == [
        "localisation"
    ]


# A plain loop, as the paper's section 2.2 says it


def plain(pairs, classes):
    """AP and counts: greedy matching, one detection after another."""
    detections = []
    totals, missed = np.zeros(classes), 0
    for prediction, truth in pairs:
        iou = (
            np.asarray(rle_masks.iou(prediction.masks, truth.masks, [0] * len(truth.masks)))
            if prediction.masks
            else []
        )
        iou = np.reshape(iou, (len(prediction.labels), len(truth.labels)))
        labels, wanted = prediction.labels.tolist(), truth.labels.tolist()
        taken, useful = set(), set()
        order = sorted(range(len(labels)), key=lambda i: -prediction.scores[i])
        has = {}
        for i in order:
            able = [
                j
                for j in range(len(wanted))
                if wanted[j] == labels[i] and j not in taken and iou[i, j] >= FG
            ]
            if able:
                has[i] = max(able, key=lambda j: iou[i, j])
                taken.add(has[i])
        for i in range(len(labels)):
            same = {j: iou[i, j] for j in range(len(wanted)) if wanted[j] == labels[i]}
            other = {j: iou[i, j] for j in range(len(wanted)) if wanted[j] != labels[i]}
            own, strange = max(same.values(), default=0), max(other.values(), default=0)
            if i in has:
                kind = "correct"
            elif BG <= own < FG:
                kind = "localisation"
                useful.add(max(same, key=same.get))
            elif strange >= FG:
                kind = "classification"
                useful.add(max(other, key=other.get))
            elif own >= FG:
                kind = "duplicate"
            else:
                kind = "background" if max(own, strange) < BG else "both"
            detections.append((float(prediction.scores[i]), labels[i], kind))
        missed += len(set(range(len(wanted))) - taken - useful)
        totals += np.bincount(wanted, minlength=classes)
    return detections, totals, missed


box = st.tuples(st.integers(0, 24), st.integers(0, 24), st.integers(3, 14), st.integers(3, 14)).map(
    lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3])
)
pictures = st.lists(
    st.tuples(
        st.lists(st.tuples(st.integers(0, 2), box), max_size=6),
        st.lists(st.tuples(st.integers(0, 2), box), max_size=4),
    ),
    min_size=1,
    max_size=4,
)


@pytest.mark.slow
@given(pictures, st.randoms(use_true_random=False))
def test_agrees_with_a_plain_loop_and_with_coco(drawn, random):
    pairs = []
    scores = [i / 100 for i in range(1, 60)]
    random.shuffle(scores)
    for number, (found, there) in enumerate(drawn, 1):
        nudged = [(c, b) for c, b in there if random.random() < 0.7]  # so that there are hits
        pairs.append(
            sides(
                [(c, b, scores.pop()) for c, b in [*found, *nudged]],
                [(c, b, 0) for c, b in there],
                number,
            )
        )
    predictions, truths = map(list, zip(*pairs, strict=True))
    result = break_down(predictions, truths, 3)
    detections, totals, missed = plain(pairs, 3)
    assert [KINDS[k] for kinds in result.kinds for k in kinds] == [kind for *_, kind in detections]
    assert result.counts["missed"] == missed
    metric = InstanceAP(3)
    metric.update(predictions, truths)
    assert result.ap == pytest.approx(metric.compute()["AP50"].item(), abs=1e-6, nan_ok=True)
    assert all(gain >= -1e-9 for gain in result.gains.values())
    if totals.any() and result.sure < np.inf:
        kept = [kind == "correct" for score, _, kind in detections if score >= result.sure - 1e-6]
        f1 = 2 * sum(kept) / (len(kept) + totals.sum())
        for least in sorted({score for score, *_ in detections}):
            other = [kind == "correct" for score, _, kind in detections if score >= least]
            assert f1 >= 2 * sum(other) / (len(other) + totals.sum()) - 1e-9
