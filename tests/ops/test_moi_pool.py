"""MoIPool by hand, by brute force, and beside torchvision; every backend that this machine has, under each test."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torchvision.ops import roi_pool

from wsis.errors import InputError
from wsis.ops import moi_pool
from wsis.ops.build import compiled_devices
from wsis.ops.moi_pool import moi_pool_backward_reference, moi_pool_reference

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
OPERATOR = torch.ops.wsis.moi_pool.default
ops_on = pytest.mark.parametrize("device", DEVICES)


@pytest.fixture(scope="module", params=["reference", *DEVICES])
def pool(request):
    """`moi_pool` on (N,D,H,W), (K,5), (K,H,W) by one backend, results on the CPU."""

    def by_reference(features, boxes, cells, size=7, scale=0.125, compensation="bins"):
        code = {None: 0, "bins": 1, "released": 2}[compensation]
        sides = (size, size) if isinstance(size, int) else size
        return moi_pool_reference(features, boxes, cells, *sides, scale, code, False)[0]

    if request.param == "reference":
        return by_reference
    if request.param not in compiled_devices():
        pytest.skip(f"no kernels for {request.param} here")
    return lambda f, b, c, *rest: moi_pool(
        f.to(request.param), b.to(request.param), c.to(request.param), *rest
    ).cpu()


def brute_force(features, boxes, cells, size, scale, compensation):
    """Loops over regions, channels and bins, in Python's own numbers."""
    count, (_, channels, height, width) = len(boxes), features.shape
    down, across = (size, size) if isinstance(size, int) else size
    pooled = torch.zeros(count, channels, down, across, dtype=torch.float64)
    for k in range(count):
        x1, y1, x2, y2 = (math.floor(value * scale + 0.5) for value in boxes[k, 1:].tolist())
        columns, rows = max(x2 - x1 + 1, 1), max(y2 - y1 + 1, 1)
        filled = 0
        for u in range(down):
            for v in range(across):
                inside = [
                    (y, x)
                    for y in range(y1 + u * rows // down, y1 + math.ceil((u + 1) * rows / down))
                    for x in range(
                        x1 + v * columns // across, x1 + math.ceil((v + 1) * columns / across)
                    )
                    if 0 <= y < height and 0 <= x < width and cells[k, y, x]
                ]
                filled += bool(inside)
                for c in range(channels if inside else 0):
                    pooled[k, c, u, v] = max(
                        features[int(boxes[k, 0]), c, y, x].item() for y, x in inside
                    )
        pooled[k] *= {
            None: 1,
            "bins": down * across / max(filled, 1),
            "released": down * across / (filled + 1),
        }[compensation]
    return pooled


def some(count=12, channels=5, height=9, width=11, images=2, seed=0, dtype=torch.float32):
    """Features, boxes that partly leave the map, and random cells."""
    g = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=g) * torch.tensor([width, height]) * 8 - 12
    sides = torch.rand(count, 2, generator=g) * torch.tensor([width, height]) * 8
    image = torch.randint(images, (count, 1), generator=g)
    boxes = torch.cat([image, corner, corner + sides], 1)
    features = torch.randn(images, channels, height, width, generator=g, dtype=dtype)
    return features, boxes, torch.rand(count, height, width, generator=g) > 0.4


def test_by_hand(pool):
    # Map 5 x 5, values 0 .. 24 in reading order; a box of cells 1..4 x 1..3 (columns x rows), 2 x 2 bins of 2 columns each,
    # rows [1, 3) and [2, 4): bins overlap in row 2. The region is the cells marked *.
    #     5   6*  7   8   9        upper left: 6, 11 -> 11       upper right: 14 -> 14
    #    10  11* 12  13  14*       lower left: 11, 17 -> 17      lower right: 14 -> 14
    #    15  16  17* 18  19
    features = torch.arange(25.0).view(1, 1, 5, 5)
    cells = torch.zeros(1, 5, 5, dtype=torch.bool)
    for value in (6, 11, 14, 17):
        cells.view(-1)[value] = True
    boxes = torch.tensor([[0.0, 8, 8, 32, 24]])
    assert pool(features, boxes, cells, 2, 1 / 8, None).tolist() == [[[[11, 14], [17, 14]]]]
    assert pool(features, boxes, cells, 2, 1 / 8, "released").flatten().tolist() == pytest.approx(
        [8.8, 11.2, 13.6, 11.2]
    )
    cells.view(-1)[14] = False  # two bins are left empty, the others count twice
    assert pool(features, boxes, cells, 2, 1 / 8, "bins").tolist() == [[[[22, 0], [34, 0]]]]


@pytest.mark.parametrize("size", [1, 2, 7, 8, (3, 5), (9, 1)])
@pytest.mark.parametrize("compensation", [None, "bins", "released"])
def test_brute_force(pool, size, compensation):
    features, boxes, cells = some()
    expected = brute_force(features, boxes, cells, size, 0.125, compensation)
    torch.testing.assert_close(
        pool(features, boxes, cells, size, 0.125, compensation), expected.float(), rtol=1e-6, atol=0
    )


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(1, 20),
    st.integers(1, 20),
    st.integers(1, 75),
    st.integers(1, 9),
    st.booleans(),
)
def test_backends_agree_to_the_bit(seed, height, width, channels, size, double):
    """Sizes around those at which the kernels change their way: 32 and 64 channels, 49 bins."""
    if not compiled_devices():
        pytest.skip("no kernels here")
    features, boxes, cells = some(
        7, channels, height, width, 2, seed, torch.float64 if double else torch.float32
    )
    arguments = size, size + 1, 0.125, 1, True
    expected, places, factors = moi_pool_reference(features, boxes, cells, *arguments)
    grad = torch.randn(
        expected.shape, dtype=features.dtype, generator=torch.Generator().manual_seed(seed)
    )
    rest = 2, height, width
    back = moi_pool_backward_reference(grad, places, factors, boxes, *rest)
    for device in compiled_devices():
        there = [t.to(device) for t in (features, boxes, cells)]
        found = OPERATOR(*there, *arguments)
        for ours, theirs in zip(found, (expected, places, factors), strict=True):
            assert torch.equal(ours.cpu(), theirs)
        maps = torch.ops.wsis.moi_pool_backward(grad.to(device), *found[1:], there[1], *rest)
        torch.testing.assert_close(maps.cpu(), back, rtol=1e-5, atol=1e-5)  # sums in another order


def test_a_region_that_fills_its_rounded_box_is_roi_pool(pool):
    features, boxes, cells = some(200, 3, 30, 40)
    boxes[:, 1:] = boxes[:, 1:].clamp(min=0)  # torchvision rounds negative halves away from zero
    full = torch.ones_like(cells)
    boxes[0, 1:] = torch.tensor([4.0, 12, 100, 60])  # halves: 0.5 -> 1, 1.5 -> 2
    expected = roi_pool(features, boxes, 7, 1 / 8)
    assert torch.equal(pool(features, boxes, full, 7, 1 / 8, None), expected)
    inside = boxes[(boxes[:, 3] < 312) & (boxes[:, 4] < 232)]
    assert len(inside) > 20
    assert torch.equal(
        pool(features, inside, full[: len(inside)], 7, 1 / 8, "bins"),
        roi_pool(features, inside, 7, 1 / 8),
    ), "no bin is empty, so the compensation is 1"


def test_of_equals_the_first_gets_the_gradient():
    cells = torch.ones(1, 4, 4, dtype=torch.bool)
    cells[0, 0, 0] = False
    features, boxes = torch.zeros(1, 1, 4, 4), torch.tensor([[0.0, 0, 0, 24, 24]])
    assert moi_pool_reference(features, boxes, cells, 1, 1, 1 / 8, 0, True)[1].item() == 1
    features.requires_grad_()
    (maps,) = torch.autograd.grad(moi_pool(features, boxes, cells, 1).sum(), features)
    assert maps.nonzero().tolist() == [[0, 0, 0, 1]]


def test_more_cells_than_16_bits_can_number():
    features = torch.zeros(1, 1, 1, 40000)
    features[0, 0, 0, [7, 35000]] = 1
    features.requires_grad_()
    cells, boxes = torch.ones(1, 1, 40000, dtype=torch.bool), torch.tensor([[0.0, 0, 0, 39999, 0]])
    pooled = moi_pool(features, boxes, cells, (1, 2), 1)
    assert pooled.tolist() == [[[[1, 1]]]]
    (maps,) = torch.autograd.grad(pooled.sum(), features)
    assert maps.nonzero()[:, 3].tolist() == [7, 35000]


def test_gradcheck():
    features, boxes, cells = some(5, 3, 6, 7, dtype=torch.float64)
    features = features.requires_grad_()
    assert torch.autograd.gradcheck(lambda f: moi_pool(f, boxes, cells, 3, 1 / 8), (features,))


@pytest.mark.slow
@pytest.mark.parametrize("learning", [False, True])
@ops_on
def test_opcheck(device, learning):
    features, boxes, cells = (t.to(device) for t in some(5, 3, 6, 7))
    arguments = (features.requires_grad_(learning), boxes, cells, 3, 2, 1 / 8, 1, learning)
    torch.library.opcheck(OPERATOR, arguments)
    _, places, factors = OPERATOR(*arguments[:-1], True)
    grad = torch.randn(places.shape, device=device)
    backward = torch.ops.wsis.moi_pool_backward.default
    torch.library.opcheck(backward, (grad, places, factors, boxes, 2, 6, 7))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@ops_on
def test_halves(device, dtype):
    """A maximum of halves is exact; only the compensation is rounded, once."""
    features, boxes, cells = (t.to(device) for t in some())
    features = features.to(dtype).requires_grad_()
    exact = features.detach().float().requires_grad_()
    ours, theirs = moi_pool(features, boxes, cells), moi_pool(exact, boxes, cells)
    assert ours.dtype == dtype
    assert torch.equal(ours, theirs.to(dtype))
    grad = torch.randn(ours.shape, device=device).to(dtype)
    ours.backward(grad)
    theirs.backward(grad.float())
    torch.testing.assert_close(features.grad, exact.grad.to(dtype), rtol=1e-2, atol=1e-3)


@ops_on
def test_autocast_keeps_the_type_of_features(device):
    features, boxes, cells = (t.to(device) for t in some())
    with torch.autocast(device, dtype=torch.bfloat16):
        half = nn.functional.conv2d(features, torch.ones(4, 5, 1, 1, device=device))
        pooled = moi_pool(half, boxes, cells)
    assert half.dtype == pooled.dtype == torch.bfloat16
    assert torch.equal(pooled, moi_pool(half, boxes, cells))


def test_empty_and_outside(pool):
    features, boxes, cells = some(4)
    cells[0] = False
    boxes[1, 1:] = torch.tensor([1000.0, 1000, 1100, 1100])
    boxes[2, 1:] = torch.tensor([-500.0, -500, -100, -100])
    pooled = pool(features, boxes, cells)
    assert pooled[:3].abs().max() == 0
    assert pooled[3].abs().max() > 0
    assert pool(features, boxes[:0], cells[:0]).shape == (0, 5, 7, 7)
    assert pool(features[:, :0], boxes, cells).shape == (4, 0, 7, 7)


def test_a_batch_is_its_images(pool):
    features, boxes, cells = some(20, images=3)
    together = pool(features, boxes, cells)
    for n in range(3):
        here = boxes[:, 0] == n
        alone = boxes[here] * torch.tensor([0.0, 1, 1, 1, 1])
        assert torch.equal(together[here], pool(features[n : n + 1], alone, cells[here]))


def test_channels_last_and_strided_inputs_give_the_same(pool):
    features, boxes, cells = some()
    expected = pool(features, boxes, cells)
    wide = torch.randn(2, 5, 9, 22)
    wide[..., ::2] = features
    assert torch.equal(
        pool(features.contiguous(memory_format=torch.channels_last), boxes, cells), expected
    )
    assert torch.equal(
        pool(wide[..., ::2], boxes, cells.transpose(1, 2).contiguous().transpose(1, 2)), expected
    )


class Pooled(nn.Module):
    """A module around the operator."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, features, boxes, cells):
        return moi_pool(features * self.scale, boxes, cells, 3).square().mean()


@pytest.mark.slow
def test_compile_in_one_graph():
    module = Pooled()
    compiled = torch.compile(copy.deepcopy(module), fullgraph=True, backend="aot_eager")
    arguments = some()
    eager, traced = module(*arguments), compiled(*arguments)
    eager.backward()
    traced.backward()
    torch.testing.assert_close(traced, eager)
    torch.testing.assert_close(compiled.scale.grad, module.scale.grad)


def test_export():
    arguments = some()
    program = torch.export.export(Pooled(), arguments)
    torch.testing.assert_close(program.module()(*arguments), Pooled()(*arguments))
    assert any("moi_pool" in str(node.target) for node in program.graph.nodes)


@pytest.mark.parametrize("side", [20, 150])
@pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a GPU: the CPU's sums always have one order"
)
def test_deterministic_backward_on_cuda(side):
    """Of maps whose sums fit in shared memory, and of larger ones; deterministic mode or not."""
    features, boxes, cells = (t.cuda() for t in some(300, 64, side, side))
    features.requires_grad_()
    torch.use_deterministic_algorithms(True)
    try:
        grads = [
            torch.autograd.grad(moi_pool(features, boxes, cells).square().sum(), features)[0]
            for _ in range(3)
        ]
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(grads[0], grads[1])
    assert torch.equal(grads[0], grads[2])


def test_threads_do_not_change_the_gradient():
    features, boxes, cells = some(50, 16, 20, 20)
    features.requires_grad_()
    threads, grads = torch.get_num_threads(), []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            grads.append(
                torch.autograd.grad(moi_pool(features, boxes, cells).square().sum(), features)[0]
            )
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*grads)


def test_what_does_not_go_together_is_refused():
    features, boxes, cells = some()
    for arguments, part in [
        ((features[0], boxes, cells), "features are"),
        ((features.to(torch.float8_e4m3fn), boxes, cells), "features are"),
        ((features, boxes.to("meta"), cells), "on one device, not on cpu, meta and cpu"),
        ((features, boxes[:, 1:], cells), "boxes are"),
        ((features, boxes, cells[:, 1:]), "cells are"),
        ((features, boxes, cells.float()), "cells are"),
        ((features, boxes, cells, 0), "output_size"),
        ((features, boxes, cells, (7, 0)), "output_size"),
        ((features, boxes, cells, (7, 7, 7)), "output_size"),
        ((features, boxes, cells, 7, 0.1, "psi"), "compensation"),
    ]:
        with pytest.raises(InputError, match=part):
            moi_pool(*arguments)
    with pytest.raises(RuntimeError):
        OPERATOR(features.requires_grad_(), boxes, cells, 7, 7, 0.1, 0, False)[0].sum().backward()
    boxes[3, 0] = 7
    with pytest.raises(RuntimeError, match="image"):
        moi_pool(features, boxes, cells)


def test_boxes_that_are_no_numbers_are_far_outside(pool):
    features, boxes, cells = some(4)
    boxes[0, 1:], boxes[1, 1:] = torch.nan, torch.tensor([-torch.inf, -1e30, 1e30, torch.inf])
    pooled = pool(features, boxes, cells)
    assert pooled[0].abs().max() == 0
    assert pooled.isfinite().all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_region_of_no_image_is_nan_on_cuda_and_ends_nothing():
    features, boxes, cells = (t.cuda() for t in some())
    expected = moi_pool(features, boxes, cells)
    boxes[3, 0] = 7
    features.requires_grad_()
    found = moi_pool(features, boxes, cells)
    assert found[3].isnan().all()
    others = torch.arange(len(boxes)) != 3
    assert torch.equal(found[others], expected[others])
    assert torch.autograd.grad(found[others].sum(), features)[0].isfinite().all()


def test_nan_is_passed_on(pool):
    features, boxes, cells = (
        torch.zeros(1, 2, 4, 4),
        torch.tensor([[0.0, 0, 0, 24, 24]]),
        torch.ones(1, 4, 4, dtype=torch.bool),
    )
    features[0, 0, 0, 0] = features[0, 1, 3, 2] = torch.nan
    found = pool(features, boxes, cells, 1)
    assert found.isnan().all()
