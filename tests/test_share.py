"""A shared model predicts what its run predicts, holds nothing that is private, and trusts nobody."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from sharing.test_archives import content_of, pack
from sharing.test_hub import client  # noqa: F401
from toy_shared import BACKBONE, METRICS, STAGE, make_run

import wsis
from wsis import fit, label, predict
from wsis import test as testing
from wsis.datasets.shapes import Shapes
from wsis.errors import InputError
from wsis.inference import UNKNOWN_THRESHOLD
from wsis.runs.record import is_available
from wsis.share import main, share
from wsis.sharing.folder import write_digests
from wsis.types import Prediction

FILES = {"model.safetensors", "model.json", "config.yaml", "README.md", "digests.json"}
FILES |= {f"{STAGE}/stage.json"}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("share")


@pytest.fixture(scope="module")
def run(place) -> Path:
    torch.manual_seed(3)
    model = wsis.CAM(num_classes=8, backbone={**BACKBONE, "mean": (0.5, 0.4, 0.3)}, threshold=0.2)
    return make_run(place / "run", model)


@pytest.fixture(scope="module")
def shared(run, place) -> Path:
    share(run, str(place / "shared"))
    return place / "shared"


@pytest.fixture
def copy(shared, tmp_path) -> Path:
    return shutil.copytree(shared, tmp_path / "copy")


def same(a: Prediction, b: Prediction) -> bool:
    tensors = zip(a[2:5], b[2:5], strict=True)
    return all(torch.equal(x, y) for x, y in tensors) and a.masks == b.masks


def refused(argv, capsys, verb=main) -> str:
    with pytest.raises(SystemExit) as end:
        verb([str(word) for word in argv])
    assert end.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


@pytest.mark.slow
def test_it_is_the_run_to_the_bit(run, shared):
    assert content_of(shared).keys() == FILES
    one, two = wsis.load(run), wsis.load(shared)
    assert not two.model.training
    assert dict(one.model.hparams) == dict(two.model.hparams)
    assert one.model.class_names == two.model.class_names == tuple(Shapes().class_names)
    assert one.threshold == two.threshold == METRICS["val/F1_threshold"] != UNKNOWN_THRESHOLD
    for (name, a), (other, b) in zip(
        one.model.state_dict().items(), two.model.state_dict().items(), strict=True
    ):
        assert name == other
        assert torch.equal(a, b)
    image = np.random.default_rng(0).integers(0, 255, (90, 120, 3), dtype=np.uint8)
    found = [wsis.predict(loaded.model, image) for loaded in (one, two)]
    assert len(found[0].scores) > 0
    assert same(*found)
    assert found[0].names == found[1].names


@pytest.mark.slow
def test_archives_and_names_are_folders(shared, client, tmp_path):  # noqa: F811
    state = load_file(shared / "model.safetensors")
    archive = pack(tmp_path / "a.tgz", content_of(shared))
    share(shared, "hub:me/cam")
    for one in (archive, "hub:me/cam"):
        loaded = wsis.load(one).model.state_dict()
        assert all(torch.equal(loaded[name], state[name]) for name in state)
        into = wsis.CAM(num_classes=3, backbone={**BACKBONE, "weights": str(one)})
        mine = into.classifier.backbone.state_dict()
        assert all(torch.equal(mine[name], state[f"classifier.backbone.{name}"]) for name in mine)


def test_no_path_of_this_machine(run, shared):
    """Nor who logged, nor callbacks of the user's, which a file may not name."""
    for name, content in content_of(shared).items():
        for word in (str(run.parent), "/secret", "somebody", str(Path.home()), "photos"):
            assert word.encode() not in content, name
    config = yaml.safe_load((shared / "config.yaml").read_text())
    assert config["trainer"] == {"max_steps": 5}
    assert config["data"]["init_args"]["root"] == "shapes"


def test_digests(shared):
    digests = json.loads((shared / "digests.json").read_text())
    assert digests.keys() == FILES - {"digests.json"}
    for name, digest in digests.items():
        assert digest == hashlib.sha256((shared / name).read_bytes()).hexdigest()


def test_card(shared):
    card = (shared / "README.md").read_text()
    _, front, text = card.split("---\n", 2)
    content = yaml.safe_load(front)
    metrics = content["model-index"][0]["results"][0]["metrics"]
    assert {m["type"]: m["value"] for m in metrics} == {"AP": 25.0, "AP50": 62.5}
    assert "license" not in content
    for told in (
        *("| learns from | tags |", "| AP50 | 62.5 |", "| backbone | test_byobnet |", "abc1234567"),
        *("| seed | 7 |", "5 steps, 2.5 min", "On validation images.", wsis.__version__),
        *("wsis.load('shared')", "8 classes: red-striped egg", "| segments | none |"),
    ):
        assert told in text
    assert "example.jpg" not in text


def test_card_is_understood_by_the_hub(shared):
    hub = pytest.importorskip("huggingface_hub")
    data = hub.ModelCard.load(shared / "README.md").data
    assert data.library_name == "wsis"
    assert {r.metric_type: r.metric_value for r in data.eval_results} == {"AP": 25.0, "AP50": 62.5}


@pytest.mark.slow
def test_what_the_card_says_of_other_runs(run, place, tmp_path):
    model = wsis.load(run).model
    photos = {"class_path": "wsis.datasets.folder.Folder", "init_args": {"root": str(tmp_path)}}
    photos["init_args"]["proposals"] = str(tmp_path / "segments.sqlite")
    found = {"metrics": {"train/tag_mAP": 0.5}, "best": {"step": 2, "train/tag_mAP": 0.75}}
    other = make_run(tmp_path / "other", model, photos, **found)
    shutil.copy(other / STAGE / "checkpoints/last.ckpt", other / STAGE / "checkpoints/best.ckpt")
    share(other, str(tmp_path / "out"), checkpoint="best", licence="apache-2.0")
    card = (tmp_path / "out/README.md").read_text()
    assert str(tmp_path) not in card
    assert "| segments | segments.sqlite, trained from unknown |" in card
    assert "license: apache-2.0\n" in card
    assert "| licence of these weights | apache-2.0 |" in card
    assert "| licence of the data | unknown |" in card
    assert "| tag_mAP | 75.0 |" in card
    assert "images it was trained on" in card
    assert "chosen by these figures" in card
    assert "| training | 2 steps" in card


def test_nothing_is_unpickled(shared, monkeypatch):
    """A pickle in place of the weights is no safetensors; torch.load is not asked."""

    def stop(*_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.setattr(torch, "load", stop)
    wsis.load(shared)


def test_a_pickle_in_place_of_weights(copy):
    torch.save({"state_dict": {}}, copy / "model.safetensors")
    seal(copy)
    assert "is damaged, or of another kind" in line(copy)


def seal(folder: Path) -> None:
    (folder / "digests.json").unlink()
    write_digests(folder)


def line(place: object, **options: str) -> str:
    with pytest.raises(InputError) as caught:
        wsis.load(place, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def change(folder: Path, name: str, *keys: str, value: object) -> None:
    """Change a setting, with the digest that goes with it."""
    path = folder / name
    inside = content = yaml.safe_load(path.read_text())
    for key in keys[:-1]:
        inside = inside[key]
    inside[keys[-1]] = value
    path.write_text(json.dumps(content))
    seal(folder)


@pytest.mark.parametrize(
    ("name", "keys", "value", "told"),
    [
        ("config.yaml", ("model", "class_path"), "os.system", "model os.system is not installed"),
        ("config.yaml", ("data", "class_path"), "evil.Data", "data evil.Data is not installed"),
        ("config.yaml", ("data", "class_path"), "gone", "no data is called 'gone'"),
        ("config.yaml", ("data", "init_args", "trian"), 3, "did you mean 'data.train'?"),
        ("config.yaml", ("trainer", "callbacks"), [{"class_path": "a.B"}], "names the code a.B"),
        (f"{STAGE}/stage.json", ("settings", "model"), "os.system", "is not installed"),
        (f"{STAGE}/stage.json", ("metrics",), 3, "stage.json is damaged"),
        ("model.json", ("hyper_parameters", "nsm"), 3, "did you mean 'model.nms'?"),
        ("model.json", ("hyper_parameters", "nms"), "high", "model.nms high: expected"),
        ("model.json", ("hyper_parameters", "num_classes"), 3, "written by another version of CAM"),
        ("model.json", ("hyper_parameters",), 3, "does not describe a shared model"),
        ("model.json", ("classes",), {"categories": [{"id": 1}]}, "does not describe"),
    ],
)
def test_settings_are_checked(name, keys, value, told, copy):
    change(copy, name, *keys, value=value)
    assert told in line(copy)


def test_what_is_not_there(shared):
    assert "has no trained stage '2-more'; it has 1-net" in line(shared, stage="2-more")
    assert "is shared, with one checkpoint" in line(shared, checkpoint="best")


@pytest.mark.slow
def test_written_whole_or_not_at_all(run, tmp_path, monkeypatch, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/notes.txt").touch()
    assert "not an empty folder" in refused([run, tmp_path / "full"], capsys)
    assert "not an empty folder" in refused([run, tmp_path / "full/notes.txt"], capsys)
    assert "not the folder of a run" in refused([tmp_path, tmp_path / "new"], capsys)
    (tmp_path / "empty").mkdir()

    def fail(*_: object) -> None:
        raise InputError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr("wsis.share.write_digests", fail)
        assert "disk full" in refused([run, tmp_path / "new"], capsys)
    assert {path.name for path in tmp_path.iterdir()} == {"full", "empty"}
    assert main([str(run), str(tmp_path / "empty")]) == str(tmp_path / "empty")
    assert content_of(tmp_path / "empty").keys() == FILES


def test_a_shared_folder_is_uploaded_not_shared_again(shared, copy, client, tmp_path, capsys):  # noqa: F811
    assert "is shared already" in refused([shared, tmp_path / "new"], capsys)
    (copy / "README.md").write_text("My own words.")
    assert main([str(copy), "hub:me/own"]) == "https://huggingface.co/me/own"
    assert (tmp_path / "hub/me/own/README.md").read_text() == "My own words."
    client.token = None
    assert "not logged in" in refused([copy, "hub:me/own"], capsys)


def test_no_training_goes_on_from_it(shared, capsys):
    assert "is a shared model" in refused(["--resume", shared], capsys, fit.main)


def test_reuse_does_not_take_it_for_a_run(run, copy, tmp_path):
    new = tmp_path / "new" / STAGE
    assert is_available(new, "0f", 5, run.parent)
    assert not is_available(new, "0f", 5, copy.parent)


@pytest.fixture(scope="module")
def drawn(place) -> Path:
    """A run whose data are there."""
    torch.manual_seed(3)
    model = wsis.CAM(num_classes=8, backbone=BACKBONE)
    run = make_run(place / "drawn", model)
    Shapes(root=place / "photos/shapes", train=2, val=2).index("val")
    return run


@pytest.mark.slow
def test_picture_of_generated_images(drawn, tmp_path, capsys):
    share(drawn, str(tmp_path / "a"))
    share(drawn, str(tmp_path / "b"), picture=False)
    assert content_of(tmp_path / "a").keys() - content_of(tmp_path / "b").keys() == {"example.jpg"}
    with Image.open(tmp_path / "a/example.jpg") as picture:
        assert max(picture.size) == 800
    card = (tmp_path / "a/README.md").read_text()
    assert "](example.jpg)" in card
    assert "shapes, 2 training images" in card


@pytest.mark.slow
def test_no_picture_of_photos_unless_told(drawn, tmp_path, capsys):
    photos = {"class_path": "wsis.datasets.folder.Folder", "init_args": {"root": str(tmp_path)}}
    run = make_run(tmp_path / "run", wsis.load(drawn).model, photos)
    share(run, str(tmp_path / "a"))
    assert not (tmp_path / "a/example.jpg").exists()
    with pytest.raises(InputError):
        share(run, str(tmp_path / "b"), picture=True)
    assert not (tmp_path / "b").exists()


@pytest.mark.slow
def test_the_verbs_take_it(drawn, tmp_path, monkeypatch):
    """predict, test and label do with an archive what they do with the run."""
    share(drawn, str(tmp_path / "shared"), picture=False)
    archive = pack(tmp_path / "shared.zip", content_of(tmp_path / "shared"))
    monkeypatch.chdir(drawn.parent / "photos")  # the shared settings say that the data are `shapes`
    image = next(Path("shapes").rglob("val2017/*.jpg"))
    results = []
    for given in (drawn, archive):
        out = tmp_path / f"of-{given.name}"
        words = ["--run", str(given), "--accelerator", "cpu"]
        predict.main([str(image), *words, "--out", str(out / "found"), "--workers", "0"])
        testing.main([*words, "--out", str(out / "test")])
        label.main([*words, "--out", str(out / "labels.json"), "--split", "val"])
        files = ("found/predictions.json", "found/images.json", "test/predictions.json")
        files = (*files, "test/metrics.json", "labels.json")
        results.append([(out / name).read_text().replace(str(given), "") for name in files])
    results[1][3] = results[1][3].replace(json.loads(results[1][3])["predictions"], "")
    assert results[0] == results[1]
    assert len(json.loads(results[0][0])) > 0
    monkeypatch.chdir(tmp_path)
    testing.main(["--run", str(archive), "--data.root", str(drawn.parent / "photos/shapes")])
    assert Path("test-val/report.html").is_file()
