from __future__ import annotations

from types import SimpleNamespace

import pytest
from torch import nn

from wsis.nn.optimisation import Optimisation, optimise, rate


@pytest.mark.parametrize(
    ("step", "factor"), [(0, 0.1), (4, 0.5), (9, 1.0), (69, 1.0), (70, 0.1), (90, 0.01)]
)
def test_rate(step, factor):
    assert rate(step, 100, 0.1, (0.7, 0.9)) == pytest.approx(factor)
    if step >= 10:
        assert rate(step, 100, 0.0, (0.7, 0.9)) == pytest.approx(factor)


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_biases_learn_twice_as_fast_and_do_not_decay(kind):
    model = nn.Linear(2, 1)
    model.trainer = SimpleNamespace(estimated_stepping_batches=10)
    (optimiser,), _ = optimise(model, Optimisation(kind, lr=0.1, weight_decay=0.5, decay_at=()))
    known = {
        id(p): (g["initial_lr"], g["weight_decay"])
        for g in optimiser.param_groups
        for p in g["params"]
    }
    assert known[id(model.weight)] == (0.1, 0.5)
    assert known[id(model.bias)] == (0.2, 0.0)
