from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from torch import Tensor
from torchvision.ops import masks_to_boxes

from wsis.errors import InputError
from wsis.nn.masks import tight_boxes
from wsis.pasting.compose import Composition, compose

WAYS = st.tuples(
    st.sampled_from(["random", "space"]), st.sampled_from(["gaussian", "poisson", "none"])
)
SIZES = st.tuples(st.integers(1, 60), st.integers(1, 60))


def disc(side: int) -> Tensor:
    centre = (side - 1) / 2
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    return (x - centre) ** 2 + (y - centre) ** 2 <= centre**2


def noise(seed: int, height: int, width: int) -> Tensor:
    return torch.from_numpy(
        np.random.default_rng(seed).integers(0, 256, (3, height, width), np.uint8)
    )


def blobs(seed: int, sizes: list[tuple[int, int]]) -> list[Tensor]:
    """Smooth noise over its median: several parts, holes, touching the edges."""
    rng = np.random.default_rng(seed)
    masks = []
    for size in sizes:
        smooth = ndimage.gaussian_filter(rng.normal(size=size), 2)
        masks.append(torch.from_numpy(smooth >= np.median(smooth)))
    return masks


def boxes_of(masks: Tensor) -> Tensor:
    """By torchvision, whose x2/y2 are the last pixels."""
    boxes = torch.zeros(len(masks), 4)
    seen = masks.flatten(1).any(1)
    if seen.any():
        boxes[seen] = masks_to_boxes(masks[seen]) + torch.tensor([0.0, 0, 1, 1])
    return boxes


def same(one: Composition, other: Composition) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@given(SIZES, st.lists(SIZES, max_size=4), WAYS, st.integers(0, 10_000), st.integers(0, 2))
@settings(max_examples=150, deadline=None)
def test_what_holds_for_every_composition(
    size: tuple[int, int], sizes: list[tuple[int, int]], ways: Any, seed: int, already: int
) -> None:
    background, masks = noise(seed, *size), blobs(seed, sizes)
    foregrounds = [noise(seed + 1 + k, *s) for k, s in enumerate(sizes)]
    given_masks = torch.stack(blobs(seed + 1, [size] * already)) if already else None
    before = background.clone()
    result = compose(background, foregrounds, masks, *ways, seed, (0.2, 1.5), existing=given_masks)
    image, visible, boxes, existing = result
    assert torch.equal(background, before)
    assert (image.shape, image.dtype) == (background.shape, torch.uint8)
    assert (visible.shape, visible.dtype) == ((len(sizes), *size), torch.bool)
    assert (boxes.shape, boxes.dtype) == ((len(sizes), 4), torch.float32)
    assert visible.sum(0).max() <= 1 if sizes else not visible.numel()
    assert torch.equal(boxes, boxes_of(visible))
    covered = visible.any(0)
    assert torch.equal(
        existing,
        given_masks & ~covered if given_masks is not None else torch.zeros(0, *size).bool(),
    )
    if ways[0] == "space" and given_masks is not None:
        assert not (covered & given_masks.any(0)).any()
    if ways[1] != "poisson":  # which bleeds into the box of an object that may be hidden
        near = (
            ndimage.binary_dilation(covered, np.ones((5, 5)))
            if ways[1] == "gaussian"
            else covered.numpy()
        )
        assert torch.equal(image[:, ~near], background[:, ~near])
    assert same(
        result,
        compose(background, foregrounds, masks, *ways, seed, (0.2, 1.5), existing=given_masks),
    )


def test_equal_seeds_give_equal_bits_wherever_memory_lies() -> None:
    """All results are kept, so that each call is given other memory; OpenCV's distances depend on where theirs lies."""
    sizes, seed = [(22, 27), (2, 34), (4, 24)], 8037
    inputs = (
        noise(seed, 27, 47),
        [noise(seed + 1 + k, *size) for k, size in enumerate(sizes)],
        blobs(seed, sizes),
    )
    results = [compose(*inputs, "space", seed=seed, scale=(0.2, 1.5)) for _ in range(50)]
    assert all(same(results[0], other) for other in results)


@given(st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_another_seed_gives_another_image(seed: int) -> None:
    inputs = noise(0, 64, 64), [noise(1, 30, 30)], [disc(30)]
    assert not same(compose(*inputs, seed=seed), compose(*inputs, seed=seed + 1))
    assert same(compose(*inputs, seed=np.random.default_rng(seed)), compose(*inputs, seed=seed))


@given(
    st.integers(0, 10_000), st.sampled_from(["random", "space"]), st.floats(0.55, 2), st.booleans()
)
@settings(max_examples=60, deadline=None)
def test_pixels_and_masks_are_one_turned_and_scaled_foreground(
    seed: int, where: Any, factor: float, flat: bool
) -> None:
    """Colours that are their own coordinates tell from where in the foreground each pixel comes."""
    height, width = (25, 60) if flat else (60, 50)
    y, x = np.mgrid[:height, :width]
    foreground = torch.from_numpy(np.stack([4 * x, 4 * y, 7 + 0 * x]).astype(np.uint8))
    mask = blobs(seed, [(height, width)])[0]
    inner = torch.zeros_like(mask)
    inner[2:-2, 2:-2] = mask[2:-2, 2:-2]  # colours beyond the edge are not coordinates
    background = torch.zeros(3, 300, 320, dtype=torch.uint8)
    if where == "space":  # a hole that the object is scaled for
        radius = factor * cv2.minEnclosingCircle(inner.nonzero().numpy().astype(np.float32))[1]
        near = (
            (torch.arange(300)[:, None] - 150) ** 2 + (torch.arange(320) - 160) ** 2
        ) < radius**2
    else:
        near = torch.zeros(300, 320).bool()
    existing = ~near[None] if where == "space" else None
    image, visible, _, _ = compose(
        background, [foreground], [inner], where, "none", seed, (factor, factor), 30, existing
    )
    rows, columns = visible[0].nonzero().T.numpy()
    spread = np.linalg.eigvalsh(np.cov(rows, columns)).min() ** 0.5 if len(rows) > 100 else 0
    if spread < 4:  # mostly outside the image
        return
    error = (
        0.25 / spread
    )  # of the slopes below: colours are rounded to an eighth of a pixel either way
    found = image[:2, rows, columns].numpy().T / 4
    assert (image[2, rows, columns] == 7).all()
    solution, *_ = np.linalg.lstsq(
        np.stack([columns, rows, np.ones(len(rows))], 1), found, rcond=None
    )
    turn = solution[:2]  # from image to foreground: a turn and one scale
    scale = np.sqrt(np.linalg.det(turn))  # no mirror
    np.testing.assert_allclose(turn @ turn.T / scale**2, np.eye(2), atol=2 * error)
    assert 1 / scale == pytest.approx(factor, rel=error + (0 if where == "random" else 0.1))
    assert abs(np.degrees(np.arctan2(turn[0, 1], turn[0, 0]))) < 30 + np.degrees(error)
    everywhere = np.stack([*np.mgrid[:300, :320][::-1], np.ones((300, 320))], -1) @ solution
    cover = ndimage.map_coordinates(
        inner.float().numpy(), everywhere[..., ::-1].transpose(2, 0, 1), order=1
    )
    sure = np.abs(cover - 0.5) > 0.35
    if where == "space":
        sure &= near.numpy()
    assert np.array_equal(visible[0].numpy()[sure], cover[sure] > 0.5)


def test_scales_and_places_are_drawn_evenly() -> None:
    """Discs of known size: their areas tell the factor, their middles the place."""
    background, foreground, mask = (
        torch.zeros(3, 90, 120, dtype=torch.uint8),
        noise(0, 21, 21),
        disc(21),
    )
    composed = [compose(background, [foreground], [mask], seed=k) for k in range(400)]
    inside = [
        c
        for c in composed
        if (c.boxes[0, :2] > 0).all() and (c.boxes[0, 2:] < torch.tensor([120, 90])).all()
    ]
    factors = np.array([(c.masks.sum() / mask.sum()).sqrt().item() for c in inside])
    assert np.abs(np.quantile(factors, [0.01, 0.5, 0.99]) - [0.3, 0.65, 1.0]).max() < 0.06
    middles = np.array([((c.boxes[0, :2] + c.boxes[0, 2:]) / 2).tolist() for c in composed]) / [
        120,
        90,
    ]
    assert (
        np.abs(np.quantile(middles, [0.05, 0.5, 0.95], axis=0) - [[0.05], [0.5], [0.95]]).max()
        < 0.08
    )
    assert len(inside) < len(composed), "some stick out"


def scene(seed: int, size: tuple[int, int]) -> Tensor:
    """Rectangles, and the rest free."""
    rng = np.random.default_rng(seed)
    masks = torch.zeros(3, *size, dtype=torch.bool)
    for mask in masks:
        (y1, y2), (x1, x2) = (np.sort(rng.integers(0, side, 2)) for side in size)
        mask[y1 : (y1 + y2) // 2, x1 : (x1 + x2) // 2] = True
    return masks


@given(st.integers(0, 10_000), st.integers(9, 60), st.integers(1, 3))
@settings(max_examples=40, deadline=None)
def test_space_fills_the_largest_free_circle(seed: int, side: int, count: int) -> None:
    """By scipy's distances, and one object after the other."""
    existing = scene(seed, (70, 90))
    result = compose(
        noise(seed, 70, 90),
        [noise(1, side, side)] * count,
        [disc(side)] * count,
        "space",
        seed=seed,
        existing=existing,
    )
    own, free = np.argwhere(disc(side).numpy()), np.pad(~existing.any(0).numpy()[1:-1, 1:-1], 1)
    for mask in result.masks.numpy():
        distance = ndimage.distance_transform_edt(free)
        room = distance.max()
        (x, y), radius = cv2.minEnclosingCircle(np.argwhere(mask)[:, ::-1].astype(np.float32))
        assert room - 1.5 < radius <= room
        assert distance[round(y), round(x)] > room - 1.5
        area = len(own) * (room / (np.hypot(*(own - (side - 1) / 2).T).max() + 0.5)) ** 2
        assert mask.sum() == pytest.approx(area, abs=3 * room), "within half a pixel all around"
        assert not (mask & ~free).any()
        free &= ~mask


def test_space_takes_the_first_of_equal_circles() -> None:
    """Discs cut out of what is full; an even one has four pixels in its middle, of which the upper left one is taken."""
    existing = torch.ones(1, 60, 90, dtype=torch.bool)
    for y, x in ((33, 2), (4, 62), (4, 32)):
        existing[0, y : y + 24, x : x + 24] &= ~disc(24)
    box = compose(
        noise(0, 60, 90), [noise(1, 21, 21)], [disc(21)], "space", existing=existing
    ).boxes[0]
    assert torch.equal((box[:2] + box[2:]) / 2, torch.tensor([32 + 11.5, 4 + 11.5]))


@pytest.mark.parametrize("margin", [0, 1])
def test_space_without_room(margin: int) -> None:
    """Pixels along the border are no room."""
    everything = torch.zeros(1, 40, 40, dtype=torch.bool)
    everything[:, margin : 40 - margin, margin : 40 - margin] = True
    background = noise(0, 40, 40)
    image, masks, boxes, existing = compose(
        background, [noise(1, 9, 9)], [disc(9)], "space", existing=everything
    )
    assert torch.equal(image, background)
    assert not masks.any()
    assert not boxes.any()
    assert torch.equal(existing, everything)


def whole(side: int, value: int) -> tuple[Tensor, Tensor]:
    return torch.full((3, side, side), value, dtype=torch.uint8), torch.ones(
        side, side, dtype=torch.bool
    )


def test_later_objects_cover_earlier_ones_and_the_hidden_keep_their_place() -> None:
    """Squares of one grey each, one of them as large as the image: a mask is where its grey is seen."""
    pairs = [whole(10, 100), whole(300, 150), whole(10, 200)]
    background, existing = (
        torch.zeros(3, 40, 40, dtype=torch.uint8),
        torch.ones(2, 40, 40, dtype=torch.bool),
    )
    for seed in range(20):
        for order in ([0, 1, 2], [1, 0, 2]):
            images, masks = zip(*[pairs[k] for k in order], strict=True)
            result = compose(background, images, masks, "random", "none", seed, (1, 1), 0, existing)
            shown = result.image[0]
            for mask, k in zip(result.masks, order, strict=True):
                assert torch.equal(shown == (100, 150, 200)[k], mask)
            assert torch.equal(result.existing, (shown == 0).expand(2, -1, -1))
    images, masks = zip(whole(1, 100), whole(1, 150), strict=True)
    result = compose(torch.zeros(3, 1, 1, dtype=torch.uint8), images, masks, "random", "none")
    assert result.masks.flatten().tolist() == [False, True]
    assert result.boxes.tolist() == [[0, 0, 0, 0], [0, 0, 1, 1]]
    assert result.image.unique().item() == 150


@pytest.mark.parametrize(("height", "width"), [(30, 1000), (700, 20), (300, 300)])
def test_a_foreground_larger_than_the_background_is_scaled_to_fit(height: int, width: int) -> None:
    """The largest extents seen, nearly whole as its centre comes near the middle, are those of the fitted object."""
    mask, background = (
        torch.ones(height, width, dtype=torch.bool),
        torch.zeros(3, 50, 60, dtype=torch.uint8),
    )
    boxes = [
        compose(
            background, [noise(0, height, width)], [mask], "random", "none", seed, (1, 1), 0
        ).boxes[0]
        for seed in range(60)
    ]
    largest = torch.stack([box[2:] - box[:2] for box in boxes]).amax(0)
    fitted = torch.tensor([width, height]) * min(50 / height, 60 / width)
    assert (largest <= fitted + 1).all()
    assert (largest >= 0.9 * fitted - 1).all()


def test_what_fits_is_turned_already() -> None:
    """Half of the turns of a bar are steeper than 45 degrees: it is at least as small as that makes it in a flat image."""
    mask, background = (
        torch.ones(40, 400, dtype=torch.bool),
        torch.zeros(3, 20, 100, dtype=torch.uint8),
    )
    seen = [
        compose(
            background, [noise(0, 40, 400)], [mask], seed=k, scale=(1, 1), rotation=180
        ).masks.sum()
        for k in range(80)
    ]
    assert np.median(seen) <= 1.1 * mask.sum() * (20 / (440 * np.sqrt(0.5))) ** 2
    assert np.median(seen) > 10


def test_gaussian_edges() -> None:
    """White on black: the image is the weight, OpenCV's blur of the mask, however it was cut."""
    image, mask = whole(20, 255)
    for seed in range(10):
        result = compose(torch.zeros(3, 64, 64, dtype=torch.uint8), [image], [mask], seed=seed)
        expected = cv2.GaussianBlur(result.masks[0].numpy().astype(np.float64), (5, 5), 2) * 255
        assert np.abs(result.image.numpy() - expected).max() < 0.51


def test_poisson_takes_the_colours_around() -> None:
    """An object of one colour has no gradients, so it vanishes in a background of one colour, yet keeps its label."""
    image, mask = whole(40, 250)
    background = torch.full((3, 90, 90), 90, dtype=torch.uint8)
    for seed in range(10):
        result = compose(background, [image], [mask], "random", "poisson", seed)
        assert result.masks.any()
        assert (result.image.int() - 90).abs().max() <= 1
    noisy = noise(0, 90, 90)
    blended, visible, (box,), _ = compose(noisy, [image], [mask], "random", "poisson", 3)
    x1, y1, x2, y2 = (int(side) for side in box)
    changed = (blended != noisy).any(0)
    assert (changed & visible[0]).sum() > 0.9 * visible.sum()
    changed[max(y1 - 3, 0) : y2 + 3, max(x1 - 3, 0) : x2 + 3] = False
    assert not changed.any()
    stripes = image.clone()
    stripes[:, :, 20:] = 200
    result = compose(
        background, [stripes], [mask], "space", "poisson", existing=torch.zeros(0, 90, 90).bool()
    )
    inside = ndimage.binary_erosion(result.masks[0], iterations=4)
    assert 35 < np.ptp(result.image[0].numpy()[inside].astype(int)) < 65, (
        "its step of 50 is still there"
    )


def test_each_object_draws_its_blending() -> None:
    """An edge is hard or soft: with two blendings, an image has objects of both kinds."""
    image, mask = whole(20, 250)
    background = torch.zeros((3, 90, 90), dtype=torch.uint8)
    softness = []
    for seed in range(60):
        result = compose(
            background, [image], [mask], "space", ("gaussian", "none"), seed, rotation=0
        )
        softness.append(bool(((result.image > 0) & (result.image < 250)).any()))
    assert 15 < sum(softness) < 45
    for way in ("gaussian", "none"):
        listed = compose(background, [image], [mask], "random", (way,), 5)
        assert same(listed, compose(background, [image], [mask], "random", way, 5))


def test_nothing_to_paste() -> None:
    background = noise(0, 8, 9)
    image, masks, boxes, existing = compose(background, [], [])
    assert torch.equal(image, background)
    assert (masks.shape, boxes.shape, existing.shape) == ((0, 8, 9), (0, 4), (0, 8, 9))


def test_shrinking_averages() -> None:
    """A fine chessboard becomes its mean; a warp alone would pick single squares."""
    board = (torch.arange(200)[:, None] + torch.arange(200)) % 2 * 200
    result = compose(
        torch.zeros(3, 128, 128, dtype=torch.uint8),
        [board.byte().expand(3, -1, -1)],
        [torch.ones(200, 200).bool()],
        "space",
        "none",
        rotation=0,
    )
    shown = result.image[0][result.masks[0]].float()
    assert shown.mean().item() == pytest.approx(100, abs=3)
    assert shown.std() < 5


@pytest.mark.parametrize("side", [21, 50, 101, 203, 640])
def test_scaled_objects_keep_their_middle(side: int) -> None:
    """By closed form: the circle's centre is (20, 20), and colours are a ramp around it."""
    ramp = torch.linspace(0, 255, side).round().byte().expand(side, side)
    foreground, mask = torch.stack([ramp, ramp.T, ramp]), disc(side)
    image, (visible,), _, _ = compose(
        torch.zeros(3, 41, 41, dtype=torch.uint8), [foreground], [mask], "space", "none", rotation=0
    )
    points = visible.nonzero().double()
    assert points.mean(0).tolist() == pytest.approx([20, 20], abs=0.1)
    slope = 255 / (side - 1) * (side / 2) / 20  # of colour, per pixel of the image
    for channel, middle in ((0, points[:, 1]), (1, points[:, 0])):
        expected = 127.5 + (middle - 20) * slope
        assert (image[channel][visible] - expected).abs().max() < 0.25 * slope + 1


@given(st.integers(0, 10_000), st.integers(0, 4), SIZES)
@settings(max_examples=40, deadline=None)
def test_tight_boxes_are_torchvisions(seed: int, count: int, size: tuple[int, int]) -> None:
    masks = torch.from_numpy(
        np.random.default_rng(seed).random((count, *size)) < 2 / (size[0] * size[1])
    )
    assert torch.equal(tight_boxes(masks), boxes_of(masks))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"masks": []}, "1 foregrounds but 0 masks"),
        ({"background": torch.zeros(8, 8)}, r"background is \(8, 8\) torch.float32"),
        ({"background": torch.zeros(3, 0, 8).byte()}, r"background is \(3, 0, 8\)"),
        ({"foregrounds": [torch.zeros(4, 5, 5).byte()]}, r"foreground 0 is \(4, 5, 5\)"),
        (
            {"masks": [torch.ones(5, 6).bool()]},
            r"mask of foreground 0 is \(5, 6\) torch.bool; give its image's \(5, 5\)",
        ),
        ({"masks": [torch.ones(5, 5)]}, "mask of foreground 0 is"),
        ({"masks": [torch.zeros(5, 5).bool()]}, "mask of foreground 0 is empty"),
        (
            {"existing": torch.zeros(1, 8, 9).bool()},
            r"existing masks are \(1, 8, 9\) torch.bool; give \(M,8,8\)",
        ),
        ({"where": "left"}, 'where "left" is unknown; take one of random, space'),
        ({"blend": "soft"}, 'blend "soft" is unknown'),
        ({"blend": ("none", "soft")}, 'blend "soft" is unknown'),
        ({"blend": ()}, "blend is empty"),
        ({"scale": (1.0, 0.3)}, "factors above 0, the least first"),
        ({"scale": (0.0, 0.3)}, "factors above 0"),
        ({"scale": (0.3, float("nan"))}, "factors above 0"),
        ({"rotation": -1.0}, "degrees"),
    ],
)
def test_wrong_input_is_one_line(wrong: dict[str, Any], message: str) -> None:
    right = {
        "background": noise(0, 8, 8),
        "foregrounds": [noise(1, 5, 5)],
        "masks": [torch.ones(5, 5).bool()],
    }
    compose(**right)
    with pytest.raises(InputError, match=message) as caught:
        compose(**{**right, **wrong})
    assert "\n" not in str(caught.value)
