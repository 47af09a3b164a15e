"""Colours beside those of scikit-image."""

from __future__ import annotations

import numpy as np
import torch
from skimage.color import rgb2lab

from wsis.images.colour import lab


def test_colours_are_those_of_skimage():
    image = torch.randint(0, 256, (3, 20, 30), generator=torch.Generator().manual_seed(0))
    expected = rgb2lab(image.numpy().astype(np.uint8).transpose(1, 2, 0)).transpose(2, 0, 1)
    np.testing.assert_allclose(lab(image).numpy(), expected, atol=0.02)
