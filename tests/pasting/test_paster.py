"""Training images with foregrounds pasted as they are loaded."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as rle

from wsis.data.index import read_coco
from wsis.data.module import Loading
from wsis.data.samples import Samples
from wsis.data.targets import FIELDS, Field
from wsis.datasets.shapes import Augment, Shapes
from wsis.errors import InputError
from wsis.nn.masks import tight_boxes
from wsis.parts.mask_rcnn import MaskRCNN
from wsis.pasting.paster import Paste, Paster, write_pasted
from wsis.pasting.pool import Foreground, write_pool

MASKS = frozenset({"tags", "boxes", "masks"})
AS_IT_IS = Augment(flip=0, jitter=1)
COLOURS = torch.tensor(
    [[255, 0, 255], [0, 255, 1], [254, 255, 0]], dtype=torch.uint8
)  # in no picture of shapes


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Shapes:
    return Shapes(root=tmp_path_factory.mktemp("shapes"), train=3, val=1, augment=AS_IT_IS)


@pytest.fixture
def pool(data, tmp_path) -> Path:
    """Three discs, each of a colour of its own, of classes 0, 0 and 5."""
    y, x = torch.meshgrid(torch.arange(60), torch.arange(60), indexing="ij")
    disc = (x - 30) ** 2 + (y - 30) ** 2 < 25**2
    objects = [
        Foreground(c[:, None, None].expand(3, 60, 60), disc, k, "a.jpg")
        for c, k in zip(COLOURS, (0, 0, 5), strict=True)
    ]
    write_pool(tmp_path / "pool", data.class_names, objects, {})
    return tmp_path / "pool"


def plain(pool: Path, **settings) -> Paste:
    return replace(Paste(pool, blend="none", own="nothing"), **settings)


def samples(data: Shapes, paste: Paste | None) -> Samples:
    other = with_paste(data, paste) if paste else data
    return other.samples("train", train=True, supervision=MASKS)


def with_paste(data: Shapes, paste: Paste, **settings) -> Shapes:
    return data.variant(transform=Paster(paste, data.class_names), **settings)


def painted(image: torch.Tensor) -> torch.Tensor:
    """Which colour (3,H,W) bool each pixel has."""
    return (image[None] == COLOURS[:, :, None, None]).all(1)


@pytest.mark.slow
@pytest.mark.parametrize("where", ["random", "space"])
def test_every_mask_shows_its_object_and_nothing_else(data, pool, where):
    pasted = samples(data, plain(pool, where=where, objects=(1, 5)))
    counts = set()
    for draw in range(12):
        sample = pasted.sample(draw % 3, draw)
        target, colours = sample["target"], painted(sample["image"])
        counts.add(len(target["boxes"]))
        shown = torch.zeros(3, *sample["size"], dtype=torch.bool)
        for mask, label in zip(target["masks"], target["labels"].tolist(), strict=True):
            (colour,) = [c for c in range(3) if (colours[c] & mask).any()]
            assert colours[colour][mask].float().mean() > 0.98, (
                "colours mix at the edge of a turned picture alone"
            )
            assert label == (5 if colour == 2 else 0)
            shown[colour] |= mask
        assert not (colours & ~shown).any(), "no pasted pixel without a label"
        assert torch.equal(target["boxes"], tight_boxes(target["masks"]))
        assert target["tags"][target["labels"]].all()
        assert target["masks"].sum(0).max() <= 1
    assert len(counts) > 2


@pytest.mark.slow
def test_equal_draws_give_equal_bits_in_any_worker(data, pool):
    one = with_paste(data, plain(pool, blend="gaussian", objects=(1, 4)), batch_size=2)
    batches = []
    for workers in (0, 2):
        one.loading = Loading(2, workers, 0)
        module = MaskRCNN(8, {"name": "test_byobnet", "weights": "none"})
        one.trainer = SimpleNamespace(
            global_rank=0,
            world_size=1,
            lightning_module=module,
            max_steps=3,
            global_step=0,
            accumulate_grad_batches=1,
        )
        batches.append(list(one.dataloader("train", train=True)))
    one.trainer = None
    assert len(batches[0]) == 3
    for a, b in zip(*batches, strict=True):
        for x, y in zip(a, b, strict=True):
            assert torch.equal(x["image"], y["image"])
            assert torch.equal(x["target"]["masks"], y["target"]["masks"])
    images = [x["image"] for batch in batches[0] for x in batch]
    assert not torch.equal(images[0], samples(data, plain(pool)).sample(0, 7)["image"])


@pytest.mark.slow
def test_own_objects_are_kept_ignored_or_unknown(data, pool):
    plainly = samples(data, None).sample(0, 1)["target"]
    assert len(plainly["boxes"])
    for own in ("annotate", "ignore", "nothing"):
        sample = samples(data, plain(pool, own=own, objects=(2, 2))).sample(0, 1)
        target = sample["target"]
        covered = painted(sample["image"]).any(0)
        kept = plainly["masks"] & ~covered
        seen = kept.flatten(1).any(1)
        mine = torch.arange(len(target["boxes"])) < (int(seen.sum()) if own != "nothing" else 0)
        assert torch.equal(target["crowd"], mine if own == "ignore" else torch.zeros_like(mine))
        if own != "nothing":
            assert torch.equal(target["labels"][mine], plainly["labels"][seen])
            for mask, truth in zip(target["masks"][mine], kept[seen], strict=True):
                assert (mask != truth).sum() <= 0.02 * truth.sum() + 8, (
                    "edges of pasted objects have mixed colours"
                )
        assert (~mine).sum() > 0


def test_own_objects_keep_the_labels_that_they_have(data, pool, monkeypatch):
    """A field that masks could be turned into, such as points, is not made anew from them."""

    def read(record, classes):
        return {"given": torch.tensor([a["id"] for a in record["annotations"]])}

    def of_masks(masks, labels, like):
        return {"given": torch.full((len(masks),), -1)}

    field = Field(("given",), read, of_masks, keys=("id",))
    monkeypatch.setitem(FIELDS, "given", field)
    for count in (0, 3):
        paste = plain(pool, own="annotate", objects=(count, count))
        other = with_paste(data, paste).samples("train", True, MASKS | {"given"})
        mine = data.samples("train", True, MASKS | {"given"}).sample(0, 1)["target"]
        target = other.sample(0, 1)["target"]
        own = target["given"] >= 0
        assert set(target["given"][own].tolist()) <= set(mine["given"].tolist())
        assert (~own).sum() == count
        if count == 0:
            for name in ("given", "boxes", "labels", "masks", "crowd", "tags"):
                assert torch.equal(target[name], mine[name]), name


def test_crowds_are_not_annotated(data, pool, tmp_path):
    index = data.index("train")
    content = json.loads((index.root.parent / "annotations/instances_train2017.json").read_text())
    for annotation in content["annotations"]:
        annotation["iscrowd"] = 1
    (tmp_path / "crowds.json").write_text(json.dumps(content))
    crowds = data.variant(tmp_path / "crowds.json")
    for own in ("annotate", "ignore"):
        target = samples(crowds, plain(pool, own=own, objects=(1, 1))).sample(0, 1)["target"]
        assert target["crowd"].any() == (own == "ignore")
        assert (~target["crowd"]).sum() == 1


def test_boxes_of_unsure_masks_stay(data, pool, tmp_path):
    """One object without a mask, one whose mask is elsewhere and not to be learnt; in written images, too."""
    index = data.index("train")
    content = json.loads((index.root.parent / "annotations/instances_train2017.json").read_text())
    image = content["images"][0]
    plainly = {"image_id": image["id"], "category_id": content["categories"][2]["id"], "iscrowd": 0}
    bad = {
        "bbox": [9, 90, 70, 80],
        "segmentation": [[200, 200, 240, 200, 240, 240, 200, 240]],
        "ignore": 1,
    }
    content["annotations"] = [
        {**plainly, "id": 1, "bbox": [10, 20, 30, 40]},
        {**plainly, **bad, "id": 2},
    ]
    (tmp_path / "ignore_mask.json").write_text(json.dumps({**content, "images": [image]}))
    ignore_mask = data.variant(tmp_path / "ignore_mask.json")
    target = samples(ignore_mask, plain(pool, own="annotate", objects=(1, 1))).sample(0, 1)[
        "target"
    ]
    assert target["boxes"][:2].tolist() == [[10, 20, 40, 60], [9, 90, 79, 170]]
    assert target["ignore_mask"].tolist() == [True, True, False]
    assert (
        len(samples(ignore_mask, plain(pool, objects=(1, 1))).sample(0, 1)["target"]["boxes"]) == 1
    )

    paster = Paster(plain(pool, own="annotate", objects=(1, 1)), data.class_names)
    write_pasted(
        tmp_path / "out",
        ignore_mask.samples("train", train=False, supervision=MASKS),
        paster,
        1,
        data.categories,
    )
    written = read_coco(tmp_path / "out/instances.json", tmp_path / "out/images").annotations[1]
    assert [a["bbox"] for a in written[:2]] == [[10, 20, 30, 40], [9, 90, 70, 80]]
    assert [a["ignore"] for a in written] == [1, 1, 0]


def test_black_backgrounds_and_pictures_smaller_than_a_foreground(data, pool, tmp_path):
    black = samples(
        data, plain(pool, own="annotate", backgrounds="black", share=1, objects=(3, 3))
    ).sample(1, 5)
    assert not black["image"][:, ~black["target"]["masks"].any(0)].any()
    assert set(black["target"]["labels"].tolist()) <= {0, 5}, (
        "the training image's own objects are not there"
    )
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (20, 14), "white").save(tmp_path / "pictures/white.png")
    (tmp_path / "pictures/._white.png").write_bytes(b"of a Mac")
    for where in ("random", "space"):
        small = plain(
            pool, backgrounds=str(tmp_path / "pictures"), share=1, where=where, own="annotate"
        )
        for draw in range(8):
            sample = samples(data, small).sample(0, draw)
            assert sample["image"].shape == (3, 14, 20)
            assert sample["target"]["masks"].flatten(1).any(1).all()
            assert sample["target"]["tags"].sum() == len(sample["target"]["labels"].unique())


@pytest.mark.slow
def test_the_share_of_other_backgrounds(data, pool):
    some = samples(data, plain(pool, backgrounds="black", share=0.25, objects=(0, 0)))
    blank = [not some.sample(0, draw)["image"].any() for draw in range(200)]
    assert 0.15 < np.mean(blank) < 0.35


@pytest.mark.slow
def test_an_object_that_ends_hidden_is_left_out(data, tmp_path):
    """Discs that fill a tiny picture cover one another."""
    write_pool(
        tmp_path / "pool",
        data.class_names,
        [
            Foreground(
                torch.full((3, 40, 40), 9, dtype=torch.uint8),
                torch.ones(40, 40, dtype=torch.bool),
                1,
                "a.jpg",
            )
        ],
        {},
    )
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (16, 16), "white").save(tmp_path / "pictures/white.png")
    paste = plain(
        tmp_path / "pool",
        backgrounds=str(tmp_path / "pictures"),
        share=1,
        scale=(1, 1),
        rotation=0,
        objects=(9, 9),
    )
    counts = [len(samples(data, paste).sample(0, draw)["target"]["boxes"]) for draw in range(20)]
    assert min(counts) < 9
    for draw in range(20):
        target = samples(data, paste).sample(0, draw)["target"]
        assert target["masks"].flatten(1).any(1).all()
        assert (
            len(
                {
                    len(column)
                    for name, column in target.items()
                    if name not in ("tags", "stuff_tags")
                }
            )
            == 1
        )


def test_evaluation_and_validation_see_no_paste(data, pool):
    other = with_paste(data, plain(pool))
    assert torch.equal(
        other.samples("val", True, MASKS).sample(0)["image"],
        data.samples("val", True, MASKS).sample(0)["image"],
    )
    assert torch.equal(
        other.samples("train", False).sample(0)["image"],
        data.samples("train", False).sample(0)["image"],
    )


def test_fingerprint_tells_settings_and_contents_but_no_places(data, pool, tmp_path):
    first = with_paste(data, plain(pool)).fingerprint()
    assert first != data.fingerprint()
    assert first != with_paste(data, plain(pool, rotation=5)).fingerprint()
    moved = pool.rename(tmp_path / "elsewhere")
    assert with_paste(data, plain(moved)).fingerprint() == first
    index = moved / "foregrounds.json"
    index.write_text(index.read_text().replace("a.jpg", "b.jpg"))
    assert with_paste(data, plain(moved)).fingerprint() != first


def test_written_files_hold_what_was_pasted_and_where_it_is_from(data, pool, tmp_path):
    originals = data.samples("train", train=False, supervision=MASKS)
    paster = Paster(plain(pool, own="annotate", backgrounds="black", share=0.5), data.class_names)
    write_pasted(tmp_path / "out", originals, paster, 6, data.categories, seed=3)
    index = read_coco(tmp_path / "out/instances.json", tmp_path / "out/images")
    assert len(index.images) == 6
    backgrounds = {
        image["background"]
        for image in json.loads((tmp_path / "out/instances.json").read_text())["images"]
    }
    assert "black" in backgrounds
    assert backgrounds - {"black"} <= {image["file_name"] for image in data.index("train").images}
    pasted = 0
    for image in index.images:
        pixels = torch.from_numpy(np.array(Image.open(index.root / image["file_name"]))).permute(
            2, 0, 1
        )
        for annotation in index.annotations[image["id"]]:
            mask = torch.from_numpy(rle.decode(annotation["segmentation"])).bool()
            if annotation["source"].endswith(".png"):
                pasted += 1
                assert (pool / annotation["source"]).is_file()
                assert painted(pixels).any(0)[mask].float().mean() > 0.98
            else:
                assert annotation["source"] in backgrounds
                assert not painted(pixels).any(0)[mask].any()
    assert pasted


def test_wrong_settings_are_one_line(data, pool, tmp_path):
    with pytest.raises(InputError, match="no pictures in"):
        plain(pool, backgrounds=str(tmp_path / "none")).pictures()
    with pytest.raises(InputError, match="make foregrounds of this data"):
        Paster(plain(pool), ["cat", "dog"])
    for wrong in ({"objects": (3, 1)}, {"share": 1.5}, {"own": "keep"}):
        with pytest.raises(InputError, match="objects from 0 up"):
            plain(pool, **wrong)
