"""Normalised cuts of tokens, against the whole eigenproblem and on pictures with known objects."""

from __future__ import annotations

import importlib
import json

import cv2
import numpy as np
import pytest
import timm
import torch
from torch import nn

from wsis.errors import InputError
from wsis.nn.backbone import Backbone, BackboneSettings
from wsis.proposals import ncut, proposers
from wsis.proposals.cuts import affinity, bipartition, cuts, eigenvectors
from wsis.proposals.merge import merged
from wsis.proposals.segments import propose as segments

QUANTILES = (0.1, 0.9)


class Colours(nn.Module):
    """A stand-in for a network: a cell's features are its mean colour, darker than grey below 0."""

    def forward(self, images):
        return nn.functional.avg_pool2d(images, 8)


@pytest.fixture
def colours(monkeypatch):
    settings = BackboneSettings(Colours(), "none", mean=(0.5,) * 3, std=(0.5,) * 3)
    network = Backbone(settings).eval()
    monkeypatch.setattr(ncut, "_network", lambda *named: network)


@pytest.fixture
def read_anew():
    """The module, read again with other variables of the environment, and at the end without."""
    with pytest.MonkeyPatch.context() as patch:

        def read(**variables):
            for name, value in variables.items():
                patch.setenv(name, value)
            proposers.find.cache_clear()
            return importlib.reload(ncut)

        yield read
    proposers.find.cache_clear()
    importlib.reload(ncut)


def discs():
    """Two discs on a grey ground, and their masks."""
    image = np.full((160, 240, 3), (60, 70, 60), np.uint8)
    masks = []
    for centre, radius, colour in (((60, 60), 32, (220, 40, 40)), ((170, 95), 44, (40, 60, 230))):
        mask = np.zeros(image.shape[:2], np.uint8)
        cv2.circle(mask, centre, radius, 1, -1)
        masks.append(mask.astype(bool))
        image[masks[-1]] = colour
    return image, masks


def dense(weights, count):
    """The definition in double precision: (D - W) y = lambda D y."""
    weights = weights.double()
    root = weights.sum(1).sqrt()
    laplacian = torch.eye(len(root)) - weights / root[:, None] / root
    values, vectors = torch.linalg.eigh(laplacian)
    return values[1 : count + 1], (vectors / root[:, None])[:, 1 : count + 1]


@pytest.mark.parametrize("seed", range(20))
def test_eigenvectors_are_those_of_the_whole_problem(seed):
    numbers = torch.Generator().manual_seed(seed)
    features = torch.randn(90, 3, generator=numbers)
    weights = affinity(features, 0.5)
    values, vectors = eigenvectors(weights, 4)
    expected = dense(weights, 4)
    assert values.numpy() == pytest.approx(expected[0].numpy(), abs=2e-4)
    residual = (torch.diag(weights.sum(1)) - weights - values[0] * torch.diag(weights.sum(1))) @ (
        vectors[:, 0] / vectors[:, 0].norm()
    )
    assert residual.norm() < 0.02 * weights.sum(1).max()
    cosine = torch.cosine_similarity(vectors[:, 0].double(), expected[1][:, 0], dim=0)
    if expected[0][1] - expected[0][0] > 0.01:  # else any mixture of both solves it
        assert abs(cosine) > 0.999


def test_a_batch_is_solved_as_each_of_its_graphs():
    features = torch.randn(3, 60, 4, generator=torch.Generator().manual_seed(1))
    weights = affinity(features, 0.4)
    values, vectors = eigenvectors(weights, 3)
    assert values.shape == (3, 3)
    assert vectors.shape == (3, 60, 3)
    for one, expected in zip(weights, values, strict=True):
        assert eigenvectors(one, 3)[0].numpy() == pytest.approx(expected.numpy(), abs=1e-5)


@pytest.mark.parametrize("sizes", [(3, 2), (20, 25), (200, 9)])
def test_two_blocks_are_cut_exactly(sizes):
    features = torch.eye(2)[[0] * sizes[0] + [1] * sizes[1]]
    weights = affinity(features, 0.5)
    assert weights[0, 1] == 1
    assert weights[0, -1] == pytest.approx(1e-5)
    values, vectors = eigenvectors(weights, 1)
    assert values[0] == pytest.approx(0, abs=1e-3)
    first = vectors[:, 0] > vectors.mean()
    assert len(first[: sizes[0]].unique()) == len(first[sizes[0] :].unique()) == 1
    assert first[0] != first[-1]


def test_sides_and_tails_of_a_vector():
    vector = np.float32([[0, 1, 2], [3, 4, 50]])
    above, below, tail, top = bipartition(vector, (0.2, 0.8))
    assert above.tolist() == [[False] * 3, [False, False, True]]
    assert (below == ~above).all()
    assert tail.tolist() == [[True, True, False], [False] * 3]
    assert (top == above).all()


def test_parts_are_connected():
    features = torch.eye(2)[[0, 1, 0, 1, 1]].T[:, None].expand(2, 4, 5)
    found = cuts(features, 1, (0.5,), ())
    assert {"".join(str(int(cell)) for cell in mask[0]) for mask in found} == {
        "10000",
        "00100",  # as the first, but apart from it
        "01000",
        "00011",
    }
    assert (found == found[:, :1]).all()


def test_discs_are_found(colours):
    image, masks = discs()
    proposals = ncut.propose(image)
    for mask, place in zip(masks, (5, 5), strict=True):
        found = proposals.members[:place][:, proposals.labels.long()].numpy()
        overlap = (found & mask).sum((1, 2)) / (found | mask).sum((1, 2))
        assert overlap.max() > 0.9


def test_proposals_are_valid_repeatable_and_merge(colours):
    image = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
    image = cv2.resize(image, (160, 120), interpolation=cv2.INTER_CUBIC)
    proposals = ncut.propose(image, work_side=80, eigenvectors=4)
    assert len(proposals.boxes) > 5
    masks = proposals.members[:, proposals.labels.long()].numpy()
    for mask, box in zip(masks, proposals.boxes.tolist(), strict=True):
        ys, xs = np.nonzero(mask)
        assert box == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
    assert len(np.unique(masks.reshape(len(masks), -1), axis=0)) == len(masks)
    assert 0 <= proposals.scores.min() <= proposals.scores.max() <= 1
    again = ncut.propose(image, work_side=80, eigenvectors=4)
    assert all(first.equal(second) for first, second in zip(proposals, again, strict=True))
    few = ncut.propose(image, limit=3, work_side=80, eigenvectors=4)
    assert few.boxes.equal(proposals.boxes[:3])
    both = merged([segments(image, limit=50, work_side=80), proposals])
    assert len(both.boxes) > len(proposals.boxes)
    assert both.labels.shape == image.shape[:2]


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (3, 2), (8, 8), (9, 17), (96, 128)])
@pytest.mark.parametrize("flat", [True, False])
def test_tiny_and_flat_images_give_valid_proposals_or_none(colours, shape, flat):
    image = np.full((*shape, 3), 77, np.uint8)
    if not flat:
        image[:, shape[1] // 2 :] = (250, 10, 10)
    proposals = ncut.propose(image)
    count = len(proposals.boxes)
    assert proposals.labels.shape == shape
    assert len(proposals.scores) == len(proposals.members) == count
    assert proposals.members.any(1).all()
    assert count == 0 or not flat
    assert proposals.boxes.isfinite().all()


def test_one_token_has_no_cut():
    assert cuts(torch.ones(4, 1, 1), 16, (0.3, 0.5), QUANTILES).shape == (0, 1, 1)
    values, vectors = eigenvectors(torch.ones(1, 1), 16)
    assert (values.shape, vectors.shape) == ((0,), (1, 0))


def test_equal_tokens_are_no_error():
    values, vectors = eigenvectors(torch.ones(90, 90), 16)
    assert values.numpy() == pytest.approx(np.ones(16), abs=1e-4)
    assert vectors.isfinite().all()


def test_the_backbone_and_the_content_of_its_file_are_kept(read_anew, tmp_path):
    assert "ncut" in proposers.names()
    told = proposers.find("ncut").provenance
    assert (told["made"], told["supervision"]) == ("ncut", "none")
    assert json.loads(json.dumps(told)) == told
    file, kept = tmp_path / "weights.safetensors", []
    for content in (b"one", b"other"):
        file.write_bytes(content)
        read_anew(WSIS_NCUT_BACKBONE="mobilenetv2_100", WSIS_NCUT_WEIGHTS=str(file))
        kept.append(proposers.find("ncut").provenance)
    assert kept[0]["backbone"] == "mobilenetv2_100"
    assert kept[0]["supervision"] == "the weights of mobilenetv2_100"
    assert kept[0]["weights"] != kept[1]["weights"]
    assert str(tmp_path) not in str(kept)


@pytest.mark.parametrize(
    "name",
    ["mobilenetv2_100", pytest.param("vit_small_patch14_dinov2", marks=pytest.mark.slow)],
)
def test_without_weights_one_line_says_what_to_do(monkeypatch, name):
    create = timm.create_model

    def offline(name, **arguments):
        if arguments.get("pretrained"):
            raise OSError("no connection")
        return create(name, **arguments)

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(InputError, match="cannot download the weights of backbone") as error:
        ncut._network.__wrapped__(name, "imagenet", "cpu")
    text = str(error.value)
    assert text.startswith("proposer ncut: ")
    assert f"WSIS_NCUT_BACKBONE={name} WSIS_NCUT_WEIGHTS=" in text
    assert "\n" not in text
    assert "--model" not in text


@pytest.mark.parametrize(
    "name", ["mobilenetv2_100", pytest.param("vit_tiny_patch16_224", marks=pytest.mark.slow)]
)
def test_a_network_by_name(name):
    network = ncut._network(name, "none", "cpu")
    assert ncut._network(name, "none", "cpu") is network
    assert network.stride == 16
    assert not network.training
    features = ncut._features(network, np.zeros((33, 70, 3), np.uint8))
    assert features.shape[1:] == (3, 5)
    assert not features.requires_grad
