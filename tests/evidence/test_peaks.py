from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from wsis.errors import InputError
from wsis.evidence.peaks import Peaks, bags, bags_of_boxes, class_peaks


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def cells_of(peaks: Peaks, stride: float = 1) -> set[tuple[int, int, int, int]]:
    """(image, class, row, column); a peak lies at most half a cell from its own cell's centre."""
    cells = (peaks.points / stride - 0.5).round().int().tolist()
    return {
        (n, c, y, x)
        for n, c, (x, y) in zip(peaks.images.tolist(), peaks.labels.tolist(), cells, strict=True)
    }


def one(map_: torch.Tensor, **settings) -> Peaks:
    return class_peaks(
        map_[None, None], torch.ones(1, 1), **{"stride": 1, "least": 0.0, **settings}
    )


def naive_peaks(map_: np.ndarray, least: float, reach: int = 1) -> list[set[tuple[int, int]]]:
    """The plateaus that are peaks, by flooding each from its first cell, around which nothing in reach is higher."""
    height, width = map_.shape
    floor = max(np.sort(map_, axis=None)[(map_.size - 1) // 2], least * map_.max())
    seen, found = set(), []
    for y in range(height):
        for x in range(width):
            if (y, x) in seen:
                continue
            plateau, open_cells, highest = {(y, x)}, [(y, x)], True
            while open_cells:
                v, u = open_cells.pop()
                for b in range(max(v - 1, 0), min(v + 2, height)):
                    for a in range(max(u - 1, 0), min(u + 2, width)):
                        highest &= map_[b, a] <= map_[v, u]
                        if map_[b, a] == map_[v, u] and (b, a) not in plateau:
                            plateau.add((b, a))
                            open_cells += [(b, a)]
            seen |= plateau
            highest &= (
                map_[max(y - reach, 0) : y + reach + 1, max(x - reach, 0) : x + reach + 1].max()
                <= map_[y, x]
            )
            if highest and len(plateau) < map_.size and map_[y, x] > 0 and map_[y, x] >= floor:
                found += [plateau]
    return found


@given(
    arrays(np.int8, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.integers(-2, 4)),
    st.sampled_from([0, 0.5]),
    st.sampled_from([3, 5, 7]),
)
def test_one_peak_on_each_highest_plateau(map_, least, window):
    """Few levels, so that plateaus are many and winding."""
    found = one(torch.from_numpy(map_), least=least, window=window)
    cells = [(y, x) for _, _, y, x in cells_of_plateaus(found, map_)]
    expected = naive_peaks(map_.astype(float), least, window // 2)
    assert len(cells) == len(expected)
    assert all(sum(cell in plateau for cell in cells) == 1 for plateau in expected)


def cells_of_plateaus(peaks: Peaks, map_: np.ndarray) -> list[tuple[int, int, int, int]]:
    """As `cells_of`, where half a cell's shift on a plateau of two may round to either."""
    cells = []
    for (x, y), score in zip(peaks.points.tolist(), peaks.scores.tolist(), strict=True):
        near = [
            (abs(y - b - 0.5) + abs(x - a - 0.5), 0, 0, b, a)
            for b in range(map_.shape[0])
            for a in range(map_.shape[1])
            if map_[b, a] == score
        ]
        cells += [min(near)[1:]]
    return cells


def test_without_ties_against_a_double_loop():
    maps = torch.randn(3, 4, 11, 8, generator=generator(0))
    tags = torch.tensor([[1, 0, 1, 0], [0, 0, 0, 0], [0, 1, 1, 1]])
    expected = set()
    for n, c in tags.nonzero().tolist():
        for (cell,) in naive_peaks(maps[n, c].numpy(), 0.3):
            expected.add((n, c, *cell))
    found = class_peaks(maps, tags, stride=16, least=0.3)
    assert cells_of(found, 16) == expected
    assert found.scores.tolist() == sorted(found.scores.tolist(), reverse=True)
    assert {round(s, 5) for s in found.scores.tolist()} == {
        round(float(maps[cell]), 5) for cell in expected
    }
    assert (found.of(2).images == 2).all()
    assert sum(len(found.of(n).scores) for n in range(3)) == len(expected)


@given(st.floats(2.1, 5.9), st.floats(2.1, 4.9))
def test_between_cells_against_a_sampled_paraboloid(x, y):
    """The parabola's top is found exactly, in pixels: cell (i, j) is sampled at its centre."""
    stride = 8
    rows, columns = torch.meshgrid(torch.arange(7) + 0.5, torch.arange(8) + 0.5, indexing="ij")
    map_ = (50 - 2 * (columns.double() - x) ** 2 - 0.7 * (rows.double() - y) ** 2).float()
    found = one(map_, stride=stride, least=0.99)
    torch.testing.assert_close(found.points[0], torch.tensor([x, y]) * stride, rtol=0, atol=1e-2)


def test_on_the_border_a_peak_stays_at_its_cell():
    map_ = torch.tensor([[9.0, 5, 1], [4, 3, 1], [1, 1, 1]])
    assert one(map_, stride=10).points.tolist() == [[5, 5]]


@pytest.mark.parametrize(
    "map_", [torch.zeros(4, 5), torch.full((4, 5), 3.0), torch.full((1, 1), 3.0), -torch.rand(4, 5)]
)
def test_maps_without_a_peak(map_):
    found = one(map_)
    assert [tuple(column.shape) for column in found] == [(0,), (0,), (0, 2), (0,)]


def test_no_tags_and_no_images():
    assert not len(class_peaks(torch.rand(2, 3, 4, 4), torch.zeros(2, 3), 8).scores)
    assert not len(class_peaks(torch.rand(0, 3, 4, 4), torch.zeros(0, 3), 8).scores)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_diverged_map_is_one_line(value):
    maps = torch.rand(1, 2, 4, 4)
    maps[0, 1, 2, 2] = value
    with pytest.raises(InputError, match="learning rate") as error:
        class_peaks(maps, torch.ones(1, 2), 8)
    assert "\n" not in str(error.value)
    class_peaks(maps, torch.tensor([[1, 0]]), 8)  # nobody asked for the other


def test_padding_changes_nothing_but_the_border_of_the_last_cell():
    """A batch with padding gives what its images give alone, whatever the padding holds."""
    small, large = (
        torch.rand(1, 5, 4, generator=generator(1)),
        torch.rand(1, 8, 9, generator=generator(2)),
    )
    padded = torch.full((2, 1, 8, 9), 7.0)
    padded[0, :, :5, :4], padded[1] = small, large
    sizes = [(5 * 8 - 3, 4 * 8), (8 * 8, 9 * 8)]
    found = class_peaks(padded, torch.ones(2, 1), 8, sizes)
    for n, map_ in enumerate((small, large)):
        alone = class_peaks(map_[None], torch.ones(1, 1), 8, sizes[n : n + 1])
        assert len(alone.scores)
        torch.testing.assert_close(found.of(n).points, alone.points)
        torch.testing.assert_close(found.of(n).scores, alone.scores)


def test_a_peak_lies_in_its_image():
    map_ = torch.zeros(3, 3)
    map_[1, 2] = 1
    assert one(map_, stride=10, sizes=[(30, 22)]).points.tolist() == [[22, 15]]
    assert not len(one(map_, stride=10, sizes=[(30, 20)]).scores)


def random_boxes(count: int, seed: int, width: int = 40, height: int = 30) -> torch.Tensor:
    corners = torch.rand(count, 2, 2, generator=generator(seed)) * torch.tensor([width, height])
    return torch.cat([corners.amin(1), corners.amax(1)], 1)


def naive_bag(k: int, points: list, boxes: list, rank: list[float], size: int) -> list[int]:
    def holds(box, point):
        return box[0] <= point[0] <= box[2] and box[1] <= point[1] <= box[3]

    others = {
        p: sum(holds(box, q) for q in points) - 1
        for p, box in enumerate(boxes)
        if holds(box, points[k])
    }
    candidates = [p for p in others if others[p] == min(others.values())]
    return sorted(candidates, key=lambda p: (-rank[p], p))[:size]


@pytest.mark.parametrize("count", [1, 3, 12])
@pytest.mark.parametrize("with_map", [True, False])
def test_bags_against_a_loop(count, with_map):
    """12 peaks on so small an image leave many without a box of their own."""
    points = torch.rand(count, 2, generator=generator(3)) * torch.tensor([40, 30])
    boxes = random_boxes(200, 4)
    objectness = torch.rand(200, generator=generator(5)) * 0.05  # so that the map has a say
    foreground = torch.rand(30, 40, generator=generator(6)) if with_map else None
    rank = objectness.tolist()
    if foreground is not None:
        for p, (x1, y1, x2, y2) in enumerate(boxes.round().int().tolist()):
            x1, y1 = min(x1, 39), min(y1, 29)
            rank[p] -= 0.1 * float(
                1 - foreground[y1 : max(y2, y1 + 1), x1 : max(x2, x1 + 1)].mean()
            )
    found = bags(points, boxes, objectness, foreground)
    assert found.proposals.shape == found.valid.shape == (count, 10)
    for k in range(count):
        expected = naive_bag(k, points.tolist(), boxes.tolist(), rank, 10)
        assert found.proposals[k][found.valid[k]].tolist() == expected
        assert found.valid[k].sum() == len(expected)


def test_the_map_decides_between_equals():
    """Eq. 4: objectness 0.5 - 0.1 x 3/4 for the wide box, - 0.1 x 0 for the one on the object."""
    foreground = torch.zeros(20, 20)
    foreground[5:15, 5:15] = 1
    boxes = torch.tensor([[0.0, 0, 20, 20], [5, 5, 15, 15]])
    even = torch.full((2,), 0.5)
    assert bags(torch.tensor([[10.0, 10]]), boxes, even, foreground).proposals[0, :2].tolist() == [
        1,
        0,
    ]
    better = torch.tensor([0.58, 0.5])  # more than the 0.075 that background costs
    assert bags(torch.tensor([[10.0, 10]]), boxes, better, foreground).proposals[
        0, :2
    ].tolist() == [0, 1]


def test_bags_that_are_empty():
    points, none = torch.tensor([[5.0, 5], [30, 30]]), torch.zeros(0, 4)
    assert not bags(points, none, torch.zeros(0)).valid.any()
    found = bags(points, torch.tensor([[0.0, 0, 10, 10]]), torch.ones(1), size=3)
    assert found.valid.tolist() == [[True, False, False], [False] * 3]
    assert not found.proposals.any()
    assert bags(torch.zeros(0, 2), torch.rand(4, 4), torch.rand(4)).valid.shape == (0, 10)


def test_bags_of_boxes_against_a_loop():
    boxes, proposals = random_boxes(4, 7), random_boxes(60, 8)
    boxes[0] += 100  # far from everything
    found = bags_of_boxes(boxes, proposals, size=5)
    for k, (x1, y1, x2, y2) in enumerate(boxes.tolist()):
        overlap = []
        for u1, v1, u2, v2 in proposals.tolist():
            shared = max(min(x2, u2) - max(x1, u1), 0) * max(min(y2, v2) - max(y1, v1), 0)
            overlap += [shared / ((x2 - x1) * (y2 - y1) + (u2 - u1) * (v2 - v1) - shared)]
        expected = sorted((p for p in range(60) if overlap[p] > 0), key=lambda p: -overlap[p])[:5]
        assert found.proposals[k][found.valid[k]].tolist() == expected
    assert not found.valid[0].any()
    assert not bags_of_boxes(boxes, torch.zeros(0, 4)).valid.any()
    assert bags_of_boxes(torch.zeros(0, 4), proposals).valid.shape == (0, 10)


def test_smoothing_is_the_mean_of_what_lies_in_the_image():
    """Of 5 x 6 cells the image has 4 x 5; what is beyond must not count, however high."""
    maps = torch.rand(1, 1, 5, 6, generator=generator(3))
    maps[..., 4, :], maps[..., 5] = 100, 100
    known = maps[0, 0, :4, :5]
    means = torch.tensor(
        [
            [float(known[max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2].mean()) for x in range(5)]
            for y in range(4)
        ]
    )
    smoothed = class_peaks(maps, torch.ones(1, 1), 1.0, [(4, 5)], least=0.0, smoothing=3)
    assert len(smoothed.labels)
    assert cells_of(smoothed) == cells_of(one(means))
    torch.testing.assert_close(smoothed.scores, one(means).scores)


@pytest.mark.parametrize("side", ["window", "smoothing"])
def test_sides_have_a_middle(side):
    with pytest.raises(InputError, match="odd"):
        one(torch.rand(4, 4), **{side: 4})
