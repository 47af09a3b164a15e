import numpy as np
import torch
from pycocotools import mask as rle

from wsis.nn.masks import MaskHeads, next_target, of_class, paste, pointwise


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
