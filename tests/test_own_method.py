"""The example of a method of one's own, as if it were installed: help, training, testing and comparison find it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

EXAMPLE = Path(__file__).parents[1] / "examples/wsddn"


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> dict[str, str]:
    """An environment that has what installing the example writes, by its own pyproject.toml."""
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]
    site = tmp_path_factory.mktemp("site")
    info = site / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    info.joinpath("METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    groups = project["entry-points"].items()
    lines = [
        f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in own.items())
        for group, own in groups
    ]
    info.joinpath("entry_points.txt").write_text("".join(lines))
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(site), str(EXAMPLE), str(EXAMPLE.parents[1])]),
    }


PROGRAM = """
import importlib, json, sys

for verb, *words in json.loads(sys.argv[1]):
    print(end="\\f")
    try:
        importlib.import_module(f"wsis.{verb}").main(words)
    except SystemExit as end:  # of --help
        if end.code:
            raise
"""


def run(commands: list[list[str]], environment: dict[str, str], folder: Path) -> list[str]:
    """Run verbs in one process, as imports take seconds; return what each printed."""
    command = [sys.executable, "-c", PROGRAM, json.dumps(commands)]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split("\f")[1:]


def test_help_finds_the_example(installed, tmp_path):
    verbs = [["fit", "--help"], ["fit", "--model", "wsddn", "--help"]]
    names, settings = run(verbs, installed, tmp_path)
    assert "WSDDN (Bilen and Vedaldi" in names
    assert "--model.lr 0.001" in settings


def test_the_example_is_trained_judged_and_compared(installed, tmp_path):
    words = [
        "--model",
        "wsddn",
        "--config",
        str(EXAMPLE / "shapes.yaml"),
        "--data.train",
        "4",
        "--data.val",
        "2",
    ]
    words += [
        "--data.root",
        str(tmp_path / "data"),
        "--trainer.max_steps",
        "2",
        "--trainer.accelerator",
        "cpu",
    ]
    made, results = str(tmp_path / "runs/a"), str(tmp_path / "results")
    verbs = [
        ["fit", *words, "--run_dir", made],
        ["test", "--run", made, "--split", "train"],
        ["compare", made, "--out", results],
    ]
    *_, printed = run(verbs, installed, tmp_path)
    assert "val/AP50" in json.loads((tmp_path / "runs/a/train/metrics.json").read_text())
    assert "wsddn" in printed.lower()


def test_the_example_does_what_every_method_must(installed):
    words = [
        str(EXAMPLE.parents[1] / "tests/models/test_all.py"),
        "-k",
        "wsddn",
        "-n",
        "0",
        "-p",
        "no:cacheprovider",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *words], env=installed, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) > 3


def test_the_example_is_as_short_as_it_says():
    assert len((EXAMPLE / "wsddn.py").read_text().splitlines()) < 70
