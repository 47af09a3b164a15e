from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import map_coordinates

from wsis.errors import InputError
from wsis.evidence.cam import grad_cam
from wsis.evidence.em import (
    GREY,
    cam_centroid,
    eligible_segments,
    foreground_em,
    foreground_rounds,
    nearest_segments,
    segment_patches,
    segment_statistics,
    shrunk_covariance,
)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def planted(
    images: int = 60, right: float = 0.6, dimensions: int = 16, seed: int = 0
) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
    """Candidates, of which one of each image lies in the class's cluster; a first choice that often finds it; the truth."""
    g = generator(seed)
    centre = torch.randn(dimensions, generator=g)
    counts = torch.randint(2, 12, (images,), generator=g).tolist()
    features = [torch.randn(m, dimensions, generator=g) for m in counts]
    truth = torch.tensor([int(torch.randint(m, (1,), generator=g)) for m in counts])
    for rows, t in zip(features, truth.tolist(), strict=True):
        rows[t] = centre + 0.5 * torch.randn(dimensions, generator=g)
    lucky = torch.rand(images, generator=g).argsort() < round(right * images)
    start = torch.where(lucky, truth, (truth + 1) % torch.tensor(counts))
    return features, start, truth


def naive_shrunk_covariance(rows: np.ndarray) -> np.ndarray:
    """Chen et al. 2010, eq. (23), summed element by element."""
    n, p = rows.shape
    mean = [sum(rows[:, j]) / n for j in range(p)]
    s = np.array(
        [
            [sum((row[i] - mean[i]) * (row[j] - mean[j]) for row in rows) / n for j in range(p)]
            for i in range(p)
        ]
    )
    squares, trace = (
        sum(s[i, j] * s[j, i] for i in range(p) for j in range(p)),
        sum(s[i, i] for i in range(p)),
    )
    rho = ((1 - 2 / p) * squares + trace**2) / ((n + 1 - 2 / p) * (squares - trace**2 / p))
    rho = min(rho, 1)
    return (1 - rho) * s + rho * trace / p * np.eye(p)


def naive_em(
    features: list[np.ndarray], start: list[int], rounds: int, keep: float, distance: str
) -> list[tuple[list, ...]]:
    """Algorithm 1 image by image; after each round the images kept, the choices and their distances."""

    def measure(chosen):
        if distance == "cosine":
            mean = sum(h / np.linalg.norm(h) for h in chosen) / len(chosen)
            return lambda h: 1 - h @ mean / np.linalg.norm(h) / np.linalg.norm(mean)
        mean, inverse = (
            sum(chosen) / len(chosen),
            np.linalg.inv(naive_shrunk_covariance(np.stack(chosen))),
        )
        return lambda h: math.sqrt((h - mean) @ inverse @ (h - mean))

    chosen, history = list(start), []
    for _ in range(rounds):
        rows = {i: h[c] for i, (h, c) in enumerate(zip(features, chosen, strict=True)) if c >= 0}
        far = measure(list(rows.values()))
        kept = sorted(rows, key=lambda i, far=far, rows=rows: far(rows[i]))[
            : math.ceil(keep * len(rows))
        ]
        far = measure([rows[i] for i in kept])
        chosen = [
            min(range(len(h)), key=lambda j, h=h, far=far: far(h[j])) if len(h) else -1
            for h in features
        ]
        distances = [
            far(h[c]) if len(h) else math.inf for h, c in zip(features, chosen, strict=True)
        ]
        history += [(sorted(kept), chosen, distances)]
    return history


@pytest.mark.parametrize("distance", ["cosine", "mahalanobis"])
@pytest.mark.parametrize(("keep", "right"), [(0.5, 0.2), (0.3, 0.2), (1.0, 0.3)])
def test_rounds_against_one_image_after_another(distance, keep, right):
    features, start, _ = planted(40, right, 6, seed=3)
    features[4], features[17] = features[4][:0], features[17][:0]
    start[[4, 17, 20]] = -1  # the last has candidates
    history = foreground_rounds(features, start, 3, keep, distance)
    expected = naive_em([h.double().numpy() for h in features], start.tolist(), 3, keep, distance)
    for found, (kept, chosen, distances) in zip(history, expected, strict=True):
        assert found.kept.nonzero()[:, 0].tolist() == kept
        assert found.chosen.tolist() == chosen
        np.testing.assert_allclose(found.distances, distances, rtol=1e-4)
    assert torch.equal(foreground_em(features, start, 3, keep, distance), history[-1].chosen)
    assert start.tolist() != expected[0][1] != expected[2][1], "nothing moved"


@pytest.mark.parametrize("distance", ["cosine", "mahalanobis"])
def test_finds_a_planted_cluster(distance):
    """From 60 % right; by chance a choice is right one time in five."""
    features, start, truth = planted(300, 0.6, 64)
    assert (start == truth).float().mean() == pytest.approx(0.6)
    assert (foreground_em(features, start, 2, 0.5, distance) == truth).float().mean() > 0.95


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.sampled_from(["cosine", "mahalanobis"]))
def test_order_means_nothing(seed, distance):
    features, start, _ = planted(20, 0.7, 8, seed)
    chosen = foreground_em(features, start, 2, 0.5, distance)
    g = generator(seed + 1)
    images = torch.randperm(20, generator=g)
    assert torch.equal(
        foreground_em([features[i] for i in images], start[images], 2, 0.5, distance),
        chosen[images],
    )
    orders = [torch.randperm(len(rows), generator=g) for rows in features]
    shuffled = [rows[order] for rows, order in zip(features, orders, strict=True)]
    moved = torch.stack([order.argsort()[c] for order, c in zip(orders, start, strict=True)])
    found = foreground_em(shuffled, moved, 2, 0.5, distance)
    assert [int(order[c]) for order, c in zip(orders, found, strict=True)] == chosen.tolist()


def test_cosine_does_not_see_length():
    features, start, _ = planted(30, 0.5)
    scaled = [rows * torch.logspace(-3, 3, len(rows))[:, None] for rows in features]
    assert torch.equal(foreground_em(scaled, start), foreground_em(features, start))


def test_the_first_of_equal_candidates_is_chosen():
    row = torch.randn(512, generator=generator(0))
    features = [row.expand(count, -1) for count in (5, 1003, 1, 77)]
    for distance in ("cosine", "mahalanobis"):
        assert foreground_em(
            features, torch.tensor([4, 1000, 0, 70]), distance=distance
        ).tolist() == [0, 0, 0, 0]
    zeros = [torch.zeros(3, 4), torch.zeros(2, 4)]
    for distance in ("cosine", "mahalanobis"):
        assert foreground_em(zeros, torch.tensor([2, 1]), distance=distance).tolist() == [0, 0]


@pytest.mark.parametrize("distance", ["cosine", "mahalanobis"])
def test_one_image_keeps_its_choice(distance):
    """The mean is the chosen candidate itself, at no distance."""
    features = torch.randn(9, 5, generator=generator(1))
    (round_,) = foreground_rounds([features], torch.tensor([6]), 1, 0.5, distance)
    assert round_.chosen.tolist() == [6]
    assert round_.distances.item() == pytest.approx(0, abs=1e-5)


def test_images_without_candidates_or_first_choice():
    empty = torch.zeros(0, 4)
    assert foreground_em([empty, empty], torch.tensor([-1, -1])).tolist() == [-1, -1]
    assert foreground_em([empty, torch.ones(2, 4)], torch.tensor([-1, -1])).tolist() == [-1, -1]
    assert foreground_em([], torch.zeros(0, dtype=torch.int64)).tolist() == []
    assert foreground_em([empty, torch.ones(2, 4)], torch.tensor([-1, 1]), rounds=0).tolist() == [
        -1,
        1,
    ]
    known = torch.tensor([[1.0, 0], [0, 1]])
    assert foreground_em(
        [known, known.flip(0), empty[:, :2]], torch.tensor([0, -1, -1])
    ).tolist() == [0, 1, -1]


def test_what_is_given_stays_as_it_is():
    features, start, _ = planted(5)
    for given_features in (features, features[:1]):
        before = [rows.clone() for rows in given_features]
        foreground_em(given_features, start[: len(given_features)])
        assert all(torch.equal(a, b) for a, b in zip(before, given_features, strict=True))


def test_half_precision_and_gradients():
    features, start, _ = planted(50, 0.5, 32)
    chosen = foreground_em(features, start)
    assert torch.equal(foreground_em([rows.bfloat16().float() for rows in features], start), chosen)
    assert torch.equal(foreground_em([rows.bfloat16() for rows in features], start), chosen)
    assert torch.equal(foreground_em([rows.requires_grad_() for rows in features], start), chosen)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"distance": "euclid"}, "mahalanobis"),
        ({"keep": 0.0}, "keep 0.0"),
        ({"keep": 1.5}, "keep 1.5"),
        ({"start": torch.tensor([0, 1, 0])}, "2 images"),
        ({"start": torch.tensor([0, 3])}, "image 1 is 3, which has 3"),
        ({"start": torch.tensor([-2, 0])}, "image 0 is -2"),
        ({"features": [torch.ones(2, 4), torch.ones(3, 5)]}, r"image 1 are \(3, 5\)"),
        ({"features": [torch.ones(2, 4), torch.ones(4)]}, r"image 1 are \(4,\)"),
        (
            {"features": [torch.ones(2, 4), torch.tensor([[1.0] * 4, [0, 0, torch.nan, 0]])]},
            "image 1 hold NaN",
        ),
        ({"features": [torch.full((2, 4), torch.inf), torch.ones(3, 4)]}, "image 0 hold NaN"),
    ],
)
def test_mistakes_are_one_line(change, message):
    settings = {
        "features": [torch.ones(2, 4), torch.ones(3, 4)],
        "start": torch.tensor([0, 1]),
        **change,
    }
    with pytest.raises(InputError, match=message) as error:
        foreground_em(**settings)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("count", "size"), [(30, 4), (5, 9), (2, 3), (12, 1), (3, 2)])
def test_covariance_against_its_formula(count, size):
    rows = (
        torch.randn(count, size, generator=generator(count))
        @ torch.randn(size, size, generator=generator(size))
        + 3
    )
    if size == 1:  # the shrunk one is the covariance itself
        torch.testing.assert_close(
            shrunk_covariance(rows).item(), rows.double().var(correction=0).item()
        )
        return
    torch.testing.assert_close(
        shrunk_covariance(rows), torch.from_numpy(naive_shrunk_covariance(rows.double().numpy()))
    )


def test_covariance_against_scikit_learn():
    """It leaves the terms in 2 / D out of the formula."""
    covariance = pytest.importorskip("sklearn.covariance")
    rows = torch.randn(50, 400, generator=generator(0), dtype=torch.float64) * torch.logspace(
        -1, 1, 400
    )
    expected = torch.from_numpy(covariance.OAS().fit(rows.numpy()).covariance_)
    assert (shrunk_covariance(rows) - expected).norm() < 0.01 * expected.norm()


@pytest.mark.parametrize("rows", [torch.ones(1, 5), torch.full((7, 5), 0.1), torch.zeros(3, 5)])
def test_rows_without_spread_have_the_identity(rows):
    assert torch.equal(shrunk_covariance(rows), torch.eye(5, dtype=torch.float64))


def test_mahalanobis_rejects_what_leaves_the_span_of_few_images():
    """Of two candidates one is as far off as the class is wide; the other is nearer, but where none of the ten images is.

    A pseudo-inverse puts the second at distance 0, and so would the cosine.
    """
    g = generator(0)
    spread = torch.zeros(40)
    spread[:3] = 5.0
    rows = 10 + spread * torch.randn(10, 40, generator=g) + 0.01 * torch.randn(10, 40, generator=g)
    mean = rows.mean(0)
    inside, outside = mean + 0.8 * spread, mean.clone()
    outside[30] += 6.0
    pinv = np.linalg.pinv(np.cov(rows.double().numpy().T, bias=True), rcond=1e-3)
    away = [(candidate - mean).double().numpy() for candidate in (outside, inside)]
    assert away[0] @ pinv @ away[0] < 0.1 < away[1] @ pinv @ away[1]
    assert np.linalg.norm(away[0]) < np.linalg.norm(away[1])
    features = [row[None] for row in rows] + [torch.stack([outside, inside])]
    start = torch.tensor([0] * 10 + [-1])
    (round_,) = foreground_rounds(features, start, 1, 1.0, "mahalanobis")
    assert round_.chosen[-1] == 1
    assert round_.distances.isfinite().all()
    assert foreground_em(features, start, 1, 1.0, "cosine")[-1] == 0


def test_a_single_cells_map_has_that_cells_centre():
    map_ = torch.zeros(2, 5, 7)
    map_[0, 1, 4] = 2.0
    map_[1, 4, 0] = 1e-6
    assert cam_centroid(map_).tolist() == [[4.5, 1.5], [0.5, 4.5]]
    assert cam_centroid(map_[0], stride=16).tolist() == [72, 24]


def test_centroid_against_moments():
    maps = torch.randn(3, 11, 8, generator=generator(0))
    for map_, point in zip(maps.numpy(), cam_centroid(maps, 0.2), strict=True):
        moments = cv2.moments(
            (map_ >= np.sort(map_, axis=None)[-18]).astype(np.uint8), binaryImage=True
        )  # 17.6 cells
        expected = [moments[m] / moments["m00"] + 0.5 for m in ("m10", "m01")]
        np.testing.assert_allclose(point, expected, rtol=1e-5)


@pytest.mark.parametrize("value", [0.0, -3.0, 7.0])
def test_a_constant_map_has_the_centre(value):
    assert cam_centroid(torch.full((4, 6), value)).tolist() == [3, 2]


def test_logit_maps_give_the_point_of_grad_cam():
    g = generator(2)
    features, weight, bias = (
        torch.randn(1, 12, 9, 10, generator=g),
        torch.randn(3, 12, generator=g),
        torch.randn(3, generator=g),
    )
    maps = torch.einsum("ndhw,cd->nchw", features, weight)
    heads = [
        lambda f: torch.einsum("ndhw,cd->nc", f, weight) / 90 + bias,
        lambda f: (
            torch.logsumexp(4 * torch.einsum("ndhw,cd->nchw", f, weight).flatten(2), 2) / 4 + bias
        ),
    ]
    for head in heads:
        torch.testing.assert_close(
            cam_centroid(maps + bias[:, None, None]), cam_centroid(grad_cam(features, head))
        )


def test_a_bad_map_or_share_is_one_line():
    with pytest.raises(InputError, match="learning rate"):
        cam_centroid(torch.tensor([[1.0, torch.nan]]))
    with pytest.raises(InputError, match="share 0"):
        cam_centroid(torch.ones(2, 2), 0)


def segments(
    height: int = 23, width: int = 31, superpixels: int = 9, count: int = 7, seed: int = 0
) -> tuple[torch.Tensor, ...]:
    """Blocky superpixels, some pixels in none; segments, the last without a superpixel; their boxes."""
    g = generator(seed)
    coarse = torch.randint(-1, superpixels, (1, 1, 5, 6), generator=g).float()
    labels = torch.nn.functional.interpolate(coarse, (height, width))[0, 0].int()
    members = torch.rand(count, superpixels, generator=g) < 0.3
    members[-1] = False
    masks = [mask_of(labels, row) for row in members]
    boxes = [[float(f(v)) for f, v in zip((min, min, max, max), (x, y, x + 1, y + 1), strict=True)] if len(x) else [0.0] * 4
             for y, x in map(np.nonzero, masks)]  # fmt: skip
    return labels, members, torch.tensor(boxes)


def mask_of(labels: torch.Tensor, row: torch.Tensor) -> np.ndarray:
    chosen = {s for s, is_member in enumerate(row.tolist()) if is_member}
    return np.array([[label in chosen for label in line] for line in labels.tolist()])


@pytest.mark.parametrize("seed", range(3))
def test_statistics_against_a_loop_over_pixels(seed):
    labels, members, _ = segments(seed=seed)
    points = torch.tensor([[3.5, 20.0], [40.0, -2.5]])
    shares, distances = segment_statistics(labels, members, points)
    assert distances.shape == (2, 7)
    for p, row in enumerate(members):
        pixels = np.argwhere(mask_of(labels, row))
        assert shares[p].item() == pytest.approx(len(pixels) / labels.numel())
        for a, (x, y) in enumerate(points.tolist()):
            each = [math.dist((v + 0.5, u + 0.5), (x, y)) for u, v in pixels]
            assert distances[a, p].item() == pytest.approx(
                sum(each) / len(each) if each else math.inf, rel=1e-5
            )


def test_statistics_without_points_segments_or_columns():
    labels, members, _ = segments()
    assert segment_statistics(labels, members, torch.zeros(0, 2)).distances.shape == (0, 7)
    assert segment_statistics(labels, members[:0], torch.zeros(2, 2)).distances.shape == (2, 0)
    with pytest.raises(InputError, match="members only 5"):
        segment_statistics(labels, members[:, :5], torch.zeros(1, 2))


def test_eligible_segments():
    shares = torch.tensor([0.009, 0.01, 0.5, 0.8, 0.81, 0.5, 0.5])
    boxes = torch.tensor([[0.0, 0, 50, 50]] * 5 + [[5, 0, 294, 120], [4, 0, 294, 120]])
    assert eligible_segments(shares, boxes, (200, 299)).tolist() == [
        False,
        True,
        True,
        True,
        False,
        True,
        False,
    ]
    boxes = torch.tensor([[0.0, 0, 40, 90], [0, 0, 40, 91]])
    assert eligible_segments(torch.tensor([0.5, 0.5]), boxes, (100, 100), margin=0.1).tolist() == [
        True,
        False,
    ]


def test_nearest_segments_are_sorted_and_filled():
    distances = torch.tensor([[3.0, 1, 2, 1, torch.inf], [1, 9, 5, 7, 2]])
    allowed = torch.tensor([True, True, False, True, True])
    assert nearest_segments(distances, allowed).tolist() == [[1, 3, 0], [0, 4, 3]]
    assert nearest_segments(distances, allowed, 6).tolist() == [
        [1, 3, 0, -1, -1, -1],
        [0, 4, 3, 1, -1, -1],
    ]
    assert nearest_segments(distances[:, :0], allowed[:0], 2).tolist() == [[-1, -1], [-1, -1]]


@pytest.mark.parametrize("side", [32, 45])
def test_patches_against_sampling_each_pixel(side, monkeypatch):
    """Larger than any box, so that each is enlarged."""
    labels, members, boxes = segments()
    image = torch.randint(0, 256, (3, *labels.shape), generator=generator(1), dtype=torch.uint8)
    patches = segment_patches(image, labels, members, boxes, side)
    assert patches.shape == (7, 3, side, side)
    assert patches.dtype == torch.uint8
    assert (patches[-1] == GREY).all()
    for row, (x1, y1, x2, y2), patch in zip(members, boxes.tolist(), patches, strict=True):
        y, x = (
            low + (high - low) * (np.arange(side) + 0.5) / side
            for low, high in ((y1, y2), (x1, x2))
        )
        places = np.stack(np.meshgrid(y, x, indexing="ij"))
        mask = mask_of(labels, row)[tuple(places.astype(int))]
        for channel, expected in zip(patch.numpy(), image.numpy().astype(float), strict=True):
            expected = np.where(
                mask, map_coordinates(expected, places - 0.5, order=1, mode="nearest"), GREY
            )
            np.testing.assert_allclose(channel, expected, atol=0.501)
    assert (patches[:-1] != GREY).any((1, 2, 3)).sum() >= 4
    monkeypatch.setattr("wsis.evidence.em._CELLS", 3 * side**2)
    assert torch.equal(segment_patches(image, labels, members, boxes, side), patches)
    assert segment_patches(image, labels, members[:0], boxes[:0], side).shape == (0, 3, side, side)


def test_a_patch_smaller_than_its_box_has_means():
    image = torch.randint(0, 256, (3, 10, 20), generator=generator(1), dtype=torch.uint8)
    labels = torch.zeros(10, 20, dtype=torch.int32)
    labels[:4] = 1
    patch = segment_patches(
        image, labels, torch.tensor([[True, False]]), torch.tensor([[3.0, 1, 15, 9]]), 4
    )[0]
    means = image[:, 1:9, 3:15].float().reshape(3, 4, 2, 4, 3).mean((2, 4))
    means[:, 0] = GREY  # its centres are at y = 2, in the other superpixel; the next at y = 4
    np.testing.assert_allclose(patch.float(), means, atol=0.501)
