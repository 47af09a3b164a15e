import numpy as np
import torch
from pycocotools import mask as rle

from wsis.nn.masks import MaskHeads, along_segments, next_target, of_class, paste, pointwise
from wsis.types import Proposals


def loop(mask, box, size):
    """Bilinear between cell centres at each pixel centre, zero beyond the outermost centres."""
    out = np.zeros(size)
    h, w = mask.shape
    padded = np.pad(mask, 1)
    for y in range(size[0]):
        for x in range(size[1]):
            if not (box[0] - 1 < x < box[2] and box[1] - 1 < y < box[3]):
                continue
            u = (x + 0.5 - box[0]) / (box[2] - box[0]) * w - 0.5
            v = (y + 0.5 - box[1]) / (box[3] - box[1]) * h - 0.5
            i, j = int(np.floor(v)), int(np.floor(u))
            if not (-1 <= i < h and -1 <= j < w):
                continue
            a, b = v - i, u - j
            cell = padded[i + 1 : i + 3, j + 1 : j + 3]
            out[y, x] = (1 - a) * ((1 - b) * cell[0, 0] + b * cell[0, 1]) + a * (
                (1 - b) * cell[1, 0] + b * cell[1, 1]
            )
    return out


def test_paste_against_loops():
    g = torch.Generator().manual_seed(0)
    masks = torch.rand(6, 9, 9, generator=g)
    boxes = torch.tensor(
        [
            [3.2, 4.7, 20.1, 30.9],
            [-5, -5, 12, 9],
            [30, 20, 70, 60],
            [5, 5, 6.2, 40],
            [0, 0, 50, 40],
            [10, 10, 11, 11],
        ]
    )
    for mask, box, found in zip(masks, boxes, paste(masks, boxes, (40, 50)), strict=True):
        exact = loop(mask.numpy(), box.tolist(), (40, 50))
        sure = np.abs(exact - 0.5) > 0.03  # OpenCV interpolates in steps of 1/32 pixel
        assert (rle.decode(found) == (exact >= 0.5))[sure].all()
        assert sure.mean() > 0.5


def test_a_full_mask_is_the_pixels_whose_centre_is_in_the_box():
    found = rle.decode(
        paste(torch.ones(1, 28, 28), torch.tensor([[2.0, 3.0, 12.0, 9.0]]), (20, 30))[0]
    )
    expected = np.zeros((20, 30))
    expected[3:9, 2:12] = 1
    assert (found == expected).all()


def test_boxes_outside_the_image_give_empty_masks():
    found = paste(torch.ones(2, 28, 28), torch.tensor([[50.0, 3, 60, 9], [4, 4, 4, 4]]), (20, 30))
    assert [rle.area(m) for m in found] == [0, 0]
    assert paste(torch.ones(0, 28, 28), torch.zeros(0, 4), (20, 30)) == []


def test_heads_double_the_side_and_share_a_trunk():
    heads = MaskHeads(6, [1, 5, 5], width=8)
    assert [tuple(m.shape) for m in heads(torch.randn(3, 6, 14, 14))] == [
        (3, 1, 28, 28),
        (3, 5, 28, 28),
        (3, 5, 28, 28),
    ]
    assert [len(m) for m in heads(torch.randn(0, 6, 14, 14))] == [0, 0, 0]


def test_of_class_takes_each_regions_channel():
    masks, labels = torch.randn(4, 3, 2, 2), torch.tensor([2, 0, 1, 2])
    for k in range(4):
        assert torch.equal(of_class(masks, labels)[k], masks[k, labels[k]])
    assert torch.equal(of_class(masks[:, :1], labels), masks[:, 0])


def test_a_convolution_before_enlarging_is_one_after_it():
    g = torch.Generator().manual_seed(0)
    maps = [torch.randn(2, d, 16 // s, 24 // s, generator=g) for d, s in ((3, 1), (5, 2), (7, 4))]
    weight, bias = torch.randn(4, 15, 1, 1, generator=g), torch.randn(4, generator=g)
    together = torch.cat(
        [torch.nn.functional.interpolate(m, size=(16, 24), mode="bilinear") for m in maps], 1
    )
    expected = torch.nn.functional.conv2d(together, weight, bias)
    torch.testing.assert_close(pointwise(maps, weight, bias), expected)


def test_what_a_head_teaches_the_next():
    logits = torch.tensor([-1.0, 0.0, 2.0], requires_grad=True)
    cut, soft = next_target(logits, "cut"), next_target(logits, "soft")
    assert cut.tolist() == [0, 0, 1]
    assert torch.allclose(soft, 1 / (1 + torch.exp(-logits)))
    assert not cut.requires_grad
    assert not soft.requires_grad


def test_masks_along_segments_against_loops():
    """Eight columns of superpixels of 5 x 40 pixels; boxes of whole pixels, one cell a pixel."""
    g = torch.Generator().manual_seed(0)
    labels = (torch.arange(40) // 5).expand(40, 40).clone()
    labels[:, :2] = -1
    members = torch.rand(6, 8, generator=g) > 0.4
    boxes, masks = torch.tensor([[0.0, 10, 20, 30], [13, 5, 33, 25]]), torch.rand(2, 20, 20)
    found = along_segments(masks, boxes, Proposals(boxes, torch.ones(6), labels.int(), members))
    for mask, box, result in zip(masks, boxes.int().tolist(), found, strict=True):
        image, inside = torch.zeros(40, 40), torch.zeros(40, 40).bool()
        image[box[1] : box[3], box[0] : box[2]] = mask
        inside[box[1] : box[3], box[0] : box[2]] = True
        segments = [(labels[..., None] == row.nonzero().flatten()).any(-1) for row in members]
        soft_iou = [
            float(
                image[segment & (labels >= 0)].sum()
                / (image.sum() + segment.sum() - image[segment].sum())
            )
            for segment in segments
        ]
        weights = np.array(soft_iou) ** 4 / (np.array(soft_iou) ** 4).sum()
        expected = torch.zeros(40, 40)
        for k in range(8):
            pixels = labels == k
            of_segments = sum(w * float(row[k]) for w, row in zip(weights, members, strict=True))
            expected[pixels] = (
                float(image[pixels & inside].nanmean().nan_to_num()) + of_segments
            ) / 2
        torch.testing.assert_close(result, expected[box[1] : box[3], box[0] : box[2]])


def test_a_mask_that_is_a_segment_stays():
    labels = torch.arange(4).repeat_interleave(8).expand(32, 32).int()
    members = torch.tensor([[1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 1, 1]]).bool()
    box = torch.tensor([[0.0, 0, 32, 32]])
    mask = torch.zeros(1, 16, 16)
    mask[..., 4:8] = 1
    proposals = Proposals(box.expand(3, 4), torch.ones(3), labels, members)
    assert torch.equal(along_segments(mask, box, proposals) > 0.5, mask > 0)


def test_masks_without_proposals_stay():
    none = Proposals(
        torch.zeros(0, 4), torch.zeros(0), torch.zeros(9, 9).int(), torch.ones(0, 1) > 0
    )
    masks = torch.rand(2, 4, 4)
    assert torch.equal(
        along_segments(masks, torch.tensor([[0.0, 0, 8, 8]]).repeat(2, 1), none), masks
    )
