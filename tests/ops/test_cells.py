from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wsis.errors import InputError
from wsis.ops import cells as module
from wsis.ops import segment_cells, segment_windows


def brute_force(labels, members, size):
    """Eq. (6) read aloud: the largest value of the region's mask in the window of each cell."""
    (pixels_y, pixels_x), (height, width) = labels.shape, size
    cells = torch.zeros(len(members), height, width, dtype=torch.bool)
    for p in range(len(members)):
        mask = torch.tensor(
            [[label >= 0 and bool(members[p, label]) for label in row] for row in labels.tolist()]
        )
        for u in range(height):
            for v in range(width):
                rows = slice(u * pixels_y // height, math.ceil((u + 1) * pixels_y / height))
                columns = slice(v * pixels_x // width, math.ceil((v + 1) * pixels_x / width))
                cells[p, u, v] = mask[rows, columns].any()
    return cells


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(1, 30),
    st.integers(1, 30),
    st.integers(1, 9),
    st.integers(1, 9),
    st.integers(1, 500),
)
def test_brute_force(seed, pixels_y, pixels_x, height, width, chunk):
    """Maps of which cells are no whole number of pixels, and cells smaller than a pixel, included."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(-1, 6, (pixels_y, pixels_x), generator=g, dtype=torch.int32)
    members = torch.rand(5, 6, generator=g) > 0.5
    kept, module._CHUNK = module._CHUNK, chunk
    try:
        assert torch.equal(
            segment_cells(labels, members, (height, width)),
            brute_force(labels, members, (height, width)),
        )
    finally:
        module._CHUNK = kept


def test_names_of_superpixels_do_not_matter():
    g = torch.Generator().manual_seed(0)
    labels, members = (
        torch.randint(0, 9, (40, 50), generator=g),
        torch.rand(20, 9, generator=g) > 0.7,
    )
    order = torch.randperm(9, generator=g)
    renamed = order.argsort()[labels]
    assert torch.equal(
        segment_cells(renamed, members[:, order], (5, 7)), segment_cells(labels, members, (5, 7))
    )


def test_a_small_segment_does_not_vanish():
    labels = torch.zeros(64, 64, dtype=torch.int32)
    labels[17, 42] = 1
    cells = segment_cells(labels, torch.tensor([[False, True]]), (8, 8))
    assert cells.nonzero().tolist() == [[0, 2, 5]]


def test_regions_without_pixels_have_no_cell():
    labels = torch.zeros(8, 8, dtype=torch.int32)
    cells = segment_cells(labels, torch.tensor([[False, False], [False, True]]), (2, 2))
    assert not cells.any()
    assert segment_cells(labels, torch.zeros(0, 2, dtype=torch.bool), (2, 2)).shape == (0, 2, 2)


def test_labels_of_other_proposals_are_refused():
    with pytest.raises(InputError, match="superpixel 4, members only 3"):
        segment_cells(torch.full((8, 8), 4), torch.ones(2, 3, dtype=torch.bool), (2, 2))
    with pytest.raises(InputError, match="cannot be laid"):
        segment_cells(
            torch.zeros(0, 8, dtype=torch.int32), torch.ones(2, 3, dtype=torch.bool), (2, 2)
        )


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 9), st.integers(1, 9))
def test_windows_are_masks_seen_at_the_centres_of_a_grid(seed, height, width):
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(-1, 5, (20, 30), generator=g, dtype=torch.int32)
    members = torch.rand(6, 5, generator=g) > 0.5
    corner = torch.rand(6, 2, generator=g) * 30 - 8
    boxes = torch.cat([corner, corner + torch.rand(6, 2, generator=g) * 20], 1)
    seen = segment_windows(labels, members, boxes, (height, width))
    for k, (x1, y1, x2, y2) in enumerate(boxes.tolist()):
        for u in range(height):
            for v in range(width):
                y, x = (
                    math.floor(y1 + (y2 - y1) * (u + 0.5) / height),
                    math.floor(x1 + (x2 - x1) * (v + 0.5) / width),
                )
                label = labels[y, x] if 0 <= y < 20 and 0 <= x < 30 else -1
                assert seen[k, u, v] == (label >= 0 and members[k, label])


def test_windows_of_no_region():
    empty = segment_windows(
        torch.zeros(4, 4, dtype=torch.int32),
        torch.zeros(0, 2, dtype=torch.bool),
        torch.zeros(0, 4),
        (3, 2),
    )
    assert empty.shape == (0, 3, 2)
