from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from wsis.errors import InputError
from wsis.evidence.boxes import (
    centre_context_gap,
    merge_boxes,
    refine_boxes,
    refinement,
    surround_part,
)

FORMS = ["ring", "printed"]


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


def blobs(height: int = 60, width: int = 80, seed: int = 0) -> Tensor:
    """A smooth map with a few bumps, highest value 1."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] + 0.5
    values = np.zeros((height, width))
    for _ in range(3):
        cx, cy, s = (
            rng.uniform(0.3, 0.7) * width,
            rng.uniform(0.3, 0.7) * height,
            rng.uniform(5, 12),
        )
        values = np.maximum(values, np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / (2 * s * s)))
    return torch.from_numpy(values)


def rectangle(x1: int, y1: int, x2: int, y2: int, height: int = 60, width: int = 80) -> Tensor:
    scores = torch.zeros(height, width, dtype=torch.double)
    scores[y1:y2, x1:x2] = 1
    return scores


def random_boxes(count: int, height: int, width: int, seed: int = 0) -> Tensor:
    """Inside the map, sides from a quarter of it to half."""
    sides = (0.25 + 0.25 * noise(count, 2, seed=seed)) * torch.tensor([width, height])
    low = noise(count, 2, seed=seed + 1) * (torch.tensor([width, height]) - sides)
    return torch.cat([low, low + sides], 1)


def covered(low: Tensor, high: Tensor, count: int) -> Tensor:
    """Which part of each of `count` pixels in a row lies between two coordinates."""
    pixels = torch.arange(count)
    return (torch.minimum(high, pixels + 1) - torch.maximum(low, pixels)).clamp(min=0)


def plain_gap(box: Tensor, scores: Tensor, context: float, form: str) -> Tensor:
    """Of one box, by the share of every pixel that it covers."""

    def total_and_area(b: Tensor) -> tuple[Tensor, Tensor]:
        across, down = covered(b[0], b[2], scores.shape[1]), covered(b[1], b[3], scores.shape[0])
        return down @ scores @ across, down.sum() * across.sum()

    centre, half = (box[:2] + box[2:]) / 2, (box[2:] - box[:2]) * context / 2
    (inside, area), (whole, wide) = (
        total_and_area(box),
        total_and_area(torch.cat([centre - half, centre + half])),
    )
    if form == "printed":
        return whole / wide - 2 * inside / area
    return (whole - inside) / (wide - area) - inside / area


@pytest.mark.parametrize("form", FORMS)
def test_gap_against_sums_over_eighths_of_pixels(form):
    """Corners in eighths, sides in halves: the surrounding box of 1.5 times the side lies on the eighths too."""
    rng, scores = np.random.default_rng(0), noise(2, 7, 9)
    fine = np.kron(scores.numpy(), np.ones((8, 8)))
    for _ in range(60):
        w, h = 4 * rng.integers(1, 12, 2)
        x, y = (
            rng.integers(-w // 2, 72 - w // 2),
            rng.integers(-h // 2, 56 - h // 2),
        )  # some reach beyond the map
        which = rng.integers(2)

        def region(x1, y1, x2, y2, which=which):
            mask = np.zeros((56, 72), bool)
            mask[max(y1, 0) : y2, max(x1, 0) : x2] = True
            return mask, fine[which]

        inner, values = region(x, y, x + w, y + h)
        outer, _ = region(x - w // 4, y - h // 4, x + w + w // 4, y + h + h // 4)
        expected = (
            values[outer & ~inner].mean()
            if form == "ring"
            else values[outer].mean() - values[inner].mean()
        )
        expected -= values[inner].mean()
        box = torch.tensor([[x, y, x + w, y + h]], dtype=torch.double) / 8
        found = centre_context_gap(box, scores, form=form, index=torch.tensor([which]))
        assert found.item() == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("context", [1.2, 1.5, 3])
def test_gap_and_derivative_against_covered_pixels(form, context):
    maps, boxes = noise(20, 14, 17), random_boxes(20, 14, 17).requires_grad_()
    gaps = centre_context_gap(boxes, maps, context, form)
    expected = torch.stack(
        [plain_gap(*pair, context, form) for pair in zip(boxes, maps, strict=True)]
    )
    torch.testing.assert_close(gaps, expected)
    slopes, expected = (torch.autograd.grad(g.sum(), boxes)[0] for g in (gaps, expected))
    torch.testing.assert_close(slopes, expected)


@pytest.mark.parametrize("form", FORMS)
def test_derivative_by_finite_differences(form):
    boxes = torch.tensor(
        [[2.3, 1.4, 7.6, 6.7], [0.4, 0.6, 3.3, 9.45]], dtype=torch.double, requires_grad=True
    )
    assert torch.autograd.gradcheck(
        lambda b: centre_context_gap(b, noise(2, 10, 11), 1.44, form), boxes
    )


def test_derivative_by_an_edge_is_the_column_sum():
    """With the surroundings out of the score, only the box's mean depends on x2: (column's mean - box's mean) / width."""
    scores, box = (
        torch.zeros(1, 12, 12, dtype=torch.double),
        torch.tensor([[3.0, 3, 8.5, 8]], dtype=torch.double),
    )
    scores[0, 3:8, 3:9] = noise(5, 6)
    scores[0, :, 8] = 0.7
    scores[0, [*range(3), *range(8, 12)]] = 0
    box.requires_grad_()
    gap = centre_context_gap(
        box, scores, context=1 + 1e-12, form="printed"
    )  # Phi(B) against itself: minus its mean remains
    mean = (scores[0, 3:8, 3:8].sum() + 0.5 * scores[0, 3:8, 8].sum()) / (5 * 5.5)
    assert gap.item() == pytest.approx(-mean.item())
    assert torch.autograd.grad(gap.sum(), box)[0][0, 2].item() == pytest.approx(
        -(0.7 - mean.item()) / 5.5, rel=1e-6
    )


def test_derivative_on_the_border_is_the_one_inwards():
    maps = noise(1, 9, 9)
    for side, inwards in enumerate([1, 1, -1, -1]):
        box = torch.tensor([[2.5, 2.5, 6.5, 6.5]], dtype=torch.double)
        box[0, side] = 0 if side < 2 else 9
        nearly = box.clone()
        nearly[0, side] += inwards * 1e-9
        slopes = [
            torch.autograd.grad(centre_context_gap(b.requires_grad_(), maps).sum(), b)[0][0, side]
            for b in (box, nearly)
        ]
        assert slopes[0].item() == pytest.approx(slopes[1].item(), rel=1e-5)
        assert slopes[0] != 0


def test_uniform_map():
    maps, boxes = torch.full((8, 30, 40), 0.3, dtype=torch.double), random_boxes(8, 30, 40)
    torch.testing.assert_close(centre_context_gap(boxes, maps), torch.zeros(8, dtype=torch.double))
    torch.testing.assert_close(
        centre_context_gap(boxes, maps, form="printed"), torch.full((8,), -0.3, dtype=torch.double)
    )


@given(st.lists(st.floats(-5, 5), min_size=4, max_size=4))
def test_the_tight_box_of_a_full_rectangle_is_the_minimum(nudge):
    tight = torch.tensor([20.0, 15, 50, 40], dtype=torch.double)
    boxes = torch.stack([tight, tight + torch.tensor(nudge, dtype=torch.double)])
    best, nudged = centre_context_gap(
        boxes, rectangle(20, 15, 50, 40)[None], index=torch.zeros(2, dtype=torch.long)
    )
    assert best.item() == pytest.approx(-1, abs=1e-12)
    if max(map(abs, nudge)) > 1e-6:
        assert nudged > best


def test_boxes_without_area_or_context():
    maps = noise(1, 20, 30)
    boxes = torch.tensor(
        [
            [0, 0, 30, 20],
            [-9, -9, 99, 99],
            [40, 5, 50, 9],
            [5, 5, 5, 9],
            [5, 5, 5, 5],
            [9, 9, 5, 5],
        ],
        dtype=torch.double,
        requires_grad=True,
    )
    for form in FORMS:
        gaps = centre_context_gap(boxes, maps, form=form, index=torch.zeros(6, dtype=torch.long))
        torch.testing.assert_close(gaps[:2], -maps.mean().expand(2))  # nothing around the image
        assert torch.equal(gaps[3:], torch.zeros(3, dtype=torch.double))
        assert torch.autograd.grad(gaps.sum(), boxes)[0].isfinite().all()
    assert centre_context_gap(boxes[2:3], maps) == 0


def test_no_boxes():
    none = torch.zeros(0, 4)
    for maps, index in [
        (torch.zeros(0, 5, 5), None),
        (torch.zeros(3, 5, 5), torch.zeros(0, dtype=torch.long)),
    ]:
        assert centre_context_gap(none, maps, index=index).shape == (0,)
        assert refine_boxes(none, maps, index=index, peaks=[]).shape == (0, 4)


def test_float32_on_a_large_map_is_as_good_as_float64():
    maps, boxes = noise(1, 640, 640).float(), torch.tensor([[601.25, 607.5, 609.75, 615.5]])
    expected = plain_gap(boxes[0].double(), maps[0].double(), 1.5, "ring")
    found = centre_context_gap(boxes, maps)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)


def test_maps_in_half_precision():
    maps, boxes = noise(1, 20, 515).bfloat16(), torch.tensor([[480.0, 4, 515, 16]])
    expected = plain_gap(boxes[0].double(), maps[0].double(), 1.5, "ring")
    assert centre_context_gap(boxes, maps).item() == pytest.approx(expected.item())


def test_shared_and_padded_maps_are_as_own_ones():
    small, large = blobs(40, 50, seed=1), blobs(60, 80, seed=2)
    padded = torch.full((2, 60, 80), torch.nan, dtype=torch.double)  # padding is never read
    padded[0, :40, :50], padded[1] = small, large
    boxes = torch.tensor(
        [[10.5, 5.2, 45.0, 33], [20, 20, 55, 50], [30, 10, 49, 39]], dtype=torch.double
    )
    which, sizes = torch.tensor([0, 1, 0]), torch.tensor([[40, 50], [60, 80]])
    for call in (centre_context_gap, partial(refine_boxes, steps=20)):
        expected = [
            call(box[None], (small, large)[i][None]) for box, i in zip(boxes, which, strict=True)
        ]
        torch.testing.assert_close(
            call(boxes, padded, index=which, sizes=sizes), torch.cat(expected)
        )


def plain_refinement(
    box: Tensor, scores: Tensor, steps: int, form: str, rate: float = 0.02
) -> Tensor:
    """One box by torch's own Adam on edges in units of the first side, the best one kept."""
    height, width = scores.shape
    reach, limits = (box[2:] - box[:2]).repeat(2), torch.tensor([width, height, width, height])
    edges = (box / reach).requires_grad_()
    adam = torch.optim.Adam([edges], lr=rate, betas=(0.9, 0.99))
    best, lowest = box, math.inf
    for _ in range(steps + 1):
        gap = plain_gap(edges * reach, scores, 1.5, form)
        if gap < lowest:
            best, lowest = (edges * reach).detach(), gap.item()
        adam.zero_grad()
        gap.backward()
        adam.step()
        with torch.no_grad():
            edges.copy_(torch.minimum((edges * reach).clamp(min=0), limits) / reach)
    return best


@pytest.mark.parametrize("form", FORMS)
def test_refinement_against_one_box_at_a_time_by_torchs_adam(form):
    maps, boxes = torch.stack([blobs(seed=i) for i in range(4)]), random_boxes(4, 60, 80)
    found = refine_boxes(boxes, maps, 40, form=form, min_side=0)
    for box, scores, refined in zip(boxes, maps, found, strict=True):
        torch.testing.assert_close(
            refined, plain_refinement(box, scores, 40, form), rtol=0, atol=1e-3
        )
    assert (found - boxes).abs().amax(1).min() > 2


@pytest.mark.parametrize("form", FORMS)
def test_a_rectangle_is_found_from_around_it(form):
    tight = torch.tensor([[20.0, 15, 50, 40]])
    starts = tight + torch.tensor(
        [[-6.0, -5, 7, 8], [5, 4, -3, 6], [-15, 2, 12, -4], [-20, -15, 30, 20]]
    )
    index = torch.zeros(4, dtype=torch.long)
    found = refine_boxes(starts, rectangle(20, 15, 50, 40)[None], form=form, index=index)
    torch.testing.assert_close(found, tight.expand(4, 4), rtol=0, atol=0.5)
    assert found.dtype == torch.float32


def test_the_printed_form_gives_smaller_boxes():
    y, x = torch.meshgrid(torch.arange(60) + 0.5, torch.arange(80) + 0.5, indexing="ij")
    ellipse = (((x - 40) / 25) ** 2 + ((y - 30) / 18) ** 2 < 1).double()[None]
    start = torch.tensor([[13.0, 11, 68, 50]])
    ring, printed = (refine_boxes(start, ellipse, form=form)[0] for form in FORMS)
    assert (printed[2:] - printed[:2]).prod() < 0.9 * (ring[2:] - ring[:2]).prod()


@settings(max_examples=15)
@given(st.integers(0, 10_000), st.sampled_from(FORMS))
def test_the_gap_never_rises_and_boxes_stay_in_the_map(seed, form):
    maps, boxes = noise(5, 20, 26, seed=seed) ** 3, random_boxes(5, 20, 26, seed=seed)
    last = centre_context_gap(boxes, maps, form=form)
    for refined in refinement(boxes, maps, 12, form=form, rate=0.1):
        gap = centre_context_gap(refined, maps, form=form)
        assert (gap <= last + 1e-12).all()
        assert (refined >= 0).all()
        assert (refined <= torch.tensor([26, 20, 26, 20])).all()
        last = gap


def test_the_trace_is_what_fewer_steps_give():
    maps, boxes = blobs()[None], random_boxes(1, 60, 80)
    trace = list(refinement(boxes, maps, 30))
    assert len(trace) == 31
    for steps in (0, 7, 30):
        assert torch.equal(trace[steps], refine_boxes(boxes, maps, steps))


@pytest.mark.slow
@settings(max_examples=15)
@given(st.integers(0, 10_000), st.sampled_from(FORMS))
def test_boxes_do_not_depend_on_their_company(seed, form):
    maps, boxes = noise(4, 24, 20, seed=seed) ** 2, random_boxes(4, 24, 20, seed=seed)
    together = refine_boxes(boxes, maps, 10, form=form)
    for k in range(4):
        torch.testing.assert_close(
            refine_boxes(boxes[k : k + 1], maps[k : k + 1], 10, form=form)[0], together[k]
        )


@pytest.mark.slow
@settings(max_examples=15)
@given(st.integers(0, 10_000), st.sampled_from(FORMS))
def test_symmetries(seed, form):
    """A flipped, transposed, shifted or enlarged scene gives flipped, transposed, shifted or enlarged boxes."""
    scores, boxes = blobs(50, 64, seed)[None], random_boxes(1, 50, 64, seed)
    found = refine_boxes(boxes, scores, 10, form=form)

    def same(boxes: Tensor, scores: Tensor, expected: Tensor, **more: float) -> None:
        torch.testing.assert_close(
            refine_boxes(boxes, scores, 10, form=form, **more), expected, rtol=0, atol=1e-6
        )

    def mirror(boxes: Tensor) -> Tensor:
        return torch.stack([64 - boxes[:, 2], boxes[:, 1], 64 - boxes[:, 0], boxes[:, 3]], 1)

    same(mirror(boxes), scores.flip(2), mirror(found))
    same(boxes[:, [1, 0, 3, 2]], scores.transpose(1, 2), found[:, [1, 0, 3, 2]])
    same(boxes * 2, scores.repeat_interleave(2, 1).repeat_interleave(2, 2), found * 2, min_side=16)
    wide = torch.nn.functional.pad(scores, (40, 40, 40, 40))
    away = torch.nn.functional.pad(scores, (45, 35, 47, 33))
    shift = torch.tensor([5, 7, 5, 7])
    same(boxes + 40 + shift, away, refine_boxes(boxes + 40, wide, 10, form=form) + shift)


def test_flat_maps_move_nothing():
    maps = torch.stack([torch.zeros(60, 80), torch.full((60, 80), 0.3), torch.ones(60, 80)])
    boxes = random_boxes(3, 60, 80).float()
    for form in FORMS:
        assert torch.equal(refine_boxes(boxes, maps, form=form), boxes)


def test_odd_starts():
    maps, whole = rectangle(20, 15, 50, 40)[None], torch.tensor([[0.0, 0, 80, 60]])
    boxes = torch.tensor([[90.0, 5, 120, 30], [30, 20, 30, 35], [40, 30, 20, 20]])
    index = torch.zeros(3, dtype=torch.long)
    assert torch.equal(
        refine_boxes(boxes, maps, index=index), boxes
    )  # without area in the map: as they were
    torch.testing.assert_close(
        refine_boxes(whole, maps), torch.tensor([[20.0, 15, 50, 40]]), rtol=0, atol=0.8
    )
    assert torch.equal(refine_boxes(whole, torch.ones(1, 60, 80)), whole)
    assert torch.equal(refine_boxes(whole + torch.tensor([-5, -5, 5, 5]), maps, 0), whole)


def test_sides_shrink_no_further_than_allowed():
    maps = torch.zeros(3, 60, 80)
    maps[:, 30, 40] = 1
    boxes = torch.tensor([[20.0, 20, 60, 45], [38.0, 28, 43, 33], [36, 20, 41, 45]])
    sides = refine_boxes(boxes, maps, min_side=8)
    sides = sides[:, 2:] - sides[:, :2]
    torch.testing.assert_close(sides, torch.tensor([[8.0, 8], [5, 5], [5, 8]]), rtol=0, atol=1e-3)


@pytest.mark.slow
def test_a_box_stops_before_its_second_peak():
    """Two rectangles side by side: free, the box takes both; held by the peaks, it ends between them."""
    maps = (rectangle(10, 20, 30, 40) + rectangle(30, 20, 50, 40))[None]
    start = torch.tensor([[8.0, 18, 36, 42]])
    free = refine_boxes(start, maps)
    assert free[0, 2] > 48
    peaks = torch.tensor([[20.0, 30], [40, 30], [70, 50]])
    held = refine_boxes(start, maps, peaks=[peaks])
    assert 30 < held[0, 2] <= 40
    trace = list(refinement(start, maps, peaks=[peaks]))
    stop = next(i for i, box in enumerate(trace) if torch.equal(box, held))
    assert all(torch.equal(box, held) for box in trace[stop:])
    assert torch.equal(trace[stop], list(refinement(start, maps, stop))[-1])
    both = refine_boxes(
        start.repeat(3, 1), maps.repeat(3, 1, 1), peaks=[peaks, peaks[:0], peaks[:1]]
    )
    assert torch.equal(both, torch.cat([held, free, free]))
    two = torch.tensor([[8.0, 18, 42, 42]])
    assert torch.equal(refine_boxes(two, maps, peaks=[peaks]), two)


def test_refines_in_every_mode():
    maps, boxes = blobs()[None], random_boxes(1, 60, 80)
    expected = refine_boxes(boxes, maps, 10)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert torch.equal(refine_boxes(boxes.clone(), maps.clone(), 10), expected)
    learnt = refine_boxes(boxes.clone().requires_grad_(), maps.clone().requires_grad_(), 10)
    assert torch.equal(learnt, expected)
    assert not learnt.requires_grad


BOX, MAP = torch.tensor([[1.0, 1, 4, 4]]), torch.zeros(1, 6, 6)


@pytest.mark.parametrize(
    ("boxes", "maps", "more", "message"),
    [
        (BOX[0], MAP, {}, "boxes are"),
        (BOX.int(), MAP, {}, "float"),
        (BOX / 0, MAP, {}, "box 0 is not finite"),
        (BOX, MAP[0], {}, "maps are"),
        (BOX, MAP[:, :0], {}, "maps are"),
        (BOX, MAP.repeat(2, 1, 1), {}, "`index`"),
        (BOX, MAP, {"index": torch.tensor([1])}, "0 to 0"),
        (BOX, MAP, {"index": torch.tensor([0, 0])}, "0 to 0"),
        (
            BOX,
            torch.cat([MAP, MAP * torch.nan]),
            {"index": torch.tensor([0])},
            "map 1 has values that are not finite",
        ),
        (BOX, MAP + torch.inf, {}, "map 0"),
        (BOX, MAP, {"sizes": torch.tensor([6, 6])}, "sizes are"),
        (BOX, MAP, {"sizes": torch.tensor([[6, 7]])}, "sizes must"),
        (BOX, MAP, {"form": "disc"}, "printed"),
        (BOX, MAP, {"context": 1}, "above 1"),
    ],
)
def test_bad_input_is_named(boxes, maps, more, message):
    for call in (centre_context_gap, refine_boxes):
        with pytest.raises(InputError, match=message):
            call(boxes, maps, **more)


def test_peaks_of_other_boxes():
    with pytest.raises(InputError, match="each of 1 boxes"):
        refine_boxes(BOX, MAP, peaks=[])
    with pytest.raises(InputError, match="each of 1 boxes"):
        refine_boxes(BOX, MAP, peaks=[torch.zeros(3)])


def test_boxes_around_parts_are_those_of_flooding():
    """Against scikit-image's labels of the surroundings, on blobs that often touch or leave the box."""
    from skimage.measure import label, regionprops

    generator = torch.Generator().manual_seed(0)
    masks = (
        torch.nn.functional.avg_pool2d(torch.rand(40, 1, 34, 44, generator=generator), 5, 1)[:, 0]
        > 0.58
    )
    low = torch.rand(40, 2, generator=generator) * 20 - 2
    boxes = torch.cat([low, low + 4 + 16 * torch.rand(40, 2, generator=generator)], 1)
    drawn = surround_part(boxes, masks, 1.5)
    for box, mask, found in zip(boxes, masks, drawn, strict=True):
        centre, reach = (box[:2] + box[2:]) / 2, (box[2:] - box[:2]) * 0.75
        near, inside = torch.zeros_like(mask), torch.zeros_like(mask)
        for where, (a, b) in (
            (near, (centre - reach, centre + reach)),
            (inside, (box[:2], box[2:])),
        ):
            (x1, y1), (x2, y2) = (
                a.round().clamp(min=0).int().tolist(),
                b.round().clamp(min=0).int().tolist(),
            )
            where[y1:y2, x1:x2] = True
        parts = label((mask & near).numpy(), connectivity=2)
        held = [int((parts[inside.numpy()] == region.label).sum()) for region in regionprops(parts)]
        if not any(held):
            assert torch.equal(found, box)
            continue
        y1, x1, y2, x2 = regionprops(parts)[held.index(max(held))].bbox
        assert found.tolist() == [x1, y1, x2, y2]
    assert 5 < (drawn != boxes).any(1).sum() < 40


def union_of(boxes: list[Tensor]) -> Tensor:
    stacked = torch.stack(boxes)
    return torch.cat([stacked[:, :2].amin(0), stacked[:, 2:].amax(0)])


def merged_slowly(boxes: Tensor, scores: Tensor, form: str) -> tuple[list[list[int]], list[Tensor]]:
    """Groups of boxes of one map and their unions: the best pair first, while it gains."""
    groups, found = [[k] for k in range(len(boxes))], list(boxes)

    def gap(box: Tensor) -> float:
        return float(centre_context_gap(box[None], scores[None], form=form))

    while True:
        gains = {}
        for i in range(len(found)):
            for j in range(i + 1, len(found)):
                both = union_of([found[i], found[j]])
                gains[i, j] = min(gap(found[i]), gap(found[j])) - gap(both)
        if max(gains.values(), default=-1.0) < 0:
            return groups, found
        i, j = max(gains, key=gains.get)
        found[i] = union_of([found[i], found[j]])
        groups[i] += groups[j]
        del found[j], groups[j]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("seed", range(4))
def test_boxes_are_merged_as_by_hand(form, seed):
    maps = torch.stack([blobs(seed=seed), blobs(seed=seed + 10)])
    boxes, index = random_boxes(7, 60, 80, seed), torch.tensor([0, 1, 0, 0, 1, 0, 1])
    found, part = merge_boxes(boxes, maps, form=form, index=index)
    assert torch.equal(boxes, random_boxes(7, 60, 80, seed)), "boxes that are given do not change"
    assert form == "printed" or len(found) < len(boxes)
    for number, scores in enumerate(maps):
        own = (index == number).nonzero().flatten()
        groups, unions = merged_slowly(boxes[own], scores, form)
        for group, union in zip(groups, unions, strict=True):
            (row,) = {int(part[own[k]]) for k in group}
            torch.testing.assert_close(found[row], union)


def test_halves_of_an_object_are_merged_and_neighbours_with_a_gap_are_not():
    scores = torch.maximum(rectangle(10, 10, 50, 30), rectangle(60, 10, 78, 30))
    halves = torch.tensor([[10.0, 10, 30, 30], [30, 10, 50, 30], [60, 10, 78, 30]])
    found, part = merge_boxes(halves, scores[None], index=torch.zeros(3, dtype=torch.int64))
    assert found.tolist() == [[10, 10, 50, 30], [60, 10, 78, 30]]
    assert part.tolist() == [0, 0, 1]


def test_a_box_takes_in_its_double_and_a_worse_part_of_it():
    whole, part = [10.0, 10, 50, 30], [12.0, 12, 30, 28]
    boxes, index = torch.tensor([part, whole, whole]), torch.zeros(3, dtype=torch.int64)
    found, _ = merge_boxes(boxes, rectangle(10, 10, 50, 30)[None], index=index)
    assert found.tolist() == [whole]


@pytest.mark.parametrize("count", [0, 1])
def test_one_box_or_none_stays(count):
    boxes, index = random_boxes(count, 60, 80), torch.zeros(count, dtype=torch.int64)
    found, part = merge_boxes(boxes, blobs()[None], index=index)
    torch.testing.assert_close(found, boxes)
    assert part.tolist() == [0] * count
