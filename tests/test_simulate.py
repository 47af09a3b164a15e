"""`python -m wsis.simulate`: labels that are read back, and files that are whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from wsis import simulate
from wsis.coco.objects import kind_of
from wsis.datasets.coco import COCO
from wsis.datasets.folder import Folder
from wsis.datasets.shapes import Shapes


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    data = Shapes(tmp_path_factory.mktemp("shapes"), train=8, val=2, proposals="none")
    data.index("train")
    return data.folder


def run(root: Path, out: Path, *words: str) -> Path:
    return simulate.main(["--data", "coco", "--data.root", str(root), *words, "--out", str(out)])


MIXED = ["--mask", "0.2", "--box", "0.2", "--point", "0.35", "--tag", "0.25"]


@pytest.mark.filterwarnings("ignore:.*are tags alone")
def test_labels_of_all_kinds_are_written_and_read(root, tmp_path, capsys):
    out = run(root, tmp_path / "labels.json", *MIXED, "--points", "2")
    content = json.loads(out.read_text())
    said = capsys.readouterr().out.splitlines()
    counts = {
        kind: sum(kind_of(a) == kind for a in content["annotations"])
        for kind in ("mask", "box", "point")
    }
    for word, kind in (("masks", "mask"), ("boxes", "box"), ("points", "point")):
        assert any(line.startswith(f"{word} of {counts[kind]} objects: ") for line in said)
    assert said[-1] == f"8 of 8 images: {out}"
    assert {a["source"] for a in content["annotations"]} == {
        "simulation (0.2 mask + 0.2 box + 0.35 point + 0.25 tag), by object, seed 0"
    }
    own = COCO(root, proposals="none")
    data = COCO(root, labels=str(out), proposals="none")
    index = data.index("train")
    assert index.tags == own.index("train").tags
    assert sum(map(len, index.annotations.values())) == sum(counts.values())
    assert len(index.complete) == 2, "a quarter of the images has tags alone"
    seen = data.samples("train", True, {"tags", "points"})
    rows = sum(len(seen.sample(k)["target"]["points"]) for k in range(8))
    assert 0 < rows <= counts["point"]
    images = root / "train2017"
    alone = Folder(images, labels=str(out), proposals="none").index("train")
    assert {*alone.annotations} == {*index.annotations}
    assert alone.complete == index.complete


def test_the_same_words_give_the_same_file(root, tmp_path):
    one, same = (run(root, tmp_path / name, *MIXED).read_bytes() for name in ("a.json", "b.json"))
    assert one == same
    assert run(root, tmp_path / "c.json", *MIXED, "--seed", "1").read_bytes() != one


def test_a_share_of_the_images(root, tmp_path):
    out = run(root, tmp_path / "few.json", "--mask", "0.25")
    assert len(json.loads(out.read_text())["images"]) == 2
    assert len(COCO(root, labels=str(out), proposals="none").index("train").images) == 2


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "the shares are 0 in all; give mask, box, point or tag"),
        (["--mask", "1", "--box", "0.5"], "the shares are 1.5 in all"),
        (["--point", "1", "--split", "test"], "--split test: give train or val"),
        (["--point", "1", "--seconds.box", "-3"], "seconds: box -3"),
        (["--point", "1", "--by", "class"], "by"),
        (["--piont", "1"], "unknown setting 'piont'; did you mean 'point'?"),
    ],
)
def test_what_cannot_be_is_one_line_and_leaves_the_file(root, tmp_path, capsys, words, says):
    out = tmp_path / "labels.json"
    out.write_text("mine")
    with pytest.raises(SystemExit):
        run(root, out, *words)
    told = capsys.readouterr().err
    assert says in told
    assert told.startswith("error: ")
    assert told.count("\n") == 1
    assert out.read_text() == "mine"
