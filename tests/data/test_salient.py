from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle

from wsis.data._coco_json import read_coco, write_coco
from wsis.data._salient import read_salient
from wsis.files import InputError

SHARED = Path(os.environ.get("WSIS_SHARED", Path(__file__).parents[2].parent / "shared")) / "data" / "ecssd"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    mask = np.zeros((6, 8), np.uint8)
    mask[1:4, 2:7] = 255
    for stem, values in (("a", mask), ("b", np.zeros((6, 8), np.uint8))):
        Image.new("RGB", (8, 6)).save(tmp_path / f"images/{stem}.jpg")
        Image.fromarray(values).save(tmp_path / f"masks/{stem}.png")
    return tmp_path


def test_masks_become_objects_of_one_class(folder: Path) -> None:
    index = read_salient(folder)
    (salient,) = index.annotations[1]
    assert salient["bbox"] == [2, 1, 5, 3]
    assert rle.decode(salient["segmentation"]).sum() == 15
    assert (index.annotations[2], index.tags) == ([], {1: [0], 2: []})
    write_coco(folder / "salient.json", index)
    again = read_coco(folder / "salient.json", folder / "images").annotations[1][0]
    assert rle.decode(again["segmentation"]).sum() == 15


def test_bad_folders_say_what_is_wrong(folder: Path) -> None:
    with pytest.raises(InputError, match=r"must hold images/NAME\.jpg and masks/NAME\.png"):
        read_salient(folder / "images")
    Image.new("L", (7, 6)).save(folder / "masks/b.png")
    with pytest.raises(InputError, match=r"b\.png has another size"):
        read_salient(folder)
    (folder / "masks/b.png").unlink()
    with pytest.raises(InputError, match=r"no mask for .*b\.jpg"):
        read_salient(folder)


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs real salient images")
def test_real_set(tmp_path: Path) -> None:
    for name, suffix in (("images", "jpg"), ("masks", "png")):
        (tmp_path / name).mkdir()
        for path in sorted((SHARED / name).iterdir())[:20]:
            (tmp_path / name / f"{path.stem}.{suffix}").symlink_to(path)
    index = read_salient(tmp_path)
    assert len(index.images) == 20
    for image in index.images:
        stem = image["file_name"].removesuffix(".jpg")
        pixels = np.asarray(Image.open(SHARED / "masks" / f"{stem}.png").convert("L"))
        assert rle.area(index.annotations[image["id"]][0]["segmentation"]) == (pixels > 127).sum()
