from __future__ import annotations

import pickle
import shutil
import sqlite3
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from wsis.data.index import write_coco
from wsis.data.module import Augment, Loading
from wsis.datasets.folder import Folder
from wsis.errors import InputError
from wsis.method import Method
from wsis.proposals.file import ProposalFile, write
from wsis.proposals.source import file_name
from wsis.types import Proposals

SERIAL = Loading(batch_size=2, workers=0)


@pytest.fixture(autouse=True)
def beside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Proposals are kept as those of data sets other than photos."""
    monkeypatch.setattr(Folder, "writes_beside", True)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in "abc":
        pixels = np.full((48, 64, 3), 90, np.uint8) + rng.integers(0, 8, (48, 64, 3), np.uint8)
        pixels[10:30, 20:50] = (200, 60, 40)
        Image.fromarray(pixels).save(folder / f"{name}.png")
    (folder / "labels.csv").write_text("a.png,cat\nb.png,dog\nc.png,\n")
    return folder


def attach(data: Folder, **model: Any) -> Folder:
    """Give the data a trainer with such a model, as Lightning does."""
    data.trainer = SimpleNamespace(  # type: ignore[assignment]
        lightning_module=type("Model", (Method,), model)(),
        global_rank=0,
        world_size=1,
        max_steps=4,
        accumulate_grad_batches=1,
        global_step=0,
        state=SimpleNamespace(fn="fit"),
    )
    return data


def made(folder: Path) -> list[Path]:
    return sorted(folder.rglob("proposals*.sqlite"))


def test_auto_makes_proposals_once_beside_the_data(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample = Folder(root, loading=SERIAL).samples("train", train=False).sample(0)
    assert len(made(root)) == 1
    boxes = sample["proposals"].boxes
    assert (boxes == torch.tensor([20.0, 10, 50, 30])).all(1).any()  # the one object there is
    monkeypatch.setattr("wsis.proposals.source.make", None)
    again = Folder(root, loading=SERIAL).samples("train", train=False).sample(0)
    assert torch.equal(again["proposals"].boxes, boxes)


def test_proposals_begun_and_stopped_are_finished(root: Path) -> None:
    Folder(root, loading=SERIAL).proposal_file("train")
    (path,) = made(root)
    with sqlite3.connect(path) as connection:
        connection.execute("DELETE FROM proposals WHERE file = 'b.png'")
    connection.close()
    assert len(ProposalFile(path)) == 2
    file = Folder(root, loading=SERIAL).proposal_file("train")
    assert file is not None
    assert len(file) == 3


def test_subsets_share_the_proposals_of_a_folder(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Folder(root, loading=SERIAL).proposal_file("train")
    monkeypatch.setattr("wsis.proposals.source.make", None)
    (root / "labels.csv").write_text("b.png,dog\n")
    assert (
        len(Folder(root, loading=SERIAL).samples("train", train=False).sample(0)["proposals"].boxes)
        > 0
    )
    assert [path.name for path in made(root)] == [file_name("segments")]


def test_where_the_data_cannot_be_written_the_cache_holds_them(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WSIS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("wsis.proposals.source.os.access", lambda *_: False)
    Folder(root, loading=SERIAL).proposal_file("train")
    assert made(root) == []
    assert len(made(tmp_path / "cache")) == 1


def test_proposals_beside_data_that_cannot_be_written_are_used(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WSIS_CACHE", str(tmp_path / "cache"))
    Folder(root, loading=SERIAL).proposal_file("train")
    monkeypatch.setattr("wsis.proposals.source.os.access", lambda *_: False)
    file = Folder(root, loading=SERIAL).proposal_file("train")
    assert file is not None
    assert file.path == root / file_name("segments")
    Image.new("RGB", (30, 20)).save(root / "d.png")
    (root / "labels.csv").write_text("d.png,cat\n")
    file = Folder(root, loading=SERIAL).proposal_file("train")
    assert file is not None
    assert file.path.is_relative_to(tmp_path / "cache"), "those are not of all images"


def test_segments_only_for_models_that_need_them(root: Path) -> None:
    bare = attach(Folder(root, loading=SERIAL)).samples("train", train=False).sample(0)["proposals"]
    assert (bare.labels, bare.members) == (None, None)
    full = (
        attach(Folder(root, loading=SERIAL), needs_segments=True)
        .samples("train", train=False)
        .sample(0)["proposals"]
    )
    assert full.labels is not None
    assert full.members is not None
    assert torch.equal(full.boxes, bare.boxes)
    for box, members in zip(full.boxes.tolist(), full.members, strict=True):
        ys, xs = torch.nonzero(
            members[full.labels.clamp(min=0)] & (full.labels >= 0), as_tuple=True
        )
        assert [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1] == box


def test_crop_scale_and_flip_keep_proposals_on_their_segments(root: Path) -> None:
    augment = Augment(short_sides=(96,), crop=0.8)
    samples = attach(Folder(root, augment=augment, loading=SERIAL), needs_segments=True).samples(
        "train", train=True
    )
    for draw in range(10):
        sample = samples.sample(0, draw)
        image, proposals = sample["image"].float(), sample["proposals"]
        assert proposals.labels is not None
        assert proposals.members is not None
        assert proposals.labels.shape == image.shape[1:]
        red = image[0] - image[2] > 100
        segments = torch.stack([m[proposals.labels] for m in proposals.members])
        overlap = (segments & red).flatten(1).sum(1) / (segments | red).flatten(1).sum(1)
        best = int(overlap.argmax())
        assert overlap[best] > 0.9
        ys, xs = torch.nonzero(segments[best], as_tuple=True)
        extent = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
        assert (
            np.abs(proposals.boxes[best].numpy() - extent).max() <= 0.5
        )  # a pixel belongs to what covers its centre


def test_no_proposals_where_none_are_wanted(root: Path) -> None:
    assert "proposals" not in Folder(root, proposals="none", loading=SERIAL).samples(
        "train", train=True
    ).sample(0)
    data = attach(Folder(root, loading=SERIAL), needs_proposals=False)
    data.prepare_data()
    assert "proposals" not in data.samples("train", train=True).sample(0)
    assert made(root) == []


def test_proposals_of_other_images_are_refused(root: Path, tmp_path: Path) -> None:
    file = Folder(root, loading=SERIAL).proposal_file("train")
    assert file is not None
    own = tmp_path / "own.sqlite"
    shutil.copy(file.path, own)
    for name in "abc":
        Image.new("RGB", (30, 20)).save(root / f"{name}.png")
    with pytest.raises(InputError, match="proposals made for other images"):
        Folder(root, proposals=str(own), loading=SERIAL).samples("train", train=True).sample(0)
    Image.new("RGB", (30, 20)).save(root / "new.png")
    (root / "labels.csv").write_text("new.png,cat\n")
    with pytest.raises(InputError, match=r"no proposals for new\.png"):
        Folder(root, proposals=str(own), loading=SERIAL).samples("train", train=True).sample(0)


def test_proposals_in_another_format_are_converted_once(root: Path, tmp_path: Path) -> None:
    boxes = [np.array([[1, 2, 30, 40], [5, 6, 20, 20]], np.float32) for _ in "abc"]
    path = tmp_path / "proposals.pkl"
    path.write_bytes(
        pickle.dumps(
            {
                "ids": ["a", "b", "c"],
                "boxes": boxes,
                "objectness_logits": [np.array([0.2, 0.9])] * 3,
            }
        )
    )
    data = Folder(root, proposals=str(path), loading=SERIAL, max_proposals=1)
    sample = data.samples("train", train=False).sample(1)
    assert sample["proposals"].boxes.tolist() == [[5, 6, 20, 20]]  # the best one
    more = Folder(root, proposals=str(path), loading=SERIAL, max_proposals=1, max_test_proposals=2)
    assert len(more.samples("train", train=False).sample(1)["proposals"].boxes) == 2
    assert len(more.samples("train", train=True).sample(1)["proposals"].boxes) <= 1
    assert len(made(root)) == 1
    with pytest.raises(InputError, match=r"no proposals .*gone\.pkl"):
        Folder(root, proposals=str(tmp_path / "gone.pkl")).proposal_file("train")


def test_pseudo_labels_take_the_place_of_annotations(root: Path, tmp_path: Path) -> None:
    data = Folder(root, proposals="none", loading=SERIAL)
    own = data.index("train")
    box = {
        "bbox": [20, 10, 30, 20],
        "category_id": 2,
        "score": 0.7,
        "ignore": 1,
        "segmentation": [[20, 10, 50, 10, 50, 30, 20, 30]],
    }
    write_coco(
        tmp_path / "pseudo.json", own._replace(images=own.images[:2], annotations={2: [box]})
    )
    labelled = data.variant(tmp_path / "pseudo.json")
    assert [i["file_name"] for i in labelled.index("train").images] == ["a.png", "b.png"]
    target = labelled.samples("train", train=False, supervision={"tags", "boxes", "masks"}).sample(
        1
    )["target"]
    assert target["boxes"].tolist() == [[20, 10, 50, 30]]
    assert (
        target["labels"].tolist(),
        target["crowd"].tolist(),
        target["ignore_mask"].tolist(),
    ) == (
        [1],
        [False],
        [True],
    )
    assert int(target["masks"].sum()) == 600
    truth = labelled.samples("train", train=False).sample(1)["truth"]
    assert truth.crowd.tolist() == [True], "in evaluation what is to be ignored counts as crowd"
    assert target["tags"].tolist() == [0, 1]
    assert labelled.fingerprint() != data.fingerprint()
    assert data.index("train") is own
    write_coco(
        tmp_path / "other.json", own._replace(images=[{**own.images[0], "file_name": "z.png"}])
    )
    with pytest.raises(
        InputError, match=r"other\.json labels z\.png, not a training image of folder"
    ):
        data.variant(tmp_path / "other.json")


def test_fingerprint_knows_what_shapes_the_weights(root: Path) -> None:
    variants = [
        Folder(root, proposals="none"),
        Folder(root, proposals="none", loading=Loading(batch_size=8)),
        Folder(root, proposals="none", loading=Loading(seed=1)),
        Folder(root, proposals="none", augment=Augment(flip=0.0)),
        Folder(root, proposals="none", max_proposals=7),
        Folder(root, proposals="segments"),
    ]
    assert len({data.fingerprint() for data in variants}) == len(variants)
    assert (
        Folder(root, proposals="none", loading=Loading(workers=0)).fingerprint()
        == variants[0].fingerprint()
    )


def test_fingerprint_knows_the_given_proposals_themselves(root: Path, tmp_path: Path) -> None:
    def fingerprint(name: str, right: float) -> str:
        proposals = Proposals(torch.tensor([[1, 2, right, 4]]), torch.ones(1))
        with write(tmp_path / name, {"made": "by hand"}) as writer:
            for image in "abc":
                writer.add(f"{image}.png", (48, 64), proposals)
        return Folder(root, proposals=str(tmp_path / name)).fingerprint()

    assert fingerprint("one", 3) == fingerprint("same", 3)
    assert fingerprint("one", 3) != fingerprint("other", 5)


def test_workers_make_the_same_batches(root: Path) -> None:
    def batches(workers: int) -> list[tuple[int, int]]:
        data = Folder(
            root, proposals="none", augment=Augment(jitter=1.5), loading=Loading(2, workers)
        )
        return [
            (s["image_id"], int(s["image"].sum()))
            for batch in data.train_dataloader()
            for s in batch
        ]

    assert batches(0) == batches(2)


def test_a_broken_image_stops_a_worker_with_its_name(root: Path) -> None:
    data = Folder(root, proposals="none", loading=Loading(2, 1))
    loader = data.predict_dataloader()
    (root / "b.png").write_bytes((root / "b.png").read_bytes()[:200])
    with pytest.raises(InputError, match=r"cannot read image .*b\.png"):
        list(loader)
