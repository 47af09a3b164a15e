"""Two-step selection of pictures."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from wsis.generate.selection import select

similarities = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=12)


def test_by_hand():
    classes, captions = [0.9, 0.1, 0.2, 0.3, 0.4], [1.0, 0.1, 0.3, 0.2, 0.9]
    assert select(classes, captions, 2) == [
        4,
        2,
    ]  # 0 is most like a class; of 1, 2, 3, 4 these are most like the caption
    assert select(classes, captions, 1) == [2]
    assert select(classes, None, 2) == [1, 2]
    assert select(classes, captions, 9) == [0, 4, 2, 3, 1]
    assert select([], [], 3) == []


@given(similarities, st.integers(1, 8))
def test_as_sorting_twice(pairs, keep):
    classes, captions = np.array(pairs, float).reshape(-1, 2).T
    apart = np.lexsort((np.arange(len(pairs)), classes))[: 2 * keep]
    wanted = apart[np.lexsort((apart, -captions[apart]))][:keep]
    assert select(classes.tolist(), captions.tolist(), keep) == wanted.tolist()
    chosen = select(classes.tolist(), captions.tolist(), keep)
    others = set(range(len(pairs))) - set(chosen)
    assert len(chosen) == min(keep, len(pairs))
    for i in others:  # left out for one of two reasons
        worse = sum((classes[j], j) < (classes[i], i) for j in range(len(pairs)))
        assert worse >= 2 * keep or all((captions[j], -j) > (captions[i], -i) for j in chosen)
