from __future__ import annotations

import math

import pytest
import torch
from torchvision.ops import roi_align

from wsis.errors import InputError
from wsis.ops import moi_pool_interpolated


def rectangles(count=20, height=16, width=20):
    """Boxes within the map, in pixels at stride 8, and the cells they cover."""
    g = torch.Generator().manual_seed(0)
    first = (torch.rand(count, 2, generator=g) * torch.tensor([width - 6, height - 6])).floor()
    last = first + 3 + (torch.rand(count, 2, generator=g) * 3).floor()
    boxes = torch.cat([torch.randint(2, (count, 1), generator=g), first * 8, last * 8], 1)
    y, x = torch.arange(height)[:, None], torch.arange(width)
    a, b = first[:, :, None, None], last[:, :, None, None]
    return boxes, (x >= a[:, 0]) & (x < b[:, 0]) & (y >= a[:, 1]) & (y < b[:, 1])


def test_a_full_rectangle_is_roi_align():
    boxes, cells = rectangles()
    features = torch.randn(2, 4, 16, 20)
    expected = roi_align(features, boxes, 7, 1 / 8, sampling_ratio=2, aligned=True)
    torch.testing.assert_close(
        moi_pool_interpolated(features, boxes, cells), expected, rtol=1e-4, atol=1e-4
    )


def test_a_disc_is_sampled_within_itself():
    """A map that is 1 inside a disc and 0 outside: of the square around it a fraction 1 - pi/4 = 0.21 of samples is outside,
    of the warped disc hardly any."""
    y, x = torch.meshgrid(torch.arange(40.0), torch.arange(40.0), indexing="ij")
    disc = (x - 19.5).square() + (y - 19.5).square() <= 15**2
    boxes = torch.tensor([[0.0, 4.5 * 8, 4.5 * 8, 34.5 * 8, 34.5 * 8]]) + torch.tensor(
        [[0.0, 4, 4, 4, 4]]
    )
    features = disc.float()[None, None]
    warped = moi_pool_interpolated(features, boxes, disc[None]).mean()
    square = roi_align(features, boxes, 7, 1 / 8, sampling_ratio=2, aligned=True).mean()
    assert square == pytest.approx(math.pi / 4, abs=0.02)
    assert 1 - warped < (1 - square) / 3


@pytest.mark.slow
def test_gradient_and_batches():
    boxes, cells = rectangles(6)
    cells &= torch.rand(cells.shape, generator=torch.Generator().manual_seed(1)) > 0.3
    features = torch.randn(2, 2, 16, 20, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda f: moi_pool_interpolated(f, boxes, cells, 3), (features,)
    )
    together = moi_pool_interpolated(features, boxes, cells)
    for k in range(6):
        torch.testing.assert_close(
            moi_pool_interpolated(features, boxes[k : k + 1], cells[k : k + 1])[0], together[k]
        )


def test_a_region_without_cells_is_its_box():
    boxes, cells = rectangles(3)
    features = torch.randn(2, 4, 16, 20)
    full = moi_pool_interpolated(features, boxes, cells)
    torch.testing.assert_close(
        moi_pool_interpolated(features, boxes, torch.zeros_like(cells)), full, rtol=1e-4, atol=1e-4
    )
    assert moi_pool_interpolated(features, boxes[:0], cells[:0]).shape == (0, 4, 7, 7)
    with pytest.raises(InputError, match="cells are"):
        moi_pool_interpolated(features, boxes, cells[1:])


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_halves_sample_where_floats_do(kind):
    boxes, cells = rectangles(height=76, width=115)
    features = torch.randn(2, 4, 76, 115).to(kind)
    expected = moi_pool_interpolated(features.float(), boxes, cells)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(moi_pool_interpolated(features, boxes, cells), expected.to(kind))
        assert torch.equal(moi_pool_interpolated(features.float(), boxes, cells), expected)
