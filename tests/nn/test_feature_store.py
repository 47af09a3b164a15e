"""Stored features are the features, each computed once, by whichever process comes first."""

from __future__ import annotations

import json
import multiprocessing
import pickle
import sqlite3
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

import wsis
from wsis.errors import InputError
from wsis.nn.backbone import Backbone, BackboneSettings
from wsis.nn.feature_store import FeatureStore


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("WSIS_CACHE", str(tmp_path))
    return tmp_path


def frozen(seed: int = 0) -> Backbone:
    torch.manual_seed(seed)
    return Backbone(BackboneSettings("test_byobnet", "none", output_stride=32)).eval()


def images(*sizes: tuple[int, int]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, 256, (3, *s), dtype=torch.uint8, generator=generator) for s in sizes]


class Counting:
    """The sum of an image's pixels as its map, and how often it was computed."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, image: Tensor) -> Tensor:
        self.calls += 1
        return image.float().mean(0, keepdim=True)


def test_features_are_those_of_the_network_in_half_precision(cache):
    backbone, (image,) = frozen(), images((70, 45))
    with torch.no_grad():
        expected = backbone([image]).half().float()
    backbone.keep_features()
    for _ in range(2):
        assert torch.equal(backbone([image]), expected)


def test_a_batch_of_sizes_is_padded_with_zeros(cache):
    backbone, (small, large) = frozen(), images((40, 100), (90, 33))
    backbone.keep_features()
    batch = backbone([small, large])
    assert batch.shape == (2, backbone.channels, 3, 4)
    torch.testing.assert_close(batch[:1, :, :2, :4], backbone([small]))
    torch.testing.assert_close(batch[1:, :, :3, :2], backbone([large]))
    assert not batch[0, :, 2:].any()
    assert not batch[1, :, :, 2:].any()


def test_each_image_passes_once_whoever_asks(tmp_path):
    first, flipped = images((8, 6))[0], images((8, 6))[0].flip(-1)
    store, compute = FeatureStore(tmp_path / "a" / "maps.sqlite"), Counting()
    store.maps([first, first, flipped], compute)
    assert compute.calls == 2
    again = FeatureStore(store.path).maps([flipped, first], compute)
    assert compute.calls == 2
    assert torch.equal(again[1], first.float().mean(0, keepdim=True).half())
    store.maps([first], compute, "another precision")
    assert compute.calls == 3
    assert torch.equal(pickle.loads(pickle.dumps(store)).maps([first], compute)[0], again[1])
    assert compute.calls == 3


def test_images_of_equal_bytes_and_another_shape_differ(tmp_path):
    compute, store = Counting(), FeatureStore(tmp_path / "maps.sqlite")
    image = torch.zeros(3, 4, 6, dtype=torch.uint8)
    assert store.maps([image], compute)[0].shape == (1, 4, 6)
    assert store.maps([image.mT], compute)[0].shape == (1, 6, 4)


def test_networks_do_not_share_a_file(cache):
    one, same, other = frozen(), frozen(), frozen(seed=1)
    assert one.keep_features() == same.keep_features() != other.keep_features()
    level = Backbone(BackboneSettings("test_byobnet", "none", output_stride=32, feature_level=1))
    level.load_state_dict(one.state_dict(), strict=False)
    assert level.keep_features() != one.keep_features()


def _fill(path: Path) -> None:
    store = FeatureStore(path)
    for image in images(*[(8, 8)] * 20):
        store.maps([image], Counting())


@pytest.mark.slow
def test_processes_share_a_file(tmp_path):
    path, context = tmp_path / "maps.sqlite", multiprocessing.get_context("spawn")
    both = [context.Process(target=_fill, args=(path,)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]
    compute = Counting()
    for image in images(*[(8, 8)] * 20):
        found = FeatureStore(path).maps([image], compute)[0]
        assert torch.equal(found, image.float().mean(0, keepdim=True).half())
    assert compute.calls == 0


def test_what_goes_wrong_is_one_line(tmp_path):
    (image,) = images((4, 4))
    store = FeatureStore(tmp_path / "maps.sqlite")
    with pytest.raises(InputError, match=r"features reach 1e\+05, .*leave out"):
        store.maps([image], lambda _: torch.full((1, 2, 2), 1e5))
    (tmp_path / "damaged.sqlite").write_bytes(b"no database" * 100)
    with pytest.raises(InputError, match=r"damaged\.sqlite: .*delete the file"):
        FeatureStore(tmp_path / "damaged.sqlite").maps([image], Counting())
    assert sqlite3.connect(store.path).execute("SELECT count(*) FROM maps").fetchone() == (0,)


def train(
    tmp_path: Path, name: str, stored: bool = True, pretraining: dict | None = None, **augment
) -> Path:
    weights = tmp_path / "weights.safetensors"
    if not weights.exists():
        torch.manual_seed(0)
        save_file(timm.create_model("test_byobnet").state_dict(), weights)
    backbone = {"weights": str(weights), "frozen_stages": 5, "stored": stored}
    data = {"root": str(tmp_path / "data"), "train": 6, "val": 2, "loading": {"workers": 0}}
    return wsis.fit(
        "jtsm",
        "shapes",
        data=data | ({"augment": augment} if augment else {}),
        model={"backbone": backbone, "pretraining": pretraining},
        trainer={"max_steps": 4, "accelerator": "cpu"},
        run_dir=str(tmp_path / name),
    )


@pytest.mark.slow
def test_a_second_run_computes_none_and_ends_as_the_first(cache, tmp_path, monkeypatch):
    first = train(tmp_path, "first")
    (path,) = (cache / "features").glob("test_byobnet-*.sqlite")
    kept = sqlite3.connect(path).execute("SELECT count(*) FROM maps").fetchone()[0]
    assert 8 < kept <= 14, "six images, some of them flipped, and two to validate"
    monkeypatch.setattr(
        FeatureStore, "_write", lambda _, made: pytest.fail("computed") if made else 0
    )
    second = train(tmp_path, "second")
    read = [json.loads((run / "train/metrics.json").read_text()) for run in (first, second)]
    assert read[0] == read[1]
    states = [torch.load(run / "train/checkpoints/last.ckpt") for run in (first, second)]
    for name, value in states[0]["state_dict"].items():
        assert torch.equal(value, states[1]["state_dict"][name]), name


@pytest.mark.slow
@pytest.mark.parametrize("augment", [{"jitter": 1.5}, {"contrast": [0.5, 1.5]}])
def test_images_that_vary_are_refused(cache, tmp_path, augment):
    with pytest.raises(InputError, match=r"backbone\.stored needs .* --data\.augment\.jitter 1"):
        train(tmp_path, "varied", **augment)


def test_images_that_vary_are_refused_before_the_classifier_is_trained(cache, tmp_path):
    with pytest.raises(InputError, match=r"backbone\.stored needs .* --data\.augment\.jitter 1"):
        train(tmp_path, "varied", pretraining={"steps": 1}, jitter=1.5)
    assert not (tmp_path / "varied").exists()
