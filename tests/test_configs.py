"""Every settings file parses, and says nothing twice."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from wsis import registry
from wsis.cli import CLI
from wsis.settings import read_config, recipe

FOLDER = Path(__file__).parents[1] / "configs"
RECIPES = sorted([*FOLDER.glob("*.yaml"), *FOLDER.glob("shapes/*.yaml")])
OVERLAYS = sorted(FOLDER.glob("ablation/*.yaml"))
SMALL = sorted(FOLDER.glob("small/*.yaml"))


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
    assert recipe(registry.short_name("model", registry.class_path("model", name)), data) == path, "found by its name"


@pytest.mark.parametrize("path", OVERLAYS, ids=lambda path: path.stem)
def test_overlay(path):
    name = max((name for name in registry.names("model") if path.stem.startswith(name)), key=len)
    paper = ["--model", name, "--data", "voc", "--data.root", "/voc"]
    plain, changed = parse(*paper), parse(*paper, "--config", str(path))
    assert plain != changed, "an overlay changes something"
    assert len(path.read_text().splitlines()) <= 10


@pytest.mark.parametrize("path", SMALL, ids=lambda path: f"small/{path.stem}")
def test_recipe_for_few_images_is_short_and_says_nothing_of_a_machine(path):
    model, data = (read_config(path)[kind] for kind in ("model", "data"))
    assert path.stem == f"{model['class_path']}_{data['class_path']}"
    made = parse("--model", model["class_path"], "--data", data["class_path"], "--config", str(path))
    assert made["model"]["init_args"].items() >= model["init_args"].items()
    assert made["trainer"]["max_steps"] * made["trainer"]["accumulate_grad_batches"] <= 2500
    assert not {"root", "weights"} & {*model["init_args"], *data["init_args"]}


def test_wheel_has_every_package():
    """Packages are listed by hand because configs/ is mapped into the package."""
    root = FOLDER.parent
    setup = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {path.parent.relative_to(root) for path in root.glob("wsis/**/*.py")}
    assert set(setup["packages"]) == {".".join(folder.parts) for folder in folders} | {"wsis.configs"}
    assert setup["package-dir"] == {"wsis.configs": "configs"}
