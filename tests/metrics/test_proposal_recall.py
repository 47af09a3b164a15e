from __future__ import annotations

import numpy as np
import pytest
import torch
from pycocotools import mask as rle

from wsis.metrics.proposals import ProposalRecall, mask_overlaps
from wsis.types import GroundTruth, Proposals


def scene(seed, proposals=30, superpixels=12, objects=4, size=(24, 32)):
    """Random superpixels, proposals in random order, and objects as random boxes of pixels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(-1, superpixels, (4, 8)).repeat(6, 0).repeat(4, 1).astype(np.int32)
    members = rng.random((proposals, superpixels)) < 0.3
    corners = np.sort(rng.integers(0, 24, (proposals + objects, 2, 2)), 1).reshape(
        -1, 4
    ) + np.array([0, 0, 1, 1])
    masks = np.zeros((objects, *size), np.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, corners[proposals:], strict=True):
        mask[y1:y2, x1:x2] = 1
    found = Proposals(
        torch.tensor(corners[:proposals], dtype=torch.float32),
        torch.linspace(1, 0, proposals),
        torch.from_numpy(labels),
        torch.from_numpy(members),
    )
    coded = [rle.encode(np.asfortranarray(mask)) for mask in masks]
    crowd = torch.tensor([True] + [False] * (objects - 1))
    truth = GroundTruth(
        torch.tensor(corners[proposals:], dtype=torch.float32),
        torch.zeros(objects).long(),
        coded,
        crowd,
    )
    return found, truth, masks


def drawn_overlaps(found, masks):
    """IoU (M,P) by drawing every mask."""
    shapes = np.stack(
        [np.isin(found.labels.numpy(), np.flatnonzero(row)) for row in found.members.numpy()]
    )
    shared = (shapes[None] & (masks[:, None] > 0)).sum((2, 3))
    return shared / np.maximum((shapes[None] | (masks[:, None] > 0)).sum((2, 3)), 1)


def box_overlaps(found, truth):
    result = np.zeros((len(truth.boxes), len(found.boxes)))
    for i, a in enumerate(truth.boxes.tolist()):
        for j, b in enumerate(found.boxes.tolist()):
            wide, high = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
            shared = max(wide, 0) * max(high, 0)
            result[i, j] = shared / (
                (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
            )
    return result


def test_mask_overlaps_against_drawn_masks():
    found, truth, masks = scene(0)
    assert mask_overlaps(found, truth.masks) == pytest.approx(drawn_overlaps(found, masks))


def test_figures_against_brute_force():
    scenes = [scene(seed) for seed in range(8)]
    metric = ProposalRecall((5, 20), (0.3, 0.5))
    for found, truth, _ in scenes:
        metric.update([found], [truth])
    figures = metric.compute()
    for name, overlaps in (
        ("mask", [drawn_overlaps(found, masks)[1:] for found, _, masks in scenes]),
        ("box", [box_overlaps(found, truth)[1:] for found, truth, _ in scenes]),
    ):
        for count in (5, 20):
            best = np.concatenate([o[:, :count].max(1) for o in overlaps])
            assert figures[f"{name}_abo/{count}"].item() == pytest.approx(best.mean(), abs=1e-6)
            for threshold in (0.3, 0.5):
                expected = (best >= threshold).mean()
                assert figures[f"{name}_recall@{threshold}/{count}"].item() == pytest.approx(
                    expected, abs=1e-6
                )
    assert 0 < figures["mask_recall@0.3/20"] < 1


def test_an_image_without_proposals_counts_as_missed():
    found, truth, _ = scene(1)
    nothing = Proposals(torch.zeros(0, 4), torch.zeros(0), found.labels, found.members[:0])
    metric = ProposalRecall((10,), (0.5,))
    metric.update([nothing], [truth])
    assert metric.compute()["box_abo/10"] == metric.compute()["mask_abo/10"] == 0


def test_without_segments_or_objects_a_figure_is_missing():
    found, truth, _ = scene(1)
    metric = ProposalRecall((10,), (0.5,))
    metric.update([Proposals(found.boxes, found.scores)], [truth])
    assert metric.compute()["box_abo/10"] > 0
    assert metric.compute()["mask_abo/10"].isnan()
    metric.reset()
    assert metric.compute()["box_abo/10"].isnan()


def test_an_image_that_comes_twice_counts_once():
    (first, truth, _), (second, other, _) = scene(2), scene(3)
    once, twice = ProposalRecall((10,)), ProposalRecall((10,))
    once.update([first, second], [truth, other], [7, 8])
    twice.update([first, second, first], [truth, other, truth], [7, 8, 7])
    assert once.compute() == twice.compute()
    many = ProposalRecall((10,))
    many.update([first, first], [truth, truth])
    alone = ProposalRecall((10,))
    alone.update([first], [truth])
    assert many.compute() == alone.compute()  # means of equal images
