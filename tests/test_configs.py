"""Every settings file parses, and says nothing twice."""

from __future__ import annotations

import functools
import glob
import re
import shlex
import tomllib
from pathlib import Path

import pytest
import yaml

from wsis import ablate, registry
from wsis.ablate import _divide
from wsis.command_line.options import run_options
from wsis.command_line.parser import CLI
from wsis.command_line.settings import read_config, recipe
from wsis.reports.ablation import read_ablation

FOLDER = Path(__file__).parents[1] / "configs"
RECIPES = sorted([*FOLDER.glob("*.yaml"), *FOLDER.glob("shapes/*.yaml")])
TABLES = sorted(FOLDER.glob("ablation/*.yaml"))
SMALL = sorted(FOLDER.glob("small/*.yaml"))
COMPARED = sorted(FOLDER.glob("compare/*.yaml"))


class Parsed(CLI):
    """Parses without making model or data."""

    def instantiate_classes(self) -> None:
        self.model = self.datamodule = None


def parse(*words: str) -> dict:
    return Parsed("fit", words).settings()


@pytest.mark.slow
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: str(path.relative_to(FOLDER)))
def test_recipe(path):
    config = read_config(path)
    name = config["model"]["class_path"]
    data = (config.get("data") or {}).get("class_path", "shapes")
    made = parse("--config", str(path))
    assert made["trainer"]["max_steps"] > 0
    found = recipe(registry.short_name("model", registry.class_path("model", name)), data)
    assert found.read_bytes() == path.read_bytes(), (
        f"{found} is found by its name"
    )  # a wheel has its copy


BEST = {
    "pdsl": ("AP50", 47.8),
    "jtsm": ("PQ", 39.0),
    "boxcaseg": ("AP50", 67.6),
    "ccgr": ("VOC_AP50", 35.3),
    "em_paste": ("VOC_AP50", 58.4),
}
PAPERS = [path for path in TABLES if path.stem in BEST]
PAPER = ("--data", "voc", "--data.root", "/voc")


@pytest.mark.slow
@pytest.mark.parametrize("path", PAPERS, ids=lambda path: path.stem)
def test_table(path):
    """Rows are understood and differ; rows that are the method itself have the paper's best value."""
    ablation, model = read_ablation(path), path.stem
    plain = parse("--model", model, *PAPER)
    variants = ablation.variants.values()
    assert {variant.model for variant in variants} == {model}
    settings = {v.name: parse("--model", model, *PAPER, *v.words) for v in variants}
    metric, value = BEST[path.stem]
    same = [v.paper.get(metric, 0) for v in variants if settings[v.name] == plain]
    assert any(paper == pytest.approx(value / 100) for paper in same)
    assert all(0 < paper < 1 for variant in variants for paper in variant.paper.values())
    for table in ablation.tables:
        assert len({(v.words, v.needs) for v in table.variants}) == len(table.variants)


@pytest.mark.slow
@pytest.mark.parametrize("path", COMPARED, ids=lambda path: f"compare/{path.stem}")
def test_compared(path):
    """All methods, each with its recipe for the data; a row's overlay says the same as where fit is given it."""
    rows = read_ablation(path).variants
    assert [row.model for row in rows.values()] == list(rows)
    assert rows.keys() == BEST.keys() | {"cam", "mask_rcnn"}
    for name, content in read_config(path)["tables"]["methods"]["rows"].items():
        words = ["--model", name, "--data", path.stem, "--data.root", "/data"]
        overlay = ["--config", str(path.parent / content["config"])] if "config" in content else []
        assert parse(*words, *rows[name].words) == parse(*words, *overlay)


SWEEP_KEYS = {"name", "project", "program", "method", "metric", "parameters", "command"}


@pytest.mark.slow
@pytest.mark.parametrize("path", TABLES, ids=lambda path: f"sweep of {path.stem}")
def test_sweep(path, tmp_path, monkeypatch):
    """W&B's own code makes the commands of its agents; each trains one row with one seed."""
    from wandb.sdk.launch.sweeps import utils

    words = ["--data", "voc", "--data.root", "${envvar:VOC}", "--out", "/out"]
    ablate.main([str(path), *words, "--seeds", "2", "--sweep", str(tmp_path / "sweep.yaml")])
    sweep = yaml.safe_load((tmp_path / "sweep.yaml").read_text())
    assert sweep.keys() == SWEEP_KEYS
    assert (sweep["method"], sweep["program"]) == ("grid", "wsis.ablate")
    assert all(parameter.keys() == {"values"} for parameter in sweep["parameters"].values())
    rows, seeds = (sweep["parameters"][name]["values"] for name in ("rows", "first_seed"))
    variants = read_ablation(path).variants
    assert rows == [name for name, variant in variants.items() if not variant.needs]
    assert seeds == [0, 1]
    figures = {metric for table in read_ablation(path).tables for metric in table.metrics}
    assert sweep["metric"]["name"].removeprefix("val/") in figures
    monkeypatch.setenv("VOC", "/voc")
    command = utils.create_sweep_command(list(sweep["command"]))
    assert command[:4] == ["${env}", "${interpreter}", "-m", "${program}"]
    assert command[-1] == "${args}"
    trained = []

    @functools.wraps(ablate.ablate)
    def record(**given):
        trained.append(given)

    monkeypatch.setattr(ablate, "ablate", record)
    for row in rows:
        values = {"rows": {"value": row}, "first_seed": {"value": 1}}
        ablate.main([*command[4:-1], *utils.create_sweep_command_args({"args": values})["args"]])
        given = trained.pop()
        assert (given["tables"], given["rows"], given["out"]) == (path, [row], Path("/out"))
        assert (given["seeds"], given["first_seed"]) == (1, 1)
        fit = ["--model", variants[row].model, *given["settings"], *variants[row].words]
        config = Parsed("fit", fit, options=run_options).settings()
        assert config["data"]["init_args"]["root"] == "/voc"
        assert config["wandb"]["project"] == "wsis"


def holds(settings, some) -> bool:
    """Return whether settings have the values of `some`, group by group."""
    if not isinstance(some, dict):
        return settings == some
    return all(key in settings and holds(settings[key], some[key]) for key in some)


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize(
    "path", [*TABLES, *COMPARED], ids=lambda path: f"{path.parent.name}/{path.stem}"
)
def test_commands_of_a_header(path, tmp_path, monkeypatch):
    """The header's words are understood with a row of each method, and only runs are compared."""
    text = path.read_text().replace("\n#   ", " ")
    commands = re.findall(r"python -m (wsis\.[^&\n]*)", text)
    ablation, trained = read_ablation(path), set()
    for command in (c for c in commands if c.startswith("wsis.ablate")):
        _, table, *rest = shlex.split(command)
        assert FOLDER.parent / table == path
        own, settings = _divide([table, *rest])
        named = own[own.index("--rows") + 1 :] if "--rows" in own else None
        chosen = ablation.choose(named)
        ablate._check_needs(chosen, settings)
        trained |= {variant.name for _, variant in chosen}
        for row in {variant.model: variant for _, variant in chosen}.values():
            given = [word.replace("{seed}", "1") for word in settings]
            words = ["--model", row.model, *given, *row.words]
            data = Parsed("fit", words, options=run_options).names["data"]
    monkeypatch.chdir(tmp_path)
    runs = Path("runs/ablate", ablation.name, data)
    for place in ("cam/0", "cam/12", "wandb/offline-run-1"):
        (runs / place).mkdir(parents=True)
    (runs / "ablation.csv").touch()
    compared = [command.split()[1] for command in commands if command.startswith("wsis.compare")]
    for pattern in compared:
        assert {*glob.glob(pattern)} == {f"{runs}/cam/0", f"{runs}/cam/12"}
    if path in COMPARED:
        assert compared
        assert trained == ablation.variants.keys()


def test_every_paper_has_its_tables():
    assert {path.stem for path in PAPERS} == BEST.keys()


def test_wheel_has_every_package():
    """Packages are listed by hand because configs/ is mapped into the package."""
    root = FOLDER.parent
    setup = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {path.parent.relative_to(root) for path in root.glob("wsis/**/*.py")}
    assert set(setup["packages"]) == {".".join(folder.parts) for folder in folders} | {
        "wsis.configs"
    }
    assert setup["package-dir"] == {"wsis.configs": "configs"}
