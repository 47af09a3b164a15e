from __future__ import annotations

import pytest
import torch

from wsis.evidence.cam import average_over_scales, cam, grad_cam, inside


@pytest.fixture
def features() -> torch.Tensor:
    return torch.randn(2, 5, 4, 6, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def weight() -> torch.Tensor:
    return torch.randn(3, 5, generator=torch.Generator().manual_seed(1))


def test_cam_by_hand(features, weight):
    maps = cam(features, weight)
    for n in range(2):
        for c in range(3):
            raw = sum(weight[c, d] * features[n, d] for d in range(5)).clamp(min=0)
            torch.testing.assert_close(maps[n, c], raw / raw.max())


def test_map_without_positive_evidence_is_zero(features):
    assert not cam(features.abs(), -torch.ones(1, 5)).any()


def test_grad_cam_of_a_linear_head_is_cam(features, weight):
    def head(x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3)) @ weight.T + 0.3

    torch.testing.assert_close(grad_cam(features, head), cam(features, weight))
    torch.testing.assert_close(
        grad_cam(features, head, torch.tensor([2, 0])), cam(features, weight[[2, 0]])
    )


def test_grad_cam_of_a_curved_head_by_finite_differences():
    """The weight of a channel is the mean of d score / d cell: nudging the whole channel gives its sum."""
    features = torch.rand(
        1, 3, 4, 4, dtype=torch.double, generator=torch.Generator().manual_seed(0)
    )

    def head(x: torch.Tensor) -> torch.Tensor:
        return torch.stack([(x[:, 0] * x[:, 1]).sum((1, 2)), x[:, 2].exp().sum((1, 2))], 1)

    step = 1e-6
    for c in range(2):
        slopes = [
            (head(features + step * e) - head(features - step * e))[0, c] / (2 * step)
            for e in torch.eye(3, dtype=torch.double)[:, None, :, None, None]
        ]
        raw = sum(s * f for s, f in zip(slopes, features[0], strict=True)).clamp(min=0)
        torch.testing.assert_close(
            grad_cam(features, head)[0, c], raw / raw.max(), rtol=1e-6, atol=1e-6
        )


def test_grad_cam_works_without_gradients_around_it_and_keeps_none(features, weight):
    weight.requires_grad_()
    with torch.no_grad():
        maps = grad_cam(features, lambda x: x.mean((2, 3)) @ weight.T)
    assert not maps.requires_grad
    assert weight.grad is None


def test_average_of_a_map_that_follows_the_image():
    """Maps equal to a smooth image agree at every scale, mirrored or not, so their mean is that image."""
    x = torch.linspace(0, 1, 64)
    image = (x[None, :, None] * x[None, None, :].square()).expand(3, 64, 64)
    mean = average_over_scales(image, lambda images: images[:, :1])
    assert mean.shape == (1, 64, 64)
    torch.testing.assert_close(mean[0], image[0] / image.max(), rtol=0, atol=0.03)


def test_average_turns_mirrored_maps_back():
    """A map that always fires on the left of what it sees must average to a symmetric one."""

    def left(images: torch.Tensor) -> torch.Tensor:
        maps = torch.zeros(len(images), 1, 8, 8)
        maps[..., :2] = 1
        return maps

    mean = average_over_scales(torch.zeros(3, 32, 32), left)
    torch.testing.assert_close(mean, mean.flip(-1))
    assert mean[0, 0, 0] == 1


def test_cells_that_begin_inside():
    found = inside([(17, 8), (16, 24)], torch.zeros(5, 3, 3), stride=8)
    assert found.sum((1, 2)).tolist() == [3 * 1, 2 * 3]
    assert found[0, :, 0].all()
    assert found[1, :2].all()
    assert inside([], torch.zeros(3, 4), 8).shape == (0, 3, 4)
