"""Views of an image at test time."""

from __future__ import annotations

import torch

from wsis.nn.views import Inference, image_views, resize


def test_views_scale_and_mirror_boxes_with_the_pixels():
    image = torch.zeros(3, 40, 60, dtype=torch.uint8)
    image[:, 10:20, 5:25] = 255
    box = torch.tensor([[5.0, 10.0, 25.0, 20.0]])
    views = list(image_views(image, Inference((40, 80), flip=True)))
    assert len(views) == 4
    for seen in views:
        x1, y1, x2, y2 = seen.view.to_input(box)[0].round().int().tolist()
        assert (seen.image[:, y1:y2, x1:x2].float().mean() > 240).item()
        assert seen.image.float().sum() / 255 / 3 < 1.1 * (x2 - x1) * (y2 - y1)
        assert torch.allclose(seen.view.to_original(seen.view.to_input(box)), box, atol=1e-4)
    (unscaled,) = image_views(image, Inference((), flip=False))
    assert torch.equal(unscaled.image, image)


def test_resize_obeys_the_long_side():
    assert resize(torch.zeros(3, 100, 400, dtype=torch.uint8), 200, 400).shape == (3, 100, 400)
    assert resize(torch.zeros(3, 100, 200, dtype=torch.uint8), 50, 4000).shape == (3, 50, 100)
