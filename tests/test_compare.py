"""The verb from run folders to table, CSV and README, and what users do wrong."""

from __future__ import annotations

import csv
import json
import os
import shutil
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest
import toy_runs
import yaml
from toy_runs import make_run, write_stage
from wandb_files import read_wandb

from wsis import compare, fit
from wsis.inference import make_data
from wsis.reports.evaluation import evaluate_file
from wsis.reports.runs import read_evaluation_set
from wsis.reports.table import BEGIN, END


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("compare")


@pytest.fixture(scope="module")
def runs(place) -> list[Path]:
    root = place / "shapes"
    return [
        make_run(place / "cam-0", root, seed=0),
        make_run(place / "cam-1", root, seed=1),
        make_run(place / "pdsl", root, "pdsl", seed=3),
        make_run(place / "mask", root, "mask_rcnn", seed=4),
    ]


@pytest.fixture
def copied(runs, tmp_path):
    """A run of one's own to spoil."""
    shutil.copytree(runs[0], tmp_path / "mine")
    return tmp_path / "mine"


def words(runs, out: Path, *more) -> list[str]:
    return [*map(str, runs), "--out", str(out), "--accelerator", "cpu", *map(str, more)]


def figure(run: Path, name: str) -> float:
    return json.loads((run / "test-val/metrics.json").read_text())["metrics"][name]


def refused(argv, capsys) -> str:
    with pytest.raises(SystemExit) as end:
        compare.main([str(word) for word in argv])
    assert end.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


class Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        for name, value in attrs:
            assert name not in ("src", "href") or value.startswith(("data:", "#")), value


def test_runs_become_rows_csv_and_page(runs, tmp_path, capsys):
    rows = compare.main(words(runs, tmp_path))
    printed = capsys.readouterr().out
    assert sorted(row.name for row in rows) == ["cam", "mask_rcnn", "pdsl"]
    means = [row.mean("AP50") for row in rows]
    assert means == sorted(means, reverse=True)
    ours = [figure(run, "AP50") for run in runs[:2]]
    (cam,) = [row for row in rows if row.name == "cam"]
    assert cam.metrics["AP50"] == pytest.approx(ours)
    assert cam.mean("AP50") == pytest.approx(sum(ours) / 2)
    with (tmp_path / "shapes.csv").open() as file:
        lines = {line["method"]: line for line in csv.DictReader(file)}
    assert float(lines["cam"]["AP50"]) == pytest.approx(50 * sum(ours), abs=0.005)
    assert float(lines["cam"]["AP50_min"]) == pytest.approx(100 * min(ours), abs=0.005)
    assert lines["cam"]["seeds"] == "2"
    assert lines["cam"]["PQ"] == lines["cam"]["AP50_paper"] == ""
    assert (lines["pdsl"]["supervision"], lines["mask_rcnn"]["supervision"]) == ("tags", "masks")
    assert (lines["pdsl"]["minutes"], lines["pdsl"]["memory_gib"], lines["pdsl"]["commit"]) == (
        "2.50",
        "1.00",
        "abc1234567",
    )
    assert "data.train=4" in lines["cam"]["config"]
    for row in rows:
        assert f"{100 * row.mean('AP50'):.1f}" in printed
    page = Page()
    page.feed((tmp_path / "shapes.html").read_text())
    assert page.seen.count("script") == 2
    assert page.seen.count("table") == 2 + 3 * len(rows)  # and COCO's, VOC's and CorLoc of each
    assert not [
        path
        for path in tmp_path.iterdir()
        if path.name not in ("shapes.csv", "shapes.html", "shapes.jpg")
    ]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_wandb_has_the_table(runs, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    compare.main(
        words(
            runs[:2],
            tmp_path,
            "--images",
            0,
            "--wandb.project",
            "trial",
            "--wandb.name",
            "mine",
            "--wandb.mode",
            "offline",
        )
    )
    (run,) = [read_wandb(path) for path in tmp_path.rglob("*.wandb")]
    (found,) = run.series("compare-shapes")
    table = json.loads((run.files / found["path"]).read_text())
    with (tmp_path / "shapes.csv").open() as file:
        (line,) = csv.DictReader(file)
    assert (run.project, run.name) == ("trial", "mine")
    assert dict(zip(table["columns"], table["data"][0], strict=True))["AP50"] == float(line["AP50"])


def test_settings_tell_rows_of_a_method_apart(runs, place, tmp_path):
    other = make_run(place / "lower", place / "shapes", seed=2, model={"threshold": 0.5})
    names = {row.name for row in compare.main(words([*runs[:2], other], tmp_path, "--images", 0))}
    assert names == {"cam", "cam, threshold 0.5"}


def test_labels_from_elsewhere_are_not_called_masks(runs, place, tmp_path):
    pseudo = place / "pseudo.json"
    content = json.loads(
        (
            toy_runs.shapes(place / "shapes").folder / "annotations/instances_train2017.json"
        ).read_text()
    )
    for annotation in content["annotations"]:
        annotation["source"] = "PDSL trained from tags, runs/pdsl/0"
    pseudo.write_text(json.dumps(content))
    taught = make_run(place / "taught", place / "shapes", "mask_rcnn", labels=str(pseudo))
    rows = compare.main(words([runs[3], taught], tmp_path, "--images", 0))
    assert {row.name: row.first.supervision for row in rows} == {
        "mask_rcnn, masks": "masks",
        "mask_rcnn, labels by PDSL trained from tags": "labels by PDSL trained from tags",
    }


def test_a_users_own_label_file_is_no_pseudo_labels(tmp_path):
    image = {"id": 1, "file_name": "a.png", "height": 9, "width": 9}
    thing = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 5, 5]}
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((9, 9, 3), np.uint8))
    content = {"images": [image], "annotations": [thing], "categories": [{"id": 1, "name": "cat"}]}
    (tmp_path / "own.json").write_text(json.dumps(content))
    named = {"root": str(tmp_path), "labels": "own.json", "val_labels": "own.json"}
    found = read_evaluation_set(
        {"data": {"class_path": "wsis.datasets.folder.Folder", "init_args": named}}, "val", {}
    )
    assert found.labels is None
    assert found.index.annotations[1][0]["bbox"] == [1, 1, 5, 5]


def test_the_table_goes_between_its_lines(runs, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(f"between `{BEGIN}` and `{END}`\n{BEGIN}\nold\n{END}\nafter\n")
    for _ in range(2):  # the second time into what the first has written
        compare.main(words(runs, tmp_path, "--write", readme, "--images", 0))
        text = readme.read_text()
        assert text.startswith(
            f"between `{BEGIN}` and `{END}`\n{BEGIN}\nshapes, val: 8 images, 8 classes."
        )
        assert text.endswith(f"|\n{END}\nafter\n")
        assert "old" not in text
        table = [line.split("|") for line in text.splitlines() if line.startswith("|")]
        assert len(table) == 2 + 3
        assert len({len(line) for line in table}) == 1


def test_runs_on_tags_alone_are_rows(runs, tmp_path):
    shapes = toy_runs.shapes(runs[0].parent / "shapes")
    index = shapes.index("val")
    lines = [
        f"{image['file_name']},{';'.join(shapes.class_names[c] for c in index.tags[image['id']])}"
        for image in index.images
    ]
    photos = tmp_path / "photos"
    shutil.copytree(index.root, photos)
    for name in ("labels.csv", "val.csv"):
        (photos / name).write_text("\n".join(lines))
    init_args = {"root": str(photos), "proposals": "none", "classes": shapes.class_names}
    data = {"class_path": "wsis.datasets.folder.Folder", "init_args": init_args}
    mine = []
    for run in runs[1:3]:
        mine.append(tmp_path / run.name)
        shutil.copytree(run, mine[-1])
        config = yaml.safe_load((run / "config.yaml").read_text())
        (mine[-1] / "config.yaml").write_text(yaml.safe_dump({**config, "data": data}))
        file = mine[-1] / "test-val/predictions.json"
        number = {image["id"]: k for k, image in enumerate(index.images, 1)}
        results = [{**r, "image_id": number[r["image_id"]]} for r in json.loads(file.read_text())]
        file.write_text(json.dumps(results))
        evaluate_file(file, make_data(data))
    rows = compare.main(words(mine, tmp_path / "out"))
    assert [{*row.metrics} for row in rows] == [{"tag_mAP", "F1_threshold"}] * 2
    means = [row.mean("tag_mAP") for row in rows]
    assert 0 < means[1] <= means[0] <= 1
    with (tmp_path / "out/folder.csv").open() as file:
        shown = [float(line["tag_mAP"]) for line in csv.DictReader(file)]
    assert shown == pytest.approx([100 * mean for mean in means], abs=0.006)
    page = (tmp_path / "out/folder.html").read_text()
    assert '"role":"method"' in page
    assert '"role":"truth"' not in page


NO_PLACE = [
    "nothing",
    BEGIN,
    f"{END}\n{BEGIN}",
    f"{BEGIN}\n{END}\n{BEGIN}\n{END}",
    f"{BEGIN}\n{BEGIN}\n{END}",
    f"it is {BEGIN} and {END}",
]


@pytest.mark.parametrize("text", NO_PLACE)
def test_a_file_without_a_place_for_the_table_is_left_alone(text, runs, tmp_path, capsys):
    (tmp_path / "README.md").write_text(text)
    line = refused(
        words(runs[:1], tmp_path, "--write", tmp_path / "README.md", "--images", 0), capsys
    )
    assert "needs the lines" in line
    assert (tmp_path / "README.md").read_text() == text


@pytest.mark.slow
def test_a_run_without_predictions_is_evaluated_once(place, tmp_path, capsys):
    run = place / "fresh"
    data = [
        "--data",
        "shapes",
        "--data.root",
        place / "shapes",
        "--data.train",
        toy_runs.TRAIN,
        "--data.val",
        toy_runs.VAL,
    ]
    data += [
        "--data.proposals",
        "none",
        "--trainer.max_steps",
        2,
        "--trainer.accelerator",
        "cpu",
        "--run_dir",
        run,
    ]
    fit.main(["--model", "toy_detector.Peeper", *map(str, data)])
    capsys.readouterr()
    rows = compare.main(words([run], tmp_path))
    assert "has not been evaluated on val yet" in capsys.readouterr().out
    assert rows[0].mean("AP50") == figure(run, "AP50") > 0.1
    assert rows[0].minutes > 0
    assert rows[0].memory > 0.05
    assert rows[0].facts["commit"] != "-"
    compare.main(words([run], tmp_path))
    assert "has not been evaluated" not in capsys.readouterr().out
    checkpoint = run / "train/checkpoints/last.ckpt"
    os.utime(checkpoint, (2**32, 2**32))  # trained on since
    compare.main(words([run], tmp_path))
    assert "has not been evaluated on val yet" in capsys.readouterr().out


@pytest.mark.slow
def test_pseudo_labels_of_other_images_are_made_once(place, tmp_path, capsys):
    run = place / "fresh"
    if not run.exists():
        test_a_run_without_predictions_is_evaluated_once(place, tmp_path, capsys)
    learnt_from = toy_runs.shapes(place / "shapes").folder / "annotations/instances_train2017.json"
    shutil.copy(learnt_from, run / "train/labels.json")
    compare.main(words([run], tmp_path))
    made = run / "test-val/labels.json"
    content = json.loads(made.read_text())
    assert {a["image_id"] for a in content["annotations"]} <= {i["id"] for i in content["images"]}
    assert len(content["images"]) == toy_runs.VAL
    assert '"pseudo-labels of peeper"' in (tmp_path / "shapes.html").read_text()
    before = made.stat().st_mtime_ns
    compare.main(words([run], tmp_path))
    assert made.stat().st_mtime_ns == before


def test_training_images_show_what_was_learnt_from(place, tmp_path):
    taught = make_run(place / "train-cam", place / "shapes", split="train")
    shutil.copy(
        toy_runs.shapes(place / "shapes").folder / "annotations/instances_train2017.json",
        taught / "train/labels.json",
    )
    (row,) = compare.main(words([taught], tmp_path, "--split", "train"))
    assert row.mean("AP50") > 0
    assert {path.name for path in tmp_path.iterdir()} == {
        f"shapes-train.{kind}" for kind in ("csv", "html", "jpg")
    }
    assert (
        '{"name":"pseudo-labels of cam","role":"labels","row":0}'
        in (tmp_path / "shapes-train.html").read_text()
    )


def test_what_is_no_finished_run_gets_one_clear_line(runs, copied, tmp_path, capsys):
    assert "not the folder of a run" in refused([tmp_path], capsys)
    assert "not the folder of a run" in refused([runs[0], tmp_path / "gone"], capsys)
    assert "--split" in refused([runs[0], "--split", "test"], capsys)
    assert "--images -1" in refused([runs[0], "--images", "-1"], capsys)
    write_stage(copied, finished=False)
    line = refused([runs[0], copied], capsys)
    assert "stage train is not finished" in line
    assert f"wsis.fit --resume {copied}" in line
    shutil.rmtree(copied / "train")
    assert "has not begun" in refused([copied], capsys)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"mark": 0.2}, "other images of shapes"),
        ({"rotation": 0.0}, "other images of shapes"),
        ({"val": 5}, "5 images of shapes, the other on 8"),
    ],
)
def test_runs_on_other_images_are_refused(settings, told, runs, tmp_path, capsys):
    other = make_run(tmp_path / "other", runs[0].parent / "shapes", judged=False, **settings)
    line = refused([runs[0], other], capsys)
    assert told in line
    assert str(other) in line
    assert str(runs[0]) in line


def test_runs_on_other_data_or_classes_are_refused(runs, tmp_path, capsys):
    shapes = toy_runs.shapes(runs[0].parent / "shapes")
    shapes.index("val")
    for name, kept in (("coco", 8), ("fewer", 3)):
        folder = tmp_path / name
        shutil.copytree(shapes.folder, folder / "data")
        for split in ("train", "val"):
            path = folder / f"data/annotations/instances_{split}2017.json"
            content = json.loads(path.read_text())
            content["categories"] = content["categories"][:kept]
            content["annotations"] = [a for a in content["annotations"] if a["category_id"] <= kept]
            path.write_text(json.dumps(content))
        shutil.copytree(runs[0], folder / "run")
        config = yaml.safe_load((folder / "run/config.yaml").read_text())
        config["data"] = {
            "class_path": "wsis.datasets.coco.COCO",
            "init_args": {"root": str(folder / "data"), "proposals": "none"},
        }
        (folder / "run/config.yaml").write_text(yaml.safe_dump(config))
    assert "one is on coco, the other on shapes" in refused(
        [runs[0], tmp_path / "coco/run"], capsys
    )
    assert "3 classes of coco, the other 8" in refused(
        [tmp_path / "coco/run", tmp_path / "fewer/run"], capsys
    )
    path = tmp_path / "coco/data/annotations/instances_val2017.json"
    path.write_text(
        json.dumps({**json.loads(path.read_text()), "categories": [], "annotations": []})
    )
    assert "has no classes" in refused([tmp_path / "coco/run"], capsys)


def test_spoilt_predictions_and_figures_get_one_clear_line(runs, copied, capsys):
    argv = [runs[2], copied, "--accelerator", "cpu"]
    results, metrics = (copied / "test-val" / name for name in ("predictions.json", "metrics.json"))
    whole = results.read_text()
    for text, told in (
        (whole[: len(whole) // 2], "not a whole json file"),
        ("{}", "expected a list"),
        ("", "not a whole json file"),
    ):
        results.write_text(text)
        line = refused(argv, capsys)
        assert told in line
        assert str(results) in line
    results.write_text(whole.replace("50000", "70000"))
    assert "not in this data set" in refused(argv, capsys)
    results.write_text(whole)
    said = json.loads(metrics.read_text())
    metrics.write_text(json.dumps({**said, "images": 3}))
    assert "3 images of shapes, the run's data has 8" in refused(argv, capsys)
    metrics.write_text('{"metrics": {}}')
    assert "not what wsis.test writes" in refused(argv, capsys)


def test_runs_without_recorded_costs_show_none(copied, tmp_path):
    path = copied / "train/stage.json"
    stage = json.loads(path.read_text())
    path.write_text(
        json.dumps(
            {k: v for k, v in stage.items() if k not in ("minutes", "memory", "commit", "device")}
        )
    )
    (row,) = compare.main(words([copied], tmp_path, "--images", 0))
    with (tmp_path / "shapes.csv").open() as file:
        (line,) = csv.DictReader(file)
    assert (line["minutes"], line["memory_gib"], line["commit"], row.facts["commit"]) == (
        "",
        "",
        "-",
        "-",
    )


def test_help_is_short(capsys):
    with pytest.raises(SystemExit) as end:
        compare.main(["--help"])
    assert end.value.code == 0
    assert len(capsys.readouterr().out.splitlines()) < 40
