"""Proposals of several sources in one file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as rle

from wsis import propose
from wsis.errors import InputError
from wsis.proposals.convert import from_records
from wsis.proposals.file import ProposalFile, write
from wsis.proposals.merge import merge, merged
from wsis.types import Index, Proposals

SIZE = 24, 32


def square(x: int, side: int) -> np.ndarray:
    mask = np.zeros(SIZE, np.uint8)
    mask[2 : 2 + side, x : x + side] = 1
    return mask


def segments(*masks: np.ndarray) -> Proposals:
    scores = np.linspace(0.9, 0.1, len(masks))
    pairs = zip(masks, scores, strict=True)
    return from_records([{"segmentation": m, "score": s} for m, s in pairs], SIZE)


BIG, NEAR, FAR, TINY = square(1, 12), square(1, 12), square(20, 8), square(15, 3)
NEAR[2, 1] = 0


def test_sources_take_turns_and_doubles_come_last_or_once():
    found = merged([segments(BIG, FAR), segments(NEAR, TINY), segments(FAR)])
    masks = found.members[:, found.labels.long()].int().numpy()
    assert (masks == [BIG, FAR, TINY, NEAR]).all()
    assert found.scores.tolist() == pytest.approx([0.9, 0.9, 0.1, 0.9])
    tight = [[1, 2, 13, 14], [20, 2, 28, 10], [15, 2, 18, 5], [1, 2, 13, 14]]
    assert found.boxes.tolist() == tight


def test_boxes_alone_take_turns_too():
    one = Proposals(torch.tensor([[0.0, 0, 10, 10], [5, 5, 6, 6]]), torch.tensor([0.9, 0.8]))
    two = Proposals(torch.tensor([[0.0, 0, 10, 9], [5, 5, 6, 6]]), torch.tensor([0.7, 0.6]))
    found = merged([one, two])
    assert found.boxes.tolist() == [[0, 0, 10, 10], [5, 5, 6, 6], [0, 0, 10, 9]]
    assert found.labels is None


def file_of(path: Path, made: str, **found: Proposals) -> ProposalFile:
    with write(path, {"made": made, "supervision": made, "data": "x"}) as writer:
        for name, proposals in found.items():
            writer.add(name, SIZE, proposals)
    return ProposalFile(path)


def index(*names: str) -> Index:
    images = [
        {"id": k, "file_name": name, "height": SIZE[0], "width": SIZE[1]}
        for k, name in enumerate(names)
    ]
    return Index(name="x", root=None, images=images, categories=[])


def test_files_are_merged_with_the_provenance_of_each(tmp_path):
    one = file_of(tmp_path / "1", "none", a=segments(BIG), b=segments(FAR))
    two = file_of(tmp_path / "2", "masks", a=segments(TINY), c=segments(BIG))
    file = ProposalFile(merge([one, two], index("a", "b", "c"), tmp_path / "out"))
    assert [len(file.read(name, SIZE, True).boxes) for name in "abc"] == [2, 1, 1]
    assert file.provenance["from"] == "none + masks"
    assert file.provenance["supervision"] == "none + masks"
    assert file.provenance["sources"] == [one.provenance, two.provenance]
    with pytest.raises(InputError, match=r"neither .* nor .* has proposals of d; add a source"):
        merge([one, two], index("d"), tmp_path / "out")
    boxes = Proposals(torch.tensor([[0.0, 0, 9, 9]]), torch.ones(1))
    three = file_of(tmp_path / "3", "boxes", a=boxes)
    with pytest.raises(InputError, match=r"1 has segments of a, and .*3 boxes alone"):
        merge([one, three], index("a"), tmp_path / "other")


def test_the_verb_merges_what_it_is_given(tmp_path, monkeypatch):
    monkeypatch.setenv("WSIS_CACHE", str(tmp_path / "cache"))
    photos = tmp_path / "photos"
    photos.mkdir()
    for seed, name in enumerate("ab"):
        pixels = np.random.default_rng(seed).integers(0, 255, (3, 4, 3), np.uint8)
        Image.fromarray(pixels).resize(SIZE[::-1], 0).save(photos / f"{name}.png")
    coded = rle.encode(np.asfortranarray(BIG))
    records = [{"image_id": "a", "segmentation": {**coded, "counts": coded["counts"].decode()}}]
    (tmp_path / "sam.json").write_text(json.dumps(records))
    words = ["--images", str(photos), "--workers", "0", "--out", str(tmp_path / "out.sqlite")]
    words += ["--from", str(tmp_path / "sam.json")]
    with pytest.raises(SystemExit):
        propose.main(words)  # nothing of b
    words[words.index("--out") + 1] = str(tmp_path / "both.sqlite")
    (path,) = propose.main([*words, "--from", "segments"])
    file, alone = ProposalFile(path), ProposalFile(next((tmp_path / "cache").rglob("*segments*")))
    first = file.read("a.png", SIZE, True)
    assert (first.members[0][first.labels.long()].int().numpy() == BIG).all()
    ours = [alone.read(name, SIZE, True) for name in ("a.png", "b.png")]
    assert len(first.boxes) == len(ours[0].boxes) + 1
    assert file.read("b.png", SIZE, True).boxes.equal(ours[1].boxes)
    assert file.provenance["from"] == "sam.json + segments"
    assert file.provenance["supervision"] == "unknown + none"
    (photos / "labels.csv").write_text("a.png,x\nb.png,\n")
    words = ["--data", "folder", "--data.root", str(photos), "--workers", "0"]
    sources = f"[{tmp_path / 'sam.json'},segments]"
    (beside,) = propose.main([*words, "--from", sources])
    assert beside.parent == photos
    assert ProposalFile(beside).digest() == file.digest()
