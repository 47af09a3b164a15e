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


def test_sgd_rises_and_falls_as_a_cosine():
    (optimiser,), (scheduled,) = Classifier(**SMALL, optimiser="sgd", lr=0.1, warmup=0.1).optimiser(
        101
    )
    rates = []
    for _ in range(101):
        rates.append(optimiser.param_groups[0]["lr"])
        assert optimiser.param_groups[0]["momentum"] == 0.9
        optimiser.step()
        if len(rates) < 101:
            scheduled["scheduler"].step()
    peak = max(range(101), key=rates.__getitem__)
    assert peak in (9, 10)
    assert rates[peak] == pytest.approx(0.1, rel=0.01)
    middle = (peak + 100) // 2
    assert rates[middle] == pytest.approx(0.05, rel=0.03)
    assert rates[:peak] == sorted(rates[:peak])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert rates[-1] < 1e-5


def test_softmax_is_the_cross_entropy_of_the_one_class():
    torch.manual_seed(0)
    model = Classifier(**SMALL, loss="softmax").eval()
    batch = [
        {
            "image": torch.randint(0, 255, (3, 64, 64), dtype=torch.uint8),
            "target": {"tags": torch.eye(3)[k]},
        }
        for k in (2, 0)
    ]
    with torch.no_grad():
        logits = model.logits(batch).double()
        expected = -(logits[0, 2] + logits[1, 0] - logits.exp().sum(1).log().sum()) / 2
        assert model.loss(batch).item() == pytest.approx(expected.item(), rel=1e-5)
        logged = {}
        model.log = lambda name, value, **_: logged.update({name: float(value)})
        model.validation_step(batch)
    right = [logits[0].argmax() == 2, logits[1].argmax() == 0]
    assert logged == {"val/top1": sum(map(float, right)) / 2}


@pytest.mark.parametrize("warmup", [0.0, 1.0])
def test_a_rate_that_never_rises_or_falls(warmup):
    with pytest.raises(InputError, match="warmup"):
        Classifier(**SMALL, warmup=warmup)


@pytest.mark.parametrize("sharpness", [0.0, -1.0])
def test_a_sharpness_that_divides_by_nothing(sharpness):
    with pytest.raises(InputError, match="sharpness"):
        Classifier(**SMALL, pooling="lse", sharpness=sharpness)
