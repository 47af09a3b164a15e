"""W&B without a server: what was logged is read back from its own files."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import pytorch_lightning as pl
import wandb
from metrics.test_evaluation import Oracle, SceneData
from PIL import Image
from wandb_files import read_wandb

from wsis import fit
from wsis.metrics import Evaluation
from wsis.runs.loggers import HOSTS, WandB

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def no_key(tmp_path, monkeypatch):
    for name in ("WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_MODE", "WANDB_SWEEP_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))  # no netrc: offline by itself
    yield
    wandb.finish()


def logged(folder):
    wandb.finish()
    return [read_wandb(path) for path in sorted(folder.rglob("*.wandb"))]


WORDS = "--model toy_plugins.Staged --data toy_plugins.Data --trainer.accelerator cpu --trainer.log_every_n_steps 1"


@pytest.mark.slow
def test_each_stage_is_a_run_with_its_own_settings_and_curves(tmp_path, capfd):
    own = f"--trainer.max_steps 3 --model.width 5 --wandb.project trial --wandb.group pair --run_dir {tmp_path}/run"
    fit.main(f"{WORDS} {own}".split())
    first, last = logged(tmp_path / "run/1-first"), logged(tmp_path / "run/3-net")
    assert [run.name for run in (*first, *last)] == ["run/1-first", "run/3-net"]
    assert [run.job_type for run in (*first, *last)] == ["first", "net"]
    said = "".join(capfd.readouterr())
    assert "anonymous" not in said
    assert "Run history" not in said
    for (run,), stage, steps in ((first, "1-first", 4), (last, "3-net", 3)):
        assert (run.project, run.group) == ("trial", "pair")
        assert run.config["trainer"]["max_steps"] == steps
        assert run.config["model"]["init_args"]["width"] == 5
        with open(tmp_path / "run" / stage / "metrics.csv") as file:
            rows = list(csv.DictReader(file))
        assert len(run.series("loss")) == steps
        assert run.series("train/lr") == pytest.approx(steps * [0.2 if stage == "1-first" else 0.1])
        for name in ("loss", "val/loss"):
            assert run.series(name) == pytest.approx(
                [float(row[name]) for row in rows if row[name]]
            )


@pytest.mark.slow
def test_a_sweep_has_one_run_for_all_stages(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep")
    monkeypatch.setenv("WANDB_RUN_ID", "its-run")
    fit.main(
        f"{WORDS} --trainer.max_steps 3 --wandb.project trial --run_dir {tmp_path}/run".split()
    )
    (run,) = logged(tmp_path / "run")
    assert len(run.series("loss")) == 4 + 3


@pytest.mark.slow
def test_the_last_stage_has_a_tag(tmp_path):
    planned = ["1-classifier", "2-pdsl"]
    for stage in planned:
        WandB("trial").logger(tmp_path, stage, planned).log_metrics({"loss": 1.0})
    assert [(run.job_type, run.tags) for run in logged(tmp_path)] == [
        ("classifier", []),
        ("pdsl", ["final"]),
    ]


class Drawn(Oracle):
    """Logs two pictures."""

    def configure_callbacks(self):
        return [Evaluation(pictures=2)]


@pytest.mark.slow
def test_pictures_with_masks(tmp_path):
    loggers = [WandB("trial").logger(tmp_path, "train")]
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = pl.Trainer(logger=loggers, default_root_dir=tmp_path, **quiet)
    trainer.validate(Drawn(), SceneData(), verbose=False)
    (run,) = logged(tmp_path)
    for number in range(2):
        (found,) = run.series(f"val/pictures/{number}")
        picture = np.asarray(Image.open(run.files / found["filenames"][0]))
        assert picture.shape[:2] == (found["height"], found["width"])
        assert picture.shape[1] > 2 * 512  # prediction beside truth
        assert (
            len(np.unique(picture.reshape(-1, 3), axis=0)) > 3
        )  # a uniform image, and what is drawn on it
    assert run.series("val/pictures/2") == []


@pytest.mark.slow
def test_table(tmp_path):
    rows = [{"row": "a", "AP": "12.5", "paper": ""}, {"row": "b", "AP": "", "paper": "3"}]
    WandB("trial", group="pair").log_table(tmp_path, "final", rows)
    (run,) = logged(tmp_path)
    assert (run.name, run.group, run.project) == ("final", "pair", "trial")
    (found,) = run.series("final")
    assert found["_type"] == "table-file"
    table = json.loads((run.files / found["path"]).read_text())
    assert table == {
        "columns": ["row", "AP", "paper"],
        "data": [["a", 12.5, None], ["b", None, 3.0]],
        **{k: table[k] for k in table.keys() - {"columns", "data"}},
    }
    assert {(a.name, a.type) for a in run.artifacts} >= {("final", "table")}
    (artifact,) = [a for a in run.artifacts if a.type == "table"]
    assert "final.table.json" in [entry.path for entry in artifact.manifest.contents]


@pytest.mark.parametrize(
    ("key", "mode", "offline"),
    [
        ("", "auto", True),
        ("k" * 40, "auto", False),
        ("k" * 40, "offline", True),
        ("", "online", False),
    ],
)
def test_offline_where_there_is_no_key(key, mode, offline, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", key)
    assert WandB("trial", mode=mode).offline == offline


@pytest.mark.parametrize("variable", ["offline", "disabled"])
def test_the_variable_decides_before_the_key(variable, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    monkeypatch.setenv("WANDB_MODE", variable)
    assert WandB("trial").offline == (variable == "offline")
    assert not WandB("trial", mode="online").offline


@pytest.mark.parametrize(
    ("host", "server", "offline"),
    [
        (HOSTS[0], None, False),
        (HOSTS[1], None, False),
        ("own.org", "https://own.org/", False),
        (HOSTS[0], "https://own.org", True),
    ],
)
def test_the_key_that_login_wrote(host, server, offline, tmp_path, monkeypatch):
    if server:
        monkeypatch.setenv("WANDB_BASE_URL", server)
    (tmp_path / ".netrc").write_text(f"machine {host}\n  login user\n  password {'k' * 40}\n")
    (tmp_path / ".netrc").chmod(0o600)
    assert WandB("trial").offline == offline
