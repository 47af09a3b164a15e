"""Matching against brute force and other libraries, points against scipy and a map of known values."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import map_coordinates
from torch import Tensor

from wsis.nn.matching import costs, match, random_points, sample, uncertain_points


def draw(queries: int, objects: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits of 4 classes and "no object", mask logits at 30 points, labels, true masks."""
    g = torch.Generator().manual_seed(seed)
    classes, masks = (
        torch.randn(queries, 5, generator=g),
        3 * torch.randn(queries, 30, generator=g),
    )
    labels = torch.randint(0, 4, (objects,), generator=g)
    return classes, masks, labels, (torch.rand(objects, 30, generator=g) > 0.6).float()


def test_costs_against_loops():
    classes, masks, labels, truth = draw(4, 3)
    found = costs(classes, masks, labels, truth)
    for q, m in itertools.product(range(4), range(3)):
        cross_entropy = F.binary_cross_entropy_with_logits(masks[q], truth[m])
        p = masks[q].sigmoid()
        dice = 1 - (2 * (p * truth[m]).sum() + 1) / (p.sum() + truth[m].sum() + 1)
        expected = -2 * classes[q].softmax(0)[labels[m]] + 5 * cross_entropy + 5 * dice
        torch.testing.assert_close(found[q, m], expected)


@pytest.mark.parametrize(("queries", "objects"), [(6, 6), (6, 3), (3, 5), (4, 1)])
@pytest.mark.parametrize("seed", range(5))
def test_match_against_every_assignment(queries, objects, seed):
    given = draw(queries, objects, seed)
    matrix = costs(*given)
    found = match(*given)
    if queries >= objects:
        ways = [
            (list(way), list(range(objects)))
            for way in itertools.permutations(range(queries), objects)
        ]
    else:
        ways = [
            (list(range(queries)), list(way))
            for way in itertools.permutations(range(objects), queries)
        ]
    least = min(float(matrix[q, m].sum()) for q, m in ways)
    assert float(matrix[found].sum()) == pytest.approx(least, rel=1e-5)
    assert len({*found[0].tolist()}) == len({*found[1].tolist()}) == min(queries, objects)


def test_the_order_of_queries_and_objects_is_of_no_matter():
    classes, masks, labels, truth = draw(7, 4)
    pairs = torch.stack(match(classes, masks, labels, truth)).T.tolist()
    new, other = torch.randperm(7), torch.randperm(4)
    found = match(classes[new], masks[new], labels[other], truth[other])
    assert sorted([int(new[q]), int(other[m])] for q, m in torch.stack(found).T) == pairs


def test_no_object_and_no_number_pass():
    classes, masks, labels, truth = draw(3, 2)
    assert [len(side) for side in match(classes, masks, labels[:0], truth[:0])] == [0, 0]
    masks[0] = float("nan")
    queries, _ = match(classes, masks, labels, truth)
    assert sorted(queries.tolist()) == [1, 2]


def test_costs_are_those_of_other_libraries():
    """Of `transformers`, and of the package attr-eomt, which sample all masks at given points, too."""
    _, masks, _, truth = draw(5, 3)
    classes, labels = torch.zeros(5, 5), torch.zeros(3, dtype=torch.int64)
    ours = costs(classes, masks, labels, truth) + 2 / 5
    compared = 0
    for name in ("transformers.models.eomt.modeling_eomt", "eomt.loss"):
        try:
            theirs = pytest.importorskip(name)
        except pytest.skip.Exception:
            continue
        pairs = theirs.pair_wise_sigmoid_cross_entropy_loss, theirs.pair_wise_dice_loss
        torch.testing.assert_close(ours, 5 * sum(pair(masks, truth) for pair in pairs))
        compared += 1
    if not compared:
        pytest.skip("neither transformers nor attr-eomt is installed")


def test_matches_are_those_of_attr_eomt():
    theirs = pytest.importorskip("eomt.loss").HungarianMatcher(2.0, 5.0, 5.0)
    for seed in range(4):
        classes, masks, labels, truth = draw(6, 4, seed)
        grids = masks.view(1, 6, 5, 6), classes[None], [truth.view(4, 5, 6)], [labels]
        ((queries, objects),) = theirs(*grids)
        found = match(classes, masks, labels, truth)
        assert torch.equal(found[0], queries)
        assert torch.equal(found[1], objects)


def test_samples_of_a_plane_are_its_values():
    """A cell's value is that of its centre, half a cell from its edge."""
    y, x = torch.meshgrid(torch.arange(6) + 0.5, torch.arange(9) + 0.5, indexing="ij")
    planes = torch.stack([2 * x + 3 * y, -x])
    points = torch.rand(2, 40, 2) * torch.tensor([8.0, 5.0]) + 0.5
    expected = torch.stack([points[0] @ torch.tensor([2.0, 3.0]), -points[1, :, 0]])
    torch.testing.assert_close(sample(planes, points), expected, atol=1e-4, rtol=1e-5)
    shared = sample(planes, points[0])
    torch.testing.assert_close(shared[0], expected[0], atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(shared[1], -points[0, :, 0], atol=1e-4, rtol=1e-5)


def test_samples_against_scipy_also_beyond_the_outermost_centres():
    maps, points = torch.randn(2, 4, 7), torch.rand(2, 50, 2) * torch.tensor([9.0, 6.0]) - 1
    found = sample(maps, points)
    for values, at, of_map in zip(maps, points, found, strict=True):
        where = (at.flip(1).T - 0.5).numpy()
        expected = map_coordinates(values.numpy(), where, order=1, mode="nearest")
        np.testing.assert_allclose(of_map.numpy(), expected, atol=1e-5)


def test_samples_of_no_map():
    none = torch.zeros(0, 4, 4, requires_grad=True)
    assert sample(none, torch.rand(0, 5, 2)).shape == (0, 5)
    assert sample(none, torch.rand(5, 2)).shape == (0, 5)


def test_three_of_four_points_are_where_a_mask_is_uncertain():
    torch.manual_seed(0)
    ramp = (torch.arange(32) - 15.5).expand(2, 32, 32)
    size = torch.tensor([32.0, 20.0])
    points = uncertain_points(ramp, 400, size)
    assert points.shape == (2, 400, 2)
    assert (points >= 0).all()
    assert (points < size).all()
    distance = (points[..., 0] - 16).abs()
    # of 1200 points the 300 that lie nearest to the edge have it within an eighth of the width
    assert distance[:, :300].max() < 5
    assert distance[:, 300:].max() > 12
    assert uncertain_points(ramp[:0], 8, size).shape == (0, 8, 2)


def test_points_fill_the_part_that_is_asked_for():
    points = random_points(2000, torch.tensor([4.0, 10.0]))
    torch.testing.assert_close(points.mean(0), torch.tensor([2.0, 5.0]), atol=0.3, rtol=0)
    assert (points.amax(0) > torch.tensor([3.9, 9.8])).all()
