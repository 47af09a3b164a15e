"""Simulated labels: how many of each kind, where points lie, and what they cost."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as rle

from wsis.coco.objects import kind_of
from wsis.data.samples import Samples
from wsis.data.simulated import Seconds, Simulation, seconds_of, simulate
from wsis.data.transforms import Augment
from wsis.datasets.shapes import Shapes
from wsis.errors import InputError
from wsis.types import Index


@pytest.fixture(scope="module")
def index(tmp_path_factory) -> Index:
    return Shapes(tmp_path_factory.mktemp("shapes"), train=40, val=1, proposals="none").index(
        "train"
    )


def kinds(index: Index) -> dict[int, Counter[str]]:
    return {image: Counter(map(kind_of, found)) for image, found in index.annotations.items()}


def total(index: Index) -> Counter[str]:
    return sum(kinds(index).values(), Counter())


def test_objects_are_shared_out_exactly(index):
    objects = sum(map(len, index.annotations.values()))
    made = simulate(index, Simulation(mask=0.1, box=0.25, point=0.65))
    mask, both = round(0.1 * objects), round(0.35 * objects)
    assert total(made) == {"mask": mask, "box": both - mask, "point": objects - both}
    assert made.images == index.images
    assert any(len(found) > 1 for found in kinds(made).values())


def test_images_are_shared_out_exactly(index):
    made = simulate(index, Simulation(mask=0.25, point=0.25, tag=0.25, by="image"))
    of_image = kinds(made)
    assert all(len(found) == 1 for found in of_image.values())
    assert Counter(kind for found in of_image.values() for kind in found) == {
        "mask": 10,
        "point": 10,
        "tag": 10,
    }
    assert [i["id"] for i in made.images] == [i["id"] for i in index.images if i["id"] in of_image]


def test_tags_alone_are_of_whole_images(index):
    made = simulate(index, Simulation(box=0.5, tag=0.5))
    tagged = [image for image, found in kinds(made).items() if "tag" in found]
    assert len(tagged) == 20
    names = [category["id"] for category in index.categories]
    for image in tagged:
        assert made.annotations[image] == [{"category_id": names[t]} for t in index.tags[image]]


def test_all_masks_are_the_labels_themselves(index):
    made = simulate(index, Simulation(mask=1))
    fields = {"tags", "complete", "boxes", "masks"}
    ours, theirs = (Samples(each, fields, Augment(flip=0)) for each in (index, made))
    for k in range(5):
        target: Any = ours.sample(k)["target"]
        assert all(torch.equal(v, theirs.sample(k)["target"][n]) for n, v in target.items())


def decoded(annotation: dict[str, Any]) -> np.ndarray:
    return rle.decode(annotation["segmentation"]).astype(bool)


def test_points_lie_where_their_label_says(index):
    made = simulate(index, Simulation(point=1, points=3, negatives=2))
    signs: Counter[int] = Counter()
    for image, found in made.annotations.items():
        for label, own in zip(found, index.annotations[image], strict=True):
            assert set(label) <= {"category_id", "iscrowd", "points"}
            x0, y0, width, height = own["bbox"]
            places = {(x, y) for x, y, _ in label["points"]}
            assert len(places) == len(label["points"])
            for x, y, sign in label["points"]:
                assert decoded(own)[int(y), int(x)] == sign
                assert x0 <= x <= x0 + width
                assert y0 <= y <= y0 + height
                assert x % 1 == y % 1 == 0.5
                signs[sign] += 1
    objects = total(made)["point"]
    assert signs[1] == 3 * objects
    assert objects < signs[0] <= 2 * objects


def test_points_in_boxes_have_the_share_of_the_mask(index):
    made = simulate(index, Simulation(box=1, box_points=10))
    wanted, got = [], []
    for image, found in made.annotations.items():
        for label, own in zip(found, index.annotations[image], strict=True):
            assert set(label) <= {"category_id", "iscrowd", "bbox", "points"}
            assert label["bbox"] == own["bbox"]
            assert all(decoded(own)[int(y), int(x)] == sign for x, y, sign in label["points"])
            wanted.append(decoded(own).sum() / (own["bbox"][2] * own["bbox"][3]))
            got.append(np.mean([sign for _, _, sign in label["points"]]))
    assert abs(np.mean(got) - np.mean(wanted)) < 0.05


def lone(polygon: list[list[float]], **more: Any) -> Index:
    """One image of 12 x 10 pixels with one object."""
    mask = rle.merge(rle.frPyObjects(polygon, 10, 12))
    annotation = {"category_id": 5, "bbox": rle.toBbox(mask).tolist(), "segmentation": polygon}
    image = {"id": 3, "file_name": "a.jpg", "height": 10, "width": 12}
    return Index(
        name="one",
        root=Path(),
        images=[image],
        categories=[{"id": 5, "name": "cat"}],
        annotations={3: [annotation | more]},
        tags={3: [0]},
    )


def test_every_pixel_is_as_likely():
    """5,000 draws from 10 pixels: each within five standard deviations of 500."""
    small = lone([[2, 3, 7, 3, 7, 5, 2, 5]])
    drawn = Counter(
        tuple(simulate(small, Simulation(point=1, seed=seed)).annotations[3][0]["points"][0])
        for seed in range(5000)
    )
    assert set(drawn) == {(x + 0.5, y + 0.5, 1) for x in range(2, 7) for y in range(3, 5)}
    assert all(abs(count - 500) < 5 * (5000 * 0.1 * 0.9) ** 0.5 for count in drawn.values())


def test_small_masks_give_what_they_have():
    small = lone([[2, 3, 7, 3, 7, 5, 2, 5]])
    (label,) = simulate(small, Simulation(point=1, points=50, negatives=3)).annotations[3]
    assert Counter(sign for *_, sign in label["points"]) == {1: 10}, "the mask fills its box"
    thin = [[2, 3, 2.1, 3, 2.1, 5]]
    assert not rle.decode(rle.merge(rle.frPyObjects(thin, 10, 12))).any()
    sliver = lone(thin, bbox=[2, 3, 0.5, 2])
    (label,) = simulate(sliver, Simulation(point=1)).annotations[3]
    assert label["points"] in ([[2.5, 3.5, 1]], [[2.5, 4.5, 1]])


def test_crowds_stay_crowds():
    crowd = lone([[2, 3, 7, 3, 7, 5]], iscrowd=1)
    for how in (Simulation(mask=1), Simulation(box=1), Simulation(point=1)):
        assert simulate(crowd, how).annotations[3][0]["iscrowd"] == 1


def test_equal_seeds_give_equal_labels_and_an_object_its_points(index):
    how = Simulation(point=0.5, box=0.5, seed=3)
    one, same = simulate(index, how), simulate(index, how)
    assert one.annotations == same.annotations
    other = simulate(index, Simulation(point=0.5, box=0.5, seed=4))
    assert one.annotations != other.annotations
    every = simulate(index, Simulation(point=1, seed=3))
    for image, found in one.annotations.items():
        for few, all_of in zip(found, every.annotations[image], strict=True):
            assert kind_of(few) == "box" or few == all_of


@pytest.mark.parametrize(
    "how", [Simulation(point=1), Simulation(mask=1), Simulation(box=1, box_points=2)]
)
def test_an_object_without_a_mask_is_named(how):
    bare = lone([[2, 3, 7, 3, 7, 5]], segmentation=None)
    with pytest.raises(InputError, match=r"one: a\.jpg, object 1 has no mask"):
        simulate(bare, how)
    assert total(simulate(bare, Simulation(box=1))) == {"box": 1}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"mask": 0.6, "box": 0.5},
        {"mask": -0.1},
        {"point": 1, "points": 0},
        {"point": 1, "seed": -1},
    ],
)
def test_settings_that_cannot_be(settings):
    with pytest.raises(InputError, match="simulate"):
        Simulation(**settings)


def test_seconds_are_those_of_the_literature():
    """20 classes: two cats and a dog by points, three dogs by other labels, tags, and nothing."""
    point, more = {"points": [[1, 1, 1]]}, {"points": [[1, 1, 1], [2, 2, 1], [9, 9, 0]]}
    box, mask = {"bbox": [1, 1, 2, 2]}, {"bbox": [1, 1, 2, 2], "segmentation": [[1, 1, 3, 1, 3, 3]]}
    annotations = {
        1: [{"category_id": 1, **point}, {"category_id": 1, **point}, {"category_id": 2, **more}],
        2: [{"category_id": 2, **a} for a in (box, box | more, mask)],
        3: [{"category_id": 1}, {"category_id": 2}],
        4: [],
    }
    index = Index(
        name="four",
        root=Path(),
        images=[{"id": n} for n in annotations],
        categories=[{"id": n, "name": str(n)} for n in range(1, 21)],
        annotations=annotations,
    )
    assert seconds_of(index, Seconds()) == {
        "mask": (1, pytest.approx(79.2)),
        "box": (2, pytest.approx(7 + 7 + 3 * 0.9)),
        "point": (3, pytest.approx((2.4 + 0.9) + (2.4 + 2 * 0.9))),
        "tag": (4, pytest.approx(18 + 19 + 20 + 20)),
    }
    free = seconds_of(index, Seconds(0, 1, 0, 0, 0))
    assert sum(spent for _, spent in free.values()) == 2
    with pytest.raises(InputError, match="seconds: box -1"):
        Seconds(box=-1)


def test_a_budget_is_spent_on_images_in_random_order(index):
    everything = simulate(index, Simulation(box=0.5, point=0.5))
    spent = sum(seconds for _, seconds in seconds_of(everything, Seconds()).values())
    kept = []
    for budget in (spent / 4, spent / 2, 2 * spent):
        made = simulate(index, Simulation(box=0.5, point=0.5, budget=budget))
        used = sum(seconds for _, seconds in seconds_of(made, Seconds()).values())
        one_more = max(
            sum(s for _, s in seconds_of(everything._replace(images=[i]), Seconds()).values())
            for i in everything.images
        )
        assert used <= budget
        assert used > min(budget, spent) - one_more
        ids = {image["id"] for image in made.images}
        assert made.annotations == {i: everything.annotations[i] for i in ids}
        kept.append(ids)
    assert kept[0] < kept[1] < kept[2] == {image["id"] for image in index.images}
    assert kept[0] != {image["id"] for image in index.images[: len(kept[0])]}
    with pytest.raises(InputError, match="budget 1: labels of one image take"):
        simulate(index, Simulation(box=1, budget=1))


@pytest.mark.parametrize("budget", [0, 100])
def test_shares_of_no_image_are_refused(index, budget):
    with pytest.raises(InputError, match="the shares of 40 images are none"):
        simulate(index, Simulation(mask=0.01, by="image", budget=budget))


def test_a_data_set_trains_on_weaker_labels_and_is_judged_by_its_own(tmp_path):
    settings = {"train": 12, "val": 4}
    how = Simulation(mask=0.2, box=0.3, seed=3)
    plain, weak = Shapes(tmp_path, **settings), Shapes(tmp_path, **settings, simulate=how)
    truth, learned = plain.index("train"), weak.index("train")
    drawn = simulate(truth, how)
    assert learned.annotations == drawn.annotations != truth.annotations
    assert learned.images == drawn.images
    assert weak.index("val").annotations == plain.index("val").annotations
    assert weak.as_annotated().index("train").annotations == truth.annotations
    assert weak.fingerprint() != plain.fingerprint()
