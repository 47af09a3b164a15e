"""What a run says it cost."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from pathlib import Path

import pytest

import wsis
from wsis import fit
from wsis.runs import cost

pytestmark = pytest.mark.slow

WORDS = [
    "--data",
    "toy_plugins.Data",
    "--trainer.accelerator",
    "cpu",
    "--trainer.log_every_n_steps",
    "1",
]


def entries(run: Path) -> dict[str, dict]:
    return {path.parent.name: json.loads(path.read_text()) for path in run.glob("*/stage.json")}


def test_stages_say_minutes_memory_device_and_commit(tmp_path):
    begun = time.monotonic()
    fit.main(
        [
            "--model",
            "toy_plugins.Staged",
            *WORDS,
            "--run_dir",
            str(tmp_path / "run"),
            "--trainer.max_steps",
            "3",
        ]
    )
    minutes = (time.monotonic() - begun) / 60
    stages = entries(tmp_path / "run")
    assert len(stages) >= 3
    assert 0 < sum(stage["minutes"] for stage in stages.values()) <= minutes
    for stage in stages.values():
        assert 50e6 < stage["memory"] < 64e9
        assert stage["device"] == "cpu"
        assert stage["commit"] == cost.commit()


def test_a_continued_training_counts_on_from_its_checkpoint():
    clock = cost.Clock()
    clock.load_state_dict({"seconds": 100.0})
    clock.on_train_start(None, None)
    time.sleep(0.02)
    saved = clock.state_dict()["seconds"]
    assert 100.02 <= saved < 101
    clock.on_train_end(None, None)
    assert clock.seconds >= saved
    time.sleep(0.02)
    assert clock.state_dict()["seconds"] == clock.seconds  # time after training does not count
    again = cost.Clock()
    again.load_state_dict({"seconds": saved})
    assert again.state_dict() == {"seconds": saved}


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A package in a repository of its own."""
    if shutil.which("git") is None:
        pytest.skip("no git")
    package = tmp_path / "repository/wsis"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    monkeypatch.setattr(cost, "__file__", str(package / "runs/cost.py"))
    cost.commit.cache_clear()
    yield package
    cost.commit.cache_clear()


def git(folder: Path, *words: str) -> str:
    who = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    return subprocess.run(
        ["git", "-C", str(folder), *who, *words], capture_output=True, text=True, check=True
    ).stdout.strip()


def test_commit_is_that_of_the_checkout_and_tells_changes(checkout):
    git(checkout.parent, "init", "-q")
    git(checkout.parent, "add", ".")
    git(checkout.parent, "commit", "-q", "-m", "one")
    head = git(checkout.parent, "rev-parse", "HEAD")
    assert cost.commit() == head[:10]
    (checkout / "__init__.py").write_text("changed = True\n")
    cost.commit.cache_clear()
    assert cost.commit() == head[:10] + "+"


def test_an_installed_package_says_its_version(checkout):
    assert cost.commit() == wsis.__version__
    git(
        checkout.parents[1], "init", "-q"
    )  # somebody's repository around an environment is not ours
    git(checkout.parents[1], "commit", "-q", "--allow-empty", "-m", "theirs")
    cost.commit.cache_clear()
    assert cost.commit() == wsis.__version__
