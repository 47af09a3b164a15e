import math

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from wsis.losses import (
    box_loss,
    correlation_loss,
    dice_loss,
    image_loss,
    instance_activation,
    log_mean_exp,
    mask_loss,
    mil_scores,
    neighbour_smoothness,
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
