"""A panoptic method through the verbs: fit, test on a run and on files, predict."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from wsis import fit, predict
from wsis import test as testing
from wsis.datasets.shapes import Shapes
from wsis.metrics import PanopticQuality
from wsis.metrics.panoptic_results import read_panoptic
from wsis.metrics.results import read_results
from wsis.reports.evaluation import Metrics

pytestmark = pytest.mark.slow

FIGURES = [name + end for name in ("PQ", "SQ", "RQ") for end in ("", "_things", "_stuff")]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("panoptic")


@pytest.fixture(scope="module")
def data_words(place) -> list[str]:
    words = [
        "--data",
        "shapes",
        "--data.root",
        str(place / "shapes"),
        "--data.train",
        "4",
        "--data.val",
        "5",
    ]
    return [*words, "--data.proposals", "none", "--data.loading.workers", "0"]


@pytest.fixture(scope="module")
def run(place, data_words) -> Path:
    settings = [
        "--trainer.max_steps",
        "2",
        "--trainer.accelerator",
        "cpu",
        "--run_dir",
        str(place / "run"),
    ]
    fit.main(["--model", "toy_panoptic.Painter", *data_words, *settings])
    return place / "run"


@pytest.fixture(scope="module")
def judged(run) -> Metrics:
    return testing.main(["--run", str(run), "--accelerator", "cpu"])


def by_hand(place, folder: Path) -> dict[str, float]:
    data = Shapes(place / "shapes", train=4, val=5, proposals="none")
    index = data.index("val")
    maps = read_panoptic(folder / "panoptic.json", index.images, index.categories, index.stuff)
    metric = PanopticQuality(8, 3)
    samples = data.samples("val", train=False)
    for k, image in enumerate(index.images):
        truth = samples.sample(k)["truth"]._replace(panoptic=index.panoptic(image))
        prediction = read_results(folder / "predictions.json", index.images, index.categories)[k]
        metric.update([prediction._replace(panoptic=maps(image))], [truth])
    return {name: float(value) for name, value in metric.compute().items() if value.ndim == 0}


def test_a_run_is_judged(run, judged, place, capsys):
    expected = by_hand(place, run / "test-val")
    assert 0 < expected["PQ_things"] < expected["PQ_stuff"] <= 1
    for name in FIGURES:
        assert judged.overall[name] == pytest.approx(expected[name], abs=1e-6)
    written = json.loads((run / "test-val/metrics.json").read_text())
    assert written["metrics"]["PQ"] == judged.overall["PQ"]
    assert set(written["per_class"]["water"]) == {"PQ", "SQ", "RQ"}
    assert {"AP", "PQ", "SQ", "RQ"} <= set(written["per_class"]["red-striped egg"])
    page = (run / "test-val/report.html").read_text()
    assert '<th scope="row">stuff</th>' in page
    content = json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])
    assert "water" in content["classes"]
    assert [source["role"] for source in content["sources"]] == [
        "truth",
        "panoptic",
        "method",
        "panoptic",
    ]
    for image in content["images"]:
        seen = {content["classes"][thing[0]] for thing in image["objects"][1]}
        assert seen & {"grass", "water", "sand"}


def test_the_files_are_judged_as_the_run_was(run, judged, data_words, tmp_path, capsys):
    for name in ("predictions.json", "panoptic.json"):
        shutil.copy(run / "test-val" / name, tmp_path)
    shutil.copytree(run / "test-val/panoptic", tmp_path / "panoptic")
    words = ["--predictions", str(tmp_path / "predictions.json"), *data_words, "--per_class"]
    again = testing.main(words)
    assert again.overall == pytest.approx(judged.overall, nan_ok=True)
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [
        "stuff",
        *(f"{100 * judged.overall[f'{name}_stuff']:.1f}" for name in ("PQ", "SQ", "RQ")),
    ] in printed
    assert any(line[:1] == ["water"] for line in printed)
    elsewhere = tmp_path / "else"
    elsewhere.mkdir()
    (tmp_path / "panoptic.json").rename(elsewhere / "mine.json")
    (tmp_path / "panoptic").rename(elsewhere / "mine")
    given = testing.main([*words, "--panoptic", str(elsewhere / "mine.json")])
    assert given.overall == pytest.approx(judged.overall, nan_ok=True)
    assert "PQ" not in testing.main(words).overall


@pytest.mark.parametrize("fault", ["png", "annotation", "data"])
def test_files_that_lack_something_get_one_clear_line(
    run, judged, data_words, tmp_path, capsys, place, fault
):
    shutil.copytree(run / "test-val", tmp_path / "in")
    path = tmp_path / "in/panoptic.json"
    content = json.loads(path.read_text())
    words = data_words
    if fault == "png":
        (tmp_path / "in/panoptic" / content["annotations"][2]["file_name"]).unlink()
    elif fault == "annotation":
        path.write_text(json.dumps({"annotations": content["annotations"][1:]}))
    else:
        root = Shapes(place / "shapes", train=4, val=5).folder
        words = ["--data", "coco", "--data.root", str(root), "--panoptic", str(path)]
    with pytest.raises(SystemExit) as end:
        testing.main(["--predictions", str(tmp_path / "in/predictions.json"), *words])
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    expected = {
        "png": "no panoptic map",
        "annotation": "has no map of image",
        "data": "--data.panoptic true",
    }
    assert expected[fault] in line


def test_maps_that_the_data_cannot_judge_are_told(run, judged, place, capsys):
    root = Shapes(place / "shapes", train=4, val=5).folder
    words = ["--data", "coco", "--data.root", str(root), "--out", str(place / "coco")]
    assert (
        "PQ"
        not in testing.main(
            ["--predictions", str(run / "test-val/predictions.json"), *words]
        ).overall
    )
    assert "panoptic.json is not evaluated" in capsys.readouterr().out
    with_stuff = testing.main(
        ["--predictions", str(run / "test-val/predictions.json"), *words, "--data.panoptic", "true"]
    )
    assert with_stuff.overall == pytest.approx(judged.overall, nan_ok=True)


def test_predict_writes_and_draws_maps(run, tmp_path):
    for k, size in enumerate(((60, 90), (200, 120))):
        cv2.imwrite(str(tmp_path / f"{k}.png"), np.full((*size, 3), 90, np.uint8))
    words = [
        "--run",
        str(run),
        "--out",
        str(tmp_path / "out"),
        "--accelerator",
        "cpu",
        "--workers",
        "0",
    ]
    predict.main([str(tmp_path / "0.png"), str(tmp_path / "1.png"), *words])
    content = json.loads((tmp_path / "out/panoptic.json").read_text())
    assert [c["name"] for c in content["categories"] if not c["isthing"]] == [
        "grass",
        "water",
        "sand",
    ]
    assert len(content["annotations"]) == 2
    drawn = sorted((tmp_path / "out/overlays/panoptic").iterdir())
    assert [path.name for path in drawn] == ["0.jpg", "1.jpg"]
    assert max(cv2.imread(str(drawn[1])).shape) == 800
    assert cv2.imread(str(drawn[0])).std() > 5
