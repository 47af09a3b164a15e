"""The verbs from end to end: a model with known figures on eight generated images, and what users do wrong."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pycocotools.coco import COCO
from toy_detector import Peeper

from wsis import compare, fit, label, predict
from wsis import test as testing
from wsis.data.index import read_coco
from wsis.datasets.shapes import Shapes
from wsis.errors import InputError
from wsis.inference import UNKNOWN_THRESHOLD, load
from wsis.method import tagged
from wsis.metrics import InstanceAP
from wsis.types import Prediction

pytestmark = pytest.mark.slow

LABELS = "annotations/instances_train2017.json"


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("verbs")


@pytest.fixture(scope="module")
def data_words(place) -> list[str]:
    words = [
        "--data",
        "shapes",
        "--data.root",
        str(place / "shapes"),
        "--data.train",
        "6",
        "--data.val",
        "8",
    ]
    return [*words, "--data.proposals", "none", "--data.loading.workers", "0"]


def train(place: Path, data_words: list[str], name: str, *words: str) -> Path:
    settings = [
        "--trainer.max_steps",
        "4",
        "--trainer.log_every_n_steps",
        "1",
        "--trainer.accelerator",
        "cpu",
    ]
    fit.main(
        [
            "--model",
            "toy_detector.Peeper",
            *data_words,
            *settings,
            "--run_dir",
            str(place / name),
            *words,
        ]
    )
    return place / name


@pytest.fixture(scope="module")
def run(place, data_words) -> Path:
    return train(place, data_words, "run")


def refused(verb, argv, capsys) -> str:
    """The one line that a verb says before it exits with 2."""
    with pytest.raises(SystemExit) as end:
        verb.main([str(word) for word in argv])
    assert end.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def test_fit_says_where_its_page_is(place, data_words, capsys):
    folder = train(place, data_words, "watched")
    assert f"open {folder}/progress.html to watch it" in capsys.readouterr().out
    page = (folder / "progress.html").read_text()
    assert "peeper on shapes" in page.lower()
    assert "val/AP50" in page
    assert 'http-equiv="refresh"' not in page


def test_test_judges_a_run(run, data_words, capsys):
    metrics = testing.main(["--run", str(run), "--per_class", "--accelerator", "cpu"])
    printed = capsys.readouterr().out
    folder = run / "test-val"
    shapes = Shapes(root=run.parent / "shapes", train=6, val=8, proposals="none")
    names = shapes.class_names
    assert all(
        word in printed
        for word in ("AP25", "AP70", "VOC07_AP50", "CorLoc", "masks", "boxes", *names, str(folder))
    )

    with contextlib.redirect_stdout(io.StringIO()):
        results = COCO(shapes.folder / "annotations/instances_val2017.json").loadRes(
            str(folder / "predictions.json")
        )
    assert len(results.getImgIds()) == 8

    samples = shapes.samples("val", train=False, supervision={"tags"})
    metric = InstanceAP(len(names))
    from toy_detector import Peeper

    model = Peeper(len(names))
    for i in range(8):
        sample = samples.sample(i)
        metric.update([model.look(sample)], [sample["truth"]])
    expected = metric.compute()
    stored = json.loads((folder / "metrics.json").read_text())
    for name in ("AP", "AP25", "AP50", "AP75", "box_AP50"):
        assert stored["metrics"][name] == pytest.approx(expected[name].item(), abs=1e-6)
        assert metrics.overall[name] == stored["metrics"][name]
    assert 0.1 < stored["metrics"]["AP50"] < 0.9
    assert f"{100 * stored['metrics']['AP50']:.1f}" in printed
    assert list(stored["per_class"]) == names


def test_report_is_the_page_of_a_comparison_of_one(run, tmp_path):
    """The same rows, classes, errors, pictures and curves, whichever verb writes it."""
    testing.main(["--run", str(run), "--accelerator", "cpu"])
    compare.main([str(run), "--out", str(tmp_path), "--accelerator", "cpu"])
    page = (run / "test-val/report.html").read_text()
    assert page == (tmp_path / "shapes.html").read_text()
    assert page.count("<polyline") >= 1
    content = json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])
    assert len(content["images"]) == 8
    assert [source["name"] for source in content["sources"]] == ["truth", "peeper"]


def test_report_has_as_many_pictures_as_asked_for(run, tmp_path):
    words = ["--run", str(run), "--out", str(tmp_path), "--accelerator", "cpu"]
    testing.main([*words, "--images", "0"])
    assert "No pictures were asked for." in (tmp_path / "report.html").read_text()


def test_a_results_file_is_judged_as_the_run_was(run, data_words, tmp_path):
    by_run = testing.main(["--run", str(run), "--accelerator", "cpu"])
    file = tmp_path / "mine.json"
    shutil.copy(run / "test-val/predictions.json", file)
    by_file = testing.main(["--predictions", str(file), *data_words])
    assert by_file.overall == pytest.approx(by_run.overall, nan_ok=True)
    assert {path.name for path in tmp_path.iterdir()} == {
        "mine.json",
        "metrics.json",
        "report.html",
    }


def test_boxes_alone_are_judged(run, data_words, tmp_path, capsys):
    testing.main(["--run", str(run), "--accelerator", "cpu"])
    results = json.loads((run / "test-val/predictions.json").read_text())
    (tmp_path / "boxes.json").write_text(
        json.dumps([{k: v for k, v in r.items() if k != "segmentation"} for r in results])
    )
    capsys.readouterr()
    metrics = testing.main(["--predictions", str(tmp_path / "boxes.json"), *data_words])
    assert "masks" not in capsys.readouterr().out
    assert metrics.overall["box_AP50"] > 0
    assert np.isnan(metrics.overall["AP50"])


def test_other_split_and_folder(run, tmp_path):
    testing.main(
        [
            "--run",
            str(run),
            "--split",
            "train",
            "--out",
            str(tmp_path / "here"),
            "--accelerator",
            "cpu",
        ]
    )
    assert json.loads((tmp_path / "here/metrics.json").read_text())["images"] == 6


def test_a_run_that_learnt_from_pseudo_labels_is_judged_by_the_truth(run, tmp_path):
    words = ["--split", "train", "--out", str(tmp_path / "out"), "--accelerator", "cpu"]
    by_truth = testing.main(["--run", str(run), *words])
    labels = json.loads(
        (Shapes(root=run.parent / "shapes", train=6, val=8).folder / LABELS).read_text()
    )
    (tmp_path / "pseudo.json").write_text(
        json.dumps(labels | {"annotations": labels["annotations"][::2]})
    )
    taught = shutil.copytree(run, tmp_path / "taught")
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["data"]["init_args"]["labels"] = str(tmp_path / "pseudo.json")
    (taught / "config.yaml").write_text(yaml.safe_dump(config))
    assert testing.main(["--run", str(taught), *words]).overall == pytest.approx(
        by_truth.overall, nan_ok=True
    )


def test_a_model_that_finds_nothing_is_judged(place, data_words, capsys):
    blind = train(place, data_words, "blind", "--model.blind", "true")
    metrics = testing.main(["--run", str(blind), "--accelerator", "cpu"])
    assert "finds nothing" in capsys.readouterr().out
    assert metrics.overall["AP50"] == metrics.overall["CorLoc"] == 0


def result(**changes) -> list[dict]:
    return [{"image_id": 500001, "category_id": 1, "score": 0.5, "bbox": [1, 1, 5, 5], **changes}]


WRONG = {
    "truncated": ('[{"image_id": 1, "cat', "not a whole json file"),
    "empty file": ("", "not a whole json file"),
    "empty list": ("[]", "no predictions"),
    "instances file": ('{"images": []}', "expected a list"),
    "unknown image": (json.dumps(result(image_id=42)), "image 42"),
    "image as text": (json.dumps(result(image_id="a.jpg")), "image_id is 'a.jpg'"),
    "unknown category": (json.dumps(result(category_id=77)), "category 77"),
    "no score": ('[{"image_id": 500001, "category_id": 1}]', "has no score"),
    "score as text": (json.dumps(result(score="high")), "'high'"),
    "half a box": (json.dumps(result(bbox=[1, 2])), "bbox"),
    "polygon": (json.dumps(result(segmentation=[[1, 1, 5, 1, 5, 5]])), "expected an object"),
    "other size": (json.dumps(result(segmentation={"size": [9, 9], "counts": "1"})), "size"),
    "not json objects": ("[3]", "result 1 is 3; expected an object"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_results_files_get_one_clear_line(case, data_words, tmp_path, capsys):
    text, told = WRONG[case]
    file = tmp_path / "mine.json"
    file.write_text(text)
    line = refused(testing, ["--predictions", file, *data_words], capsys)
    assert told in line
    assert "mine.json" in line


def test_wrong_words_get_one_clear_line(run, data_words, tmp_path, capsys):
    assert "mine.json" in refused(
        testing, ["--predictions", tmp_path / "mine.json", *data_words], capsys
    )
    assert "give either" in refused(testing, data_words, capsys)
    assert "--split" in refused(testing, ["--run", run, "--split", "tset"], capsys)
    assert "not the folder of a run" in refused(testing, ["--run", tmp_path], capsys)
    assert "unknown setting 'spilt'; did you mean 'split'?" in refused(
        testing, ["--run", run, "--spilt", "val"], capsys
    )
    assert "not the folder of a run" in refused(
        label, ["--run", tmp_path, "--out", tmp_path / "x.json"], capsys
    )
    assert "out" in refused(label, ["--run", run], capsys)
    assert "run" in refused(predict, ["a.jpg"], capsys)
    assert "--devices many: expected 'int'" in refused(
        predict, ["a.jpg", "--run", run, "--devices", "many"], capsys
    )
    assert "the Trainer refuses" in refused(
        testing, ["--run", run, "--accelerator", "gpuu"], capsys
    )


@pytest.mark.parametrize("verb", [testing, predict, label])
def test_help_is_short_and_says_something_of_each_setting(verb, capsys):
    with pytest.raises(SystemExit) as end:
        verb.main(["--help"])
    assert end.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) < 80
    assert not [line for line in lines if "type:" in line]
    assert any(
        "--run" in line and "Folder of a finished run" in " ".join(lines[i : i + 2])
        for i, line in enumerate(lines)
    )


@pytest.fixture
def of_tags(tmp_path) -> list[str]:
    """Words that evaluate detections of a cat (0.9, 0.2) and a dog (0.6) on images with tags."""
    for name, tags in (("a", "cat"), ("b", "dog"), ("c", "")):
        write_image(tmp_path / f"{name}.png", 0)
        with (tmp_path / "val.csv").open("a") as file:
            file.write(f"{name}.png,{tags}\n")
    shutil.copy(tmp_path / "val.csv", tmp_path / "labels.csv")
    found = [(1, 1, 0.9), (1, 2, 0.6), (3, 1, 0.2)]
    results = [result(image_id=i, category_id=c, score=s)[0] for i, c, s in found]
    (tmp_path / "mine.json").write_text(json.dumps(results))
    words = ["--predictions", tmp_path / "mine.json", "--data", "folder", "--data.root", tmp_path]
    return [str(word) for word in (*words, "--data.proposals", "none")]


def test_images_are_ranked_by_tags_where_nothing_else_is_known(of_tags, tmp_path, capsys):
    metrics = testing.main([*of_tags, "--per_class"])
    printed = capsys.readouterr().out
    assert "no boxes or masks to compare with: images are ranked by tags" in printed
    # the dog is in b, where none was found: a, then b and c together
    assert {name: values["tag_AP"] for name, values in metrics.per_class.items()} == {
        "cat": 1,
        "dog": pytest.approx(1 / 3),
    }
    assert metrics.overall["tag_mAP"] == pytest.approx(2 / 3)
    assert metrics.overall["F1_threshold"] == pytest.approx(0.9)
    assert "66.7" in printed
    page = (tmp_path / "report.html").read_text()
    assert '"role":"truth"' not in page
    assert page.index('"name":"b.png"') < page.index('"name":"a.png"'), "worst first"


def test_nothing_at_all_cannot_be_compared_with(of_tags, tmp_path, capsys):
    image = {"id": 1, "file_name": "a.png", "height": 50, "width": 70}
    classes = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    content = {"images": [image], "annotations": [], "categories": classes}
    (tmp_path / "none.json").write_text(json.dumps(content))
    assert "no boxes, masks or tags" in refused(
        testing, [*of_tags, "--data.val_labels", "none.json"], capsys
    )


def write_image(path: Path, seed: int, size=(50, 70)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8))
    return path


def test_predict_writes_results_and_overlays_and_goes_on_past_broken_images(run, tmp_path, capsys):
    folder, out = tmp_path / "in", tmp_path / "out"
    write_image(folder / "a.png", 0)
    write_image(folder / "deep/a.jpg", 1, (300, 200))
    (folder / "empty.jpg").touch()
    (folder / "text.png").write_text("not an image")
    whole = write_image(tmp_path / "whole.jpg", 2).read_bytes()
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "notes.txt").write_text("not meant")
    words = [folder, tmp_path / "whole.jpg", tmp_path / "absent.jpg", "--run", run, "--out", out]
    with pytest.raises(SystemExit) as end:
        predict.main([*map(str, words), "--accelerator", "cpu", "--workers", "0"])
    assert end.value.code == 2
    told = capsys.readouterr().err.splitlines()
    complaints = [line for line in told if line.startswith("left out")]
    assert len(complaints) == 4
    assert f"note: {folder} has files of other kinds, which are no images: 1 .txt" in told
    assert told[-1].startswith("error: 4 of 7 images failed: ")
    file = out / "predictions.json"
    for name in ("empty.jpg", "text.png", "cut.jpg", "absent.jpg"):
        assert sum(name in line for line in complaints) == 1
        assert name in told[-1]
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(out / "images.json")
        results = coco.loadRes(str(file))
    assert sorted(Path(i["file_name"]).name for i in coco.dataset["images"]) == [
        "a.jpg",
        "a.png",
        "whole.jpg",
    ]
    assert len(results.dataset["annotations"]) == 3
    assert all(
        a["category_id"] == coco.dataset["categories"][0]["id"]
        for a in results.dataset["annotations"]
    )
    overlays = sorted((out / "overlays").iterdir())
    assert [path.name for path in overlays] == ["a-1.jpg", "a-2.jpg", "whole.jpg"]
    drawn = cv2.imread(str(overlays[2]))
    assert max(drawn.shape[:2]) == 800


def test_a_model_that_fails_on_an_image_ends_nothing(run, tmp_path, monkeypatch, capsys):
    from toy_detector import Peeper

    look = Peeper.look

    def stumble(self, sample):
        if sample["size"] == (31, 47):
            raise RuntimeError("CUDA out of memory")
        return look(self, sample)

    monkeypatch.setattr(Peeper, "look", stumble)
    for k, size in enumerate([(50, 70), (31, 47), (40, 40)]):
        write_image(tmp_path / f"in/{k}.png", k, size)
    words = ["--run", run, "--accelerator", "cpu"]
    for verb, argv in (
        (predict, [tmp_path / "in", "--out", tmp_path / "out", "--workers", "0"]),
        (
            label,
            ["--images", tmp_path / "in", "--labels", "tags.csv", "--out", tmp_path / "l.json"],
        ),
    ):
        (tmp_path / "in/tags.csv").write_text(
            "".join(f"{k}.png,yellow-checked box\n" for k in range(3))
        )
        with pytest.raises(SystemExit) as end:
            verb.main([str(word) for word in (*argv, *words)])
        told = capsys.readouterr().err.splitlines()
        assert end.value.code == 2
        assert "1.png (RuntimeError: CUDA out of memory)" in told[-2]
        assert "error: 1 of 3 images failed: " in told[-1]
    images = json.loads((tmp_path / "out/images.json").read_text())["images"]
    assert [Path(image["file_name"]).name for image in images] == ["0.png", "2.png"]
    images = json.loads((tmp_path / "l.json").read_text())["images"]
    assert [image["file_name"] for image in images] == ["0.png", "2.png"]


def test_label_goes_on_past_broken_images_and_writes_formats(run, tmp_path, capsys):
    for k in range(2):
        write_image(tmp_path / f"in/{k}.png", k)
    whole = (tmp_path / "in/0.png").read_bytes()
    (tmp_path / "in/2.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "in/3.png").write_bytes(b"no image")
    (tmp_path / "in/labels.csv").write_text(
        "".join(f"{k}.png,yellow-checked box\n" for k in range(4))
    )
    words = ["--run", run, "--images", tmp_path / "in", "--out", tmp_path / "l.json"]
    words += ["--accelerator", "cpu", "--formats", "[csv,yolo]"]
    told = refused_after_others(label, words, capsys)
    assert "error: 2 of 4 images failed: 2.png, 3.png; " in told
    (tmp_path / "in/broken.csv").write_text("3.png,yellow-checked box\n")
    none = refused_after_others(label, [*words, "--labels", "broken.csv"], capsys)
    assert "broken.csv can be read: " in none
    assert len(json.loads((tmp_path / "l.json").read_text())["images"]) == 2
    assert sorted(path.name for path in (tmp_path / "l-formats").iterdir()) == [
        "counts.csv",
        "objects.csv",
        "yolo",
    ]


def refused_after_others(verb, argv, capsys) -> str:
    with pytest.raises(SystemExit) as end:
        verb.main([str(word) for word in argv])
    assert end.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_long_file_names(run, tmp_path):
    """A name of 250 bytes is legal, and scratch files and shorter suffixes must be, too."""
    name = chr(0x5199) * 82
    write_image(tmp_path / f"in/{name}.jpg", 0)
    write_image(tmp_path / f"in/deep/{name}.jpg", 0)
    words = [tmp_path / "in", "--run", run, "--out", tmp_path / "out", "--workers", "0"]
    words += ["--accelerator", "cpu", "--formats", "[png,cutouts,yolo]", "--score", "0"]
    predict.main([str(word) for word in words])
    for folder in ("overlays", "masks", "yolo/labels"):
        names = [path.name for path in (tmp_path / "out" / folder).iterdir()]
        assert len(names) == 2
        assert all(one.startswith(name[:70]) for one in names)


def test_predict_needs_no_data_set(place, data_words, tmp_path):
    """The classes are in the checkpoint."""
    run = train(place, data_words, "moved")
    config = (
        (run / "config.yaml").read_text().replace(str(place / "shapes"), str(tmp_path / "gone"))
    )
    (run / "config.yaml").write_text(config)
    words = [
        write_image(tmp_path / "a.png", 0),
        "--run",
        run,
        "--out",
        tmp_path / "out",
        "--workers",
        "0",
    ]
    predict.main([*map(str, words), "--accelerator", "cpu"])
    assert not (tmp_path / "gone").exists()


def test_predict_without_any_image_says_so(run, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    with pytest.raises(SystemExit) as end:
        predict.main([str(tmp_path / "in"), "--run", str(run), "--out", str(tmp_path / "out")])
    assert end.value.code == 2
    assert capsys.readouterr().err.strip().splitlines()[-1].startswith("error: none of the images")
    assert not (tmp_path / "out").exists()


def test_odd_names_end_no_batch(run, tmp_path, capsys):
    write_image(tmp_path / "good.png", 0)
    (tmp_path / "two\nlines.png").touch()
    os.mkfifo(tmp_path / "pipe.png")
    names = ["good.png", "two\nlines.png", "pipe.png", 300 * "y" + ".png"]
    words = [*(tmp_path / name for name in names), "--run", run, "--out", tmp_path / "out"]
    with pytest.raises(SystemExit):
        predict.main([*map(str, words), "--accelerator", "cpu", "--workers", "0"])
    told = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in told] == [*["left out"] * 3, "error"]
    assert told[-1].startswith("error: 3 of 4 images failed: ")
    assert len(json.loads((tmp_path / "out/images.json").read_text())["images"]) == 1


@pytest.mark.parametrize("verb", ["predict", "label", "test"])
def test_what_cannot_be_written_is_told_before_the_work(run, tmp_path, capsys, verb, monkeypatch):
    monkeypatch.setattr(Peeper, "look", lambda *_: pytest.fail("worked"))
    (tmp_path / "file").write_text("mine")
    image, out = write_image(tmp_path / "a.png", 0), tmp_path / "file"
    verbs = {
        "predict": (predict, [image, "--out", out, "--workers", "0"]),
        "label": (label, ["--out", out / "labels.json"]),
        "test": (testing, ["--out", out]),
    }
    main, words = verbs[verb]
    line = refused(main, ["--run", run, "--accelerator", "cpu", *words], capsys)
    assert line.startswith(f"error: cannot write {out}/")
    assert out.read_text() == "mine"


def test_settings_of_verbs_that_cannot_be_meant(run, tmp_path, capsys):
    out, image = tmp_path / "out", write_image(tmp_path / "a.png", 0)
    words = ["--run", run, "--out", out]
    line = refused(predict, [image, *words, "--score", "7"], capsys)
    assert line == "error: predict: score 7.0: give a number of at least 0, at most 1"
    assert "[csv,yolo]" in refused(predict, [image, *words, "--formats", "csv,yolo"], capsys)
    assert "--split tset: give train" in refused(label, [*words, "--split", "tset"], capsys)
    for place in (tmp_path / "nowhere", image):
        assert f"no folder {place}" in refused(label, [*words, "--images", place], capsys)
    assert not out.exists()


def test_label_writes_annotations_of_tagged_classes(run, tmp_path, capsys):
    out = tmp_path / "pseudo.json"
    label.main(["--run", str(run), "--out", str(out), "--accelerator", "cpu"])
    assert str(out) in capsys.readouterr().out
    shapes = Shapes(root=run.parent / "shapes", train=6, val=8, proposals="none")
    truth = shapes.index("train")
    made = read_coco(out, truth.root)
    assert [i["file_name"] for i in made.images] == [i["file_name"] for i in truth.images]
    for image in truth.images:
        number = image["id"]
        found = made.annotations[number]
        assert set(made.tags[number]) <= set(truth.tags[number])
        assert {a["category_id"] for a in found} <= {
            a["category_id"] for a in truth.annotations[number]
        }
    annotations = json.loads(out.read_text())["annotations"]
    assert annotations
    for a in annotations:
        assert {
            "id",
            "image_id",
            "category_id",
            "bbox",
            "area",
            "segmentation",
            "iscrowd",
            "score",
            "source",
            "ignore",
        } <= a.keys()
        assert a["source"].startswith("Peeper trained from tags")


def test_label_takes_the_models_own_way(run, tmp_path, monkeypatch):
    from toy_detector import Peeper

    def one_each(self, batch, score_threshold=0.5):
        return [
            self.look(s)._replace(labels=torch.tensor([4]), **first(self.look(s))) for s in batch
        ]

    def first(p):
        return {"boxes": p.boxes[:1], "scores": p.scores[:1], "masks": p.masks[:1]}

    monkeypatch.setattr(Peeper, "label", one_each, raising=False)
    out = tmp_path / "pseudo.json"
    label.main(["--run", str(run), "--out", str(out), "--accelerator", "cpu", "--split", "val"])
    annotations = json.loads(out.read_text())["annotations"]
    assert [a["category_id"] for a in annotations] == [5] * 8


detections = st.lists(
    st.tuples(st.integers(0, 3), st.sampled_from([0.1, 0.3, 0.5, 0.7])), max_size=8
)


@given(detections, st.tuples(*[st.integers(0, 1)] * 4), st.sampled_from([0.2, 0.5, 2.0]))
def test_tagged_keeps_the_best_of_each_class_and_what_is_sure(found, tags, least):
    labels, scores = torch.tensor([c for c, _ in found]).long(), torch.tensor([s for _, s in found])
    boxes = torch.arange(len(found))[:, None].repeat(1, 4).float()
    masks = [{"size": [1, 1], "counts": str(i)} for i in range(len(found))]
    kept = tagged(
        Prediction(1, (9, 9), boxes, scores, labels, masks), torch.tensor(tags).float(), least
    )
    expected = []
    for i, (c, s) in enumerate(found):
        of_class = [j for j, (other, _) in enumerate(found) if other == c]
        best = max(of_class, key=lambda j: (found[j][1], -j))
        if tags[c] and (i == best or torch.tensor(s) >= least):
            expected.append(i)
    assert kept.boxes[:, 0].tolist() == expected
    assert [int(m["counts"]) for m in kept.masks] == expected
    assert kept.labels.tolist() == [found[i][0] for i in expected]


def test_the_best_checkpoint_on_request(place, data_words, capsys):
    words = ["--model", "toy_detector.Tired", "--trainer.val_check_interval", "2"]
    run = train(place, data_words, "best", *words)
    said = capsys.readouterr().out
    assert "best.ckpt of step 2  val/AP50" in said
    last, best = (load(run, checkpoint=which) for which in ("last", "best"))
    assert 0 < best.model.weight.item() < last.model.weight.item()
    assert best.threshold > last.threshold == UNKNOWN_THRESHOLD, "each has its own"
    testing.main(["--run", str(run), "--checkpoint", "best"])
    assert (run / "test-val-best/metrics.json").is_file()
    assert not (run / "test-val").exists()


def test_no_best_checkpoint(run):
    with pytest.raises(InputError, match="validation ran at the end alone; leave out --checkpoint"):
        load(run, checkpoint="best")
