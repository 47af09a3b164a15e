"""Networks without training that find objects of various sizes and scores, and a comparison with what predict finds."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

import wsis
from wsis.method import Method
from wsis.nn.regions import enlarge

BACKBONE = {"name": "test_byobnet", "weights": "none", "output_stride": 32, "frozen_stages": 0}
SIZES = [(97, 131), (300, 427), (480, 640), (37, 53), (1000, 333), (3, 400), (224, 224)]
SCORE = {"mask_rcnn": 0.3, "boxinst": 0.3, "mixed": 0.3, "mask_transformer": 0.1, "cam": 0.0}
"""Lowest score of an object."""
SMALL = {"features": 32, "test_side": 200, "test_max_side": 400}
RCNN = SMALL | {"hidden": 64, "mask_width": 16, "max_proposals": 200}


def network(name: str, classes: int = 3) -> Method:
    """Random weights, scaled so that classes, boxes and masks are not all alike."""
    torch.manual_seed(0)
    model: Any
    if name == "mask_transformer":
        sizes = {"queries": 20, "blocks": 2, "heads": 2, "score_threshold": 0.01}
        model = wsis.MaskTransformer(classes, BACKBONE, **SMALL, **sizes)
        model.decoder.progress.fill_(1.0)
        _enlarge(8, model.decoder.classes.weight)
        _enlarge(40, model.decoder.queries)
    elif name == "cam":
        model = wsis.CAM(classes, BACKBONE, pooling="lse")
    else:
        model = inner = wsis.MaskRCNN(classes, BACKBONE, **RCNN)
        if name != "mask_rcnn":
            model = {"boxinst": wsis.BoxInst, "mixed": wsis.Mixed}[name](classes, BACKBONE, RCNN)
            inner = model.network
        heads, rpn = inner.roi_heads, inner.rpn.head
        _enlarge(40, heads.box_predictor.cls_score.weight)
        _enlarge(20, heads.mask_predictor.mask_fcn_logits.weight, rpn.cls_logits.weight)
        _enlarge(10, heads.box_predictor.bbox_pred.weight, rpn.bbox_pred.weight)
    return model.eval()


def _enlarge(factor: float, *weights: Tensor) -> None:
    for weight in weights:
        weight.data *= factor


def image(size: tuple[int, int]) -> Tensor:
    """Clouds of colour, (3,H,W) uint8."""
    rough = 255 * torch.rand(1, 3, 9, 9, generator=torch.Generator().manual_seed(size[0]))
    return F.interpolate(rough, size=size, mode="bilinear")[0].round().to(torch.uint8)


def check_objects(found: list[Any], model: Method, pixels: Tensor, score: float) -> int:
    """Compare with what `wsis.predict` finds; return how many objects that are."""
    wanted = wsis.predict(model, pixels).above(score)
    boxes, scores, labels, masks = map(np.asarray, found)
    assert boxes.dtype == scores.dtype == np.float32
    assert labels.dtype == np.int64
    assert masks.dtype == bool
    assert masks.shape == (len(scores), *pixels.shape[1:])
    assert len(scores) == len(wanted.scores)
    assert (scores[:-1] >= scores[1:]).all()
    # those of equal scores come in any order
    far = np.abs(boxes[:, None] - wanted.boxes.numpy()).max(2)
    unlike = np.abs(scores[:, None] - wanted.scores.numpy())
    others = labels[:, None] != wanted.labels.numpy()
    index, true = linear_sum_assignment(far + 1000 * unlike + 1e6 * others)
    assert not others[index, true].any()
    assert (far[index, true] < 0.5).all()
    assert (unlike[index, true] < 1e-3).all()
    for a, b in zip(masks[index], np.asarray(wanted.binary_masks())[true], strict=True):
        assert differ_at_edges_alone(a, b)
    return len(scores)


def differ_at_edges_alone(a: np.ndarray, b: np.ndarray) -> bool:
    """Return whether masks (H,W) differ only at edges: OpenCV 4 interpolates in steps of 1/32."""
    edges = np.zeros(a.shape, bool)
    for mask in (a.astype(np.uint8), b.astype(np.uint8)):
        edges |= cv2.morphologyEx(mask, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0
    different = a ^ b
    return not (different & ~edges).any() and different.sum() <= 0.1 * edges.sum() + 2


@torch.no_grad()
def check_maps(found: list[Any], model: Any, pixels: Tensor) -> None:
    """Compare with what CAM cuts into pieces."""
    logits = model.classifier([pixels])
    wanted = model.classifier.pooled(logits, [{"image": pixels}])[0].sigmoid()
    np.testing.assert_allclose(np.asarray(found[0]), wanted, atol=1e-4)
    maps = enlarge(logits.relu(), model.classifier.backbone.stride, pixels.shape[1:])[0]
    np.testing.assert_allclose(np.asarray(found[1]), maps, atol=1e-3 * float(maps.max()))
