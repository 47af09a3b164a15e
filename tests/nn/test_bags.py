"""Bags of proposals around points, against what loops over pixels find."""

from __future__ import annotations

import math

import numpy as np
import torch
from pointed import SIZE, label, random_proposals, stripes

from wsis.nn.bags import bags_of, nearest, points_inside
from wsis.types import Proposals

NONE = (math.nan, math.nan)


def test_points_are_counted_as_pixels_of_masks_are():
    proposals = random_proposals(0)
    g = torch.Generator().manual_seed(1)
    points = torch.rand(5, 3, 2, generator=g) * torch.tensor([SIZE[1], SIZE[0]])
    counted = torch.rand(5, 3, generator=g) > 0.3
    points[0, 2], counted[0, 2] = math.nan, False
    found = points_inside(proposals, points, counted)
    for m, p in np.ndindex(5, 12):
        expected = 0
        for (x, y), counts in zip(points[m].tolist(), counted[m].tolist(), strict=True):
            if counts:
                superpixel = int(proposals.labels[int(y), int(x)])
                expected += superpixel >= 0 and bool(proposals.members[p, superpixel])
        assert found[m, p] == expected


def test_a_bag_holds_the_points_of_one_object():
    proposals = stripes((0,), (0, 1), (0, 1, 2), (2,), (2, 3), (4,))
    bags = bags_of(proposals, label([[[2.0, 5]], [[12.0, 5]]], [0, 2]))
    assert bags.members.int().tolist() == [[1, 1, 0, 0, 0, 0], [0, 0, 0, 1, 1, 0]]
    assert bags.labels.tolist() == [0, 2]
    assert bags.objects.tolist() == [1, 1, 2, 1, 1, 0]
    assert bags.negatives.int().T.tolist() == [
        [0, 0, 0, 1, 1, 1],
        [1, 1, 1, 1, 1, 1],
        [1, 1, 0, 0, 0, 1],
    ]
    assert bags.complete


def test_all_points_of_an_object_are_wanted_and_none_outside_of_it():
    proposals = stripes((0,), (0, 1), (0, 1, 2), (1,))
    both = label([[[2.0, 5], [7.0, 5], [12.0, 5]]], [0], kinds=[[1, 1, 0]])
    assert bags_of(proposals, both).members.int().tolist() == [[0, 1, 0, 0]]


def test_objects_share_a_segment_if_there_is_no_other():
    proposals = stripes((0, 1, 2), (3,))
    bags = bags_of(proposals, label([[[2.0, 5]], [[12.0, 5]]], [0, 1]))
    assert bags.members.int().tolist() == [[1, 0], [1, 0]]


def test_a_point_in_no_segment_takes_the_nearest_boxes():
    proposals = stripes((0,), (0, 1), (5,))
    bags = bags_of(proposals, label([[[12.0, 5], NONE]], [0]))
    assert bags.members.int().tolist() == [[0, 1, 0]]
    assert bags.negatives[:, 0].tolist() == [True, False, True], "a bag holds no negatives"
    points = torch.tensor([[[12.0, 5], [40.0, 5]], [NONE, NONE]])
    counted = torch.tensor([[True, True], [False, False]])
    for m, p in np.ndindex(1, 3):
        x1, y1, x2, y2 = proposals.boxes[p].tolist()
        away = [math.hypot(max(x1 - x, x - x2, 0), max(y1 - y, y - y2, 0)) for x, y in points[m]]
        assert nearest(proposals.boxes, points, counted)[m, p] == (min(away) == 2)
    assert not nearest(proposals.boxes, points, counted)[1].any()


def test_crowds_and_objects_without_a_point_have_no_bag():
    target = label(
        [[[2.0, 5]], [[7.0, 5]], [[12.0, 5]]],
        [0, 1, 2],
        kinds=[[1], [0], [1]],
        crowd=[True, False, False],
    )
    proposals = stripes((0,), (1,), (2,), (3,))
    bags = bags_of(proposals, target)
    assert bags.labels.tolist() == [2]
    assert not bags.negatives[:, 0].any(), "more of a crowd may be anywhere"
    assert not bags.complete
    none = Proposals(torch.zeros(0, 4), torch.zeros(0), proposals.labels, proposals.members[:0])
    assert bags_of(none, target).members.shape == (0, 0)
