import math

import pytest
import torch

from wsis.errors import InputError
from wsis.parts.classifier import Classifier, pool

SMALL = {
    "num_classes": 3,
    "backbone": {
        "name": "test_byobnet",
        "weights": "none",
        "output_stride": 32,
        "feature_level": 2,
        "frozen_stages": 0,
    },
}


def test_pooling_by_hand():
    maps = torch.tensor([[[0.0, 1.0], [2.0, 3.0]]])
    assert pool(maps, "average", 4).item() == pytest.approx(1.5)
    assert pool(maps, "max", 4).item() == 3
    assert pool(maps, "lse", 4).item() == pytest.approx(
        math.log(sum(math.exp(4 * v) for v in range(4)) / 4) / 4
    )


def test_padding_takes_no_part():
    torch.manual_seed(0)
    model = Classifier(**SMALL).eval()
    small, large = torch.randint(0, 255, (2, 3, 64, 64), dtype=torch.uint8)
    wide = torch.cat([large, large], 2)
    with torch.no_grad():
        maps, logits = model([small, wide]), model.logits([{"image": small}, {"image": wide}])
    assert torch.allclose(logits[0], maps[0, :, :8, :8].flatten(1).mean(1))
    assert torch.allclose(logits[1], maps[1].flatten(1).mean(1))


@pytest.mark.parametrize("steps", [*range(1, 12), 100])
def test_the_rate_ends_low_after_any_number_of_steps(steps):
    (optimiser,), (scheduled,) = Classifier(**SMALL).optimiser(steps)
    for _ in range(steps - 1):
        optimiser.step()
        scheduled["scheduler"].step()
    assert 0 <= optimiser.param_groups[0]["lr"] < 1e-5


@pytest.mark.parametrize("sharpness", [0.0, -1.0])
def test_a_sharpness_that_divides_by_nothing(sharpness):
    with pytest.raises(InputError, match="pooling average"):
        Classifier(**SMALL, pooling="lse", sharpness=sharpness)
