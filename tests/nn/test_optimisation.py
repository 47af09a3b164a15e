from __future__ import annotations

import pytest

from wsis.nn.optimisation import rate


@pytest.mark.parametrize(("step", "factor"), [(0, 0.1), (4, 0.5), (9, 1.0), (69, 1.0), (70, 0.1), (90, 0.01)])
def test_rate(step, factor):
    assert rate(step, 100, 0.1, (0.7, 0.9)) == pytest.approx(factor)
    if step >= 10:
        assert rate(step, 100, 0.0, (0.7, 0.9)) == pytest.approx(factor)
