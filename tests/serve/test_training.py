"""Retraining: what is started, stopped, continued and found; one small training for real."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import yaml
from PIL import Image
from pycocotools import mask as rle
from test_store import change, square, write_photos

from wsis.errors import InputError
from wsis.runs.jobs import Job
from wsis.runs.record import StageRecord, write_stage
from wsis.serve import training as module
from wsis.serve.store import Store
from wsis.serve.suggestions import read_found
from wsis.serve.training import Recipe, Training, with_points


@pytest.fixture
def store(tmp_path):
    write_photos(tmp_path / "photos")
    store = Store(tmp_path / "photos", classes=["cat", "dog"])
    change(store, "0.jpg", done=True, tags=["cat"])
    yield store
    store.close()


def finished(run: Path) -> None:
    """Leave what wsis.fit does."""
    (run / "1-cam/checkpoints").mkdir(parents=True, exist_ok=True)
    settings = {"model": {"class_path": "wsis.models.cam.CAM"}, "data": {"class_path": "folder"}}
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    settings, metrics = {"model": "wsis.models.cam.CAM"}, {"val/F1_threshold": 0.4}
    write_stage(run / "1-cam", StageRecord(1, "digest", settings, finished=True, metrics=metrics))


def predicted(run: Path, root: Path) -> None:
    """Leave what wsis.predict does."""
    images = [
        {"id": k, "file_name": f"{root.resolve()}/{k}.jpg", "height": 40, "width": 60}
        for k in range(3)
    ]
    results = [
        {"image_id": 1, "category_id": 7, "score": s, "bbox": [10, 5, 20, 10], "segmentation": square()}
        for s in (0.09, 0.5, 0.2)
    ]  # fmt: skip
    (run / "serve").mkdir(exist_ok=True)
    categories = [{"id": 7, "name": "cat"}]
    (run / "serve/images.json").write_text(json.dumps({"images": images, "categories": categories}))
    (run / "serve/predictions.json").write_text(json.dumps(results))


@pytest.fixture
def started(monkeypatch, store) -> list[Job]:
    """Jobs in the order in which they are started; `sleep` in their settings takes long."""
    jobs: list[Job] = []

    def start(job: Job, place: object) -> subprocess.Popen[bytes]:
        jobs.append(job)
        run = job.log.parent
        run.mkdir(parents=True, exist_ok=True)
        job.log.write_text(f"{job.verb}: step 5 of 10\n")
        if "sleep" in job.words:
            return subprocess.Popen(["sleep", "60"])
        if "fail" in job.words:
            job.log.write_text("error: no memory; have more\n")
            return subprocess.Popen(["false"])
        finished(run) if job.verb == "fit" else predicted(run, store.root)
        return subprocess.Popen(["true"])

    monkeypatch.setattr(module, "start", start)
    return jobs


def words_after(job: Job, flag: str) -> str:
    return job.words[job.words.index(flag) + 1]


def test_it_trains_on_a_copy_of_the_labels_then_predicts(store, tmp_path, started):
    training = Training(
        store.root, Recipe("cam", ("--config", "mine.yaml")), runs=tmp_path / "runs"
    )
    training.start(store)
    training.wait()
    fit, predict = started
    assert (fit.verb, predict.verb) == ("fit", "predict")
    labels = json.loads(Path(words_after(fit, "--data.labels")).read_text())
    assert [image["file_name"] for image in labels["images"]] == ["0.jpg"]
    assert "wsis" not in labels
    assert words_after(fit, "--model") == "cam"
    assert words_after(fit, "--config") == "mine.yaml"
    run = Path(words_after(fit, "--run_dir"))
    assert words_after(predict, "--run") == str(run)
    state = training.state()
    assert (state["state"], state["suggests"]) == ("finished", str(run))
    (stage,) = state["stages"]
    assert (stage["name"], stage["finished"]) == ("cam", True)
    assert training.found.threshold == 0.4
    scores = [s["score"] for s in training.found.objects["1.jpg"]]
    assert scores == [0.5, 0.2]  # below a quarter of the threshold there is nothing to learn of
    assert training.found.objects["0.jpg"] == []


def test_masks_have_a_point_for_methods_that_learn_from_points():
    ring = [[0, 0, 30, 0, 30, 30, 0, 30]]
    things = [
        {"image_id": 5, "segmentation": ring},
        {"image_id": 5, "segmentation": square()},
        {"image_id": 5, "segmentation": square(), "points": [[1, 2, 0]]},
        {"image_id": 5, "bbox": [0, 0, 9, 9]},
        {"image_id": 5},
    ]
    images = [{"id": 5, "height": 40, "width": 60}]
    given = {"images": images, "annotations": things, "categories": []}
    made = json.loads(with_points(json.dumps(given).encode()))["annotations"]
    ((x, y, label),) = made[0]["points"]
    assert (label, abs(x - 15) <= 1, abs(y - 15) <= 1) == (1, True, True)
    ((x, y, label),) = made[1]["points"]
    assert rle.decode(square())[int(y), int(x)] == label == 1
    assert made[2:] == things[2:]


def test_the_same_labels_continue_and_others_begin_anew(store, tmp_path, started):
    training = Training(store.root, Recipe("cam"), runs=tmp_path / "runs")
    places = []
    for tags in (["cat"], ["cat"], ["dog"]):
        change(store, "1.jpg", done=True, tags=tags)
        training.start(store)
        training.wait()
        places.append(words_after(started[-2], "--run_dir"))
    assert places[0] == places[1] != places[2]
    assert {words_after(job, "--reuse") for job in started if job.verb == "fit"} == {
        str(tmp_path / "runs")
    }
    assert words_after(started[-2], "--config") == f"{places[0]}/config.yaml"  # its own recipe


def test_one_at_a_time_and_stopping(store, tmp_path, started):
    training = Training(store.root, Recipe("cam", ("sleep",)), runs=tmp_path / "runs")
    training.start(store)
    with pytest.raises(InputError, match="is running"):
        training.start(store)
    while not started or training._process is None:
        pass
    assert training.state()["line"] == "fit: step 5 of 10"
    training.stop()
    training.wait()
    assert training.state()["state"] == "stopped"
    assert len(started) == 1
    assert training.run is None


def test_a_failure_is_told(store, tmp_path, started):
    training = Training(store.root, Recipe("cam", ("fail",)), runs=tmp_path / "runs")
    training.start(store)
    training.wait()
    assert training.state()["state"] == "failed"
    assert training.state()["line"] == "error: no memory; have more"


def test_a_run_is_predicted_once(store, tmp_path, started):
    run = tmp_path / "run"
    finished(run)
    training = Training(store.root, Recipe("cam"), run, tmp_path / "runs")
    assert training.found is None
    training.predict()
    training.wait()
    assert training.found is not None
    again = Training(store.root, Recipe("cam"), run, tmp_path / "runs")
    again.predict()
    assert [job.verb for job in started] == ["predict"]


def test_a_folder_that_is_no_run(store, tmp_path):
    with pytest.raises(InputError):
        read_found(tmp_path, store.root)


@pytest.mark.slow
@pytest.mark.timeout(1200)  # two processes
def test_a_small_training_for_real(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for k in range(6):
        Image.new("RGB", (64, 48), ("red", "blue")[k % 2]).save(folder / f"{k}.png")
    store = Store(folder, classes=["red", "blue"])
    for k in range(4):
        change(store, f"{k}.png", done=True, tags=[("red", "blue")[k % 2]])
    small = {"backbone": {"name": "test_byobnet", "weights": "none", "frozen_stages": 0}}
    recipe = {"model": {"class_path": "cam", "init_args": small}, "trainer": {"max_steps": 2}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    words = ("--config", str(tmp_path / "recipe.yaml"))
    training = Training(folder, Recipe("cam", words, "cpu"), runs=tmp_path / "runs")
    training.start(store)
    training.wait()
    assert training.state()["state"] == "finished", training.state()["line"]
    assert {*training.found.objects} == {f"{k}.png" for k in range(6)}
    store.close()
