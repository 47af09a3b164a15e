"""Pools of cut-out objects, whole and spoilt, and draws from them."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from wsis.errors import InputError
from wsis.pasting.pool import Foreground, ForegroundPool, draw_foregrounds, write_pool

NAMES = ["cat", "a/dog & co"]


def objects() -> list[Foreground]:
    rng = np.random.default_rng(0)
    result = []
    for number, (top, left, height, width) in enumerate(
        [(0, 0, 5, 8), (3, 4, 20, 30), (30, 1, 9, 9)]
    ):
        mask = torch.zeros(40, 50, dtype=torch.bool)
        mask[top : top + height, left : left + width] = torch.from_numpy(
            rng.random((height, width)) < 0.7
        )
        mask[top, left] = mask[top + height - 1, left + width - 1] = True
        image = torch.from_numpy(rng.integers(0, 256, (3, 40, 50), np.uint8))
        result.append(Foreground(image, mask, number % 2, f"{number}.jpg"))
    return result


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_pool(tmp_path / "pool", NAMES, objects(), {"rounds": 2})
    return tmp_path / "pool"


def test_objects_come_back_cut_to_their_boxes(folder: Path) -> None:
    """Bit by bit, the surroundings under the transparent parts too."""
    pool = ForegroundPool(folder)
    assert (len(pool), pool.labels.tolist(), pool.categories, pool.provenance) == (
        3,
        [0, 1, 0],
        NAMES,
        {"rounds": 2},
    )
    for number, (image, mask, _, _) in enumerate(objects()):
        rows, columns = mask.nonzero().T
        window = np.s_[..., rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        cut, cut_mask = pool.draw(number)
        assert torch.equal(cut, image[window])
        assert torch.equal(cut_mask, mask[window])
    entry = json.loads((folder / "foregrounds.json").read_text())["foregrounds"][1]
    assert entry == {
        "file": "a_dog_co/000001.png",
        "label": 1,
        "image": "1.jpg",
        "box": [4, 3, 34, 23],
    }


def test_small_objects_are_left_out(folder: Path) -> None:
    """Boxes of 40, 600 and 81 square pixels."""
    assert ForegroundPool(folder, least_area=81).labels.tolist() == [1, 0]
    assert torch.equal(
        ForegroundPool(folder, least_area=81).draw(1)[1], ForegroundPool(folder).draw(2)[1]
    )
    with pytest.raises(InputError, match="no foreground of 700 square pixels"):
        ForegroundPool(folder, least_area=700)


def test_a_pool_travels_and_remembers_a_few(folder: Path) -> None:
    pool = ForegroundPool(folder, least_area=50, cached=1)
    first, second = pool.draw(0), pool.draw(1)
    assert pool.draw(1)[0] is second[0]
    assert pool.draw(0)[0] is not first[0]
    other = pickle.loads(pickle.dumps(pool))
    assert len(other) == 2
    assert torch.equal(other.draw(0)[0], first[0])


def change(folder: Path, **entry: object) -> None:
    content = json.loads((folder / "foregrounds.json").read_text())
    content["foregrounds"][1].update(entry)
    (folder / "foregrounds.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (shutil.rmtree, "no foregrounds in .*pool"),
        (lambda folder: (folder / "foregrounds.json").unlink(), "not all written"),
        (lambda folder: (folder / "foregrounds.json").write_text("{"), "not a whole json file"),
        (lambda folder: (folder / "foregrounds.json").write_text("[]"), "is no list"),
        (
            lambda folder: (folder / "foregrounds.json").write_text(
                '{"format": "wsis foregrounds 1", "categories": []}'
            ),
            "damaged at 'provenance'",
        ),
        (lambda folder: change(folder, label=2), "damaged at .*label"),
        (lambda folder: change(folder, box=[1, 2]), "damaged at .*box"),
        (lambda folder: change(folder, box=None), "damaged at"),
        (lambda folder: change(folder, file="gone.png"), r"cannot read foreground .*gone\.png"),
        (
            lambda folder: (folder / "a_dog_co/000001.png").write_bytes(b""),
            r"cannot read foreground .*000001\.png",
        ),
        (
            lambda folder: (folder / "a_dog_co/000001.png").write_bytes(
                (folder / "a_dog_co/000001.png").read_bytes()[:200]
            ),
            r"cannot read foreground .*000001\.png",
        ),
        (
            lambda folder: Image.new("RGB", (9, 9)).save(folder / "a_dog_co/000001.png"),
            "it is RGB, not RGBA",
        ),
        (
            lambda folder: Image.new("RGBA", (9, 9)).save(folder / "a_dog_co/000001.png"),
            "transparent everywhere",
        ),
    ],
)
def test_spoilt_pools_say_what_is_wrong(
    folder: Path, spoil: Callable[[Path], object], message: str
) -> None:
    spoil(folder)
    with pytest.raises(InputError, match=message) as caught:
        ForegroundPool(folder).draw(1)
    assert "\n" not in str(caught.value)


def test_nothing_is_a_pool_before_it_is_whole(tmp_path: Path, folder: Path) -> None:
    empty = objects()[1]._replace(mask=torch.zeros(40, 50, dtype=torch.bool))
    with pytest.raises(InputError, match=r"the cat of x\.jpg has an empty mask"):
        write_pool(folder, NAMES, [*objects(), empty._replace(label=0, source="x.jpg")], {})
    with pytest.raises(InputError, match="not all written"):
        ForegroundPool(folder)
    with pytest.raises(InputError, match="no foregrounds for"):
        write_pool(tmp_path / "other", NAMES, [], {})


@given(st.lists(st.integers(0, 5), min_size=1, max_size=40), st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_balanced_draws_every_class_as_often_and_uniform_every_object(
    labels: list[int], seed: int
) -> None:
    """Within 5 standard deviations of the binomial."""
    classes, rng, count = np.array(labels), np.random.default_rng(seed), 4000
    for how, share in (
        ("balanced", 1 / np.bincount(classes)[classes] / len(set(labels))),
        ("uniform", np.full(len(labels), 1 / len(labels))),
    ):
        drawn = np.bincount(draw_foregrounds(classes, count, rng, how), minlength=len(labels))
        assert (
            np.abs(drawn - count * share) <= 5 * np.sqrt(count * share * (1 - share)) + 1e-9
        ).all()


def test_draws_obey_their_number_and_seed() -> None:
    labels = np.zeros(9, int)
    sizes = {len(draw_foregrounds(labels, (1, 4), np.random.default_rng(k))) for k in range(60)}
    assert sizes == {1, 2, 3, 4}
    assert draw_foregrounds(labels, 0, np.random.default_rng(0)).tolist() == []
    for how in ("uniform", "balanced"):
        one, same, other = (
            draw_foregrounds(labels, 8, np.random.default_rng(seed), how).tolist()
            for seed in (1, 1, 2)
        )
        assert one == same != other


@pytest.mark.parametrize(
    ("labels", "number", "how"),
    [([], 1, "uniform"), ([0], -1, "uniform"), ([0], (3, 2), "balanced"), ([0], 1, "x")],
)
def test_impossible_draws(labels: list[int], number: int, how: str) -> None:
    with pytest.raises(InputError, match=f"cannot draw .* of {len(labels)} foregrounds"):
        draw_foregrounds(np.array(labels, int), number, np.random.default_rng(0), how)
