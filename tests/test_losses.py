import math

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from wsis.losses import (
    bag_loss,
    bag_scores,
    box_loss,
    correlation_loss,
    dice_loss,
    image_loss,
    instance_activation,
    log_mean_exp,
    mask_loss,
    mil_scores,
    negative_loss,
    neighbour_smoothness,
    pairwise_loss,
    projection_loss,
    refinement_loss,
    tightness_loss,
)


def test_mil_scores_against_loops():
    c, d = torch.randn(2, 5, 3).double()
    expected = np.zeros((5, 3))
    for p in range(5):
        for k in range(3):
            over_classes = math.exp(c[p, k]) / sum(math.exp(c[p, j]) for j in range(3))
            over_proposals = math.exp(d[p, k]) / sum(math.exp(d[q, k]) for q in range(5))
            expected[p, k] = over_classes * over_proposals
    np.testing.assert_allclose(mil_scores(c, d).numpy(), expected)


def test_image_loss_by_hand():
    scores = torch.tensor([[0.5, 0.0], [0.3, 0.1]])
    expected = -(math.log(0.8) + math.log(1 - 0.1)) / 2
    assert image_loss(scores, torch.tensor([1.0, 0.0])).item() == pytest.approx(expected, rel=1e-5)


def test_image_loss_is_finite_at_the_ends_and_without_proposals():
    assert image_loss(torch.tensor([[1.0, 0.0]]), torch.tensor([0.0, 1.0])).item() == pytest.approx(
        -math.log(1e-6), rel=1e-2
    )
    assert image_loss(torch.zeros(0, 2), torch.tensor([0.0, 0.0])).item() == pytest.approx(
        1e-6, rel=0.2
    )


def test_bag_scores_and_their_loss_against_loops():
    c, d = torch.randn(2, 6, 3).double()
    bags = torch.tensor([[1, 1, 0, 0, 1, 0], [0, 0, 0, 1, 0, 0]]).bool()
    labels, expected, loss = torch.tensor([2, 0]), np.zeros((2, 6, 3)), 0.0
    for m in range(2):
        for k in range(3):
            total = sum(math.exp(d[q, k]) for q in range(6) if bags[m, q])
            for p in range(6):
                if bags[m, p]:
                    share = math.exp(d[p, k]) / total
                    expected[m, p, k] = share / (1 + math.exp(-c[p, k]))
            summed = expected[m, :, k].sum()
            loss -= math.log(summed if labels[m] == k else 1 - summed) / 2
    scores = bag_scores(c, d, bags)
    np.testing.assert_allclose(scores.numpy(), expected)
    assert bag_loss(scores, labels).item() == pytest.approx(loss)


def test_a_single_class_is_learnt_from_bags():
    classification = torch.zeros(2, 1, requires_grad=True)
    scores = bag_scores(classification, torch.zeros(2, 1), torch.ones(1, 2).bool())
    bag_loss(scores, torch.tensor([0])).backward()
    assert (classification.grad < 0).all(), "both proposals gain"


def test_bags_without_objects_or_proposals_have_no_loss():
    for proposals in (0, 4):
        c = torch.randn(proposals, 3, requires_grad=True)
        scores = bag_scores(c, torch.randn(proposals, 3), torch.zeros(0, proposals).bool())
        loss = bag_loss(scores, torch.zeros(0, dtype=torch.int64))
        loss.backward()
        assert loss.item() == 0


def test_negative_loss_by_hand():
    logits = torch.tensor([[0.0, 2.0], [1.0, -1.0], [5.0, 5.0]]).double()
    negative = torch.tensor([[True, False], [True, True], [False, False]])
    total = 0.0
    for row, column in ((0, 0), (1, 0), (1, 1)):
        score = 1 / (1 + math.exp(-logits[row, column]))
        total -= score**2 * math.log(1 - score)
    assert negative_loss(logits, negative).item() == pytest.approx(total / 2)
    assert negative_loss(logits, torch.zeros(3, 2).bool()).item() == 0


def test_refinement_loss_by_hand():
    logits = torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 3.0]])
    labels, weights = torch.tensor([0, 2, 2]), torch.tensor([0.5, 0.0, 0.2])
    first = -math.log(math.exp(2) / (math.exp(2) + 2))
    third = -math.log(math.exp(3) / (math.exp(3) + 2))
    expected = (0.5 * first + 0.2 * third) / 2  # the proposal of weight 0 is not counted
    assert refinement_loss(logits, labels, weights).item() == pytest.approx(expected, rel=1e-5)
    assert refinement_loss(logits, labels, torch.zeros(3)).item() == 0


def test_box_loss_by_hand():
    deltas, targets = torch.tensor([[1.0, 0, 0, 2], [0, 0, 0, 1]]), torch.zeros(2, 4)
    assert box_loss(deltas, targets, torch.tensor([0.5, 1.0]), 10).item() == pytest.approx(
        (0.5 * 3 + 1) / 10
    )
    assert box_loss(deltas[:0], targets[:0], torch.zeros(0), 0).item() == 0


def test_mask_loss_by_hand_and_empty():
    logits = torch.randn(3, 4, 5, dtype=torch.float64, requires_grad=True)
    targets = (torch.rand(3, 4, 5) > 0.5).double()
    p = 1 / (1 + np.exp(-logits.detach().numpy()))
    t = targets.numpy()
    expected = -(t * np.log(p) + (1 - t) * np.log(1 - p)).mean()
    assert mask_loss(logits, targets).item() == pytest.approx(expected)
    mask_loss(logits[:0], targets[:0]).backward()
    assert logits.grad is not None
    assert not logits.grad.any()


def test_dice_loss_by_hand_and_at_its_ends():
    logits = torch.tensor([[math.log(3), -50.0, 0.0], [50.0, 50.0, -50.0]])
    targets = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0]])
    first = 1 - (2 * 0.75 + 1) / (0.75 + 0.5 + 2 + 1)
    assert dice_loss(logits, targets).item() == pytest.approx(first / 2)
    assert dice_loss(logits[1:], targets[1:]).item() == pytest.approx(0, abs=1e-6)
    wrong = dice_loss(-logits[1:], targets[1:]).item()
    assert wrong == pytest.approx(1 - 1 / (1 + 2 + 1))
    nothing = torch.zeros(0, 5, requires_grad=True)
    dice_loss(nothing, torch.zeros(0, 5)).backward()
    assert nothing.grad is not None


@pytest.mark.parametrize("tau", [0.5, 5.0, 50.0])
def test_instance_activation_is_log_mean_exp_between_mean_and_maximum(tau):
    p = torch.rand(4, 7, 9, dtype=torch.float64)
    expected = [math.log(np.mean(np.exp(tau * mask.numpy()))) / tau for mask in p]
    found = instance_activation(p, tau)
    np.testing.assert_allclose(found, expected)
    assert (found >= p.mean((1, 2)) - 1e-12).all()
    assert (found <= p.amax((1, 2)) + 1e-12).all()


def test_a_sure_mask_has_an_activation_by_the_share_of_its_box():
    """What eq. (8) asks of a right mask depends on the object's shape."""
    masks = torch.zeros(3, 28, 28, dtype=torch.float64)
    masks[0, :14], masks[1, :7], masks[2] = 1, 1, 1
    expected = [math.log(1 + share * (math.exp(5) - 1)) / 5 for share in (0.5, 0.25, 1)]
    assert instance_activation(masks).tolist() == pytest.approx(expected)
    assert expected[0] == pytest.approx(0.863, abs=5e-4)


def test_correlation_loss_may_teach_the_score_too():
    activation = torch.tensor([0.2, 0.9], requires_grad=True)
    score = torch.tensor([0.5, 0.5], requires_grad=True)
    loss = correlation_loss(activation, score, "both")
    assert loss.item() == pytest.approx((0.3 + 0.4) / 2)
    loss.backward()
    assert activation.grad.tolist() == [-0.5, 0.5]
    assert score.grad.tolist() == [0.5, -0.5]


def test_correlation_loss_teaches_only_the_mask():
    activation = torch.tensor([0.2, 0.9], requires_grad=True)
    score = torch.tensor([0.5, 0.5], requires_grad=True)
    loss = correlation_loss(activation, score)
    assert loss.item() == pytest.approx((0.3 + 0.4) / 2)
    loss.backward()
    assert score.grad is None
    assert activation.grad.tolist() == [-0.5, 0.5]
    assert correlation_loss(activation[:0], score[:0]).item() == 0


def test_tightness_against_loops():
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 4, 5, generator=g, dtype=torch.float64)
    rows, columns = torch.rand(2, 4, generator=g) > 0.5, torch.rand(2, 5, generator=g) > 0.5
    total = 0.0
    for n in range(2):
        bags = [(logits[n, y].tolist(), rows[n, y]) for y in range(4)]
        bags += [(logits[n, :, x].tolist(), columns[n, x]) for x in range(5)]
        for bag, positive in bags:
            best = 1 / (1 + math.exp(-max(bag)))
            total -= math.log(best if positive else 1 - best)
    assert float(tightness_loss(logits, rows, columns)) == pytest.approx(total / (2 * 9))


def test_smoothness_against_loops():
    p = torch.rand(2, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    squares = []
    for n in range(2):
        for y in range(4):
            for x in range(5):
                for dy, dx in (
                    (-1, -1),
                    (-1, 0),
                    (-1, 1),
                    (0, -1),
                    (0, 1),
                    (1, -1),
                    (1, 0),
                    (1, 1),
                ):
                    if 0 <= y + dy < 4 and 0 <= x + dx < 5:
                        squares.append(float(p[n, y, x] - p[n, y + dy, x + dx]) ** 2)
    assert float(neighbour_smoothness(p)) == pytest.approx(sum(squares) / len(squares))
    assert neighbour_smoothness(torch.rand(1, 1, 1)) == 0
    assert neighbour_smoothness(torch.full((1, 6, 6), 0.7)) == 0


def test_losses_of_no_map_are_zero_and_connected():
    logits = torch.zeros(0, 4, 4, requires_grad=True)
    none = torch.zeros(0, 4, dtype=torch.bool)
    loss = tightness_loss(logits, none, none) + neighbour_smoothness(logits)
    loss.backward()
    assert loss == 0


def test_image_loss_is_binary_cross_entropy_and_passes_autocast_on_cuda():
    scores, tags = torch.rand(6, 4, requires_grad=True), torch.tensor([1.0, 0, 0, 1])
    expected = torch.nn.functional.binary_cross_entropy(scores.sum(0).clamp(1e-6, 1 - 1e-6), tags)
    torch.testing.assert_close(image_loss(scores, tags), expected)
    torch.set_autocast_enabled(
        "cuda", True
    )  # refuses F.binary_cross_entropy; torch.autocast does nothing without a GPU
    try:
        with FakeTensorMode():
            assert (
                image_loss(torch.rand(6, 4, device="cuda"), torch.rand(4, device="cuda")).shape
                == ()
            )
    finally:
        torch.set_autocast_enabled("cuda", False)


def test_log_mean_exp_lies_between_mean_and_maximum():
    maps = torch.randn(3, 5, 4, dtype=torch.float64)
    torch.testing.assert_close(log_mean_exp(maps, 1e-6), maps.mean((1, 2)), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(log_mean_exp(maps, 1e4), maps.amax((1, 2)), rtol=1e-3, atol=1e-3)
    expected = (maps * 2).exp().mean((1, 2)).log() / 2
    torch.testing.assert_close(log_mean_exp(maps, 2.0), expected)


def test_projection_loss_by_hand():
    """A mask that touches all sides of its box has no loss, whatever else it covers."""
    inside = torch.zeros(2, 6, 8)
    inside[:, 1:5, 2:7] = 1
    cross = torch.zeros(6, 8)
    cross[1:5, 4] = cross[2, 2:7] = 1
    half = torch.zeros(6, 8)
    half[1:3, 2:7] = 1  # two of four rows, all columns
    assert projection_loss(cross[None], inside[:1]).item() == pytest.approx(0, abs=1e-6)
    assert projection_loss(half[None], inside[:1]).item() == pytest.approx(1 - 2 * 2 / (2 + 4))
    both = projection_loss(torch.stack([cross, half]), inside)
    assert both.item() == pytest.approx((1 - 2 * 2 / (2 + 4)) / 2)


def test_pairwise_loss_against_loops():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 7, 6, generator=generator).double()
    colours = (3 * torch.randn(3, 3, 7, 6, generator=generator)).double()
    inside = torch.rand(3, 7, 6, generator=generator) < 0.5
    probabilities, terms = logits.sigmoid().numpy(), []
    for n in range(3):
        for y, x in np.ndindex(7, 6):
            for dy, dx in ((0, 2), (2, 0), (2, 2), (2, -2)):
                v, u = y + dy, x + dx
                if not (0 <= v < 7 and 0 <= u < 6 and (inside[n, y, x] or inside[n, v, u])):
                    continue
                distance = np.linalg.norm(colours[n, :, y, x] - colours[n, :, v, u])
                if math.exp(-distance / 2) >= 0.1:
                    p, q = probabilities[n, y, x], probabilities[n, v, u]
                    terms.append(-math.log(p * q + (1 - p) * (1 - q)))
    assert 10 < len(terms) < 200
    found = pairwise_loss(logits, colours, inside, threshold=0.1, dilation=2)
    assert found.item() == pytest.approx(np.mean(terms))


def test_pairwise_loss_is_finite_for_sure_masks_and_zero_without_edges():
    logits = torch.full((1, 4, 4), 1e4).where(torch.eye(4).bool(), -1e4).requires_grad_()
    same, inside = torch.zeros(1, 3, 4, 4), torch.ones(1, 4, 4, dtype=torch.bool)
    loss = pairwise_loss(logits, same, inside, threshold=0.3, dilation=1)
    loss.backward()
    assert loss.isfinite()
    assert logits.grad.isfinite().all()
    for size in (4, 1):
        nothing = torch.zeros(1, size, size, dtype=torch.bool)
        zeros = torch.zeros(1, 3, size, size)
        of_none = pairwise_loss(torch.zeros(1, size, size), zeros, nothing, 0.3)
        assert of_none.item() == 0


@pytest.mark.slow
def test_boxinst_losses_find_a_disc_in_its_box():
    """Logits alone, trained by both losses, become the disc; the box filled has an IoU of .785."""
    y, x = torch.meshgrid(torch.arange(28) - 13.5, torch.arange(28) - 13.5, indexing="ij")
    disc, inside = x * x + y * y <= 100, (x.abs() < 10) & (y.abs() < 10)
    colours = torch.where(disc, 60.0, 20.0).expand(1, 3, 28, 28)
    logits = torch.zeros(1, 28, 28, requires_grad=True)
    optimiser = torch.optim.Adam([logits], lr=0.1)
    for step in range(300):
        loss = projection_loss(logits.sigmoid(), inside[None])
        pairwise = pairwise_loss(logits, colours, inside[None], 0.3)
        optimiser.zero_grad()
        (loss + min(step / 100, 1) * pairwise).backward()
        optimiser.step()
    found = logits[0] > 0
    assert (found & disc).sum() / (found | disc).sum() > 0.95
