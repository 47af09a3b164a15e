from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pycocotools import mask as rle
from torch import Tensor, nn

from wsis import fit
from wsis.data.index import keep_images, read_coco, write_coco
from wsis.data.targets import cut_target
from wsis.data.transforms import draw_cut
from wsis.datasets.shapes import Augment, Shapes
from wsis.errors import InputError
from wsis.evidence.affinity import AffinityNet
from wsis.evidence.peaks import Bags
from wsis.method import Method
from wsis.models.ccgr import CCGR, Trained, trained_side
from wsis.models.ccgr.branches import BagDetector, Boxes, Segmentation, pixels_of, scaled
from wsis.models.ccgr.pseudo_labels import (
    _bag_records,
    first_evidence,
    paint,
    write_first_labels,
    write_next_labels,
)
from wsis.models.ccgr.refinement import Refinement, cut_out, segmented
from wsis.runs.run import Run
from wsis.types import Prediction

BACKBONE = {"name": "test_byobnet", "weights": "none"}
COARSE = BACKBONE | {"output_stride": 32, "feature_level": 2}
UNET = {
    "architecture": "Unet",
    "architecture_args": {"encoder_depth": 3, "decoder_channels": [16, 8, 8]},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Shapes:
    return Shapes(root=tmp_path_factory.mktemp("shapes"), train=5, val=2)


def sample_of(bags: list[int], labels: list[int], seed: int = 0) -> dict:
    """An image with bags of so many boxes."""
    g = torch.Generator().manual_seed(seed)
    corner = 60 * torch.rand(sum(bags), 2, generator=g)
    return {
        "image": torch.randint(0, 255, (3, 96, 128), dtype=torch.uint8, generator=g),
        "target": {
            "boxes": torch.cat(
                [corner, corner + 10 + 20 * torch.rand(sum(bags), 2, generator=g)], 1
            ),
            "labels": torch.tensor(np.repeat(np.array(labels, np.int64), np.array(bags, np.int64))),
            "bag": torch.from_numpy(np.repeat(np.arange(len(bags)), np.array(bags, np.int64))),
        },
    }


def detector(**settings) -> BagDetector:
    torch.manual_seed(0)
    model = BagDetector(3, COARSE, hidden=16, features=16, dropout=0.0, **settings)
    model.log = lambda *_, **__: None
    return model


def test_bags_are_scored_and_learnt_as_the_paper_has_it():
    model, batch = detector().eval(), [sample_of([4, 1, 3], [0, 2, 2]), sample_of([2], [1], 1)]
    scores = model(batch)
    assert [tuple(s.shape) for s in scores] == [(4, 3), (1, 3), (3, 3), (2, 3)]
    maps = model.backbone([sample["image"] for sample in batch])
    from torchvision.ops import roi_align

    regions = roi_align(
        maps, [s["target"]["boxes"] for s in batch], 7, 1 / model.backbone.stride, 2, True
    )
    features, start, total = model.trunk(regions), 0, []
    for own, label in zip(scores, (0, 2, 2, 1), strict=True):
        bag = features[start : start + len(own)]
        start += len(own)
        classes, boxes = (
            model.head.classification(bag).softmax(1),
            model.head.detection(bag).softmax(0),
        )
        torch.testing.assert_close(own, classes * boxes)
        phi = (classes * boxes).sum(0).clamp(1e-6, 1 - 1e-6)
        wanted = torch.eye(3)[label]
        total.append(-(wanted * phi.log() + (1 - wanted) * (1 - phi).log()).mean())
    torch.testing.assert_close(model.training_step(batch, 0), torch.stack(total).mean())


def test_the_best_box_of_each_bag_is_chosen():
    model, batch = detector().eval(), [sample_of([4, 1, 3], [0, 2, 2]), sample_of([2], [1], 1)]
    first, second = model.choose(batch)
    scores = model(batch)
    at = [int(scores[0][:, 0].argmax()), 4, 5 + int(scores[2][:, 2].argmax())]
    assert torch.equal(first.boxes, batch[0]["target"]["boxes"][at])
    assert first.labels.tolist() == [0, 2, 2]
    torch.testing.assert_close(
        first.scores, torch.stack([scores[0][:, 0].max(), scores[1][0, 2], scores[2][:, 2].max()])
    )
    assert second.labels.tolist() == [1]


def test_an_image_whose_bags_were_cut_away_teaches_nothing():
    empty = sample_of([], [])
    loss = detector().training_step([empty], 0)
    assert loss == 0
    loss.backward()
    assert [b.boxes.shape for b in detector().choose([empty])] == [(0, 4)]


def test_bags_follow_their_boxes_through_augmentation():
    sample = sample_of([3, 4, 2], [0, 1, 2])
    sample["target"] |= {"tags": torch.ones(3), "crowd": torch.zeros(9, dtype=torch.bool)}
    for seed in range(5):
        cut = draw_cut(np.random.default_rng(seed), (96, 128), Augment(crop=0.4))
        kept = cut_target(sample["target"], cut)
        assert len(kept["boxes"]) == len(kept["bag"]) == len(kept["labels"])
        assert torch.equal(kept["labels"], kept["bag"])  # here bag k is of class k


def test_segmentation_learns_from_all_pixels_of_the_images_and_no_padding():
    torch.manual_seed(0)
    model = Segmentation(3, BACKBONE | {"frozen_stages": 0}, **UNET).eval()
    model.log = lambda *_, **__: None
    batch = []
    for seed, size in enumerate(((64, 96), (96, 64))):
        g = torch.Generator().manual_seed(seed)
        masks = torch.zeros(2, *size, dtype=torch.bool)
        masks[0, :20, :30], masks[1, 30:50, 10:40] = True, True
        image = torch.randint(0, 255, (3, *size), dtype=torch.uint8, generator=g)
        batch.append({"image": image, "target": {"masks": masks, "labels": torch.tensor([2, 0])}})
    logits = model([sample["image"] for sample in batch])
    assert logits.shape == (2, 4, 96, 96)
    each = []
    for own, sample in zip(logits, batch, strict=True):
        height, width = sample["image"].shape[1:]
        labels = torch.full((height, width), 3)
        labels[:20, :30], labels[30:50, 10:40] = 2, 0
        assert torch.equal(pixels_of(sample, 3), labels)
        each.append(-own[:, :height, :width].log_softmax(0).gather(0, labels[None])[0].flatten())
    torch.testing.assert_close(model.training_step(batch, 0), torch.cat(each).mean())


def test_segmentation_starts_from_and_freezes_the_backbone_that_it_saves_once(tmp_path):
    model = Segmentation(3, BACKBONE | {"frozen_stages": 5}, **UNET).train()
    assert model.network.encoder.model is model.backbone.network
    assert not any(p.requires_grad for p in model.network.encoder.parameters())
    assert not any(
        m.training for m in model.network.encoder.modules() if isinstance(m, nn.BatchNorm2d)
    )
    assert any(p.requires_grad for p in model.network.decoder.parameters())
    torch.save(model.state_dict(), tmp_path / "model.pt")
    parameters = sum(p.numel() * 4 for p in model.parameters())
    assert (tmp_path / "model.pt").stat().st_size < 1.3 * parameters


def test_in_batches_of_one_image_segmentation_learns_what_it_does_in_evaluation(tmp_path):
    """Statistics of one image's 2 x 2 bins are no statistics."""
    torch.manual_seed(0)
    pspnet = {
        "architecture": "PSPNet",
        "architecture_args": {"encoder_depth": 3, "psp_out_channels": 32, "psp_dropout": 0.0},
    }
    model = Segmentation(3, BACKBONE | {"frozen_stages": 0}, **pspnet)
    state = {f"backbone.{name}": value for name, value in model.backbone.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "last.ckpt")
    model.backbone.load(tmp_path / "last.ckpt")
    model.log = lambda *_, **__: None
    learnt = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(learnt, lr=1e-3)
    for seed in range(6):
        g = torch.Generator().manual_seed(seed)
        image = torch.randint(0, 255, (3, 64, 64), dtype=torch.uint8, generator=g)
        masks = torch.rand(1, 64, 64, generator=g) > 0.5
        sample = {"image": image, "target": {"masks": masks, "labels": torch.tensor([1])}}
        optimiser.zero_grad()
        model.train().training_step([sample], 0).backward()
        optimiser.step()
    with torch.no_grad():
        trained, judged = model.train()([image]), model.eval()([image])
    torch.testing.assert_close(trained, judged)


def test_norms_of_a_segmentation_are_those_asked_for():
    by_batch, by_group = (Segmentation(3, BACKBONE, **UNET, norm=n) for n in ("batch", "group"))
    for model, kind, other in (
        (by_batch, nn.BatchNorm2d, nn.GroupNorm),
        (by_group, nn.GroupNorm, nn.BatchNorm2d),
    ):
        assert any(isinstance(m, kind) for m in model.network.decoder.modules())
        assert not any(isinstance(m, other) for m in model.network.decoder.modules())


class Chooser(nn.Module):
    """Stands for a detector that chose these boxes."""

    def __init__(self, chosen: list[Boxes]) -> None:
        super().__init__()
        self.chosen = chosen

    def choose(self, batch: list, side: int = 0) -> list[Boxes]:
        return self.chosen


class Painter(nn.Module):
    """Stands for a segmentation that is sure of each image's probabilities."""

    def __init__(self, logits: dict[float, Tensor]) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, images: list[Tensor]) -> Tensor:
        return self.logits[float(images[0][0, 0, 0])][None]


def scene(objects: list[tuple[int, list[int]]], size: tuple[int, int]) -> Tensor:
    """Logits (4,H,W) of rectangles (class, box) on background, class 3."""
    logits = torch.zeros(4, *size)
    logits[3] = 4
    for label, (x1, y1, x2, y2) in objects:
        logits[label, y1:y2, x1:x2] = 9
    return logits


def labelled(
    folder: Path,
    scenes: list,
    chosen: list[list],
    peaks: dict,
    tags: Sequence[int] = (1, 1, 1),
    **settings,
) -> list:
    (folder / "peaks.json").write_text(json.dumps(peaks))
    logits = {float(n): scene(objects, size) for n, (objects, size) in enumerate(scenes)}
    boxes = [
        Boxes(
            torch.tensor([b for _, b in own]).float().view(-1, 4),
            torch.tensor([c for c, _ in own]),
            torch.ones(len(own)),
        )
        for own in chosen
    ]
    model, target = (
        Refinement(Chooser(boxes), Painter(logits), folder / "peaks.json", **settings),
        {"tags": torch.tensor(tags)},
    )
    batch = [
        {
            "image": torch.full((3, *size), n, dtype=torch.uint8),
            "size": size,
            "image_id": n + 1,
            "target": target,
        }
        for n, (_, size) in enumerate(scenes)
    ]
    return model.label(batch)


def test_boxes_are_refined_on_their_own_map_and_hold_its_mask(tmp_path):
    """Two images of other sizes, boxes of two classes; a box around nothing is left out."""
    scenes = [
        ([(0, [20, 20, 60, 50]), (2, [70, 60, 100, 90])], (100, 120)),
        ([(1, [10, 30, 50, 90])], (110, 70)),
    ]
    chosen = [
        [(0, [26, 16, 54, 46]), (2, [66, 66, 96, 96])],
        [(1, [16, 36, 46, 84]), (0, [5, 5, 30, 30])],
    ]
    peaks = {"1": [[0, 40, 35], [2, 85, 75]], "2": [[1, 30, 60]]}
    one, two = labelled(tmp_path, scenes, chosen, peaks)
    assert (one.boxes - torch.tensor([[20.0, 20, 60, 50], [70, 60, 100, 90]])).abs().max() < 1.5
    assert (two.boxes - torch.tensor([[10.0, 30, 50, 90]])).abs().max() < 1.5
    assert two.labels.tolist() == [1], "there is nothing of class 0 in the second image"
    for found, (objects, size) in zip((one, two), scenes, strict=True):
        for mask, (_, (x1, y1, x2, y2)) in zip(found.masks, objects, strict=True):
            truth = np.zeros(size, bool)
            truth[y1:y2, x1:x2] = True
            pixels = rle.decode(mask).astype(bool)
            assert not (pixels & ~truth).any()
            assert pixels.sum() > 0.9 * truth.sum()


def test_without_refinement_boxes_stay(tmp_path):
    scenes, chosen = [([(0, [20, 20, 60, 50])], (100, 120))], [[(0, [26, 16, 54, 46])]]
    (found,) = labelled(tmp_path, scenes, chosen, {"1": []}, refinement=0)
    assert found.boxes.tolist() == [[26, 16, 54, 46]]
    assert rle.area(found.masks[0]) == (54 - 26) * (46 - 20)


@pytest.mark.slow
def test_a_box_stops_before_a_second_peak_of_its_class(tmp_path):
    """One region, two peaks: the box would grow over both; a peak of another class does not stop it."""
    scenes, chosen = [([(0, [20, 20, 100, 50])], (80, 120))], [[(0, [22, 22, 58, 48])]]
    (free,) = labelled(tmp_path, scenes, chosen, {"1": [[0, 40, 35], [1, 80, 35]]})
    (held,) = labelled(tmp_path, scenes, chosen, {"1": [[0, 40, 35], [0, 80, 35]]})
    assert free.boxes[0, 2] > 80 > held.boxes[0, 2]


def test_a_box_is_drawn_around_the_whole_of_its_part_at_last(tmp_path):
    """Of two objects of a class within reach the one it holds more of; the other class's beside it does not count."""
    scenes = [([(0, [20, 20, 60, 50]), (0, [64, 20, 70, 50]), (1, [20, 50, 60, 60])], (100, 120))]
    (found,) = labelled(
        tmp_path, scenes, [[(0, [26, 22, 68, 46])]], {"1": []}, refinement=0, whole=True
    )
    assert found.boxes.tolist() == [[20, 20, 60, 50]]
    assert rle.area(found.masks[0]) == 40 * 30


@pytest.mark.slow
def test_two_parts_of_one_object_are_merged_and_two_objects_are_not(tmp_path):
    """A box stops at the other's peak; each merged box has the best score of its parts."""
    scenes = [([(0, [20, 20, 100, 50]), (0, [20, 60, 50, 90]), (1, [70, 60, 110, 90])], (100, 120))]
    halves = [(0, [22, 20, 58, 50]), (0, [62, 20, 98, 50])]
    chosen = [[*halves, (0, [22, 62, 48, 88]), (1, [72, 62, 108, 88])]]
    peaks = {"1": [[0, 40, 35], [0, 80, 35], [0, 35, 75], [1, 90, 75]]}
    (apart,) = labelled(tmp_path, scenes, chosen, peaks)
    (found,) = labelled(tmp_path, scenes, chosen, peaks, merge=True)
    assert len(apart.boxes) == 4
    assert found.labels.tolist() == [0, 0, 1]
    true = torch.tensor([[20.0, 20, 100, 50], [20, 60, 50, 90], [70, 60, 110, 90]])
    assert (found.boxes - true).abs().max() < 2


def test_boxes_and_maps_are_made_at_the_labelling_side_and_given_in_the_image(tmp_path):
    (tmp_path / "peaks.json").write_text(json.dumps({"1": [[0, 80, 60]]}))
    seen = []

    class Halves(nn.Module):
        """The left half of what it is shown is of class 0."""

        def forward(self, images: list[Tensor]) -> Tensor:
            seen.append(tuple(images[0].shape[1:]))
            height, width = seen[-1]
            return scene([(0, [0, 0, width // 2, height])], (height, width))[None]

    boxes = Boxes(torch.tensor([[10.0, 10, 90, 110]]), torch.tensor([0]), torch.ones(1))
    model = Refinement(
        Chooser([boxes]), Halves(), tmp_path / "peaks.json", sides=(0, 60), refinement=0
    )
    sample = {"image": torch.zeros(3, 120, 160, dtype=torch.uint8), "size": (120, 160)}
    sample |= {"image_id": 1, "target": {"tags": torch.ones(3)}}
    (found,) = model.label([sample])
    assert seen == [(60, 80)]
    assert found.boxes.tolist() == [[10, 10, 90, 110]]
    assert rle.area(found.masks[0]) == pytest.approx(70 * 100, rel=0.02)


def test_a_detector_chooses_among_the_boxes_of_the_scaled_image():
    model, sample = detector().eval(), sample_of([4, 3], [0, 2])
    (found,) = model.choose([sample], side=48)
    small = scaled(sample, 48)
    assert small["image"].shape == (3, 48, 64)
    assert torch.equal(small["target"]["boxes"], sample["target"]["boxes"] / 2)
    first, second = model([small])
    at = [int(first[:, 0].argmax()), 4 + int(second[:, 2].argmax())]
    assert torch.equal(found.boxes, sample["target"]["boxes"][at])


@pytest.mark.parametrize(
    ("augment", "side"),
    [
        (Augment(), 0),
        (Augment(short_sides=(480, 576, 688)), 576),
        (Augment(short_sides=(320,), crop=0.8), 400),
    ],
)
def test_the_labelling_side_is_the_middle_of_those_trained_at(augment, side):
    """The whole image is as much larger than the crop as the crop is smaller."""
    assert trained_side(augment) == side


def test_a_branch_labels_at_its_own_side_or_at_the_one_given(data):
    model = CCGR(3, BACKBONE, segmentation={"augment": {"short_sides": [96]}})
    assert model.label_side("segmentation", data) == 96
    assert model.label_side("detector", data) == 0
    given = CCGR(3, BACKBONE, segmentation={"augment": {"short_sides": [96]}}, label_side=64)
    assert [given.label_side(name, data) for name in ("segmentation", "detector")] == [64, 64]
    with pytest.raises(InputError, match="label_side -1"):
        CCGR(3, BACKBONE, label_side=-1)


def test_boxes_around_what_is_segmented(tmp_path):
    scenes = [([(0, [20, 20, 60, 50]), (0, [80, 60, 100, 90])], (100, 120))]
    (found,) = labelled(tmp_path, scenes, [[]], {"1": []}, boxes="segmentation", refinement=0)
    assert found.boxes.tolist() == [[20, 20, 100, 90]]
    assert rle.area(found.masks[0]) == 40 * 30 + 20 * 30
    nothing = segmented(scene([], (10, 10)).softmax(0))
    assert len(nothing.boxes) == len(nothing.labels) == len(nothing.scores) == 0


def test_what_an_image_is_not_tagged_with_is_not_segmented(tmp_path):
    """A strong answer for an absent class gives way to the next best."""
    scenes = [([(0, [20, 20, 60, 50]), (1, [70, 60, 100, 90])], (100, 120))]
    (found,) = labelled(
        tmp_path, scenes, [[]], {"1": []}, tags=(1, 0, 0), boxes="segmentation", refinement=0
    )
    assert found.labels.tolist() == [0]
    assert found.boxes.tolist() == [[20, 20, 60, 50]]


def test_an_image_without_boxes_has_no_labels():
    sample = {"image_id": 1, "size": (10, 12)}
    none = Boxes(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0))
    found = cut_out(sample, scene([(0, [1, 1, 5, 5])], (10, 12)), none)
    assert found.masks == []
    assert found.boxes.shape == (0, 4)


class Sighted(AffinityNet):
    """Maps that know where objects are."""

    def __init__(self, data: Shapes, blind: bool = False) -> None:
        super().__init__(8, COARSE, width=8)
        samples = data.samples("train", train=False, supervision={"tags", "boxes", "masks"})
        self.known = {
            s["image"].float().mean().item(): s["target"]
            for s in (samples.sample(i) for i in range(len(samples)))
        }
        self.blind = blind

    def maps(self, image: Tensor, stride: int) -> Tensor:
        target = self.known[image.float().mean().item()]
        maps = torch.zeros(8, *image.shape[1:])
        for mask, label in zip(target["masks"], target["labels"], strict=True):
            maps[label] = maps[label].maximum(mask.float())
        return nn.functional.avg_pool2d(maps, stride) * (not self.blind)

    def forward(self, images):
        return torch.zeros(0), self.maps(images[0], self.backbone.stride)[None]

    def refine(self, image, tags, scales, power=8.0, steps=256):
        return self.maps(image, self.stride)


SETTINGS = {
    "side": 0,
    "bag_size": 4,
    "penalty": 0.1,
    "min_peak": 0.5,
    "peak_window": 3,
    "peak_smoothing": 1,
}
SETTINGS |= {"walk_steps": 0, "scales": (1.0,), "background_score": 0.25}


@pytest.mark.slow
def test_first_labels_are_bags_around_peaks_and_pixels_of_tagged_classes(data, tmp_path):
    write_first_labels(tmp_path, Sighted(data), data, **SETTINGS)
    index, peaks = data.index("train"), json.loads((tmp_path / "peaks.json").read_text())
    bags, pixels = (read_coco(tmp_path / f"{name}.json", index.root) for name in ("bags", "pixels"))
    assert len(bags.images) == len(index.images)
    number = [category["id"] for category in index.categories]
    for image in index.images:
        points, tags = peaks[str(image["id"])], index.tags[image["id"]]
        assert {int(label) for label, _, _ in points} <= {*tags}
        for annotation in bags.annotations[image["id"]]:
            label, x, y = points[annotation["bag"]]
            left, top, width, height = annotation["bbox"]
            assert left <= x <= left + width
            assert top <= y <= top + height
            assert annotation["category_id"] == number[int(label)]
        counts = np.bincount([a["bag"] for a in bags.annotations[image["id"]]])
        assert counts.max() <= 4
        for annotation in pixels.annotations[image["id"]]:
            own = [
                a
                for a in index.annotations[image["id"]]
                if a["category_id"] == annotation["category_id"]
            ]
            truth = rle.merge([a["segmentation"] for a in own])
            assert rle.iou([annotation["segmentation"]], [truth], [0])[0, 0] > 0.6, (
                "maps at stride 8 know little more"
            )


@pytest.mark.slow
def test_first_evidence_at_another_side_is_that_of_the_image(data):
    """Peaks and pixels are in pixels of the image, whatever the side they are found at."""
    samples = data.samples("train", train=False, supervision={"tags"})
    sample = next(
        s
        for s in (samples.sample(i) for i in range(len(samples)))
        if s["target"]["tags"].sum() == 1
    )

    class Bright(AffinityNet):
        """Every class's map is the image's brightness."""

        def forward(self, images):
            mean = images[0].float().mean(0)[None, None].expand(1, 8, -1, -1)
            return torch.zeros(0), nn.functional.avg_pool2d(mean, self.backbone.stride)

        def refine(self, image, tags, scales, power=8.0, steps=256):
            return nn.functional.avg_pool2d(image.float().mean(0)[None], self.stride).expand(
                8, -1, -1
            )

    height, width = sample["size"]
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    image[:, 64:128, 128:192] = 255
    sample["image"], net = image, Bright(8, COARSE, width=8)
    settings = SETTINGS | {"peak_smoothing": 5}
    for side in (0, 2 * min(height, width)):
        found = first_evidence(net, sample, **settings | {"side": side})
        ((label, x, y),) = found.points
        assert sample["target"]["tags"][int(label)] == 1
        assert 128 < x < 192
        assert 64 < y < 128
        assert found.pixels.shape == (height, width)
        inside = found.pixels[64:128, 128:192] == label
        assert inside.float().mean() > 0.9
        assert (found.pixels == label).sum() < 1.5 * 64 * 64


def test_pixels_in_several_masks_are_of_the_highest_rank():
    """By brute force, pixel by pixel."""
    g = torch.Generator().manual_seed(0)
    masks, labels = torch.rand(5, 6, 7, generator=g) > 0.5, torch.tensor([2, 0, 1, 2, 0])
    rank = torch.tensor([0.3, 0.9, 0.5, 0.7, 0.1])
    painted = paint(masks, labels, rank, 3)
    for y in range(6):
        for x in range(7):
            covering = [(float(rank[k]), int(labels[k])) for k in range(5) if masks[k, y, x]]
            assert painted[y, x] == max(covering, default=(0, 3))[1]


@pytest.mark.parametrize(("overlaps", "owner"), [("score", 3), ("class", 5)])
def test_next_labels_give_overlaps_to_the_better_score_and_peaks_to_detections(
    data, tmp_path, overlaps, owner
):
    """Of two classes at the same place, the worse detection is of the class that is later."""
    index = data.index("train")
    image = index.images[0]
    masks = np.zeros((image["height"], image["width"], 2), np.uint8, order="F")
    masks[10:50, 10:50, 0], masks[20:60, 30:90, 1] = 1, 1
    kept = [
        {"bbox": rle.toBbox(mask).tolist(), "segmentation": mask, "category_id": category}
        | {"score": s}
        for mask, category, s in zip(rle.encode(masks), (3, 5), (0.9, 0.4), strict=True)
    ]
    path = tmp_path / "detections.json"
    write_coco(path, keep_images(index, {image["id"]})._replace(annotations={image["id"]: kept}))
    write_next_labels(tmp_path, path, data, 3, overlaps)
    written = read_coco(tmp_path / "pixels.json", index.root).annotations[image["id"]]
    areas = {a["category_id"]: int(rle.area(a["segmentation"])) for a in written}
    both = 30 * 20
    assert areas == {3: 40 * 40 - both * (owner == 5), 5: 40 * 60 - both * (owner == 3)}
    peaks = json.loads((tmp_path / "peaks.json").read_text())[str(image["id"])]
    assert peaks == [[2, 30, 30], [4, 60, 40]]


@pytest.mark.slow
def test_next_labels_are_bags_around_detections_and_unions_of_masks(data, tmp_path):
    write_next_labels(
        tmp_path,
        data.index("train").root.parent / "annotations/instances_train2017.json",
        data,
        3,
        "score",
    )
    index = data.index("train")
    bags, pixels = (read_coco(tmp_path / f"{name}.json", index.root) for name in ("bags", "pixels"))
    samples = data.samples("train", train=False)
    from torchvision.ops import box_iou

    for i, image in enumerate(index.images):
        proposals, true = samples.sample(i)["proposals"].boxes, index.annotations[image["id"]]
        for bag, annotation in enumerate(true):
            x, y, w, h = annotation["bbox"]
            best = (
                box_iou(torch.tensor([[x, y, x + w, y + h]]).float(), proposals)[0].topk(3).values
            )
            own = torch.tensor(
                [a["bbox"] for a in bags.annotations[image["id"]] if a["bag"] == bag]
            )
            own[:, 2:] += own[:, :2]
            found = box_iou(torch.tensor([[x, y, x + w, y + h]]).float(), own)[0]
            torch.testing.assert_close(found, best, atol=1e-3, rtol=0)
        for annotation in pixels.annotations[image["id"]]:
            own = [a["segmentation"] for a in true if a["category_id"] == annotation["category_id"]]
            assert rle.area(annotation["segmentation"]) == rle.area(rle.merge(own))


class OnceBlind(Sighted):
    """Maps that show nothing of the first image."""

    asked = 0

    def maps(self, image: Tensor, stride: int) -> Tensor:
        self.asked += 1
        return super().maps(image, stride) * (self.asked > 2)  # twice an image: peaks, pixels


def test_an_image_without_a_peak_is_left_out(data, tmp_path):
    write_first_labels(tmp_path, OnceBlind(data), data, **SETTINGS)
    index, peaks = data.index("train"), json.loads((tmp_path / "peaks.json").read_text())
    left = {image["id"] for image in index.images[1:]}
    assert peaks[str(index.images[0]["id"])] == []
    for name in ("bags", "pixels"):
        assert {
            image["id"] for image in read_coco(tmp_path / f"{name}.json", index.root).images
        } == left


def test_a_bag_without_proposals_is_left_out(data):
    """The others keep their numbers, by which they find their peaks."""
    found = Bags(
        torch.tensor([[0, 1], [0, 0], [1, 0]]),
        torch.tensor([[True, True], [False, False], [True, False]]),
    )
    proposals = torch.tensor([[0.0, 0, 10, 10], [5, 5, 20, 15]])
    records = _bag_records(found, [2, 0, 1], proposals, data.index("train"))
    assert [(r["bag"], r["category_id"], r["bbox"]) for r in records] == [
        (0, 3, [0, 0, 10, 10]),
        (0, 3, [5, 5, 15, 10]),
        (2, 2, [5, 5, 15, 10]),
    ]


def test_a_classifier_without_any_peak_is_told(data, tmp_path):
    with pytest.raises(InputError, match="no image has a peak"):
        write_first_labels(tmp_path, Sighted(data, blind=True), data, **SETTINGS)


class Untrained:
    """A run that trains nothing: it notes what each network begins with."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.begun = folder, {}

    def fit(self, name: str, model: Method, data: Shapes, weights_of: str = "", **_) -> Path:
        weights = [p.detach().clone() for p in model.parameters() if p.requires_grad]
        self.begun[name] = weights_of, weights
        for parameter in model.parameters():
            parameter.data += 1
        path = self.folder / name / "checkpoints/last.ckpt"
        path.parent.mkdir(parents=True)
        torch.save({"state_dict": model.state_dict()}, path)
        return path

    def label(self, name: str, *_, **__) -> Path:
        return self.folder / "bags.json"


@pytest.mark.slow
def test_a_later_round_begins_with_the_weights_of_the_one_before(data, tmp_path):
    annotations = data.index("train").root.parent / "annotations/instances_train2017.json"
    write_next_labels(tmp_path, annotations, data, 3, "score")
    narrow = {"features": 8, "hidden": 8}
    model = CCGR(
        8,
        BACKBONE | {"output_stride": 32, "frozen_stages": 0},
        detector={"steps": 1, "backbone": {"feature_level": 2}, **narrow},
        segmentation={"steps": 1, **UNET},
        segmentor={"steps": 1, "mask_width": 8, **narrow},
    )
    classifier = tmp_path / "classifier.ckpt"
    state = model.branches().segmentation.model.backbone.state_dict()
    torch.save({"state_dict": {f"backbone.{name}": v for name, v in state.items()}}, classifier)
    run, rest = Untrained(tmp_path), (classifier, tmp_path, tmp_path / "peaks.json")
    trained = model.train_round(run, data, "round-1", model.branches(), *rest, Trained())
    model.train_round(run, data, "round-2", model.branches(), *rest, trained)
    model.train_round(run, data, "round-3", model.branches(), *rest, Trained())
    for part in ("detector", "segmentation", "segmentor"):
        (none, first), (before, carried) = (
            run.begun[f"round-1-{part}"],
            run.begun[f"round-2-{part}"],
        )
        assert (none, before) == ("", f"round-1-{part}")
        assert len(first) == len(carried)
        for one, other in zip(first, carried, strict=True):
            torch.testing.assert_close(one + 1, other)
        assert run.begun[f"round-3-{part}"][0] == ""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"hiden": 8}, "unknown setting 'model.detector.hiden'; did you mean 'hidden'?"),
        (
            {"backbone": {"feature_level": 4}},
            "model.detector needs 5 feature maps",
        ),  # deeper than the classifier
    ],
)
def test_a_branch_that_cannot_be_made_is_told_before_anything_is_trained(
    tmp_path, capsys, setting, message
):
    words = [
        "--model",
        "ccgr",
        "--data.root",
        str(tmp_path / "shapes"),
        "--data.train",
        "2",
        "--data.val",
        "1",
    ]
    words += [
        "--model.detector",
        json.dumps({"steps": 3, **setting}),
        "--run_dir",
        str(tmp_path / "run"),
    ]
    with pytest.raises(SystemExit):
        fit.main(words)
    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("run/*/checkpoints"))


class Silent(Method):
    """Finds nothing."""

    def label(self, batch: list, score_threshold: float = 0.5) -> list[Prediction]:
        none = torch.zeros(0, dtype=torch.int64)
        return [
            Prediction(s["image_id"], s["size"], torch.zeros(0, 4), torch.zeros(0), none, [])
            for s in batch
        ]


def test_labels_of_no_image_at_all_are_told(data, tmp_path):
    """As when no tagged class is ever segmented."""
    quiet = {"logger": False, "enable_progress_bar": False, "accelerator": "cpu"}
    run = Run(tmp_path, lambda folder: pl.Trainer(default_root_dir=folder, callbacks=[], **quiet))
    with pytest.raises(InputError, match="no training image got a label"):
        run.label("round-1-labels", Silent(), data)
    assert not json.loads((tmp_path / "round-1-labels/stage.json").read_text())["finished"]


def test_without_settings_of_the_classifier_they_are_asked_for(data, tmp_path):
    model = CCGR(
        3,
        BACKBONE,
        affinity={"steps": 1},
        detector={"steps": 1},
        segmentation={"steps": 1, **UNET},
        segmentor={"steps": 1},
    )
    with pytest.raises(InputError, match=r"model.pretraining needs `steps`"):
        model.stages(Run(tmp_path, lambda *_, **__: None), data)
