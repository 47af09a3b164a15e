from __future__ import annotations

import pytest
import torch
from torch import nn
from torchvision.ops import box_iou

from wsis.losses import refinement_loss
from wsis.nn.detection import (
    Detection,
    Detector,
    MaskSamples,
    _regression_loss,
    mask_samples,
    nearest_seeds,
    refine,
)
from wsis.nn.mil import Pseudo, decode, encode, match, mine
from wsis.nn.views import Inference, average, image_views


def boxes_of(count: int, seed: int = 0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=g) * 60
    return torch.cat([corner, corner + 20 + torch.rand(count, 2, generator=g) * 40], 1)


def pseudo_of(boxes: torch.Tensor, labels: list[int]) -> Pseudo:
    count = len(boxes)
    scores = torch.linspace(0.2, 0.9, count)
    return Pseudo(
        boxes, torch.tensor(labels), scores, torch.full((count,), 0.5), torch.arange(count)
    )


def test_foreground_holds_what_was_matched_and_no_more_than_asked():
    proposals, pseudo = boxes_of(200), pseudo_of(boxes_of(3, 1), [5, 0, 2])
    matched = match(proposals, pseudo, 8)
    found = mask_samples(proposals, pseudo, matched, 10_000, 1)
    assert sorted(found.proposals.tolist()) == matched.foreground.nonzero().flatten().tolist()
    assert torch.equal(found.boxes, proposals[found.proposals])
    assert torch.equal(found.labels, pseudo.labels[found.pseudo])
    assert torch.equal(found.scores, pseudo.scores[found.pseudo])
    assert torch.allclose(
        found.overlap, box_iou(found.boxes, pseudo.boxes).gather(1, found.pseudo[:, None])[:, 0]
    )
    few = mask_samples(proposals, pseudo, matched, 5, 1)
    assert len(few.boxes) == 5 == len(set(few.proposals.tolist()))


@pytest.mark.parametrize("seeds", [1, 3, 50])
def test_seeds_are_chosen_among_all_matched_and_kept(seeds):
    """Against a search over all proposals, however few of the others are drawn."""
    torch.manual_seed(0)
    proposals, pseudo = boxes_of(300), pseudo_of(boxes_of(3, 1), [5, 0, 2])
    matched, overlap = match(proposals, pseudo, 8), box_iou(proposals, pseudo.boxes)
    best, nearest = overlap.argmax(1).tolist(), set()
    for g in range(3):
        mine = [p for p in range(300) if best[p] == g and overlap[p, g] >= 0.5]
        nearest |= set(sorted(mine, key=lambda p: -overlap[p, g])[:seeds])
    drawn = [mask_samples(proposals, pseudo, matched, 12, seeds) for _ in range(20)]
    for found in drawn:
        chosen = set(found.proposals.tolist())
        assert len(chosen) == len(found.boxes) == max(12, len(nearest))
        assert nearest <= chosen
        assert {found.proposals[k].item() for k in nearest_seeds(found, seeds)} == nearest
    others = set().union(*(set(found.proposals.tolist()) - nearest for found in drawn))
    expected = set(matched.foreground.nonzero().flatten().tolist()) - nearest
    assert others <= expected
    assert (len(others) > 20) == (len(nearest) < 12), "20 draws at random"


@pytest.mark.parametrize("heads", [0, 2])
def test_activations_are_the_gradient_times_the_features(heads):
    """Of a linear detector: its weights."""
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Flatten(), nn.Dropout(0.9))
    detector = Detector(trunk, 3 * 4, 5, heads, False).train()
    pooled, objectness, labels = torch.randn(6, 3, 2, 2), torch.rand(6), torch.arange(6) % 5
    last = detector.refinements[-1].logits if heads else detector.mil.classification
    with torch.no_grad():
        found = detector.activations(pooled, objectness, labels)
    for k in range(6):
        weight = last.weight[labels[k]].view(3, 2, 2).detach() * (objectness[k] + 1)
        heat = (weight * pooled[k]).sum(0).clamp(min=0)
        torch.testing.assert_close(found[k], heat / heat.max().clamp(min=1e-12))
    assert trunk.training
    assert all(parameter.grad is None for parameter in detector.parameters())


def test_seeds_are_each_pseudo_labels_nearest_foreground():
    torch.manual_seed(0)
    which, overlap = torch.tensor([0, 2, 0, 2, 0, 2, 2]), torch.rand(7)
    found = MaskSamples(boxes_of(7), torch.arange(7), which, overlap, which, overlap)
    expected = set()
    for g in (0, 2):
        members = [k for k in range(7) if which[k] == g]
        expected |= set(sorted(members, key=lambda k: -overlap[k])[:3])
    assert set(nearest_seeds(found, 3).tolist()) == expected
    assert set(nearest_seeds(found, 100).tolist()) == set(range(7))
    assert nearest_seeds(MaskSamples(*(part[:0] for part in found)), 3).tolist() == []


def test_regression_loss_is_zero_where_the_deltas_arrive():
    proposals, pseudo = boxes_of(50), pseudo_of(boxes_of(2, 1), [1, 3])
    matched = match(proposals, pseudo, 5)
    deltas = torch.zeros(50, 5, 4, requires_grad=True)
    loss = _regression_loss(deltas, proposals, pseudo, matched)
    assert loss > 0
    (gradient,) = torch.autograd.grad(loss, deltas)
    moved = gradient.abs().sum(-1).nonzero().tolist()
    assert sorted(moved) == sorted(
        [p, int(matched.labels[p])] for p in matched.foreground.nonzero().flatten().tolist()
    )
    goal = pseudo.boxes[matched.pseudo]
    with torch.no_grad():
        exact = encode(goal, proposals)[:, None].expand(-1, 5, -1)
        assert torch.allclose(decode(exact, proposals, (500, 500))[:, 0], goal, atol=1e-3)
        assert _regression_loss(exact, proposals, pseudo, matched) == 0


def test_a_mirrored_view_says_the_same():
    proposals, deltas, logits = boxes_of(40), torch.randn(40, 5, 4) * 0.5, torch.randn(40, 6)
    mirrored = deltas * torch.tensor([-1, 1, 1, 1])
    heads = [Detection(torch.rand(40, 5), [logits], [seen]) for seen in (deltas, mirrored)]
    image = torch.zeros(3, 120, 150, dtype=torch.uint8)
    views = list(image_views(image, Inference(short_sides=(), flip=True)))
    scores, boxes = average(heads, views, proposals, (120, 150))
    torch.testing.assert_close(scores, logits.softmax(1)[:, :-1])
    torch.testing.assert_close(boxes, decode(deltas, proposals, (120, 150)))


def test_each_head_learns_from_the_one_before():
    proposals, tags, mil = boxes_of(40), torch.tensor([1.0, 0, 1, 0, 0]), torch.rand(40, 5) / 40
    logits, deltas = (
        [torch.randn(40, 6) for _ in range(2)],
        [torch.randn(40, 5, 4) * 0.2 for _ in range(2)],
    )
    learnt = refine(Detection(mil, logits, deltas), tags, proposals, (120, 150))
    moved = [decode(d, proposals, (120, 150)) for d in deltas]
    given = [
        (mil, proposals),
        *((logit.softmax(1), boxes) for logit, boxes in zip(logits, moved, strict=True)),
    ]
    found = [mine(scores, tags, mil.sum(0), boxes) for scores, boxes in given]
    matched = [match(proposals, pseudo, 5) for pseudo in found]
    expected = sum(
        refinement_loss(logit, m.labels, m.weights)
        for logit, m in zip(logits, matched[:2], strict=True)
    )
    torch.testing.assert_close(learnt.refinement, expected)
    assert torch.equal(learnt.pseudo.boxes, found[-1].boxes)
    assert torch.equal(learnt.matched.labels, matched[-1].labels)
