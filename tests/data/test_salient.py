"""Salient sets as they are downloaded, and as they are spoilt."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as rle
from scipy import ndimage

from wsis import fit
from wsis.data.index import read_coco, write_coco
from wsis.data.module import DataModule
from wsis.data.salient import Salient, read_salient
from wsis.datasets.coco import COCO
from wsis.datasets.shapes import Shapes
from wsis.errors import InputError
from wsis.models.boxcaseg import BoxCaseg

SHARED = (
    Path(os.environ.get("WSIS_SHARED", Path(__file__).parents[2].parent / "shared"))
    / "data"
    / "ecssd"
)
ONE = np.zeros((20, 30), np.uint8)
ONE[4:12, 5:17] = 255
TWO = ONE.copy()
TWO[14:19, 20:28] = 255


def add(
    folder: Path,
    stem: str,
    mask: NDArray[np.uint8] | Image.Image,
    places: tuple[str, str] = ("images", "masks"),
) -> None:
    for place in places:
        (folder / place).mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (30, 20)).save(folder / places[0] / f"{stem}.jpg")
    picture = mask if isinstance(mask, Image.Image) else Image.fromarray(mask)
    picture.save(folder / places[1] / f"{stem}.png")


def pixels(folder: Path, **options: int) -> dict[str, NDArray[np.uint8]]:
    index = read_salient(folder, **options)
    return {
        i["file_name"]: rle.decode(index.annotations[i["id"]][0]["segmentation"])
        for i in index.images
    }


def test_masks_become_objects_of_one_class(tmp_path: Path) -> None:
    add(tmp_path, "a", ONE)
    index = read_salient(tmp_path)
    (salient,) = index.annotations[1]
    assert (salient["bbox"], index.tags, len(index.categories)) == ([5, 4, 12, 8], {1: [0]}, 1)
    assert np.array_equal(rle.decode(salient["segmentation"]), ONE > 0)
    write_coco(tmp_path / "salient.json", index)
    again = read_coco(tmp_path / "salient.json", tmp_path / "images").annotations[1][0]
    assert np.array_equal(rle.decode(again["segmentation"]), ONE > 0)


@pytest.mark.parametrize(
    "places",
    [
        ("images", "ground_truth_mask"),
        ("DUTS-TR-Image", "DUTS-TR-Mask"),
        ("MINE-Image", "MINE-Mask"),
    ],
)
def test_sets_are_read_as_they_are_downloaded(tmp_path: Path, places: tuple[str, str]) -> None:
    add(tmp_path, "a", ONE, places)
    for name in ("Thumbs.db", ".DS_Store", "._a.jpg", "readme.txt"):
        for place in places:
            (tmp_path / place / name).write_bytes(b"\0")
    assert read_salient(tmp_path).root == tmp_path / places[0]
    assert list(pixels(tmp_path)) == ["a.jpg"]


def test_it_must_be_clear_which_set_is_meant(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(
            InputError,
            match=r"no salient sets in .*images/ and ground_truth_mask/, \*-Image/ and \*-Mask/",
        ):
            read_salient(folder)
    for part in ("TR", "TE"):
        add(tmp_path, "a", ONE, (f"DUTS-{part}-Image", f"DUTS-{part}-Mask"))
    with pytest.raises(InputError, match="2 salient sets in"):
        read_salient(tmp_path)


def palette(colour: tuple[int, int, int]) -> Image.Image:
    picture = Image.fromarray(ONE // 255).convert("P")
    picture.putpalette([0, 0, 0, *colour])
    return picture


def soft() -> NDArray[np.uint8]:
    edges = ONE.copy()
    edges[3, 5:17], edges[12, 5:17] = 90, 160
    return edges


@pytest.mark.parametrize(
    ("mask", "rows"),
    [
        (ONE, slice(4, 12)),
        (ONE // 255, slice(4, 12)),
        (soft(), slice(4, 13)),
        (Image.fromarray(ONE).convert("1"), slice(4, 12)),
        (Image.fromarray(ONE).convert("RGB"), slice(4, 12)),
        (Image.merge("RGBA", [Image.fromarray(ONE)] * 4), slice(4, 12)),
        (Image.fromarray(ONE.astype(np.uint16) * 257), slice(4, 12)),
        (palette((255, 255, 255)), slice(4, 12)),
    ],
    ids=[
        "black and white",
        "0 and 1",
        "soft edges",
        "bits",
        "colour file",
        "transparent",
        "16 bits",
        "palette",
    ],
)
def test_masks_in_all_the_ways_they_are_stored(
    tmp_path: Path, mask: NDArray[np.uint8] | Image.Image, rows: slice
) -> None:
    add(tmp_path, "a", mask)
    expected = np.zeros_like(ONE)
    expected[rows, 5:17] = 1
    assert np.array_equal(pixels(tmp_path)["a.jpg"], expected)


def test_a_map_of_probability_or_of_classes_is_no_mask(tmp_path: Path) -> None:
    ramp = np.tile(np.linspace(0, 255, 30).astype(np.uint8), (20, 1))
    add(tmp_path, "a", ramp)
    with pytest.raises(InputError, match=r"a\.png is neither black nor white"):
        read_salient(tmp_path)
    add(tmp_path, "a", palette((128, 0, 0)))
    with pytest.raises(InputError, match=r"a\.png has colours"):
        read_salient(tmp_path)


def test_spoilt_sets_say_what_is_wrong(tmp_path: Path) -> None:
    add(tmp_path, "a", ONE)
    add(tmp_path, "b", np.zeros((30, 20), np.uint8))
    with pytest.raises(InputError, match=r"b\.png has another size"):
        read_salient(tmp_path)
    (tmp_path / "masks/b.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"b\.png is empty"):
        read_salient(tmp_path)
    (tmp_path / "masks/b.png").unlink()
    with pytest.raises(InputError, match=r"no mask for .*b\.jpg"):
        read_salient(tmp_path)
    for path in (tmp_path / "images").iterdir():
        path.unlink()
    with pytest.raises(InputError, match="none of 0 images"):
        read_salient(tmp_path)


def test_images_of_one_object_are_kept(tmp_path: Path) -> None:
    speck, touching = ONE.copy(), ONE.copy()
    speck[18:20, 28:30] = 255  # 4 pixels beside 96
    touching[12, 17] = 255  # at a corner
    for stem, mask in (
        ("none", ONE * 0),
        ("one", ONE),
        ("speck", speck),
        ("touching", touching),
        ("two", TWO),
    ):
        add(tmp_path, stem, mask)
    with pytest.warns(UserWarning, match="2 of 5 images are left out"):
        found = pixels(tmp_path)
    assert list(found) == ["one.jpg", "speck.jpg", "touching.jpg"]
    for stem in ("one", "speck", "touching"):
        (tmp_path / f"images/{stem}.jpg").unlink()
    with pytest.raises(InputError, match="none of 2 images"):
        read_salient(tmp_path)


def test_smaller_sets_are_parts_of_larger_ones(tmp_path: Path) -> None:
    for k in range(12):
        add(tmp_path, f"{k:02d}", ONE)
    everything = read_salient(tmp_path)
    parts = [
        [(i["id"], i["file_name"]) for i in read_salient(tmp_path, limit).images]
        for limit in (3, 5, 8, 12, 0)
    ]
    assert [len(part) for part in parts] == [3, 5, 8, 12, 12]
    assert all(set(less) <= set(more) and less == sorted(less) for less, more in pairwise(parts))
    assert parts[-1] == [(i["id"], i["file_name"]) for i in everything.images]
    assert parts[1] != parts[-1][:5], "drawn, not the first"
    with pytest.raises(InputError, match="salient_limit -1 is negative"):
        read_salient(tmp_path, -1)
    assert [len(Salient(tmp_path, k).index("train").images) for k in (5, 0)] == [5, 12]


def learner(**settings: Any) -> BoxCaseg:
    small = {"crop": 32, "proxy_crop": 32, "heads": ("weak", "salient")}
    return BoxCaseg(8, {"name": "test_byobnet", "weights": "none"}, **{**small, **settings})


def test_fingerprint_knows_the_salient_images_where_they_are_learned_from(tmp_path: Path) -> None:
    def shapes(count: int) -> Shapes:
        return Shapes(tmp_path / "shapes", train=1, val=1, salient=count, proposals="none")

    def learned(data: DataModule, **settings: Any) -> str:
        return str(learner(**settings).training_data(data).fingerprint())

    def coco(limit: int = 0, folder: Path = tmp_path) -> str:
        data = COCO(shapes(2).folder, proposals="none")
        return learned(data, salient=str(folder), salient_limit=limit)

    for stem in "abc":
        add(tmp_path, stem, ONE)
    seen = {learned(shapes(2)), learned(shapes(3)), coco(), coco(2)}
    assert len(seen) == 4
    assert learned(shapes(2)) in seen
    boxes_alone: dict[str, Any] = {"salient_fraction": 0.0, "heads": ("weak",)}
    assert len({learned(shapes(count), **boxes_alone) for count in (2, 3)}) == 1
    for name in ("images", "masks"):
        shutil.copytree(tmp_path / name, tmp_path / "moved" / name)
    assert coco(0, tmp_path / "moved") == coco(), "where the images are makes no difference"
    add(tmp_path, "b", np.roll(ONE, 1, 0))
    assert coco() not in seen, "another mask under the same name"


@pytest.mark.slow
def test_a_run_begins_again_with_other_salient_images(tmp_path: Path) -> None:
    def run(count: int) -> str:
        small = [
            "--model.backbone.name=test_byobnet",
            "--model.backbone.weights=none",
            "--model.backbone.frozen_stages=0",
            "--model.crop=32",
            "--data.loading.batch_size=4",
        ]
        size = [
            f"--data.root={tmp_path}/shapes",
            "--data.train=2",
            "--data.val=1",
            f"--data.salient={count}",
        ]
        most = [
            "--model.segmentor=null",
            "--trainer.max_steps=1",
            "--trainer.accelerator=cpu",
            "--trainer.limit_val_batches=0",
        ]
        fit.main(["--model=boxcaseg", *small, *size, *most, f"--run_dir={tmp_path}/run"])
        return json.loads(next(tmp_path.glob("run/*/stage.json")).read_text())["fingerprint"]

    first = run(2)
    assert run(3) != first
    assert run(2) == first


def test_salient_images_are_needed_to_learn_but_not_to_be_judged(tmp_path: Path) -> None:
    root = Shapes(tmp_path, train=1, val=1).index("train").root.parent
    model = learner(salient=str(tmp_path / "gone"))
    data = model.training_data(COCO(root))
    data.trainer = SimpleNamespace(state=SimpleNamespace(fn="test"), lightning_module=model)
    data.prepare_data()
    data.trainer.state.fn = "fit"
    with pytest.raises(InputError, match=r"no salient sets in .*gone"):
        data.prepare_data()
    with pytest.raises(InputError, match=r"give --model.salient DIR"):
        learner().training_data(COCO(root))


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs real salient images")
def test_real_set(tmp_path: Path) -> None:
    """Kept are the images whose masks, to scipy, are one part; the same pixels as Pillow reads."""
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
        for path in sorted((SHARED / name).iterdir())[:60]:
            (tmp_path / name / path.name).symlink_to(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = pixels(tmp_path)
    expected = {}
    for path in sorted((tmp_path / "masks").iterdir()):
        mask = np.asarray(Image.open(path).convert("L")) > 127
        parts, count = ndimage.label(mask, np.ones((3, 3)))
        areas = np.sort(np.bincount(parts.ravel(), minlength=count + 1)[1:])[::-1]
        if count == 1 or areas[1] < 0.05 * areas[0]:
            expected[f"{path.stem}.jpg"] = mask
    assert 0 < len(expected) < 60
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[name], mask) for name, mask in expected.items())
