from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pycocotools import mask as rle
from scipy import ndimage

from wsis import fit
from wsis.data.index import read_coco
from wsis.datasets.shapes import Shapes
from wsis.errors import InputError
from wsis.evidence.em import foreground_em, segment_patches
from wsis.models.em_paste import EMPaste
from wsis.models.em_paste.foregrounds import choose, write_foregrounds
from wsis.models.em_paste.segments import Segments, first_choice, write_segments
from wsis.nn.backbone import BackboneSettings
from wsis.parts.classifier import Classifier
from wsis.pasting.pool import ForegroundPool

HOW = {"object_like": 1.0, "candidates": 3, "cam_fraction": 0.2, "patch_size": 32}
HOW_EM = {"rounds": 1, "keep": 0.5, "distance": "cosine", "centre": True, "every_segment": False}
BACKBONE = BackboneSettings("test_byobnet", "none", 32, feature_level=2, frozen_stages=0)
EM = {**HOW_EM, "min_probability": 0.0}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Shapes:
    return Shapes(root=tmp_path_factory.mktemp("shapes"), train=5, val=2, max_proposals=40)


def save(net: Classifier, folder: Path) -> Path:
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False
    )
    trainer.strategy.connect(net)
    trainer.save_checkpoint(folder / "classifier.ckpt", weights_only=True)
    return folder / "classifier.ckpt"


def classifier(**settings) -> Classifier:
    torch.manual_seed(0)
    return Classifier(8, BACKBONE, **settings).eval()


@pytest.fixture(scope="module")
def segments(data, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("segments")
    write_segments(folder, save(classifier(), folder), data, **HOW)
    return folder


def sample_of(data: Shapes, i: int) -> dict:
    samples = data.samples("train", train=False, supervision={"tags"}, segments=True)
    return samples.sample(i)


def masks_of(sample: dict) -> np.ndarray:
    labels, members = sample["proposals"].labels.numpy(), sample["proposals"].members.numpy()
    return np.stack([np.isin(labels, np.flatnonzero(row)) for row in members])


@pytest.mark.slow
def test_segments_are_seen_and_first_chosen_as_algorithm_1_has_it(data, segments):
    """Segment by segment, pixel by pixel."""
    net, found, pair = classifier(), Segments.read(segments), 0
    for i in range(2):
        sample = sample_of(data, i)
        masks, boxes, size = masks_of(sample), sample["proposals"].boxes, sample["size"]
        features = torch.from_numpy(
            found.features[found.begin[i] : found.begin[i + 1]].astype(np.float32)
        )
        assert len(features) == len(masks) == 40
        labels, members = sample["proposals"].labels, sample["proposals"].members
        for k in (0, 7, 31):
            patch = segment_patches(
                sample["image"], labels, members[k : k + 1], boxes[k : k + 1], 32
            )
            with torch.no_grad():
                expected = net.backbone(patch).mean((2, 3))[0]
            torch.testing.assert_close(features[k], expected, atol=1e-2, rtol=1e-2)
        with torch.no_grad():
            maps = net([sample["image"]])[0]
        tags = sample["target"]["tags"].nonzero()[:, 0].tolist()
        for label in tags:
            assert (found.image[pair], found.label[pair]) == (i, label)
            probabilities = found.probabilities[pair]
            logits = net.head(features[..., None, None])[:, label, 0, 0].detach()
            torch.testing.assert_close(
                torch.from_numpy(probabilities.copy()).float(), logits.sigmoid(), atol=5e-3, rtol=0
            )  # mean of maps is map of means
            high = (
                maps[label]
                >= maps[label].flatten().topk(int(np.ceil(0.2 * maps[label].numel()))).values[-1]
            )
            y, x = (high.nonzero().float().mean(0) + 0.5) * net.backbone.stride
            ys, xs = np.indices(size) + 0.5
            distance = np.hypot(xs - x.item(), ys - y.item())
            near = [distance[m].mean() if 0.01 <= m.mean() <= 0.8 else np.inf for m in masks]
            wide = ((boxes[:, 2:] - boxes[:, :2]) > 256 - 10 / 299 * 256).any(1).numpy()
            order = np.argsort(np.where(wide, np.inf, near), kind="stable")[:3]
            best = probabilities[found.first[pair]]
            assert found.first[pair] in order
            assert best == probabilities[order].max()
            pair += 1


def test_regions_are_where_the_class_map_is_high(data, segments):
    found, net = Segments.read(segments), classifier()
    sample = sample_of(data, 0)
    with torch.no_grad():
        maps = net([sample["image"]])[0]
    for pair in np.flatnonzero(found.image == 0):
        map_ = maps[found.label[pair]]
        if map_.max() <= 0:
            assert found.regions[pair] is None
            continue
        mask = torch.from_numpy(rle.decode(found.regions[pair])).bool()
        high = torch.nn.functional.interpolate(
            map_[None, None].relu(), sample["size"], mode="bilinear"
        )[0, 0]
        assert torch.equal(mask, high >= 0.3 * high.max())


def test_em_is_over_the_images_of_each_class(segments):
    found = Segments.read(segments)
    everything = [
        torch.from_numpy(found.features[found.of(pair)].astype(np.float32))
        for pair in range(len(found.label))
    ]
    chosen = choose(found, 2, 0.5, "cosine", centre=False, every_segment=True)
    for label in set(found.label.tolist()):
        pairs = np.flatnonzero(found.label == label)
        features = [everything[pair] for pair in pairs]
        expected = foreground_em(features, torch.from_numpy(found.first[pairs]), 2, 0.5, "cosine")
        assert chosen[pairs].tolist() == expected.tolist()
    assert np.array_equal(choose(found, 0, 0.5, "cosine"), found.first)


def test_rounds_choose_eligible_segments_by_what_their_class_alone_has():
    """Eight classes; what they share is the larger part of every feature, and is all that cosine sees if it is not centred."""
    rng, images = np.random.default_rng(0), np.arange(80)
    label, truth = images % 8, images % 6
    features = np.eye(33)[32] * 10 + rng.normal(0, 0.1, (80, 6, 33))  # clutter, alike in all images
    features[images, truth, label] += 3
    eligible, begin = np.ones(480, bool), np.arange(81) * 6
    first = np.where(images // 8 < 4, truth, (truth + 1 + images % 5) % 6)  # four of ten are right
    features = features.reshape(480, 33).astype(np.float16)
    found = Segments(features, eligible, begin, images, label, first, [], [])
    assert (choose(found, 2, 0.5, "cosine") == truth).mean() > 0.95
    assert (choose(found, 2, 0.5, "cosine", centre=False) == truth).mean() < 0.5
    assert torch.allclose(
        found.mean(), torch.from_numpy(features.astype(float).mean(0)).float(), atol=1e-4
    )
    hidden = eligible.copy()
    hidden[(begin[:-1] + truth)[::9]] = False
    few = found._replace(eligible=hidden, first=np.where(hidden[begin[:-1] + first], first, -1))
    assert hidden[begin[:-1] + choose(few, 2, 0.5, "cosine")].all()
    assert (choose(few, 2, 0.5, "cosine", every_segment=True) == truth).mean() > 0.95


def test_the_pool_and_labels_show_the_chosen_segments(data, segments, tmp_path):
    write_foregrounds(tmp_path, segments, data, **EM)
    found, pool, index = Segments.read(segments), ForegroundPool(tmp_path), data.index("train")
    chosen, labels = choose(found, **HOW_EM), read_coco(tmp_path / "labels.json", index.root)
    entries = json.loads((tmp_path / "foregrounds.json").read_text())["foregrounds"]
    assert len(labels.images) == len(index.images)
    number = 0
    for pair, segment in enumerate(chosen):
        sample = sample_of(data, int(found.image[pair]))
        mask = masks_of(sample)[segment]
        own = [
            a
            for a in labels.annotations[sample["image_id"]]
            if a["category_id"] == found.label[pair] + 1
        ]
        (annotation,) = (a for a in own if not a["iscrowd"])
        assert np.array_equal(rle.decode(annotation["segmentation"]).astype(bool), mask)
        assert annotation["score"] == found.probabilities[pair][segment]
        eroded = ndimage.binary_erosion(mask, np.ones((3, 3)))
        if not eroded.any():
            continue
        entry, (image, cut) = entries[number], pool.draw(number)
        x1, y1, x2, y2 = entry["box"]
        assert entry["label"] == found.label[pair]
        assert np.array_equal(eroded[y1:y2, x1:x2], cut.numpy())
        assert eroded.sum() == cut.sum()
        assert torch.equal(image, sample["image"][:, y1:y2, x1:x2])
        number += 1
    assert number == len(entries) == len(pool)
    assert pool.provenance["supervision"] == "tags"
    assert {int(path.stem) for path in (tmp_path / "sheets").glob("*.jpg")} == set(
        found.label.tolist()
    )


def test_unsure_foregrounds_are_dropped(data, segments, tmp_path):
    found = Segments.read(segments)
    sure = sorted(
        float(p[c]) for p, c in zip(found.probabilities, choose(found, **HOW_EM), strict=True)
    )
    limit = (sure[2] + sure[3]) / 2
    write_foregrounds(tmp_path, segments, data, **{**EM, "min_probability": limit})
    labels = read_coco(tmp_path / "labels.json", data.index("train").root)
    kept = [a["score"] for found in labels.annotations.values() for a in found if not a["iscrowd"]]
    assert len(kept) == len(sure) - 3
    assert min(kept) >= limit
    with pytest.raises(InputError, match="no foreground reaches a probability of 1"):
        write_foregrounds(tmp_path, segments, data, **{**EM, "min_probability": 1})


def with_proposals(data: Shapes, change, without_tags: tuple[int, ...] = ()) -> SimpleNamespace:
    """The data, with proposals that `change(position, proposals)` gives, some images untagged."""
    samples = data.samples("train", train=False, supervision={"tags"})

    def sample(i: int) -> dict:
        given = sample_of(data, i)
        target = {**given["target"], "tags": given["target"]["tags"] * (i not in without_tags)}
        return {**given, "proposals": change(i, given["proposals"]), "target": target}

    stand_in = type(
        "Changed",
        (),
        {"__len__": lambda _: len(samples), "sample": lambda _, i: sample(i), "segments": True},
    )()
    return SimpleNamespace(
        samples=lambda *_, **__: stand_in,
        index=data.index,
        class_names=data.class_names,
        proposal_file=lambda _: None,
    )


def cut(proposals, rows):
    return proposals._replace(
        boxes=proposals.boxes[rows], scores=proposals.scores[rows], members=proposals.members[rows]
    )


def test_images_without_segments_have_no_foreground(data, tmp_path):
    checkpoint = save(classifier(), tmp_path)
    some = with_proposals(data, lambda i, p: cut(p, slice(0, 0 if i in (0, 3) else None)))
    write_segments(tmp_path, checkpoint, some, **HOW)
    found = Segments.read(tmp_path)
    assert ((found.first < 0) == np.isin(found.image, [0, 3])).all()
    write_foregrounds(tmp_path / "pool", tmp_path, some, **EM)
    labels = read_coco(tmp_path / "pool/labels.json", data.index("train").root)
    with_objects = [
        any(not a["iscrowd"] for a in labels.annotations[image["id"]]) for image in labels.images
    ]
    assert with_objects == [False, True, True, False, True]
    none = with_proposals(data, lambda i, p: cut(p, slice(0)))
    with pytest.raises(InputError, match="give other proposals"):
        write_segments(tmp_path, checkpoint, none, **HOW)


def test_images_without_tags_are_left_out(data, segments, tmp_path):
    """Nothing is cut from them; the others' segments are what they were."""
    untagged = with_proposals(data, lambda i, p: p, without_tags=(0, 3))
    write_segments(tmp_path, save(classifier(), tmp_path), untagged, **HOW)
    found, all_of_them = Segments.read(tmp_path), Segments.read(segments)
    kept = np.isin(all_of_them.image, [1, 2, 4])
    assert np.diff(found.begin).tolist() == [0, 40, 40, 0, 40]
    assert (found.image == all_of_them.image[kept]).all()
    assert (found.first == all_of_them.first[kept]).all()
    for i in (1, 2, 4):
        ours, theirs = (s.features[s.begin[i] : s.begin[i + 1]] for s in (found, all_of_them))
        assert (ours == theirs).all()


def test_one_image_of_a_class_and_segments_that_are_all_alike(data, tmp_path):
    alike = with_proposals(data, lambda i, p: cut(p, [5] * 4))
    write_segments(tmp_path, save(classifier(), tmp_path), alike, **HOW)
    found = Segments.read(tmp_path)
    assert 1 in np.bincount(found.label), "a class of one image is among them"
    for distance in ("cosine", "mahalanobis"):
        chosen = choose(found, 2, 0.5, distance)
        assert (chosen[found.first >= 0] == 0).all(), "the first of equals"
        assert (chosen[found.first < 0] < 1).all()


def test_features_that_are_not_finite_are_told_with_their_image(data, tmp_path):
    net = classifier()
    net.backbone.network.stem.conv.weight.data.fill_(float("nan"))
    with pytest.raises(InputError, match=r"features of .*jpg hold NaN or infinity"):
        write_segments(tmp_path, save(net, tmp_path), data, **HOW)


def test_boxes_alone_are_refused(data, tmp_path):
    boxes = with_proposals(data, lambda i, p: p._replace(labels=None, members=None))
    with pytest.raises(InputError, match="segments are needed"):
        write_segments(tmp_path, save(classifier(), tmp_path), boxes, **HOW)


def test_settings_of_pasting_are_the_users():
    paste = EMPaste(objects=(1, 4), select="balanced", where="space", backgrounds="black").paste(
        Path("pool")
    )
    assert (paste.objects, paste.select, paste.where, paste.backgrounds) == (
        (1, 4),
        "balanced",
        "space",
        "black",
    )
    assert EMPaste().paste(Path("pool")).objects == (4, 4), "the paper's"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--model.backgrounds=nowhere", "no pictures in nowhere"),
        ("--model.background_fraction=2", "at least 0, at most 1"),
        ('--model.segmentor={"steps": 2, "hiden": 8}', "did you mean 'hidden'?"),
    ],
)
def test_wrong_settings_are_told_before_anything_is_trained(flag, message, tmp_path, capsys):
    words = [
        "--model",
        "em_paste",
        "--data.root",
        str(tmp_path / "shapes"),
        "--data.train=2",
        "--data.val=1",
    ]
    with pytest.raises(SystemExit):
        fit.main([*words, flag, "--run_dir", str(tmp_path / "run")])
    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("run/*/checkpoints"))


def test_only_the_most_object_like_segments_may_be_chosen(data):
    sample = sample_of(data, 0)
    centres, probabilities = torch.tensor([[100.0, 100.0]]), torch.rand(1, 40)
    _, every = first_choice(centres, sample, probabilities, 3)
    first, some = first_choice(centres, sample, probabilities, 3, object_like=0.4)
    scores = sample["proposals"].scores
    assert some[first].all()
    assert (some <= every).all()
    assert scores[some].min() > scores[every & ~some].max()
    assert abs(int(some.sum()) - 0.4 * int(every.sum())) <= 1
