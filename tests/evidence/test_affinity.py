from __future__ import annotations

import math

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from wsis.errors import InputError
from wsis.evidence.affinity import (
    AffinityNet,
    Embedding,
    affinities,
    affinity_loss,
    pixel_labels,
    random_walk,
    sure_labels,
)
from wsis.parts.classifier import Classifier

SMALL = {
    "num_classes": 2,
    "backbone": {
        "name": "test_byobnet",
        "weights": "none",
        "output_stride": 32,
        "feature_level": 2,
    },
}


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pairs(height: int, width: int, radius: int) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Every pair of cells closer than the radius, once."""
    cells = [(y, x) for y in range(height) for x in range(width)]
    return [(a, b) for a in cells for b in cells if a < b and math.dist(a, b) < radius]


def dense(found: torch.Tensor, radius: int) -> np.ndarray:
    """(h w, h w) symmetric, from affinities (K,h,w) in the order of rows, then columns, of the neighbour."""
    _, height, width = found.shape
    near = [
        (y, x)
        for y in range(radius)
        for x in range(1 - radius, radius)
        if (y, x) > (0, 0) and math.hypot(y, x) < radius
    ]
    matrix = np.eye(height * width)
    for k, (dy, dx) in enumerate(near):
        for y in range(height):
            for x in range(width):
                if 0 <= y + dy < height and 0 <= x + dx < width:
                    i, j = y * width + x, (y + dy) * width + x + dx
                    matrix[i, j] = matrix[j, i] = found[k, y, x]
    return matrix


@pytest.mark.parametrize(
    ("height", "width", "radius"), [(6, 7, 5), (5, 9, 3), (1, 1, 5), (2, 3, 5), (1, 8, 2)]
)
def test_affinities_against_every_pair(height, width, radius):
    features = torch.randn(2, 3, height, width, generator=generator(0))
    found = affinities(features, radius)
    assert radius != 5 or found.shape[1] == 34
    for n in range(2):
        matrix = dense(found[n], radius)
        expected = np.eye(height * width)
        for a, b in pairs(height, width, radius):
            value = math.exp(
                -sum(abs(float(features[n, d][a] - features[n, d][b])) for d in range(3)) / 3
            )
            i, j = a[0] * width + a[1], b[0] * width + b[1]
            expected[i, j] = expected[j, i] = value
        np.testing.assert_allclose(matrix, expected, rtol=1e-5)
        assert int((found[n] > 0).sum()) == len(pairs(height, width, radius))


def test_beyond_the_map_has_no_gradient():
    features = torch.randn(
        1, 3, 4, 4, generator=generator(0), dtype=torch.double, requires_grad=True
    )
    assert torch.autograd.gradcheck(lambda f: affinities(f, 3).clamp(max=0.99), features)


@pytest.mark.parametrize("seed", range(3))
def test_loss_against_every_pair(seed):
    radius, background = 4, 3
    features = torch.randn(2, 3, 5, 6, generator=generator(seed))
    labels = torch.randint(-1, 4, (2, 5, 6), generator=generator(seed + 10))
    terms: dict[str, list[float]] = {"ground": [], "thing": [], "apart": []}
    for n in range(2):
        for a, b in pairs(5, 6, radius):
            first, second = int(labels[n][a]), int(labels[n][b])
            value = math.exp(
                -float((features[n, :, a[0], a[1]] - features[n, :, b[0], b[1]]).abs().mean())
            )
            if -1 in (first, second):
                continue
            if first != second:
                terms["apart"] += [-math.log(1 + 1e-5 - value)]
            else:
                terms["ground" if first == background else "thing"] += [-math.log(value + 1e-5)]
    ground, thing, apart = (sum(term) / len(term) for term in terms.values())
    found = affinity_loss(affinities(features, radius), labels, radius, background)
    assert float(found) == pytest.approx(ground / 4 + thing / 4 + apart / 2, rel=1e-5)


def test_nothing_known_is_no_loss_but_a_graph():
    features = torch.randn(1, 3, 4, 4, requires_grad=True)
    loss = affinity_loss(affinities(features), torch.full((1, 4, 4), -1), 5, 2)
    loss.backward()
    assert loss == 0
    assert not features.grad.any()


def test_sure_labels_by_hand():
    """PSA's two background scores: class 0 beats (1 - m)^4 from .28 on, (1 - m)^32 beats it below .08."""
    maps = torch.tensor([[[[0.05, 0.2, 0.5, 0.3]], [[0.02, 0.1, 0.4, 0.9]]]])
    assert sure_labels(maps, torch.ones(1, 2)).tolist() == [[[2, -1, 0, 1]]]
    assert sure_labels(maps, torch.tensor([[1, 0]])).tolist() == [[[2, -1, 0, 0]]]
    assert sure_labels(maps, torch.zeros(1, 2)).tolist() == [[[2, 2, 2, 2]]]
    for m in (0.28, 0.08):
        power = {0.28: 4, 0.08: 32}[m]
        assert m - 0.01 < (1 - m + 0.01) ** power
        assert m > (1 - m) ** power


@pytest.mark.parametrize(
    ("height", "width", "radius", "steps"), [(5, 6, 5, 256), (4, 7, 3, 16), (1, 1, 5, 8)]
)
def test_walk_against_a_matrix_power(height, width, radius, steps):
    maps = torch.rand(2, 3, height, width, generator=generator(0))
    found = affinities(torch.randn(2, 4, height, width, generator=generator(1)), radius)
    walked = random_walk(maps, found, radius, power=3, steps=steps)
    assert walked.shape == maps.shape
    for n in range(2):
        weights = dense(found[n], radius) ** 3
        transitions = np.linalg.matrix_power(weights / weights.sum(1, keepdims=True), steps)
        np.testing.assert_allclose(transitions.sum(1), 1)
        expected = maps[n].flatten(1).numpy() @ transitions.T
        np.testing.assert_allclose(walked[n].flatten(1).numpy(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@given(st.integers(0, 1000), st.integers(1, 7), st.integers(1, 7))
def test_walk_averages(seed, height, width):
    """A constant stays, nothing leaves the range it had, and the sum weighted by degree is kept."""
    found = affinities(torch.randn(1, 4, height, width, generator=generator(seed)))
    constant = random_walk(torch.full((1, 1, height, width), 3.5), found)
    torch.testing.assert_close(constant, torch.full_like(constant, 3.5))
    maps = torch.rand(1, 2, height, width, generator=generator(seed + 1))
    walked = random_walk(maps.double(), found, steps=20)
    assert (walked.amax((2, 3)) <= maps.amax((2, 3)) + 1e-9).all()
    assert (walked.amin((2, 3)) >= maps.amin((2, 3)) - 1e-9).all()
    degrees = torch.from_numpy((dense(found[0], 5) ** 8).sum(1)).view(height, width)
    torch.testing.assert_close((walked * degrees).sum((2, 3)), (maps * degrees).sum((2, 3)))


def test_walk_stays_on_its_side():
    """Two sides with little affinity: a map that fires at one point fills its side and nothing else."""
    features = torch.zeros(1, 1, 12, 12)
    features[..., 6:] = 5
    maps = torch.zeros(1, 1, 12, 12)
    maps[..., 5, 1] = 1
    walked = random_walk(maps, affinities(features))[0, 0]
    assert walked[:, :6].min() > 0.9 * walked.max()
    assert walked[:, 6:].max() < 1e-6


@pytest.mark.parametrize("which", ["maps", "affinities"])
def test_diverged_values_are_one_line(which):
    maps, found = torch.rand(1, 1, 4, 4), affinities(torch.rand(1, 2, 4, 4))
    {"maps": maps, "affinities": found}[which][0, 0, 1, 1] = torch.nan
    with pytest.raises(InputError, match="learning rate") as error:
        random_walk(maps, found)
    assert "\n" not in str(error.value)
    if which == "maps":
        for call in (
            lambda: sure_labels(maps, torch.ones(1, 1)),
            lambda: pixel_labels(maps[0], torch.ones(1), 8, (9, 9)),
        ):
            with pytest.raises(InputError, match="NaN"):
                call()


def test_pixel_labels_by_hand():
    scores = torch.zeros(3, 2, 3)
    scores[0, :, 0], scores[1, :, 2], scores[2] = 2.0, 0.5, 9.0
    found = pixel_labels(scores, torch.tensor([1, 1, 0]), stride=10, size=(15, 30))
    assert found.labels.shape == found.foreground.shape == (15, 30)
    assert found.labels.dtype == torch.int64
    assert (
        found.labels[:, :5] == 0
    ).all()  # whatever its own highest value, each map counts the same
    assert (found.labels[:, -5:] == 1).all()
    assert (
        found.labels[:, 14:16] == 3
    ).all()  # class 2 is not tagged, between the others is background
    assert found.foreground.max() == 1
    assert (found.foreground[:, 14:16] < 0.25).all()
    torch.nn.functional.cross_entropy(torch.zeros(1, 4, 15, 30), found.labels[None])


@pytest.mark.parametrize("tags", [torch.zeros(2), torch.ones(2)])
def test_without_tags_or_evidence_all_is_background(tags):
    found = pixel_labels(torch.zeros(2, 2, 2), tags, 8, (11, 16))
    assert (found.labels == 2).all()
    assert found.labels.shape == found.foreground.shape == (11, 16)
    assert not found.foreground.any()


def two_regions() -> torch.Tensor:
    """An image (3,64,64), a red left third and a blue rest, both with noise."""
    image = torch.randint(0, 60, (3, 64, 64), generator=generator(0))
    image[0, :, :21] += 150
    image[2, :, 21:] += 150
    return image.to(torch.uint8)


def sides(found: torch.Tensor, radius: int) -> tuple[float, float]:
    """Mean affinity of the pairs on one side of the edge, and of those across it."""
    matrix, side = dense(found[0], radius), np.arange(16) * 4 + 2 >= 21
    side = np.tile(side, 16)
    known, same = (matrix > 0) & ~np.eye(256, dtype=bool), side[:, None] == side
    return matrix[known & same].mean(), matrix[known & ~same].mean()


def test_learns_that_two_regions_are_two():
    """The cells that the edge runs through are unknown."""
    torch.manual_seed(0)
    image = two_regions()[None].float() / 255
    maps = [torch.nn.functional.avg_pool2d(image, 4), torch.nn.functional.avg_pool2d(image, 8)]
    embedding, radius = Embedding([3, 3], 8), 3
    labels = torch.full((1, 16, 16), -1)
    labels[..., :5], labels[..., 6:] = 0, 1
    optimiser = torch.optim.AdamW(embedding.parameters(), 0.02)
    losses = []
    for _ in range(60):
        loss = affinity_loss(affinities(embedding(maps), radius), labels, radius, 1)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses += [float(loss.detach())]
    same, across = sides(affinities(embedding(maps), radius).detach(), radius)
    assert losses[-1] < losses[0] / 2
    assert same > across + 0.3


@pytest.fixture(scope="module")
def classifier(tmp_path_factory) -> str:
    """A checkpoint as a run leaves it, of random weights."""
    pl.seed_everything(0, verbose=False)
    path = tmp_path_factory.mktemp("classifier") / "last.ckpt"
    torch.save({"state_dict": Classifier(**SMALL).state_dict()}, path)
    return path


def batch() -> list:
    tags = [torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])]
    images = [two_regions(), two_regions()[:, :40, :50].flip(-1)]
    return [
        {"image": image, "target": {"tags": tag}} for image, tag in zip(images, tags, strict=True)
    ]


def net(classifier, **settings) -> AffinityNet:
    pl.seed_everything(0, verbose=False)
    model = AffinityNet(**{**SMALL, "min_stride": 4, "width": 8, "radius": 3, **settings})
    model.start(classifier)
    return model


def test_trains_what_is_its_own_and_can_be_loaded(classifier, tmp_path):
    model = net(classifier)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    quiet = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "accelerator": "cpu",
    }
    trainer = pl.Trainer(
        max_steps=3, default_root_dir=tmp_path, enable_checkpointing=False, **quiet
    )
    trainer.fit(model, DataLoader(batch() * 3, batch_size=2, collate_fn=list))
    changed = {
        name.split(".")[0]
        for name, value in model.state_dict().items()
        if not torch.equal(value, before[name])
    }
    assert changed == {"embed"}
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    again = AffinityNet.load_from_checkpoint(tmp_path / "a.ckpt")
    image, tags = batch()[0]["image"], torch.tensor([1.0, 1.0])
    torch.testing.assert_close(
        again.refine(image, tags, scales=(1.0,)), model.refine(image, tags, scales=(1.0,))
    )


def test_padding_takes_no_part_in_the_loss(classifier):
    """Every cell that begins in its image is sure with this threshold, no other is."""
    model, seen = net(classifier), {}
    model.hparams["foreground_threshold"] = -1.0
    model.log = lambda *_, **__: None
    assert model.stride == 4
    original = affinity_loss

    def watch(found, labels, *rest):
        seen["labels"] = labels
        return original(found, labels, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("wsis.evidence.affinity.affinity_loss", watch)
        model.training_step(batch(), 0)
    expected = torch.zeros(2, 16, 16, dtype=torch.bool)
    expected[0], expected[1, :10, :13] = (
        True,
        True,
    )  # the second has 40 of 64 rows, 50 of 64 columns
    assert torch.equal(seen["labels"] >= 0, expected)


def test_refined_maps_have_the_images_cells(classifier):
    model = net(classifier)
    image = batch()[1]["image"]
    refined = model.refine(image, torch.tensor([0.0, 1.0]), scales=(0.5, 1.0), steps=4)
    assert refined.shape == (2, 10, 13)
    assert not refined[0].any()
    assert not refined.requires_grad
    assert not model.refine(image, torch.zeros(2)).any()
    found = pixel_labels(refined, torch.tensor([0.0, 1.0]), model.stride, (40, 50))
    assert found.labels.shape == (40, 50)


def test_refined_without_a_walk_are_the_classifiers_logits(classifier):
    """Means over cells of the positive logits, averaged with the mirror image's."""
    model, image = net(classifier), two_regions()
    model.head.bias.data += 0.1
    refined = model.refine(image, torch.tensor([1.0, 0.0]), scales=(1.0,), steps=0)[0]
    whole = Classifier(**SMALL).eval()
    whole.load_state_dict(
        {k: v for k, v in model.state_dict().items() if not k.startswith("embed")}, strict=False
    )
    with torch.no_grad():
        logits = [whole([x])[:, :1].clamp(min=0) for x in (image, image.flip(-1))]
    maps = [
        torch.nn.functional.interpolate(m, size=(64, 64), mode="bilinear")[0, 0] for m in logits
    ]
    expected = maps[0] + maps[1].flip(-1)
    assert expected.any()
    torch.testing.assert_close(refined, (expected / expected.max()).view(16, 4, 16, 4).mean((1, 3)))


def test_a_backbone_without_such_a_map():
    with pytest.raises(InputError, match="min_stride"):
        AffinityNet(**SMALL, min_stride=64)


def test_what_is_no_such_classifier_is_told(classifier, tmp_path):
    state = torch.load(classifier, map_location="cpu", weights_only=True)
    del state["state_dict"]["head.weight"]
    torch.save(state, tmp_path / "headless.ckpt")
    with pytest.raises(
        InputError, match=r"headless.ckpt is not the checkpoint of a classifier with 2 classes"
    ):
        net(tmp_path / "headless.ckpt")
    with pytest.raises(InputError, match=r"is not the checkpoint of a classifier with 3 classes"):
        net(classifier, num_classes=3)


def test_bfloat16_takes_no_loss_to_infinity():
    features = torch.zeros(
        1, 4, 6, 6
    ).bfloat16()  # affinities of 1, where 1 + 1e-5 - 1 is 0 in bfloat16
    labels = torch.zeros(1, 6, 6, dtype=torch.int64)
    with torch.autocast("cpu", torch.bfloat16):
        assert affinity_loss(affinities(features, 3), labels, 3, 2).isfinite()


def test_a_radius_without_neighbours():
    with pytest.raises(InputError, match=r"radius 1: give .* at least 2"):
        AffinityNet(**SMALL, radius=1)
