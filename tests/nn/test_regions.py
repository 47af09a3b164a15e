import pytest
import torch
import torch.nn.functional as F

from wsis.nn.regions import enlarge, mean_and_contrast, pool


def test_pool_takes_the_maximum_of_each_bin():
    features = torch.arange(64.0).view(1, 1, 8, 8)
    found = pool(
        features, [torch.tensor([[0.0, 0.0, 56.0, 56.0]])], stride=8, size=2
    )  # rounds to cells 0..7, inclusive
    assert found.flatten().tolist() == [27, 31, 59, 63]


def test_roi_align_takes_a_sample_for_each_cell_of_a_bin():
    """Against loops: the mean of bilinear values at the centres of equal parts of a bin."""
    features = torch.rand(1, 1, 12, 16, generator=torch.Generator().manual_seed(0))
    box, size = torch.tensor([[9.0, 20, 119, 84]]), 3  # 13.75 x 8 cells of 8 pixels
    counts = {0: (5, 3), 2: (2, 2), 7: (7, 7)}  # across and down
    for samples, (across, down) in counts.items():
        found = pool(features, [box], 8, size, "roi_align", samples)[0, 0]
        left, top, width, height = 9 / 8 - 0.5, 20 / 8 - 0.5, 110 / 8 / size, 64 / 8 / size
        for row in range(size):
            for column in range(size):
                x = left + width * (column + (torch.arange(across) + 0.5) / across)
                y = top + height * (row + (torch.arange(down) + 0.5) / down)
                grid = torch.stack(torch.meshgrid(x / 7.5 - 1, y / 5.5 - 1, indexing="xy"), -1)
                values = F.grid_sample(features, grid[None], align_corners=True)
                assert found[row, column].item() == pytest.approx(values.mean().item(), abs=1e-5)


def test_pool_of_several_images_keeps_their_order_and_takes_none():
    features = torch.rand(3, 2, 6, 6)
    boxes = [
        torch.tensor([[0.0, 0, 20, 20]]),
        torch.zeros(0, 4),
        torch.tensor([[8.0, 8, 40, 40], [0, 0, 47, 47]]),
    ]
    for how in ("roi_pool", "roi_align"):
        found = pool(features, boxes, 8, 3, how)
        assert found.shape == (3, 2, 3, 3)
        assert torch.equal(found[1:], pool(features[2:], boxes[2:], 8, 3, how))


def test_mean_and_contrast_against_pixels():
    y, x = torch.meshgrid(torch.arange(16.0), torch.arange(20.0), indexing="ij")
    features = torch.stack([torch.sin(x / 5) + y / 10, torch.cos(y / 4)])[None].repeat(2, 1, 1, 1)
    features[1] *= -2
    boxes = [
        torch.tensor([[32.0, 32, 96, 64], [0, 0, 40, 48]]),
        torch.tensor([[80.0, 24, 160, 104]]),
    ]
    found = mean_and_contrast(features, boxes, stride=8, reach=1.5)
    pixels = F.interpolate(features, scale_factor=8, mode="bilinear")
    windows = [[(16, 24, 112, 72), (0, 0, 50, 60)], [(60, 4, 160, 124)]]
    row = 0
    for image, of_image, around in zip(pixels, boxes, windows, strict=True):
        for (x1, y1, x2, y2), (left, top, right, bottom) in zip(
            of_image.int().tolist(), around, strict=True
        ):
            ring = torch.zeros(128, 160, dtype=torch.bool)
            ring[top:bottom, left:right] = True
            ring[y1:y2, x1:x2] = False
            mean = image[:, y1:y2, x1:x2].mean((1, 2))
            assert torch.allclose(
                found[row], torch.cat([mean, mean - image[:, ring].mean(1)]), atol=0.02
            )
            row += 1


def test_contrast_tells_an_object_from_its_part_and_is_zero_without_surroundings():
    features = torch.zeros(1, 1, 20, 20)
    features[..., 5:15, 5:15] = 1.0
    boxes = torch.tensor([[40.0, 40, 120, 120], [60, 60, 100, 100], [0, 0, 160, 160]])
    mean, contrast = mean_and_contrast(features, [boxes], stride=8, reach=1.8).unbind(1)
    assert mean[1] > mean[0]
    assert contrast[0] > contrast[1] + 0.5
    assert contrast[2] == 0
    assert mean_and_contrast(features, [boxes[:0]], 8, 1.8).shape == (0, 2)


@pytest.mark.parametrize("how", ["roi_pool", "roi_align"])
@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_boxes_keep_their_precision_beside_half_features(how, kind):
    features = torch.randn(1, 3, 40, 200).to(kind)
    boxes = [
        torch.tensor([[1485.0, 101, 1501, 203], [0, 0, 1597, 319]])
    ]  # 1501 is 1504 in bfloat16
    with torch.autocast("cpu", torch.bfloat16, enabled=kind is torch.bfloat16):
        found = pool(features, boxes, 8, 7, how)
    assert torch.equal(found, pool(features.float(), boxes, 8, 7, how).to(kind))


def test_maps_are_enlarged_where_they_were_seen():
    maps = torch.zeros(1, 1, 24, 32)  # a stride of 16 on an image of 375 x 500
    maps[..., 10, 28] = 1
    large = enlarge(maps, 16, (375, 500))[0, 0]
    assert large.shape == (375, 500)
    y, x = torch.meshgrid(torch.arange(375) + 0.5, torch.arange(500) + 0.5, indexing="ij")
    assert ((large * x).sum() / large.sum()).item() == pytest.approx(456, abs=0.01)
    assert ((large * y).sum() / large.sum()).item() == pytest.approx(168, abs=0.01)
