"""Average precision against pycocotools' own path from json files and against brute force; the rest against closed forms."""

from __future__ import annotations

import contextlib
import io
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as rle_masks
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from wsis.metrics import VOCAP, CorLoc, InstanceAP, MaskIoU, _coco
from wsis.metrics._coco import coco_precision
from wsis.metrics.instances import _record, voc_average_precision
from wsis.metrics.results import read_results, to_results, write_results
from wsis.metrics.states import box_iou, from_lines, mask_iou, packed, to_lines
from wsis.types import GroundTruth, Prediction

SIZE = (140, 150)
CLASSES = 3


def encode(mask: np.ndarray) -> dict:
    return rle_masks.encode(np.asfortranarray(mask, np.uint8))


def box_of(mask: np.ndarray) -> list[float]:
    ys, xs = np.nonzero(mask)
    return [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]


def disc(x, y, rx, ry, size=SIZE) -> np.ndarray:
    yy, xx = np.mgrid[: size[0], : size[1]]
    return ((xx - x) / rx) ** 2 + ((yy - y) / ry) ** 2 <= 1


def truth_of(masks, labels, crowd=None) -> GroundTruth:
    return GroundTruth(
        torch.tensor([box_of(m) for m in masks], dtype=torch.float32).reshape(-1, 4),
        torch.tensor(labels, dtype=torch.long),
        [encode(m) for m in masks],
        torch.tensor(crowd if crowd is not None else [False] * len(masks), dtype=torch.bool),
    )


def prediction_of(image_id, masks, labels, scores, size=SIZE) -> Prediction:
    return Prediction(
        image_id,
        size,
        torch.tensor([box_of(m) for m in masks], dtype=torch.float32).reshape(-1, 4),
        torch.tensor(scores, dtype=torch.float32),
        torch.tensor(labels, dtype=torch.long),
        [encode(m) for m in masks],
    )


def scenes(seed: int, images: int = 12):
    """Images of discs of all COCO sizes, some crowds, and detections near and far from them with clashing labels."""
    rng = np.random.default_rng(seed)
    predictions, truths = [], []
    for image in range(images):
        spots = [
            (*rng.uniform(30, 110, 2), *rng.uniform(6, 60, 2)) for _ in range(rng.integers(0, 6))
        ]
        labels = rng.integers(0, CLASSES, len(spots))
        truths.append(truth_of([disc(*s) for s in spots], labels, rng.random(len(spots)) < 0.15))
        found = [
            (np.array(s) * rng.uniform(0.85, 1.15, 4), c)
            for s, c in zip(spots, labels, strict=True)
            for _ in range(2)
        ]
        found += [
            ((*rng.uniform(30, 110, 2), *rng.uniform(6, 60, 2)), rng.integers(0, CLASSES))
            for _ in range(3)
        ]
        order = -np.sort(-rng.random(len(found)))
        masks = [disc(*found[i][0]) for i in rng.permutation(len(found))]
        predictions.append(prediction_of(image * 7 + 1, masks, [c for _, c in found], order))
    return predictions, truths


def by_coco(predictions, truths, kind):
    """The figures that pycocotools gives for json files of the same content."""
    annotations = [
        {
            "id": 1000 * p.image_id + i,
            "image_id": p.image_id,
            "category_id": 10 + int(t.labels[i]),
            "bbox": [float(v) for v in (b[0], b[1], b[2] - b[0], b[3] - b[1])],
            "iscrowd": int(t.crowd[i]),
            "segmentation": packed(t.masks[i]),
            "area": int(rle_masks.area(t.masks[i])) if t.areas is None else float(t.areas[i]),
        }
        for p, t in zip(predictions, truths, strict=True)
        for i, b in enumerate(t.boxes, 0)
    ]
    results = [r for p in predictions for r in to_results(p, [10, 11, 12])]
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {
            "images": [
                {"id": p.image_id, "height": p.size[0], "width": p.size[1]} for p in predictions
            ],
            "annotations": annotations,
            "categories": [{"id": 10 + c} for c in range(CLASSES)],
        }
        coco.createIndex()
        drop = (
            "segmentation" if kind == "bbox" else "bbox"
        )  # loadRes takes sizes from boxes where there are any
        results = [{k: v for k, v in r.items() if k != drop} for r in results]
        evaluation = COCOeval(coco, coco.loadRes(results), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def with_areas(truth: GroundTruth, rng: np.random.Generator) -> GroundTruth:
    """State areas that differ from those of the masks, some of them on the borders of sizes."""
    areas = [rle_masks.area(mask) * rng.uniform(0.3, 3) for mask in truth.masks]
    areas = [rng.choice([area, 32**2, 96**2]) for area in areas]
    return truth._replace(areas=torch.tensor(areas, dtype=torch.float64))


@pytest.mark.parametrize("stated", [False, True])
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(("kind", "prefix"), [("segm", ""), ("bbox", "box_")])
def test_ap_is_that_of_pycocotools(seed, kind, prefix, stated):
    predictions, truths = scenes(seed)
    if stated:
        truths = [with_areas(truth, np.random.default_rng(seed)) for truth in truths]
    metric = InstanceAP(CLASSES)
    for p, t in zip(predictions, truths, strict=True):
        metric.update([p], [t])
    got = metric.compute()
    evaluation = by_coco(predictions, truths, kind)
    expected = dict(
        zip(["AP", "AP50", "AP75", "APs", "APm", "APl"], evaluation.stats[:6], strict=True)
    )
    for name, value in expected.items():
        assert got[prefix + name].item() == pytest.approx(
            value if value >= 0 else float("nan"), abs=1e-6, nan_ok=True
        ), name
    by_class = evaluation.eval["precision"][:, :, :, 0, 2].mean((0, 1))
    np.testing.assert_allclose(got[f"per_class/{prefix}AP"], by_class, atol=1e-6)
    at70 = evaluation.eval["precision"][4, :, :, 0, 2].mean()
    assert got[f"{prefix}AP70"].item() == pytest.approx(at70, abs=1e-6)
    assert 0.05 < got[prefix + "AP50"] < 0.95  # the scenes must be able to tell


@pytest.mark.parametrize("kind", ["segm", "bbox"])
@pytest.mark.parametrize("seed", range(6))
def test_both_libraries_find_the_same(seed, kind, monkeypatch):
    """With crowds, equal scores, and more detections of a class than count."""
    pytest.importorskip("faster_coco_eval")
    rng = np.random.default_rng(seed)
    predictions, truths = scenes(seed)
    many = [disc(*rng.uniform(30, 110, 2), *rng.uniform(6, 60, 2)) for _ in range(130)]
    scores = rng.integers(0, 40, len(many)) / 40
    predictions.append(prediction_of(99, many, rng.integers(0, 2, len(many)) * 2, scores))
    truths.append(truth_of(many[:6], [0, 0, 2, 2, 2, 0], [False, True, False, False, True, False]))
    records = [_record(p, t) for p, t in zip(predictions, truths, strict=True)]
    precision, threshold = coco_precision(records, CLASSES, kind)
    monkeypatch.setattr(_coco, "faster", None)
    expected, best = coco_precision(records, CLASSES, kind)
    np.testing.assert_allclose(precision, expected, rtol=0, atol=1e-12)
    assert threshold == best
    assert 0 < threshold < 1


def brute_force_ap(predictions, truths, threshold):
    """COCO's 101-point AP of masks without crowds, from full masks and the definition."""
    means = []
    for c in range(CLASSES):
        found, total = [], 0
        for p, t in zip(predictions, truths, strict=True):
            wanted = [
                rle_masks.decode(m).astype(bool)
                for m, label in zip(t.masks, t.labels, strict=True)
                if label == c
            ]
            total += len(wanted)
            free = set(range(len(wanted)))
            mine = [i for i in range(len(p.labels)) if p.labels[i] == c]
            for i in sorted(mine, key=lambda i: -p.scores[i].item()):
                mask = rle_masks.decode(p.masks[i]).astype(bool)
                ious = {j: (mask & wanted[j]).sum() / (mask | wanted[j]).sum() for j in free}
                best = max(ious, key=ious.get, default=None)
                hit = best is not None and ious[best] >= threshold
                free -= {best} if hit else set()
                found.append((p.scores[i].item(), hit))
        hits = [hit for _, hit in sorted(found, key=lambda pair: -pair[0])]
        points = []
        for step in range(101):
            after = [
                sum(hits[: n + 1]) / (n + 1)
                for n in range(len(hits))
                if sum(hits[: n + 1]) / total >= step / 100 - 1e-9
            ]
            points.append(max(after, default=0))
        means.append(np.mean(points))
    return np.mean(means)


def test_ap25_is_that_of_brute_force():
    predictions, truths = scenes(3)
    truths = [t._replace(crowd=torch.zeros_like(t.crowd)) for t in truths]
    metric = InstanceAP()
    metric.update(predictions, truths)
    got = metric.compute()
    for percent in (25, 50, 70):
        assert got[f"AP{percent}"].item() == pytest.approx(
            brute_force_ap(predictions, truths, percent / 100), abs=1e-6
        )


def test_perfect_and_empty_predictions():
    masks = [disc(40, 40, 20, 20), disc(100, 90, 30, 25)]
    truth = truth_of(masks, [0, 2])
    metric = InstanceAP(CLASSES)
    metric.update([prediction_of(5, masks, [0, 2], [0.9, 0.8])], [truth])
    got = metric.compute()
    assert [got["AP"].item(), got["box_AP25"].item()] == pytest.approx([1, 1])
    assert got["per_class/AP"][[0, 2]].tolist() == pytest.approx([1, 1])
    assert got["per_class/AP"][1].isnan()
    metric.reset()
    metric.update([prediction_of(5, [], [], [])], [truth])
    assert metric.compute()["AP50"] == 0


def test_without_truth_figures_are_nan():
    metrics = [InstanceAP(CLASSES), CorLoc(CLASSES), MaskIoU(CLASSES), VOCAP(num_classes=CLASSES)]
    for metric in metrics:
        metric.update([], [])
        assert all(value.isnan().all() for value in metric.compute().values())
    metric = InstanceAP(CLASSES)
    metric.update([prediction_of(1, [disc(40, 40, 20, 20)], [1], [0.5])], [truth_of([], [])])
    assert metric.compute()["AP50"].isnan()


def test_boxes_alone_are_judged_as_boxes():
    masks = [disc(40, 40, 20, 20)]
    metric = InstanceAP(CLASSES)
    metric.update([prediction_of(5, masks, [0], [0.9])._replace(masks=[])], [truth_of(masks, [0])])
    got = metric.compute()
    assert got["box_AP"].item() == pytest.approx(1)
    assert got["AP"].isnan()


def test_masks_are_judged_where_the_truth_has_them():
    mask, other = disc(40, 40, 20, 20), disc(90, 90, 20, 20)
    with_masks, without = truth_of([mask], [0]), truth_of([mask], [0])._replace(masks=[])
    predictions = [prediction_of(1, [mask], [0], [0.9]), prediction_of(2, [other], [0], [0.95])]
    for metric, name in ((InstanceAP(1), "AP50"), (VOCAP(), "VOC_AP50"), (MaskIoU(1), "IoU50")):
        metric.update(predictions, [with_masks, without])
        assert metric.compute()[name].item() == pytest.approx(1)
    boxes = VOCAP(kind="box")
    boxes.update(predictions, [with_masks, without])
    assert boxes.compute()["box_VOC_AP50"].item() == pytest.approx(
        0.5 * 0.5
    )  # the best is wrong, the second right
    without_masks = VOCAP()
    without_masks.update([predictions[0]._replace(masks=[]), predictions[1]], [with_masks] * 2)
    assert all(value.isnan().all() for value in without_masks.compute().values())


def test_an_image_counts_once():
    predictions, truths = scenes(4)
    for make in (InstanceAP, CorLoc, VOCAP):
        once, twice = make(num_classes=CLASSES), make(num_classes=CLASSES)
        once.update(predictions, truths)
        twice.update(predictions, truths)
        twice.update(predictions[:5], truths[:5])
        for name, value in once.compute().items():
            torch.testing.assert_close(twice.compute()[name], value, equal_nan=True)


def test_state_never_holds_full_masks():
    mask = disc(1000, 1000, 900, 900, (2000, 2000))
    one = prediction_of(1, [mask], [0], [0.5], (2000, 2000))
    many = one._replace(
        boxes=one.boxes.repeat(100, 1),
        scores=one.scores.repeat(100),
        labels=one.labels.repeat(100),
        masks=one.masks * 100,
    )
    metric = InstanceAP(1)
    metric.update([many], [truth_of([mask], [0])])
    assert sum(state.numel() for state in metric.found) < 1_000_000  # 100 masks of 4 million pixels


def brute_force_voc(predictions, truths, threshold, eleven):
    """VOC's protocol word by word: one loop over all detections in order of score."""
    values = []
    for c in range(CLASSES):
        pool = []
        for p, t in zip(predictions, truths, strict=True):
            iou = (
                rle_masks.iou(p.masks, t.masks, [0] * len(t.masks)) if t.masks and p.masks else None
            )
            pool += [
                (p.scores[i].item(), p.image_id, iou[i] if iou is not None else [], t)
                for i in range(len(p.labels))
                if p.labels[i] == c
            ]
        total = sum(int(((t.labels == c) & ~t.crowd).sum()) for t in truths)
        taken, hits = set(), []
        for _, image, ious, t in sorted(pool, key=lambda row: -row[0]):
            candidates = [(iou, j) for j, iou in enumerate(ious) if t.labels[j] == c]
            best, j = max(candidates, default=(-1, -1))
            if best >= threshold and t.crowd[j]:
                continue
            hits.append(best >= threshold and (image, j) not in taken)
            taken.add((image, j)) if best >= threshold else None
        if not total:
            continue
        recall = [sum(hits[: n + 1]) / total for n in range(len(hits))]
        precision = [sum(hits[: n + 1]) / (n + 1) for n in range(len(hits))]
        if eleven:
            values.append(
                np.mean(
                    [
                        max(
                            (
                                p
                                for p, r in zip(precision, recall, strict=True)
                                if r >= k / 10 - 1e-9
                            ),
                            default=0,
                        )
                        for k in range(11)
                    ]
                )
            )
        else:
            steps = sorted(set(recall) - {0})
            tops = [
                max(p for p, r in zip(precision, recall, strict=True) if r >= step)
                for step in steps
            ]
            values.append(
                sum(
                    top * (step - before)
                    for top, step, before in zip(tops, steps, [0, *steps[:-1]], strict=True)
                )
            )
    return np.mean(values)


@pytest.mark.parametrize("points", ["all", "11"])
@pytest.mark.parametrize("kind", ["mask", "box"])
def test_voc_ap_is_that_of_brute_force(points, kind):
    predictions, truths = scenes(5, 20)
    metric = VOCAP(points=points, kind=kind, num_classes=CLASSES)
    metric.update(predictions[:9], truths[:9])
    metric.update(predictions[9:], truths[9:])
    found = {name: value for name, value in metric.compute().items() if "/" not in name}
    prefix = ("box_" if kind == "box" else "") + ("VOC07_AP" if points == "11" else "VOC_AP")
    assert list(found) == [prefix + str(percent) for percent in (25, 50, 70, 75)]
    if kind == "box":
        predictions = [p._replace(masks=filled(p)) for p in predictions]
        truths = [t._replace(masks=filled(t)) for t in truths]
    for iou, value in zip((0.25, 0.5, 0.7, 0.75), found.values(), strict=True):
        expected = brute_force_voc(predictions, truths, iou, points == "11")
        assert value.item() == pytest.approx(expected, abs=1e-6)
    assert len(set(found.values())) > 2


def filled(side):
    """The boxes of a side as masks: their corners are whole pixels."""
    masks = []
    for x1, y1, x2, y2 in side.boxes.int().tolist():
        mask = np.zeros(SIZE, np.uint8)
        mask[y1:y2, x1:x2] = 1
        masks.append(encode(mask))
    return masks


def test_voc_ap_nears_coco_ap_at_one_threshold():
    """Both integrate the same curve where matching cannot differ: apart objects, no crowd."""
    rng = np.random.default_rng(0)
    predictions, truths = [], []
    for image in range(60):
        spots = [(35, 35, 15, 15), (105, 35, 15, 15), (70, 105, 15, 15)]
        truths.append(truth_of([disc(*s) for s in spots], [0, 0, 1]))
        moved = [disc(x + rng.integers(-12, 13), y, a, b) for x, y, a, b in spots]
        predictions.append(prediction_of(image, moved, [0, 0, 1], -np.sort(-rng.random(3))))
    coco, voc = InstanceAP(), VOCAP()
    coco.update(predictions, truths)
    voc.update(predictions, truths)
    assert voc.compute()["VOC_AP50"].item() == pytest.approx(
        coco.compute()["AP50"].item(), abs=0.01
    )  # 1/101 of recall


def test_voc_closed_forms():
    assert voc_average_precision(np.array([1, 0, 1]), 2) == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert voc_average_precision(np.array([1, 0, 1]), 2, "11") == pytest.approx(
        (6 * 1 + 5 * 2 / 3) / 11
    )
    assert voc_average_precision(np.array([1] * 3), 10, "11") == pytest.approx(
        4 / 11
    )  # recalls 0, .1, .2 and .3
    assert voc_average_precision(np.array([], int), 4) == 0
    assert np.isnan(voc_average_precision(np.array([1]), 0))


def test_corloc_closed_form():
    """Class 0: right in one of two images; class 1: right in its one; class 2: never in a truth."""
    left, right = disc(40, 70, 25, 25), disc(110, 70, 25, 25)
    predictions = [
        prediction_of(
            1, [left, right], [0, 0], [0.9, 0.8]
        ),  # its best is right; the other could not spoil it
        prediction_of(
            2, [left, right, right], [0, 0, 1], [0.9, 0.95, 0.1]
        ),  # its best of class 0 is wrong, though another is right
    ]
    truths = [truth_of([left], [0]), truth_of([left, right], [0, 1])]
    metric = CorLoc(CLASSES)
    metric.update(predictions, truths)
    got = metric.compute()
    assert got["CorLoc"].item() == pytest.approx((0.5 + 1) / 2)
    assert got["CorLoc_images"].item() == pytest.approx(2 / 3)
    assert got["per_class/CorLoc"][:2].tolist() == [0.5, 1]
    metric.update([prediction_of(3, [], [], [])], [truth_of([left], [1])])
    assert metric.compute()["per_class/CorLoc"][1] == 0.5  # a class that is not found is wrong


def test_mask_iou_closed_form():
    """Rectangles of known overlap; class 0 has IoUs 1 and .5, class 1 has .8; the crowd does not count."""

    def rectangle(width):
        mask = np.zeros(SIZE, bool)
        mask[10:20, 10 : 10 + width] = True
        return mask

    truth = truth_of([rectangle(100)] * 4, [0, 0, 1, 1], [False, False, False, True])
    metric = MaskIoU(CLASSES)
    metric.update(
        [prediction_of(1, [rectangle(w) for w in (100, 50, 80, 10)], [0, 0, 1, 1], [1] * 4)],
        [truth],
    )
    got = metric.compute()
    assert got["mIoU"].item() == pytest.approx((0.75 + 0.8) / 2)
    assert got["IoU50"].item() == 1
    assert got["IoU75"].item() == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match=r"3 masks for 4 instances"):
        metric.update([prediction_of(2, [rectangle(5)] * 3, [0] * 3, [1] * 3)], [truth])


masks = st.tuples(
    st.integers(1, 12), st.integers(1, 12), st.integers(0, 2**32 - 1), st.floats(0, 1)
).map(lambda a: np.random.default_rng(a[2]).random((a[0], a[1])) < a[3])


@settings(max_examples=60, deadline=None)
@given(masks, st.sampled_from(["bytes", "text", "list"]))
def test_any_form_of_run_lengths_packs_to_the_same_mask(mask, form):
    rle = encode(mask)
    if form == "text":
        rle["counts"] = rle["counts"].decode()
    if form == "list":
        flat = mask.ravel(order="F").astype(int)
        edges = np.flatnonzero(np.diff(flat, prepend=0, append=1 - flat[-1]))
        rle["counts"] = np.diff(edges, prepend=0).tolist()
    text = json.loads(json.dumps(packed(rle)))
    assert (rle_masks.decode(text).astype(bool) == mask).all()


corner = st.floats(0, 50, width=32)
boxes = st.lists(
    st.tuples(corner, corner, st.floats(1, 40, width=32), st.floats(1, 40, width=32)),
    min_size=1,
    max_size=5,
)


@settings(max_examples=60, deadline=None)
@given(boxes, boxes)
def test_box_iou_is_that_of_areas(a, b):
    a, b = (torch.tensor([(x, y, x + w, y + h) for x, y, w, h in side]) for side in (a, b))
    got = box_iou(a, b)
    for i, j in np.ndindex(got.shape):
        (ax, ay, ax2, ay2), (bx, by, bx2, by2) = a[i].double().tolist(), b[j].double().tolist()
        both = max(0, min(ax2, bx2) - max(ax, bx)) * max(0, min(ay2, by2) - max(ay, by))
        either = (ax2 - ax) * (ay2 - ay) + (bx2 - bx) * (by2 - by) - both
        assert got[i, j] == pytest.approx(both / either, abs=1e-9)
        assert box_iou(b, a)[j, i] == pytest.approx(got[i, j])


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000))
def test_mask_iou_is_that_of_pixels(seed):
    rng = np.random.default_rng(seed)
    stack = rng.random((4, 9, 11)) < rng.random((4, 1, 1))
    got = mask_iou([encode(m) for m in stack[:2]], [encode(m) for m in stack[2:]])
    for i, j in np.ndindex(2, 2):
        both, either = (stack[i] & stack[2 + j]).sum(), (stack[i] | stack[2 + j]).sum()
        assert got[i, j] == pytest.approx(both / either if either else 0)


def test_lines_survive_joining():
    states = [
        to_lines([{"image_id": 1, "x": "ä"}]),
        to_lines([]),
        to_lines([{"image_id": 2}, {"image_id": 1, "x": "later"}]),
    ]
    assert sorted(from_lines(states), key=lambda record: record["image_id"]) == [
        {"image_id": 1, "x": "ä"},
        {"image_id": 2},
    ]


def test_results_file_gives_the_predictions_back(tmp_path):
    predictions, truths = scenes(6)
    path = tmp_path / "predictions.json"
    write_results(path, [r for p in predictions for r in to_results(p, [4, 8, 15])])
    images = [{"id": p.image_id, "height": SIZE[0], "width": SIZE[1]} for p in predictions]
    back = read_results(path, images, [{"id": 4}, {"id": 8}, {"id": 15}])
    for before, after in zip(predictions, back, strict=True):
        torch.testing.assert_close(after.boxes, before.boxes, atol=0.01, rtol=0)
        torch.testing.assert_close(after.scores, before.scores)
        assert after.labels.tolist() == before.labels.tolist()
        assert after.masks == [packed(m) for m in before.masks]
    live, stored = InstanceAP(CLASSES), InstanceAP(CLASSES)
    live.update(predictions, truths)
    stored.update(back, truths)
    assert live.compute()["AP"] == stored.compute()["AP"]
