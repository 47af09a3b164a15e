"""Segments as regions of feature maps, as masks, and as stuff."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pycocotools import mask as rle
from torchvision.ops import roi_pool

from wsis.errors import InputError
from wsis.nn.masks import segment_masks
from wsis.nn.panoptic import paint
from wsis.nn.regions import pool, pool_segments
from wsis.nn.views import Inference, image_views, proposals_in
from wsis.types import Proposals


def proposals_of(height: int = 50, width: int = 70, count: int = 12, seed: int = 0) -> Proposals:
    """Blocks of 10 x 10 pixels as superpixels, some of them in each proposal, and a corner that belongs to none."""
    g = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(height) // 10, torch.arange(width) // 10, indexing="ij")
    labels = (y * (width // 10) + x).int()
    members = torch.rand(count, int(labels.max()) + 1, generator=g) > 0.6
    labels[:5, :5] = -1
    boxes = []
    for row in members:
        ys, xs = (row[labels.clamp(min=0).long()] & (labels >= 0)).nonzero(as_tuple=True)
        boxes.append([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
    return Proposals(torch.tensor(boxes).float(), torch.rand(count, generator=g), labels, members)


def masks_of(proposals: Proposals) -> torch.Tensor:
    return torch.stack(
        [
            row[proposals.labels.clamp(min=0).long()] & (proposals.labels >= 0)
            for row in proposals.members
        ]
    )


def test_segment_masks_are_their_superpixels():
    proposals = proposals_of()
    which = torch.tensor([3, 0, 7])
    decoded = torch.from_numpy(
        np.stack([rle.decode(m) for m in segment_masks(proposals, which)])
    ).bool()
    assert torch.equal(decoded, masks_of(proposals)[which])


def test_paint_puts_later_masks_on_top():
    masks, labels = masks_of(proposals_of()), torch.tensor([2, 0, 1] * 4)
    expected = torch.full(masks.shape[1:], 255)
    for y in range(masks.shape[1]):
        for x in range(masks.shape[2]):
            covering = masks[:, y, x].nonzero()[:, 0]
            expected[y, x] = labels[covering.max()] if len(covering) else 255
    assert torch.equal(paint(masks, labels), expected)
    assert (paint(masks[:0], labels[:0]) == 255).all()


def test_pooled_segments_of_a_batch_are_those_of_each_image():
    """Maps are larger than the images: what lies beyond an image belongs to no segment."""
    a, b = proposals_of(50, 70, seed=0), proposals_of(40, 60, 9, seed=1)
    features = torch.randn(2, 4, 8, 10)
    together = pool_segments(features, [a, b], 8)
    assert together.shape == (21, 4, 7, 7)
    assert torch.equal(together[:12], pool_segments(features[:1], [a], 8))
    assert torch.equal(together[12:], pool_segments(features[1:], [b], 8))
    full = [
        p._replace(members=torch.ones_like(p.members), labels=p.labels.clamp(min=0)) for p in (a, b)
    ]
    inside = [
        p._replace(boxes=p.boxes - torch.tensor([0, 0, 8, 8.0])) for p in full
    ]  # the last cell is inclusive
    boxes = [p.boxes for p in inside]
    assert torch.equal(
        pool_segments(features, inside, 8, compensation=None), pool(features, boxes, 8)
    )


def rectangle(box: tuple[int, int, int, int], size: tuple[int, int]) -> Proposals:
    """One rectangular segment of whole pixels."""
    x1, y1, x2, y2 = box
    labels = torch.full(size, -1, dtype=torch.int32)
    labels[y1:y2, x1:x2] = 0
    return Proposals(
        torch.tensor([box]).float(), torch.ones(1), labels, torch.ones(1, 1, dtype=torch.bool)
    )


def test_a_rectangular_segment_is_roi_pool_on_its_cells_at_any_position():
    """JTSM, section 3.3. The rounded box leaves bins empty, unless it fits by chance."""
    features = torch.rand(1, 3, 12, 14, generator=torch.Generator().manual_seed(0)) + 1
    equal = {"region": 0, "box": 0}
    boxes = [
        (x, y, x + w, y + h)
        for x in range(8, 17)
        for y in (8, 13)
        for w, h in ((17, 25), (80, 56), (5, 9))
    ]
    for box in boxes:
        proposals = rectangle(box, (96, 112))
        cells = torch.tensor([[box[0] // 8, box[1] // 8, -(-box[2] // 8) - 1, -(-box[3] // 8) - 1]])
        expected = roi_pool(features, [cells.float()], 7, 1.0)
        for window in equal:
            found = pool_segments(features, [proposals], 8, window=window)
            equal[window] += torch.equal(found, expected)
        released = pool_segments(features, [proposals], 8, compensation="released", window="region")
        torch.testing.assert_close(released, expected * 49 / 50)
    assert equal["region"] == len(boxes) > 2 * equal["box"]


@pytest.mark.parametrize("compensation", ["bins", "released", None])
def test_a_window_around_the_regions_cells_against_loops(compensation):
    proposals, features = proposals_of(), torch.randn(1, 2, 7, 9)
    proposals.members[3] = False  # a segment without pixels
    found = pool_segments(features, [proposals], 8, compensation=compensation, window="region")
    padded = torch.zeros(12, 56, 72, dtype=torch.bool)
    padded[:, :50, :70] = masks_of(proposals)
    for region, mask in zip(found, padded, strict=True):
        blocks = mask.view(7, 8, 9, 8).any(3).any(1)
        ys, xs = blocks.nonzero(as_tuple=True)
        expected, filled = torch.zeros(2, 7, 7), 0
        if len(ys):
            top, left = int(ys.min()), int(xs.min())
            rows, columns = int(ys.max()) - top + 1, int(xs.max()) - left + 1
        for u in range(7 * bool(len(ys))):
            for v in range(7):
                down = slice(top + u * rows // 7, top - (-(u + 1) * rows // 7))
                across = slice(left + v * columns // 7, left - (-(v + 1) * columns // 7))
                inside = blocks[down, across]
                filled += bool(inside.any())
                if inside.any():
                    expected[:, u, v] = features[0, :, down, across][:, inside].amax(1)
        factor = {"bins": 49 / max(filled, 1), "released": 49 / (filled + 1), None: 1}[compensation]
        torch.testing.assert_close(region, expected * factor)


@pytest.mark.parametrize("how", ["moi_pool", "moi_pool_interpolated"])
def test_boxes_without_segments_are_refused(how):
    boxes = proposals_of()._replace(labels=None, members=None)
    with pytest.raises(InputError, match="boxes alone, and segments are needed"):
        pool_segments(torch.randn(1, 4, 7, 9), [boxes], 8, how)


def test_views_carry_segments_along():
    proposals = proposals_of(60, 80)
    image = torch.zeros(3, 60, 80, dtype=torch.uint8)
    plain, mirrored, large, _ = image_views(image, Inference((60, 120), flip=True))
    assert torch.equal(proposals_in(plain, proposals).labels, proposals.labels)
    assert torch.equal(proposals_in(mirrored, proposals).labels, proposals.labels.flip(1))
    assert torch.equal(
        proposals_in(large, proposals).labels,
        proposals.labels.repeat_interleave(2, 0).repeat_interleave(2, 1),
    )
    for view in (plain, mirrored, large):
        seen = proposals_in(view, proposals)
        for box, mask in zip(seen.boxes.int(), masks_of(seen), strict=True):
            ys, xs = mask.nonzero(as_tuple=True)
            assert box.tolist() == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1], (
                "box and segment still fit"
            )


def test_label_maps_of_a_larger_image_are_refused():
    with pytest.raises(
        InputError, match=r"\(50, 70\), larger than a map of 6 x 9 cells of 8 pixels"
    ):
        pool_segments(torch.randn(1, 4, 6, 9), [proposals_of()], 8)
