"""Masks made in torch beside those of OpenCV and NumPy; on a GPU too where there is one."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from wsis.evidence.grabcut import SIZE, crops
from wsis.evidence.on_device import crops_on_device, eight_bit_lab

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")),
]


def scene(seed: int, size: tuple[int, int] = (120, 160)) -> Tensor:
    """Discs of random colours on a ground with a gradient and noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: size[0], : size[1]]
    image = 40 + 0.5 * x[..., None] + rng.normal(0, 8, (*size, 3))
    for _ in range(6):
        cy, cx, radius = rng.integers(size[0]), rng.integers(size[1]), rng.integers(8, 40)
        disc = (y - cy) ** 2 + (x - cx) ** 2 < radius**2
        image[disc] = rng.integers(0, 256, 3) + rng.normal(0, 8, (disc.sum(), 3))
    return torch.from_numpy(image.clip(0, 255).astype(np.uint8)).permute(2, 0, 1).contiguous()


def boxes(seed: int, count: int = 40) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    low = torch.rand(count, 2, generator=generator) * torch.tensor([130.0, 90.0]) - 5
    return torch.cat([low, low + 3 + 60 * torch.rand(count, 2, generator=generator)], 1)


def same(found: Tensor, expected: np.ndarray) -> float:
    return (found.cpu().numpy() == expected).mean()


@pytest.mark.skipif(cv2.__version__ < "5", reason="before 5, OpenCV samples at 1/32 of a pixel")
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("given", ["none", "sure", "both"])
@pytest.mark.parametrize("centred", [True, False])
def test_cells_are_those_of_the_cpu_form(device, given, centred):
    images = [scene(0), scene(1, (90, 200))]
    asked = [boxes(2), boxes(3, 25)]
    generator = torch.Generator().manual_seed(4)
    known: list[list[Tensor] | None] = [None, None]
    for kind in range({"none": 0, "sure": 1, "both": 2}[given]):
        drawn = [torch.rand(len(b), SIZE, SIZE, generator=generator) < 0.1 for b in asked]
        known[kind] = drawn
    moved = [m and [cells.to(device) for cells in m] for m in known]
    on = [i.to(device) for i in images], [b.to(device) for b in asked]
    found = crops_on_device(*on, *moved, centred=centred)
    agreement = []
    for n, (windows, masks) in enumerate(found):
        cells = [m and m[n].numpy() for m in known]
        image = images[n].permute(1, 2, 0).contiguous().numpy()
        expected = crops(image, asked[n].numpy(), *cells, centred)
        np.testing.assert_allclose(windows.cpu().numpy(), expected[0], rtol=1e-6)
        agreement.append(same(masks, expected[1]))
    assert min(agreement) > 0.999


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
def test_masks_do_not_depend_on_the_other_boxes(device):
    image, asked = scene(5).to(device), boxes(6, 300).to(device)
    ((_, every),) = crops_on_device([image], [asked])
    ((_, some),) = crops_on_device([image], [asked[250:270]])
    assert torch.equal(every[250:270], some)


def test_images_without_boxes():
    none, image = torch.zeros(0, 4), scene(7)
    ((_, masks),) = crops_on_device([image], [none])
    assert masks.shape == (0, SIZE, SIZE)
    (_, (_, one)) = crops_on_device([image, image], [none, boxes(8, 1)])
    assert one.shape == (1, SIZE, SIZE)


@pytest.mark.parametrize("device", DEVICES)
def test_lab_is_opencvs(device):
    colours = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    expected = cv2.cvtColor(colours, cv2.COLOR_RGB2LAB).astype(int)
    found = eight_bit_lab(torch.from_numpy(colours).permute(2, 0, 1)[None].to(device))
    apart = np.abs(found[0].permute(1, 2, 0).cpu().numpy() - expected)
    assert (apart > 0).mean() < 0.001
    assert apart.max() <= 1
