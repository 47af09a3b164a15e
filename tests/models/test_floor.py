"""The floor, on maps made by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pycocotools import mask as rle

from wsis.models.cam import CAM, answer, cut
from wsis.types import Proposals

SMALL = {
    "num_classes": 2,
    "backbone": {
        "name": "test_byobnet",
        "weights": "none",
        "output_stride": 32,
        "feature_level": 2,
    },
}


def test_pieces_are_cut_at_a_fraction_of_the_maximum():
    map_ = np.array([[0.0, 2, 0, 0.9], [0, 1, 0, 0.9], [0, 0.5, 0, 0]])
    pieces = cut(map_, 0.4)
    assert [(int(piece.sum()), share) for piece, share in pieces] == [(2, 1.0), (2, 0.45)]
    assert cut(-map_, 0.4) == []


def test_a_piece_is_answered_by_the_proposal_of_greatest_overlap():
    g = torch.Generator().manual_seed(0)
    labels = torch.randint(-1, 6, (12, 10), generator=g).int()
    members = torch.rand(9, 6, generator=g) > 0.5
    proposals = Proposals(
        torch.rand(9, 4, generator=g), torch.rand(9, generator=g), labels, members
    )
    masks = np.stack([row.numpy()[labels] & (labels.numpy() >= 0) for row in members])
    piece = np.zeros((12, 10), bool)
    piece[2:9, 3:8] = True
    overlap = [(mask & piece).sum() / (mask | piece).sum() for mask in masks]
    boxes, found = answer([piece], proposals, (12, 10))
    assert torch.equal(boxes[0], proposals.boxes[int(np.argmax(overlap))])
    assert np.array_equal(rle.decode(found[0]), masks[int(np.argmax(overlap))])


def test_without_proposals_a_piece_answers_for_itself_and_padding_shifts_nothing():
    model = CAM(**SMALL).eval()
    stride = model.classifier.backbone.stride
    maps = torch.full((1, 2, 64, 64), -1.0)
    maps[0, 1, 5, 60] = 1
    model.classifier.forward = lambda images: maps
    size = (64 * stride - 3, 64 * stride - 1)  # the network pads it
    none = Proposals(torch.zeros(0, 4), torch.zeros(0))
    found = model.predict(
        {"image": torch.zeros(3, *size, dtype=torch.uint8), "image_id": 7, "proposals": none}
    )
    assert found.labels.tolist() == [1]
    x1, y1, x2, y2 = found.boxes[0].tolist()
    assert ((x1 + x2) / 2, (y1 + y2) / 2) == pytest.approx((60.5 * stride, 5.5 * stride))


def test_a_scaled_image_gives_the_masks_of_the_original():
    model = CAM(**SMALL, test_side=64).eval()
    stride = model.classifier.backbone.stride
    maps = torch.full((1, 2, 64 // stride, 128 // stride), -1.0)
    maps[0, 1, :, 1] = 1  # the second cell of each row, 32 of 128 scaled pixels
    model.classifier.forward = lambda images: maps if images[0].shape[1:] == (64, 128) else None
    none = Proposals(torch.zeros(0, 4), torch.zeros(0))
    large = torch.zeros(3, 256, 512, dtype=torch.uint8)
    (mask,) = model.predict({"image": large, "image_id": 7, "proposals": none}).masks
    columns = rle.decode(mask).any(0).nonzero()[0]
    assert mask["size"] == [256, 512]
    assert (columns[0] + columns[-1] + 1) / 2 == pytest.approx(1.5 * stride * 4, abs=1)
