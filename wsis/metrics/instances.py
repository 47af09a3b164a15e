"""How good detections are: COCO and VOC average precision, CorLoc, and the mask IoU of given boxes.

All are torchmetrics, take one `Prediction` and one `Truth` per image, hold no full-size mask arrays, and give the same
figures on one process or many: an image that several ranks saw counts once. `update([], [])` is legal, and ranks that
may see no image must call it, so that all ranks have a state to exchange. A figure without any truth behind it is nan.
"""

from __future__ import annotations

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
from wsis.types import Prediction, Truth

__all__ = ["VOCAP", "CorLoc", "InstanceAP", "MaskIoU"]


class InstanceAP(Metric):
    """COCO average precision of masks and of boxes (101 recall points, 100 detections per image and class).

    `compute()` gives scalars `AP` (mean over IoU .5:.95), `AP25`, `AP50`, `AP70`, `AP75`, `APs`, `APm`, `APl`, and per class
    (C,) `per_class/AP`, `per_class/AP25`, ...; for boxes the same with `box_` before. Masks are judged on the images whose
    truth has masks; their figures are nan where predictions have none. Sizes are by the area of masks, as in COCO.

    Args:
        num_classes: how many classes there are; the highest class seen when None.
    """

    full_state_update = False
    found: list[Tensor]

    def __init__(self, num_classes: int | None = None) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.add_state("found", [], dist_reduce_fx="cat")

    def update(self, predictions: list[Prediction], truths: list[Truth]) -> None:
        """Add images, one truth per prediction."""
        records = [_record(p, t) for p, t in zip(predictions, truths, strict=True)]
        self.found.append(to_lines(records).to(self.device))

    def compute(self) -> dict[str, Tensor]:
        """Average precision of all images so far."""
        records = from_lines(self.found)
        classes = self.num_classes or 1 + max(
            (max(r[side]["labels"], default=0) for r in records for side in SIDES), default=0
        )
        judged = [r for r in records if _masked(r["true"])]
        judgeable = judged and all(_masked(r["predicted"]) for r in judged)
        blank = np.full((len(THRESHOLDS), 101, classes, len(AREAS), 1), -1.0)
        masks = coco_precision(judged, classes, "segm") if judgeable else blank
        boxes = coco_precision(records, classes, "bbox") if records else blank
        return summary(masks) | {box_name(name): value for name, value in summary(boxes).items()}


class VOCAP(Metric):
    """PASCAL VOC average precision at one IoU; for masks the AP^r of SDS (Hariharan et al., ECCV 2014).

    Detections in order of score each take the truth they overlap most; a second on the same truth is a miss; one on a crowd
    or difficult truth is ignored. Masks are judged on the images whose truth has masks. `compute()` gives `VOC_AP50` and (C,)
    `per_class/VOC_AP50`, the number being the IoU in percent (`VOC07_AP50` for 11 points, `box_VOC_AP50` for boxes).

    Args:
        iou: least IoU of a hit.
        points: "all" for the area under the precision envelope (VOC 2010 on), "11" for the 11-point mean (VOC 2007).
        kind: what is compared.
        num_classes: how many classes there are; the highest class seen when None.
    """

    full_state_update = False
    found: list[Tensor]
    scores: list[Tensor]
    wanted: list[Tensor]

    def __init__(
        self,
        iou: float = 0.5,
        points: Literal["all", "11"] = "all",
        kind: Literal["mask", "box"] = "mask",
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        self.iou, self.points, self.kind, self.num_classes = iou, points, kind, num_classes
        for state in ("found", "scores", "wanted"):
            self.add_state(state, [], dist_reduce_fx="cat")

    def update(self, predictions: list[Prediction], truths: list[Truth]) -> None:
        """Add images, one truth per prediction.

        Raises:
            ValueError: masks are to be judged and a prediction has none.
        """
        found, scores, wanted = (
            [np.empty((0, 4), np.int64)],
            [torch.empty(0)],
            [np.empty((0, 3), np.int64)],
        )
        for prediction, truth in zip(predictions, truths, strict=True):
            if self.kind == "mask" and len(truth.masks) < len(truth.labels):
                continue
            hits = self._hits(prediction, truth)
            image = np.full(len(hits), prediction.image_id)
            found.append(
                np.stack([image, np.arange(len(hits)), prediction.labels.cpu().numpy(), hits], 1)
            )
            scores.append(prediction.scores.detach().float().cpu())
            classes, counts = np.unique(
                truth.labels[~truth.crowd].cpu().numpy(), return_counts=True
            )
            wanted.append(
                np.stack([np.full_like(classes, prediction.image_id), classes, counts], 1)
            )
        self.found.append(torch.from_numpy(np.concatenate(found)).to(self.device))
        self.scores.append(torch.cat(scores).to(self.device))
        self.wanted.append(torch.from_numpy(np.concatenate(wanted)).to(self.device))

    def compute(self) -> dict[str, Tensor]:
        """Average precision of all images so far."""
        found, wanted = array(self.found).reshape(-1, 4), array(self.wanted).reshape(-1, 3)
        once = first_of_each(found[:, :2])
        labels, hits, scores = found[once, 2], found[once, 3], array(self.scores)[once]
        wanted = wanted[first_of_each(wanted[:, :2])]
        classes = (
            self.num_classes or int(max(labels.max(initial=0), wanted[:, 1].max(initial=0))) + 1
        )
        totals = np.bincount(wanted[:, 1], wanted[:, 2], classes)
        order = np.argsort(-scores, kind="stable")
        labels, hits = labels[order], hits[order]
        each = [
            voc_average_precision(hits[(labels == c) & (hits >= 0)], totals[c], self.points)
            for c in range(classes)
        ]
        name = f"{'box_' if self.kind == 'box' else ''}VOC{'07' if self.points == '11' else ''}_AP{round(100 * self.iou)}"
        return {name: mean(each), f"per_class/{name}": torch.tensor(each)}

    def _hits(self, prediction: Prediction, truth: Truth) -> Array:
        """1 hit, 0 miss, -1 ignored for each detection of an image."""
        masks = self.kind == "mask"
        if masks and len(prediction.masks) < len(prediction.labels):
            raise ValueError(
                f"image {prediction.image_id} has boxes without masks; judge it with VOCAP(kind='box')"
            )
        iou = (
            mask_iou(prediction.masks, truth.masks)
            if masks
            else box_iou(prediction.boxes, truth.boxes)
        )
        labels, wanted = prediction.labels.cpu().numpy(), truth.labels.cpu().numpy()
        iou = np.where(labels[:, None] == wanted, iou, -1.0)
        hits = np.zeros(len(labels), np.int64)
        if not iou.size:
            return hits
        order = np.argsort(-prediction.scores.detach().cpu().numpy(), kind="stable")
        best = iou[order].argmax(1)
        near = np.flatnonzero(iou[order].max(1) >= self.iou)
        _, first = np.unique(best[near], return_index=True)
        hits[order[near[first]]] = 1
        crowd = truth.crowd.cpu().numpy()
        hits[order[near[crowd[best[near]]]]] = -1
        return hits


class CorLoc(Metric):
    """Correct localisation (Deselaers et al., IJCV 2012): is the best detection of a class an instance of it, at box IoU 0.5?

    `compute()` gives `CorLoc`, the mean over classes of the share of the images with the class; `CorLoc_images`, the share of
    all pairs of image and class; and (C,) `per_class/CorLoc`. An image without a detection of its class counts as wrong.

    Args:
        num_classes: how many classes there are; the highest class seen when None.
    """

    full_state_update = False
    pairs: list[Tensor]

    def __init__(self, num_classes: int | None = None) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.add_state("pairs", [], dist_reduce_fx="cat")

    def update(self, predictions: list[Prediction], truths: list[Truth]) -> None:
        """Add images, one truth per prediction."""
        rows = [
            (p.image_id, c, _localised(p, t, c))
            for p, t in zip(predictions, truths, strict=True)
            for c in _classes(t)
        ]
        self.pairs.append(torch.tensor(rows, dtype=torch.long, device=self.device).reshape(-1, 3))

    def compute(self) -> dict[str, Tensor]:
        """Correct localisation over all images so far."""
        pairs = array(self.pairs).reshape(-1, 3).astype(np.int64)
        _, label, hit = pairs[first_of_each(pairs[:, :2])].T
        each = _class_means(label, hit, self.num_classes)
        return {
            "CorLoc": mean(each),
            "CorLoc_images": mean(hit),
            "per_class/CorLoc": torch.from_numpy(each),
        }


class MaskIoU(Metric):
    """Mask quality given the boxes (BoxCaseg, section 4): prediction i of an image is of instance i of its truth.

    `compute()` gives `mIoU` (mIoU*: the mean over classes of the mean IoU of their instances), `IoU50` and `IoU75` (the share
    of instances with at least that IoU), and (C,) `per_class/mIoU`. Crowds are left out, and images whose truth has no masks.

    Args:
        num_classes: how many classes there are; the highest class seen when None.
    """

    full_state_update = False
    instances: list[Tensor]
    iou: list[Tensor]

    def __init__(self, num_classes: int | None = None) -> None:
        super().__init__()
        self.num_classes = num_classes
        for state in ("instances", "iou"):
            self.add_state(state, [], dist_reduce_fx="cat")

    def update(self, predictions: list[Prediction], truths: list[Truth]) -> None:
        """Add images.

        Raises:
            ValueError: an image has not as many predictions as instances.
        """
        keys, ious = [torch.empty(0, 3, dtype=torch.long)], [torch.empty(0)]
        for prediction, truth in zip(predictions, truths, strict=True):
            if len(truth.masks) < len(truth.labels):
                continue  # boxes alone: there is nothing to judge masks by
            if len(prediction.masks) != len(truth.masks):
                found, wanted = len(prediction.masks), len(truth.masks)
                raise ValueError(
                    f"image {prediction.image_id}: {found} masks for {wanted} instances; MaskIoU needs one for each"
                )
            kept = (~truth.crowd).nonzero().squeeze(1).cpu()
            image = torch.full_like(kept, prediction.image_id)
            keys.append(torch.stack([image, kept, truth.labels.cpu()[kept]], 1))
            ious.append(
                torch.from_numpy(np.diag(mask_iou(prediction.masks, truth.masks)).copy()).float()[
                    kept
                ]
            )
        self.instances.append(torch.cat(keys).to(self.device))
        self.iou.append(torch.cat(ious).to(self.device))

    def compute(self) -> dict[str, Tensor]:
        """Mask IoU over all instances so far."""
        instances = array(self.instances).reshape(-1, 3).astype(np.int64)
        once = first_of_each(instances[:, :2])
        label, iou = instances[once, 2], array(self.iou)[once].astype(np.float64)
        each = _class_means(label, iou, self.num_classes)
        shares = {f"IoU{round(100 * least)}": mean(iou >= least) for least in (0.5, 0.75)}
        return {"mIoU": mean(each), **shares, "per_class/mIoU": torch.from_numpy(each)}


def voc_average_precision(hits: Array, total: float, points: Literal["all", "11"] = "all") -> float:
    """Average precision of detections in order of score.

    Args:
        hits: (N,) 1 or 0, best score first.
        total: how many truths there are; with none the result is nan.
        points: area under the precision envelope, or its mean at recalls 0, .1, ..., 1.
    """
    if not total:
        return float("nan")
    right = np.cumsum(hits)
    recall, precision = right / total, right / np.arange(1, len(hits) + 1)
    envelope = np.append(
        np.maximum.accumulate(precision[::-1])[::-1], 0.0
    )  # the last: recall that is never reached
    if points == "11":
        tenths = np.arange(11) / 10
        return float(envelope[np.searchsorted(recall, tenths - 1e-12)].mean())
    return float((np.diff(recall, prepend=0.0) * envelope[:-1]).sum())


SIDES = ("predicted", "true")


def _record(prediction: Prediction, truth: Truth) -> dict[str, Any]:
    predicted = {"scores": prediction.scores.tolist(), **_columns(prediction)}
    true = {"crowd": truth.crowd.tolist(), **_columns(truth)}
    return {
        "image_id": prediction.image_id,
        "size": list(prediction.size),
        "predicted": predicted,
        "true": true,
    }


def _masked(columns: dict[str, Any]) -> bool:
    return len(columns["masks"]) == len(columns["boxes"])


def _columns(side: Prediction | Truth) -> dict[str, Any]:
    return {
        "labels": side.labels.tolist(),
        "boxes": side.boxes.tolist(),
        "masks": [packed(mask) for mask in side.masks],
    }


def _localised(prediction: Prediction, truth: Truth, label: int) -> bool:
    of_class = (prediction.labels == label).nonzero().squeeze(1)
    if not len(of_class):
        return False
    best = of_class[prediction.scores[of_class].argmax()]
    return bool(
        (
            box_iou(prediction.boxes[best : best + 1], truth.boxes[truth.labels == label]) >= 0.5
        ).any()
    )


def _classes(truth: Truth) -> list[int]:
    return sorted(set(truth.labels.tolist()))


def _class_means(label: Array, value: Array, classes: int | None) -> Array:
    """Mean value of each class (C,), nan for a class that does not occur."""
    classes = classes or int(label.max(initial=0)) + 1
    counts = np.bincount(label, minlength=classes)
    means = np.full(classes, np.nan)
    np.divide(np.bincount(label, value, classes), counts, out=means, where=counts > 0)
    return means
