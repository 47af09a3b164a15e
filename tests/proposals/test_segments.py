from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from wsis.proposals.grouping import Graph, group, neighbours
from wsis.proposals.segments import propose


def scene(height=96, width=120, seed=0):
    """Two discs and a bar on a noisy ground, and their masks."""
    rng = np.random.default_rng(seed)
    ys, xs = np.mgrid[:height, :width]
    masks = [
        (ys - 30) ** 2 + (xs - 30) ** 2 < 15**2,
        (ys - 60) ** 2 + (xs - 85) ** 2 < 20**2,
        (abs(ys - 80) < 5) & (abs(xs - 25) < 20),
    ]
    image = np.full((height, width, 3), (90, 140, 70), np.int64)
    for mask, colour in zip(masks, [(200, 60, 50), (60, 60, 200), (240, 220, 60)], strict=True):
        image[mask] = colour
    return np.clip(image + rng.normal(0, 6, image.shape), 0, 255).astype(np.uint8), masks


def test_every_object_of_a_scene_is_among_the_first_proposals():
    image, masks = scene()
    proposals = propose(image)
    for mask in masks:
        found = proposals.members[:20][:, proposals.labels.long()].numpy()
        overlap = (found & mask).sum((1, 2)) / (found | mask).sum((1, 2))
        assert overlap.max() > 0.8


def test_boxes_are_those_of_the_masks_and_no_mask_comes_twice():
    proposals = propose(scene(80, 100)[0])
    masks = proposals.members[:, proposals.labels.long()].numpy()
    for mask, box in zip(masks, proposals.boxes.tolist(), strict=True):
        ys, xs = np.nonzero(mask)
        assert box == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
    assert len(np.unique(masks.reshape(len(masks), -1), axis=0)) == len(masks)


def test_shapes_types_order_and_limit():
    image = scene()[0]
    proposals = propose(image, limit=7)
    assert proposals.boxes.shape == (7, 4)
    assert str(proposals.boxes.dtype) == str(proposals.scores.dtype) == "torch.float32"
    assert str(proposals.labels.dtype) == "torch.int32"
    assert proposals.labels.shape == image.shape[:2]
    assert str(proposals.members.dtype) == "torch.bool"
    assert proposals.members.shape[1] == proposals.labels.max() + 1
    assert torch.equal(proposals.boxes, propose(image).boxes[:7])
    assert 0 <= proposals.scores.min() <= proposals.scores.max() <= 1


def test_the_same_image_gives_the_same_proposals():
    image = scene()[0]
    for first, second in zip(propose(image), propose(image), strict=True):
        assert first.equal(second)


def test_no_more_superpixels_than_asked_for():
    noise = np.random.default_rng(0).integers(0, 256, (120, 120, 3), np.uint8)
    assert propose(noise, superpixels=1000).members.shape[1] > 20
    assert propose(noise, superpixels=20).members.shape[1] == 20


def test_a_large_image_is_worked_on_small_and_given_back_large():
    small = scene()[0]
    expected, found = propose(small), propose(small.repeat(2, 0).repeat(2, 1), work_side=120)
    assert found.labels.equal(expected.labels.repeat_interleave(2, 0).repeat_interleave(2, 1))
    assert found.boxes.equal(2 * expected.boxes)
    assert found.members.equal(expected.members)


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (3, 2), (40, 40)])
def test_tiny_and_flat_images_have_no_proposals_or_valid_ones(shape):
    proposals = propose(np.full((*shape, 3), 77, np.uint8))
    assert proposals.labels.shape == shape
    assert (
        len(proposals.boxes) == len(proposals.scores) == len(proposals.members) == 0
    )  # one superpixel: the whole image


def test_size_limits():
    image = scene()[0]
    proposals = propose(image, min_size=0.01, max_size=0.2)
    share = proposals.members[:, proposals.labels.long()].float().mean((1, 2))
    assert len(share) > 3
    assert 0.01 <= share.min() <= share.max() <= 0.2


def test_neighbours_against_brute_force():
    labels = np.random.default_rng(1).integers(0, 9, (7, 8)).astype(np.int32)
    labels.flat[:9] = np.arange(9)
    pairs = set()
    for y, x in itertools.product(range(7), range(8)):
        for dy, dx in ((0, 1), (1, 0)):
            if y + dy < 7 and x + dx < 8 and labels[y, x] != labels[y + dy, x + dx]:
                pairs.add(tuple(sorted((labels[y, x], labels[y + dy, x + dx]))))
    assert [tuple(pair) for pair in neighbours(labels)] == sorted(pairs)


def naive_grouping(edges, sizes, boxes, area, looks, size_weight, fill_weight, starts):
    """One grouping by the book: all pairs of touching sets, the most similar first."""
    regions = {frozenset([i]): (sizes[i], boxes[i], looks[i]) for i in range(len(sizes))}

    def similarity(a, b):
        (n1, b1, h1), (n2, b2, h2) = regions[a], regions[b]
        extent = (max(b1[2], b2[2]) - min(b1[0], b2[0])) * (max(b1[3], b2[3]) - min(b1[1], b2[1]))
        first = 1000 * (starts[min(a)] == starts[min(b)])
        look = np.minimum(h1, h2).sum()
        return (
            first + look - size_weight * (n1 + n2) / area - fill_weight * (extent - n1 - n2) / area
        )

    made = []
    while len(regions) > 1:
        pairs = [
            (a, b)
            for a, b in itertools.combinations(regions, 2)
            if any((i in a and j in b) or (i in b and j in a) for i, j in edges)
        ]
        a, b = max(pairs, key=lambda pair: similarity(*pair))
        (n1, b1, h1), (n2, b2, h2) = regions.pop(a), regions.pop(b)
        box = (min(b1[0], b2[0]), min(b1[1], b2[1]), max(b1[2], b2[2]), max(b1[3], b2[3]))
        regions[a | b] = (n1 + n2, box, (h1 * n1 + h2 * n2) / (n1 + n2))
        made.append((a | b, n1 + n2, box))
    return made


def test_groupings_against_one_by_one_by_the_book():
    rng = np.random.default_rng(3)
    count, groupings = 24, 3
    labels = np.repeat(np.repeat(np.arange(count).reshape(4, 6), 3, 0), 4, 1).astype(np.int32)
    boxes = np.array(
        [(x * 4, y * 3, x * 4 + 4, y * 3 + 3) for y in range(4) for x in range(6)], np.float32
    )
    graph = Graph(neighbours(labels), np.full(count, 12, np.float32), boxes, float(labels.size))
    looks = rng.random((groupings, count, 10)).astype(np.float32)
    sizes, fills = np.array([0, 1, 2], np.float32), np.array([0.5, 0, 1], np.float32)
    starts = np.stack([np.arange(count), np.arange(count) // 6, np.arange(count) % 3])
    merges = group(graph, looks, sizes, fills, starts)
    sets = np.unpackbits(merges.members, axis=2, count=count).astype(bool)
    for m in range(groupings):
        expected = naive_grouping(
            graph.edges, graph.sizes, boxes, graph.area, looks[m], sizes[m], fills[m], starts[m]
        )
        assert [frozenset(np.flatnonzero(row)) for row in sets[:, m]] == [
            region for region, _, _ in expected
        ]
        assert merges.sizes[:, m].tolist() == [n for _, n, _ in expected]
        assert merges.boxes[:, m].tolist() == [list(box) for _, _, box in expected]
        for t, (region, _, _) in enumerate(expected):
            later = [u for u in range(t + 1, count - 1) if region < expected[u][0]]
            assert merges.death[t, m] == (later[0] if later else count - 1)


def test_equal_names_mean_equal_sets():
    image = scene()[0]
    labels = propose(image).labels.numpy()
    count = int(labels.max()) + 1
    sizes = np.bincount(labels.ravel()).astype(np.float32)
    graph = Graph(
        neighbours(labels), sizes, np.tile(np.float32([0, 0, 1, 1]), (count, 1)), float(labels.size)
    )
    looks = np.random.default_rng(0).random((4, count, 5)).astype(np.float32)
    ones = np.ones(4, np.float32)
    merges = group(graph, looks, ones, ones, np.tile(np.arange(count), (4, 1)))
    sets = merges.members.reshape(merges.names.size, -1)
    _, by_name = np.unique(merges.names.ravel(), return_inverse=True)
    _, by_set = np.unique(sets, axis=0, return_inverse=True)
    assert (
        len(np.unique(np.stack([by_name.ravel(), by_set.ravel()], 1), axis=0))
        == by_set.max() + 1
        == by_name.max() + 1
    )
