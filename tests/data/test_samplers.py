from __future__ import annotations

from collections import Counter
from itertools import chain

from hypothesis import given
from hypothesis import strategies as st

from wsis.data.samplers import OrderSampler, StepSampler

NUMBERS = st.tuples(st.integers(1, 40), st.integers(1, 7), st.integers(0, 5), st.integers(1, 4))


@given(NUMBERS, st.integers(0, 30))
def test_resumed_order_is_the_tail_of_the_undisturbed_one(
    numbers: tuple[int, int, int, int], done: int
) -> None:
    images, batch, seed, _ = numbers
    whole = list(StepSampler(images, batch, seed, steps=31))
    assert len(whole) == 31
    assert list(StepSampler(images, batch, seed, 31, position=lambda: done)) == whole[done:]


@given(NUMBERS)
def test_ranks_share_one_global_batch(numbers: tuple[int, int, int, int]) -> None:
    images, batch, seed, world = numbers
    alone = list(StepSampler(images, batch * world, seed, steps=9))
    ranks = [list(StepSampler(images, batch, seed, 9, rank=r, world=world)) for r in range(world)]
    assert [list(chain(*parts)) for parts in zip(*ranks, strict=True)] == alone


@given(NUMBERS)
def test_every_image_comes_once_a_pass(numbers: tuple[int, int, int, int]) -> None:
    images, batch, seed, _ = numbers
    keys = list(chain(*StepSampler(images, batch, seed, steps=3 * images)))
    for first in range(0, len(keys) - images, images):
        assert Counter(image for image, _ in keys[first : first + images]) == Counter(range(images))
    assert len({draw for _, draw in keys}) > 0.99 * len(keys)  # draws differ from pass to pass


def test_the_order_depends_on_seed_and_pass() -> None:
    def order(seed: int) -> list[int]:
        return [image for batch in StepSampler(50, 5, seed, 20) for image, _ in batch]

    assert order(0) == order(0)
    assert order(0) != order(1)
    assert order(0)[:50] != order(0)[50:]


def test_counted_in_passes_the_next_epoch_goes_on() -> None:
    trained = 0
    sampler = StepSampler(10, 4, 0, steps=3, position=lambda: trained)
    first = list(sampler)
    trained = 3
    assert first + list(sampler) == list(StepSampler(10, 4, 0, steps=6))
    trained = 4  # in the middle of the second pass
    assert list(sampler) == list(StepSampler(10, 4, 0, steps=6))[4:]


@given(NUMBERS)
def test_evaluation_sees_every_image_once_over_all_ranks(
    numbers: tuple[int, int, int, int],
) -> None:
    images, batch, _, world = numbers
    seen = []
    for rank in range(world):
        batches = list(OrderSampler(images, batch, rank, world))
        assert len(batches) == len(OrderSampler(images, batch, rank, world))
        assert batches, "Lightning refuses an empty loader"
        seen += [image for keys in batches for image, _ in keys]
    without = max(world - images, 0)
    assert sorted(seen) == [0] * without + list(range(images))
