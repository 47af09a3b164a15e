"""Point MIL: bags, seeds, targets and votes, against what loops over pixels find."""

from __future__ import annotations

import math
import shutil

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pointed import label, random_proposals, stripes
from poison import poison

from wsis.data.module import Loading
from wsis.datasets.coco import COCO
from wsis.datasets.shapes import Shapes
from wsis.models.point_mil import (
    PointMIL,
    assign,
    choose,
    masks_in,
    refine_objects,
    voted_shares,
)
from wsis.nn.bags import Bags, bags_of
from wsis.nn.detection import Detection, MaskSamples
from wsis.nn.mil import Pseudo
from wsis.types import Proposals

TINY = {
    "backbone": {"name": "test_byobnet", "weights": "none", "frozen_stages": 0},
    "widths": {"hidden": 8, "features": 8, "mask": 8},
}
NONE = (math.nan, math.nan)


def test_a_seed_is_the_best_of_its_bag():
    members = torch.tensor([[True, True, False], [False, False, True]])
    bags = Bags(members, torch.tensor([1, 0]), torch.ones(3), torch.zeros(3, 2), torch.tensor(True))
    scores = torch.tensor([[0.3, 0.2, 0.9], [0.9, 0.8, 0.1]])
    prior, boxes = torch.tensor([0.5, 1, 1]), torch.rand(3, 4)
    seeds = choose(scores, prior, torch.tensor([0.4, 0.6]), bags, boxes)
    assert seeds.proposals.tolist() == [1, 2]
    assert torch.equal(seeds.boxes, boxes[[1, 2]])
    torch.testing.assert_close(seeds.scores, torch.tensor([0.2, 0.1]))


@pytest.mark.parametrize("complete", [True, False])
def test_targets_of_proposals(complete):
    proposals = stripes((0, 1), (0, 1, 2), (1, 2), (0, 1, 2, 3), (4,), (3, 4, 5))
    target = label([[[2.0, 5]], [[17.0, 5]]], [2, 1], complete=[complete, True, True])
    bags = bags_of(proposals, target)
    index = torch.tensor([0])
    seeds = Pseudo(
        proposals.boxes[index], torch.tensor([2]), torch.ones(1), torch.tensor([0.7]), index
    )
    found = assign(proposals.boxes, seeds, bags, 3)
    # itself; overlaps, in the bag; overlaps a third; holds both points; no point; holds the other's
    assert found.labels.tolist() == [2, 2, 3, 3, 3, 3]
    sure = float(complete)
    torch.testing.assert_close(found.weights, torch.tensor([0.7, 0.7, sure, 1, sure, 1]))
    assert found.foreground.tolist() == [True, True, False, False, False, False]


def test_what_overlaps_a_seed_without_its_point_is_left_out():
    proposals = stripes((0, 1, 2), (1, 2), (0, 1))
    bags = bags_of(proposals, label([[[2.0, 5]]], [0]))
    seeds = choose(
        torch.tensor([[0.9, 1.0, 0.1]]), torch.ones(3), torch.ones(1), bags, proposals.boxes
    )
    found = assign(proposals.boxes, seeds, bags, 3)
    assert found.labels.tolist() == [0, 3, 0]
    assert found.weights.tolist() == [1, 0, 1]


def test_each_head_learns_from_the_one_before():
    """The first from the bags' scores, the second from the first; against loops."""
    proposals = stripes((0, 1), (0, 1, 2), (2, 3), (3,), (5,))
    target = label([[[2.0, 5]], [[17.0, 5]]], [2, 1])
    bags, g = bags_of(proposals, target), torch.Generator().manual_seed(3)
    scores = torch.rand(2, 5, 3, generator=g) * bags.members[..., None] / 5
    logits = [torch.randn(5, 4, generator=g) for _ in range(2)]
    heads = Detection(torch.rand(5, 3, generator=g), logits, [None, None])
    prior = torch.rand(5, generator=g)
    learnt = refine_objects(heads, scores, bags, proposals.boxes, prior, 0.3)
    weights = [float(scores[m, :, c].sum()) for m, c in ((0, 2), (1, 1))]
    own = [scores[0, :, 2], scores[1, :, 1]]
    expected = 0.0
    for head in logits:
        best = [int((own[m] * prior * bags.members[m]).argmax()) for m in range(2)]
        losses, count = 0.0, 0
        for p in range(5):
            iou = [columns_iou(proposals, p, q) for q in best]
            m = int(np.argmax(iou))
            held = [bool(proposals.members[p, s]) for s in (0, 3)]
            wanted, weight = 3, 0.3
            if iou[m] >= 0.5 and bags.members[m, p]:
                wanted, weight = int(bags.labels[m]), weights[m]
            elif iou[m] >= 0.5 and sum(held) < 2:
                continue
            losses -= weight * math.log(head[p].softmax(0)[wanted])
            count += 1
        expected += losses / count
        own = [head.softmax(1)[:, 2], head.softmax(1)[:, 1]]
    assert learnt.loss.item() == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(learnt.scores, torch.stack(own))


def columns_iou(proposals: Proposals, a: int, b: int) -> float:
    (left, _, right, _), (x1, _, x2, _) = proposals.boxes[[a, b]].tolist()
    shared = max(min(right, x2) - max(left, x1), 0)
    return shared / (right - left + x2 - x1 - shared)


def test_votes_are_means_of_the_segments_of_a_bag():
    proposals = random_proposals(4)
    g = torch.Generator().manual_seed(5)
    members, scores = torch.rand(3, 12, generator=g) > 0.5, torch.rand(3, 12, generator=g)
    shares = voted_shares(proposals, members, scores)
    boxes = torch.tensor([[1.0, 2, 20, 17], [0, 0, 24, 20]])
    labels, pseudo = torch.zeros(2, dtype=torch.int64), torch.tensor([2, 0])
    samples = MaskSamples(boxes, labels, labels, torch.ones(2), pseudo, torch.ones(2))
    masks = masks_in(proposals, shares, samples)
    for k, row, column in np.ndindex(2, 28, 28):
        x1, y1, x2, y2 = boxes[k].tolist()
        x, y = x1 + (column + 0.5) / 28 * (x2 - x1), y1 + (row + 0.5) / 28 * (y2 - y1)
        superpixel, o = int(proposals.labels[int(y), int(x)]), int(pseudo[k])
        votes = [float(s) ** 4 * bool(m) for s, m in zip(scores[o], members[o], strict=True)]
        inside = [v for v, of in zip(votes, proposals.members, strict=True) if of[superpixel]]
        expected = sum(inside) / sum(votes) if superpixel >= 0 else 0
        assert masks[k, row, column].item() == pytest.approx(expected, abs=1e-5)


def test_votes_of_scores_of_zero_are_equal():
    proposals = stripes((0,), (0, 1), (2,))
    members = torch.tensor([[True, True, False]])
    shares = voted_shares(proposals, members, torch.zeros(1, 3))
    torch.testing.assert_close(shares[0, :3], torch.tensor([1.0, 0.5, 0]))


@pytest.mark.slow
def test_points_are_learnt_from(tmp_path):
    """Others in their place give other weights; what a method may not see is tested for all."""
    folder = Shapes(tmp_path / "data", train=4, val=1).index("train").root.parent
    shutil.copytree(folder, tmp_path / "poisoned")
    poison(tmp_path / "poisoned", {"points"})
    states = [trained(root) for root in (folder, folder, tmp_path / "poisoned")]
    same = [all(torch.equal(states[0][key], state[key]) for key in state) for state in states[1:]]
    assert same == [True, False]


def trained(folder) -> dict:
    """Weights after two steps on a COCO folder."""
    pl.seed_everything(0, verbose=False)
    data = COCO(folder, max_proposals=50, loading=Loading(batch_size=2, workers=0))
    model = PointMIL(8, **TINY)
    quiet = dict.fromkeys(
        ("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False
    )
    pl.Trainer(accelerator="cpu", max_steps=2, limit_val_batches=0, **quiet).fit(model, data)
    return model.state_dict()


def test_objects_without_any_segment_around_them_are_learnt():
    """Two objects in one segment, and a point in none."""
    torch.manual_seed(0)
    model = PointMIL(3, **TINY)
    model.log = model.log_dict = lambda *_, **__: None  # no trainer listens
    sample = {
        "image": torch.randint(0, 255, (3, 10, 30), dtype=torch.uint8),
        "proposals": stripes((0, 1, 2), (5,)),
        "target": label([[[2.0, 5]], [[12.0, 5]], [[22.0, 5]]], [0, 1, 1]),
    }
    loss = model.training_step([sample], 0)
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@torch.no_grad()
def test_labels_are_an_object_for_each_point_and_detections_of_other_tags():
    """A network that knows nothing still labels each object by a segment around its point."""
    torch.manual_seed(0)
    model = PointMIL(3, **TINY, inference={"short_sides": [], "flip": False})
    sample = {
        "image_id": 1,
        "image": torch.randint(0, 255, (3, 10, 30), dtype=torch.uint8),
        "proposals": stripes((0, 1), (2, 3), (4,), (4, 5), (0, 1, 2, 3)),
        "target": label([[[2.0, 5]], [[12.0, 5]]], [0, 0]),
    }
    sample["target"]["tags"] = torch.tensor([1.0, 0, 1])
    (found,) = model.eval().label([sample], score_threshold=2.0)
    of_points = found.boxes[found.labels == 0].tolist()
    assert sorted(of_points) == [[0, 0, 10, 10], [10, 0, 20, 10]]
    assert found.labels.tolist().count(2) == 1, "the best detection of a tag without points"
    assert 1 not in found.labels
    assert (found.scores.diff() <= 0).all()
    assert len(found.masks) == len(found.boxes) == 3
    bare = {**sample, "target": label(np.zeros((0, 1, 2)), [])}
    (found,) = model.label([bare], score_threshold=2.0)
    assert sorted(found.labels.tolist()) == [0, 1, 2]
