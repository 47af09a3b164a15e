"""What a mask head learns from boxes: cells and colours of regions; its losses are tested beside the others."""

from __future__ import annotations

import numpy as np
import torch

from wsis.images.colour import lab
from wsis.nn.box_masks import cells_inside, region_colours


def test_cells_are_inside_where_their_centres_are():
    boxes = torch.tensor([[10.0, 20, 30, 40], [0, 0, 9, 9]])
    regions = torch.tensor([[5.0, 10, 33, 38], [0, 0, 28, 28]])
    found = cells_inside(boxes, regions, 7)
    for n, row, column in np.ndindex(2, 7, 7):
        x = regions[n, 0] + (column + 0.5) / 7 * (regions[n, 2] - regions[n, 0])
        y = regions[n, 1] + (row + 0.5) / 7 * (regions[n, 3] - regions[n, 1])
        expected = boxes[n, 0] < x < boxes[n, 2] and boxes[n, 1] < y < boxes[n, 3]
        assert found[n, row, column] == expected


def test_a_region_has_the_colours_of_its_own_image():
    red, blue = torch.zeros(3, 32, 40), torch.zeros(3, 50, 20)
    red[0], blue[2] = 255, 255
    regions = [torch.tensor([[4.0, 4, 20, 20]]), torch.tensor([[2.0, 2, 16, 40], [0, 0, 8, 8]])]
    found = region_colours([red, blue], regions, 4)
    assert found.shape == (3, 3, 4, 4)
    for image, colours in ((red, found[:1]), (blue, found[1:])):
        torch.testing.assert_close(colours, lab(image)[None, :, :1, :1].expand_as(colours))
