"""Masks of COCO files before pycocotools sees them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from pycocotools import mask as rle

from wsis.coco.masks import checked_mask, run_length, runs_of_masks
from wsis.coco.runs import decode_counts, runs_of
from wsis.errors import InputError

SIZE = 6, 8
RUNS = st.lists(st.integers(0, 3), min_size=1, max_size=30)


def pixels(runs: list[int]) -> np.ndarray:
    """(N,) what run lengths say, by definition."""
    return np.repeat(np.arange(len(runs)) % 2, runs)


@given(
    arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=40), elements=st.integers(0, 1))
)
def test_compressed_counts_are_those_of_pycocotools(mask):
    text = rle.encode(np.asfortranarray(mask))["counts"].decode()
    assert np.array_equal(pixels(runs_of(text, "")), mask.T.ravel())


def test_compressed_counts_of_large_images():
    mask = np.zeros((3000, 5000), np.uint8, order="F")
    mask[:, 1000:4000], mask[17, 4999] = 1, 1
    text = rle.encode(mask)["counts"].decode()
    assert runs_of(text, "").tolist() == [3_000_000, 9_000_000, 2_997_017, 1, 2982]


@given(RUNS, RUNS)
def test_empty_runs_change_no_overlap(one, two):
    """pycocotools may stop at a run of 0 in both masks; its overlap is compared with pixels."""
    short, long = sorted((one, two), key=sum)
    short.extend([0] * (len(short) % 2) + [sum(long) - sum(short)])
    size = 1, sum(long)
    if not size[1]:
        return
    masks = [
        run_length(checked_mask({"size": [*size], "counts": runs}, size, ""), size)
        for runs in (short, long)
    ]
    a, b = pixels(short) > 0, pixels(long) > 0
    assert [rle.decode(mask)[0].tolist() for mask in masks] == [a.tolist(), b.tolist()]
    expected = (a & b).sum() / max((a | b).sum(), 1)
    assert rle.iou(masks[:1], masks[1:], [0])[0, 0] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("counts", "says"),
    [
        ([5, 6000], "cover 6005 pixels, not 6 x 8"),
        ([8, 4], "cover 12 pixels, not 6 x 8"),
        ([], "cover 0 pixels"),
        ("", "'' are no compressed run lengths"),
        ("not-an-rle", "'not-an-rle' are no"),
        ("ö", "'ö' are no"),
        ("8P", "'8P' are no"),
        ("PPPPPPPP0", "'PPPPPPPP0' are no"),
        ("84", "cover 12 pixels"),
        ("O1", "a run length is -1"),
    ],
)
def test_run_lengths_that_do_not_make_the_image(counts, says):
    with pytest.raises(InputError, match=rf"^x\.json, annotation 3.*{says}") as error:
        checked_mask({"size": [*SIZE], "counts": counts}, SIZE, "x.json, annotation 3")
    assert "\n" not in str(error.value)


def test_polygons_beyond_the_edge_are_cut_there_as_by_pycocotools():
    """The part of a square inside the image, and a triangle whose tip is far outside of it."""
    square = [[-50.0, -50.0, 4.0, -50.0, 4.0, 3.0, -50.0, 3.0]]
    inside = rle.decode(run_length(checked_mask(square, SIZE, ""), SIZE))
    assert inside[:3, :4].all()
    assert inside.sum() == 12
    tip = [[0.0, 0.0, 9e5, 3.0, 0.0, 6.0]]
    assert rle.decode(run_length(checked_mask(tip, SIZE, ""), SIZE)).mean() > 0.9


@pytest.mark.parametrize(
    ("polygon", "says"),
    [
        ([0, 0, 1e12, 0, 1e12, 1e12], "a corner at 1000000000000.0"),
        ([0, 0, 4, 0, -1e300, 1e300], "a corner at -1e"),
        ([0, 0, 4, 0, float("nan"), 4], "a corner at nan"),
        ([0, 0, float("inf"), 0, 4, 4], "a corner at inf"),
        ([0, 0, 1e6, 0] * 5, "outline is over 2000000 pixels"),
        ([0, 0, 4, 0, 4], "5 coordinates"),
    ],
)
def test_polygons_that_would_stall_pycocotools(polygon, says):
    with pytest.raises(InputError, match=rf"^x\.json, annotation 3: a polygon.*{says}"):
        checked_mask([polygon], SIZE, "x.json, annotation 3")


@given(st.lists(st.lists(st.integers(0, 40), min_size=1, max_size=20), max_size=6), st.data())
def test_many_masks_of_all_forms_at_once(all_runs, data):
    """Runs, compressed runs and polygons of one image, each as it is alone."""
    total = max(map(sum, all_runs), default=1) or 1
    forms, expected = [], []
    for runs in all_runs:
        whole = [*runs, *[0] * (len(runs) % 2), total - sum(runs)]
        mask = pixels(whole).astype(np.uint8)[None]
        form = data.draw(st.sampled_from(["runs", "text", "bytes", "polygon"]))
        if form == "polygon":
            polygon = [0, 0, data.draw(st.integers(1, 9)), 0, 5, 1, 0, 1]
            forms.append([polygon])
            expected.append(rle.decode(rle.merge(rle.frPyObjects([polygon], 1, total))))
            continue
        counts = rle.encode(np.asfortranarray(mask))["counts"]
        counts = {"runs": whole, "text": counts.decode(), "bytes": counts}[form]
        forms.append({"size": [1, total], "counts": counts})
        expected.append(mask)
    places = [f"mask {k}" for k in range(len(forms))]
    found = runs_of_masks(forms, (1, total), places)
    for k, (start, count) in enumerate(zip(found.first, found.counts, strict=True)):
        drawn = pixels(found.lengths[start : start + count])
        assert drawn.tolist() == expected[k][0].tolist()


def test_the_one_bad_mask_of_many_is_named():
    good = rle.encode(np.asfortranarray(np.ones(SIZE, np.uint8)))
    for bad, says in (
        ({"size": [*SIZE], "counts": "x"}, "'x' are no compressed"),
        ({"size": [*SIZE], "counts": [5, 6]}, "cover 11 pixels"),
        ({"size": [8, 6], "counts": [48]}, r"the mask is \[8, 6\], but its image is \[6, 8\]"),
        ([[0, 0, 1e12, 0, 1, 1]], "a corner at 1e12|a corner at 1000000000000.0"),
    ):
        with pytest.raises(InputError, match=rf"^b: .*({says})"):
            runs_of_masks([good, bad, good], SIZE, ["a", "b", "c"])


@given(
    st.lists(st.text(st.characters(min_codepoint=40, max_codepoint=120), max_size=12), max_size=4)
)
def test_many_texts_are_read_or_refused_as_each_alone(texts):
    alone, fault = [], False
    for text in texts:
        try:
            alone += runs_of(text, "").tolist()
        except InputError:
            fault = True
    try:
        assert decode_counts(texts, [""] * len(texts))[0].tolist() == alone
        assert not fault
    except InputError:
        assert fault
