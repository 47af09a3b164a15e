"""Every settings file parses, and says nothing twice."""

from __future__ import annotations

import glob
import re
import shlex
import tomllib
from pathlib import Path

import pytest
import yaml

from wsis import registry
from wsis.ablate import _divide
from wsis.command_line.parser import CLI
from wsis.command_line.settings import read_config, recipe
from wsis.fit import options
from wsis.reports.ablation import read_ablation

FOLDER = Path(__file__).parents[1] / "configs"
RECIPES = sorted([*FOLDER.glob("*.yaml"), *FOLDER.glob("shapes/*.yaml")])
TABLES = [path for path in sorted(FOLDER.glob("ablation/*.yaml")) if "tables" in read_config(path)]
OVERLAYS = [path for path in sorted(FOLDER.glob("ablation/*.yaml")) if path not in TABLES]
SWEEPS = sorted(FOLDER.glob("sweep/*.yaml"))
SMALL = sorted(FOLDER.glob("small/*.yaml"))
COMPARED = sorted(FOLDER.glob("compare/*.yaml"))


class Parsed(CLI):
    """Parses without making model or data."""

    def instantiate_classes(self) -> None:
        self.model = self.datamodule = None


def parse(*words: str) -> dict:
    return Parsed("fit", words).settings()


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: str(path.relative_to(FOLDER)))
def test_recipe(path):
    config = read_config(path)
    name = config["model"]["class_path"]
    data = (config.get("data") or {}).get("class_path", "shapes")
    made = parse("--config", str(path))
    assert made["trainer"]["max_steps"] > 0
    assert recipe(registry.short_name("model", registry.class_path("model", name)), data) == path, (
        "found by its name"
    )


@pytest.mark.parametrize("path", OVERLAYS, ids=lambda path: path.stem)
def test_overlay(path):
    name = max((name for name in registry.names("model") if path.stem.startswith(name)), key=len)
    paper = ["--model", name, "--data", "voc", "--data.root", "/voc"]
    plain, changed = parse(*paper), parse(*paper, "--config", str(path))
    assert plain != changed, "an overlay changes something"
    assert len(path.read_text().splitlines()) <= 10


BEST = {
    "pdsl": ("AP50", 47.8),
    "jtsm": ("PQ", 39.0),
    "boxcaseg": ("AP50", 67.6),
    "ccgr": ("AP50", 35.3),
    "em_paste": ("AP50", 58.4),
}
PAPER = ("--data", "voc", "--data.root", "/voc")


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
def test_table(path):
    """Every overlay is in a table; rows that are the method itself have the figures that the comparison has of the paper."""
    ablation, model = read_ablation(path), path.stem
    plain = parse("--model", model, *PAPER)
    assert {row.model for row in ablation.rows.values()} == {model}
    used = {
        row.get("config")
        for table in read_config(path)["tables"].values()
        for row in table["rows"].values()
    }
    assert used - {None} == {
        overlay.name for overlay in OVERLAYS if overlay.stem.startswith(f"{path.stem}_")
    }
    same = [
        row
        for row in ablation.rows.values()
        if parse("--model", model, *PAPER, *row.words) == plain
    ]
    figure, value = BEST[path.stem]
    assert value in [row.paper.get(figure) for row in same]
    assert all(0 < value < 100 for row in ablation.rows.values() for value in row.paper.values())


@pytest.mark.parametrize("path", COMPARED, ids=lambda path: f"compare/{path.stem}")
def test_compared(path):
    """All methods, each with its recipe for the data; a row's overlay says the same as where fit is given it."""
    rows = read_ablation(path).rows
    assert [row.model for row in rows.values()] == list(rows)
    assert rows.keys() == BEST.keys() | {"cam", "mask_rcnn"}
    for name, content in read_config(path)["tables"]["methods"]["rows"].items():
        words = ["--model", name, "--data", path.stem, "--data.root", "/data"]
        overlay = ["--config", str(path.parent / content["config"])] if "config" in content else []
        assert parse(*words, *rows[name].words) == parse(*words, *overlay)


SWEEP_KEYS = {"name", "project", "program", "method", "metric", "parameters", "command"}


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: f"sweep/{path.stem}")
def test_sweep(path, monkeypatch):
    """Every command is made by W&B's own code and understood by ours."""
    from wandb.sdk.launch.sweeps import utils

    sweep = yaml.safe_load(path.read_text())
    assert sweep.keys() == SWEEP_KEYS
    assert sweep["method"] == "grid"
    assert all(parameter.keys() == {"values"} for parameter in sweep["parameters"].values())
    files = sweep["parameters"]["config"]["values"]
    assert {Path(file).stem for file in files if "/ablation/" in file} >= {
        overlay.stem
        for overlay in OVERLAYS
        if overlay.stem.startswith(f"{path.stem}_")
        and overlay.stem not in ("ccgr_external_proposals", "em_paste_random")
    }
    monkeypatch.setenv("VOC", "/voc")
    monkeypatch.setenv("SALIENT", "/salient")
    monkeypatch.chdir(FOLDER.parent)
    for file in files:
        words = utils.create_sweep_command(list(sweep["command"]))
        made = utils.create_sweep_command_args(
            {"args": {"config": {"value": file}, "seed_everything": {"value": 2}}}
        )
        assert words[:4] == ["${env}", "${interpreter}", "-m", "${program}"]
        assert sweep["program"] == "wsis.fit"
        assert words[-1] == "${args}"
        config = Parsed("fit", [*words[4:-1], *made["args"]], options=options).settings()
        assert (config["seed_everything"], config["data"]["init_args"]["root"]) == (2, "/voc")


def holds(settings, some) -> bool:
    """Return whether settings have the values of `some`, group by group."""
    if not isinstance(some, dict):
        return settings == some
    return all(key in settings and holds(settings[key], some[key]) for key in some)


@pytest.mark.parametrize("path", SMALL, ids=lambda path: f"small/{path.stem}")
def test_recipe_for_few_images_is_short_and_says_nothing_of_a_machine(path):
    model, data = (read_config(path)[kind] for kind in ("model", "data"))
    assert path.stem == f"{model['class_path']}_{data['class_path']}"
    made = parse(
        "--model", model["class_path"], "--data", data["class_path"], "--config", str(path)
    )
    assert holds(made["model"]["init_args"], model["init_args"])
    assert made["trainer"]["max_steps"] * made["trainer"]["accumulate_grad_batches"] <= 2500
    backbone = model["init_args"].get("backbone", {})
    assert not {"root", "weights"} & {*model["init_args"], *data["init_args"], *backbone}


@pytest.mark.parametrize(
    "path", [*TABLES, *COMPARED], ids=lambda path: f"{path.parent.name}/{path.stem}"
)
def test_commands_of_a_header(path, tmp_path, monkeypatch):
    """The header's words are understood with a row of each method, and what is compared is the runs alone."""
    train, *compare = re.findall(
        r"python -m (wsis\.[^&\n]*)", path.read_text().replace("\n#   ", " ")
    )
    _, table, *rest = shlex.split(train)
    assert FOLDER.parent / table == path
    own, settings = _divide([table, *rest])
    ablation, named = (
        read_ablation(path),
        own[own.index("--rows") + 1 :] if "--rows" in own else None,
    )
    for row in {row.model: row for _, row in ablation.choose(named)}.values():
        data = Parsed("fit", ["--model", row.model, *settings, *row.words], options=options).names[
            "data"
        ]
    monkeypatch.chdir(tmp_path)
    runs = Path("runs/ablate", ablation.name, data)
    for place in ("cam/0", "cam/12", "wandb/offline-run-1"):
        (runs / place).mkdir(parents=True)
    (runs / "ablation.csv").touch()
    for command in compare:
        assert {*glob.glob(command.split()[1])} == {f"{runs}/cam/0", f"{runs}/cam/12"}


def test_every_paper_has_its_tables_and_sweep():
    assert {path.stem for path in TABLES} == {path.stem for path in SWEEPS} == BEST.keys()


def test_wheel_has_every_package():
    """Packages are listed by hand because configs/ is mapped into the package."""
    root = FOLDER.parent
    setup = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {path.parent.relative_to(root) for path in root.glob("wsis/**/*.py")}
    assert set(setup["packages"]) == {".".join(folder.parts) for folder in folders} | {
        "wsis.configs"
    }
    assert setup["package-dir"] == {"wsis.configs": "configs"}
