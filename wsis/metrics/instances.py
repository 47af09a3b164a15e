"""Metrics of detections: COCO and VOC average precision, CorLoc, and mask IoU given the boxes.

All are torchmetrics that take one `Prediction` and one `GroundTruth` per image and store masks as
run lengths. Results do not depend on the number of processes: an image that several ranks evaluate
counts once. A rank that may get no images must call `update([], [])`, so that all ranks have a
state to exchange. Values without any ground truth are nan.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from wsis.metrics._coco import AREAS, THRESHOLDS, box_name, coco_precision, summary
from wsis.metrics.states import (
    Array,
    array,
    box_iou,
    first_of_each,
    from_lines,
    mask_iou,
    mean,
    packed,
    to_lines,
)
from wsis.types import GroundTruth, Prediction

__all__ = ["VOCAP", "VOC_IOUS", "CorLoc", "InstanceAP", "MaskIoU", "detection_metrics"]

VOC_IOUS = (0.25, 0.5, 0.7, 0.75)
"""IoUs at which CCGR, BoxCaseg and EM-Paste publish VOC's average precision."""
_NO_MASK = -2


class InstanceAP(Metric):
    """COCO average precision of masks and boxes.

    There are 101 recall points, and 100 detections per image and class. `compute()` returns the
    scalars `AP` (mean over IoU .5:.95), `AP25`, `AP50`, `AP70`, `AP75`, `APs`, `APm`, `APl`, and
    (C,) `per_class/AP`, `per_class/AP25`, ...; for boxes the same prefixed with `box_`.
    `F1_threshold` is the score from which on all detections together have the best F1 at IoU 0.5,
    of masks if there are any; nan if none is correct. Masks are evaluated on the images whose
    ground truth has masks; their values are nan if a prediction has none. Sizes are by the area
    that an annotation states, as in COCO, else by that of the mask or box.

    Args:
        num_classes: number of classes; None infers it from the highest class.
    """

    full_state_update = False
    found: list[Tensor]

    def __init__(self, num_classes: int | None = None) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.add_state("found", [], dist_reduce_fx="cat")

    def update(self, predictions: list[Prediction], truths: list[GroundTruth]) -> None:
        """Add images, one truth per prediction."""
        records = [_record(p, t) for p, t in zip(predictions, truths, strict=True)]
        self.found.append(to_lines(records).to(self.device))

    def compute(self) -> dict[str, Tensor]:
        """Return the average precision of all images so far."""
        records = from_lines(self.found)
        highest = [max(r[side]["labels"], default=0) for r in records for side in SIDES]
        classes = self.num_classes or 1 + max(highest, default=0)
        masked = [record for record in records if _has_masks(record["true"])]
        comparable = masked and all(_has_masks(record["predicted"]) for record in masked)
        blank = np.full((len(THRESHOLDS), 101, classes, len(AREAS), 1), -1.0)
        nothing = blank, float("inf")
        masks, of_masks = coco_precision(masked, classes, "segm") if comparable else nothing
        boxes, of_boxes = coco_precision(records, classes, "bbox") if records else nothing
        threshold = of_masks if comparable else of_boxes
        known = {"F1_threshold": torch.tensor(threshold if np.isfinite(threshold) else np.nan)}
        of_box = {box_name(name): value for name, value in summary(boxes).items()}
        return summary(masks) | of_box | known


class VOCAP(Metric):
    """PASCAL VOC average precision at some IoUs.

    Of masks this is the AP^r of SDS (Hariharan et al., ECCV 2014). In order of score each detection
    is matched to the object that it overlaps most; a second match of the same object is a false
    positive; one with a crowd or difficult object is ignored. Masks are evaluated on the images
    whose ground truth has masks; their values are nan if a prediction has none. `compute()` returns
    `VOC_AP50` and (C,) `per_class/VOC_AP50`, ..., the number being the IoU in percent (`VOC07_AP50`
    for 11 points, `box_VOC_AP50` for boxes).

    Args:
        ious: lowest IoUs of a true positive.
        points: "all" for the area under the precision envelope (VOC 2010 on), "11" for the 11-point
            mean (VOC 2007).
        kind: "mask" or "box", the shapes that are compared.
        num_classes: number of classes; None infers it from the highest class.
    """

    full_state_update = False
    found: list[Tensor]
    scores: list[Tensor]
    wanted: list[Tensor]

    def __init__(
        self,
        ious: Sequence[float] = VOC_IOUS,
        points: Literal["all", "11"] = "all",
        kind: Literal["mask", "box"] = "mask",
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        self.ious, self.points, self.kind, self.num_classes = tuple(ious), points, kind, num_classes
        for state in ("found", "scores", "wanted"):
            self.add_state(state, [], dist_reduce_fx="cat")

    def update(self, predictions: list[Prediction], truths: list[GroundTruth]) -> None:
        """Add images, one truth per prediction."""
        found = [np.empty((0, 3 + len(self.ious)), np.int64)]
        scores = [torch.empty(0)]
        wanted = [np.empty((0, 3), np.int64)]
        for prediction, truth in zip(predictions, truths, strict=True):
            if self.kind == "mask" and len(truth.masks) < len(truth.labels):
                continue
            hits, labels = self._hits(prediction, truth), prediction.labels.cpu().numpy()
            image = np.full(len(hits), prediction.image_id)
            found.append(np.column_stack([image, np.arange(len(hits)), labels, hits]))
            scores.append(prediction.scores.detach().float().cpu())
            objects = truth.labels[~truth.crowd].cpu().numpy()
            classes, counts = np.unique(objects, return_counts=True)
            image = np.full_like(classes, prediction.image_id)
            wanted.append(np.stack([image, classes, counts], 1))
        self.found.append(torch.from_numpy(np.concatenate(found)).to(self.device))
        self.scores.append(torch.cat(scores).to(self.device))
        self.wanted.append(torch.from_numpy(np.concatenate(wanted)).to(self.device))

    def compute(self) -> dict[str, Tensor]:
        """Return the average precision of all images so far."""
        found = array(self.found).reshape(-1, 3 + len(self.ious))
        wanted = array(self.wanted).reshape(-1, 3)
        once = first_of_each(found[:, :2])
        once = once[np.argsort(-array(self.scores)[once], kind="stable")]
        labels, hits = found[once, 2], found[once, 3:]
        wanted = wanted[first_of_each(wanted[:, :2])]
        highest = int(max(labels.max(initial=0), wanted[:, 1].max(initial=0)))
        classes = self.num_classes or highest + 1
        totals = np.bincount(wanted[:, 1], wanted[:, 2], classes)
        prefix, year = "box_" if self.kind == "box" else "", "07" if self.points == "11" else ""
        figures: dict[str, Tensor] = {}
        for iou, column in zip(self.ious, hits.T, strict=True):
            each = [
                voc_average_precision(column[(labels == c) & (column >= 0)], totals[c], self.points)
                for c in range(classes)
            ]
            each = [math.nan] * classes if (column == _NO_MASK).any() else each
            name = f"{prefix}VOC{year}_AP{round(100 * iou)}"
            figures |= {name: mean(each), f"per_class/{name}": torch.tensor(each)}
        return figures

    def _hits(self, prediction: Prediction, truth: GroundTruth) -> Array:
        """Return for each detection of an image and each IoU 1 if true, 0 if false, -1 if ignored.

        It is _NO_MASK where masks are compared and the prediction has none.
        """
        labels, wanted = prediction.labels.cpu().numpy(), truth.labels.cpu().numpy()
        hits = np.zeros((len(labels), len(self.ious)), np.int64)
        if self.kind == "mask" and len(prediction.masks) < len(labels):
            return hits + _NO_MASK
        if self.kind == "mask":
            iou = mask_iou(prediction.masks, truth.masks)
        else:
            iou = box_iou(prediction.boxes, truth.boxes)
        iou = np.where(labels[:, None] == wanted, iou, -1.0)
        if not iou.size:
            return hits
        order = np.argsort(-prediction.scores.detach().float().cpu().numpy(), kind="stable")
        best, highest = iou[order].argmax(1), iou[order].max(1)
        crowd = truth.crowd.cpu().numpy()
        for column, lowest in enumerate(self.ious):
            near = np.flatnonzero(highest >= lowest)
            _, first = np.unique(best[near], return_index=True)
            hits[order[near[first]], column] = 1
            hits[order[near[crowd[best[near]]]], column] = -1
        return hits


class CorLoc(Metric):
    """Correct localisation (Deselaers et al., IJCV 2012).

    A pair of image and class is correct if the top-scoring detection of the class has a box IoU of
    at least 0.5 with an object of the class; without a detection it is wrong. `compute()` returns
    (C,) `per_class/CorLoc`, the fraction of a class's images that are correct; `CorLoc`, the mean
    over classes; and `CorLoc_images`, the fraction of all pairs.

    Args:
        num_classes: number of classes; None infers it from the highest class.
    """

    full_state_update = False
    pairs: list[Tensor]

    def __init__(self, num_classes: int | None = None) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.add_state("pairs", [], dist_reduce_fx="cat")

    def update(self, predictions: list[Prediction], truths: list[GroundTruth]) -> None:
        """Add images, one truth per prediction."""
        rows = [
            (p.image_id, c, _localised(p, t, c))
            for p, t in zip(predictions, truths, strict=True)
            for c in _classes(t)
        ]
        self.pairs.append(torch.tensor(rows, dtype=torch.long, device=self.device).reshape(-1, 3))

    def compute(self) -> dict[str, Tensor]:
        """Return the correct localisation of all images so far."""
        pairs = array(self.pairs).reshape(-1, 3).astype(np.int64)
        _, label, hit = pairs[first_of_each(pairs[:, :2])].T
        each = _class_means(label, hit, self.num_classes)
        return {
            "CorLoc": mean(each),
            "CorLoc_images": mean(hit),
            "per_class/CorLoc": torch.from_numpy(each),
        }


class MaskIoU(Metric):
    """Mask IoU given the boxes (BoxCaseg, section 4).

    Prediction i of an image belongs to instance i of its ground truth. `compute()` returns `mIoU`
    (mIoU*: mean over classes of the mean IoU of their instances), `IoU50` and `IoU75` (fraction of
    instances with at least that IoU), and (C,) `per_class/mIoU`. Crowds are left out, and so are
    images whose ground truth has no masks.

    Args:
        num_classes: number of classes; None infers it from the highest class.
    """

    full_state_update = False
    instances: list[Tensor]
    iou: list[Tensor]

    def __init__(self, num_classes: int | None = None) -> None:
        super().__init__()
        self.num_classes = num_classes
        for state in ("instances", "iou"):
            self.add_state(state, [], dist_reduce_fx="cat")

    def update(self, predictions: list[Prediction], truths: list[GroundTruth]) -> None:
        """Add images.

        Raises:
            ValueError: the numbers of predictions and instances of an image differ.
        """
        keys, ious = [torch.empty(0, 3, dtype=torch.long)], [torch.empty(0)]
        for prediction, truth in zip(predictions, truths, strict=True):
            if len(truth.masks) < len(truth.labels):
                continue  # boxes without masks
            if len(prediction.masks) != len(truth.masks):
                raise ValueError(
                    f"image {prediction.image_id}: {len(prediction.masks)} masks for "
                    f"{len(truth.masks)} instances; MaskIoU needs one for each"
                )
            kept = (~truth.crowd).nonzero().squeeze(1).cpu()
            image = torch.full_like(kept, prediction.image_id)
            keys.append(torch.stack([image, kept, truth.labels.cpu()[kept]], 1))
            iou = np.diag(mask_iou(prediction.masks, truth.masks)).copy()
            ious.append(torch.from_numpy(iou).float()[kept])
        self.instances.append(torch.cat(keys).to(self.device))
        self.iou.append(torch.cat(ious).to(self.device))

    def compute(self) -> dict[str, Tensor]:
        """Return the mask IoU over all instances so far."""
        instances = array(self.instances).reshape(-1, 3).astype(np.int64)
        once = first_of_each(instances[:, :2])
        label, iou = instances[once, 2], array(self.iou)[once].astype(np.float64)
        each = _class_means(label, iou, self.num_classes)
        return {
            "mIoU": mean(each),
            "IoU50": mean(iou >= 0.5),
            "IoU75": mean(iou >= 0.75),
            "per_class/mIoU": torch.from_numpy(each),
        }


def detection_metrics(num_classes: int | None = None) -> list[Metric]:
    """Return the metrics of detections that the papers report.

    These are COCO's average precision, CorLoc, VOC's average precision of masks and boxes at
    `VOC_IOUS`, and that of VOC 2007 of boxes at .5.
    """
    return [
        InstanceAP(num_classes),
        CorLoc(num_classes),
        VOCAP(kind="mask", num_classes=num_classes),
        VOCAP(kind="box", num_classes=num_classes),
        VOCAP((0.5,), "11", "box", num_classes),
    ]


def voc_average_precision(hits: Array, total: float, points: Literal["all", "11"] = "all") -> float:
    """Return the average precision of detections in order of score.

    Args:
        hits: (N,) 1 or 0, best score first.
        total: number of objects; the result is nan if it is 0.
        points: "all" for the area under the precision envelope, "11" for its mean at recalls
            0, .1, ..., 1.
    """
    if not total:
        return float("nan")
    right = np.cumsum(hits)
    recall, precision = right / total, right / np.arange(1, len(hits) + 1)
    # the last value is for recalls that are never reached
    envelope = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
    if points == "11":
        tenths = np.arange(11) / 10
        return float(envelope[np.searchsorted(recall, tenths - 1e-12)].mean())
    return float((np.diff(recall, prepend=0.0) * envelope[:-1]).sum())


SIDES = ("predicted", "true")


def _record(prediction: Prediction, truth: GroundTruth) -> dict[str, Any]:
    predicted = {"scores": prediction.scores.tolist(), **_columns(prediction)}
    unknown = [math.nan] * len(truth.labels)
    areas = unknown if truth.areas is None else truth.areas.tolist()
    true = {"crowd": truth.crowd.tolist(), "areas": areas, **_columns(truth)}
    return {
        "image_id": prediction.image_id,
        "size": list(prediction.size),
        "predicted": predicted,
        "true": true,
    }


def _has_masks(columns: dict[str, Any]) -> bool:
    return len(columns["masks"]) == len(columns["boxes"])


def _columns(side: Prediction | GroundTruth) -> dict[str, Any]:
    return {
        "labels": side.labels.tolist(),
        "boxes": side.boxes.tolist(),
        "masks": [packed(mask) for mask in side.masks],
    }


def _localised(prediction: Prediction, truth: GroundTruth, label: int) -> bool:
    of_class = (prediction.labels == label).nonzero().squeeze(1)
    if not len(of_class):
        return False
    best = of_class[prediction.scores[of_class].argmax()]
    iou = box_iou(prediction.boxes[best : best + 1], truth.boxes[truth.labels == label])
    return bool((iou >= 0.5).any())


def _classes(truth: GroundTruth) -> list[int]:
    return sorted(set(truth.labels.tolist()))


def _class_means(label: Array, value: Array, classes: int | None) -> Array:
    """Return the mean value of each class (C,), nan for a class that does not occur."""
    classes = classes or int(label.max(initial=0)) + 1
    counts = np.bincount(label, minlength=classes)
    means = np.full(classes, np.nan)
    np.divide(np.bincount(label, value, classes), counts, out=means, where=counts > 0)
    return means
