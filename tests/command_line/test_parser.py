"""What the command line understands, and how it says no."""

from __future__ import annotations

import csv
import json
import os
import re
from pathlib import Path

import pytest
import yaml

from wsis import fit, registry
from wsis.command_line import parser, settings
from wsis.command_line.parser import CLI
from wsis.errors import InputError

QUIET = "--trainer.accelerator cpu --trainer.log_every_n_steps 1"
TOY = f"--model toy_plugins.Net --data toy_plugins.Data {QUIET}"


def go(*words: str):
    return fit.main(" ".join(words).split())


def saved(run, stage="train"):
    return yaml.safe_load((run.folder / stage / "config.yaml").read_text())


def rows(run):
    with open(run.folder / "train/metrics.csv") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    "name", ["pdsl", "PDSL", "Pdsl", "wsis.models.pdsl.PDSL", "wsis.models.pdsl:PDSL"]
)
def test_spellings(name):
    assert registry.class_path("model", name) == "wsis.models.pdsl.PDSL"


def test_every_name_has_a_summary():
    for kind in registry.KINDS:
        assert registry.names(kind)
        assert all(registry.summary(kind, name) for name in registry.names(kind))


def test_nested_settings_in_any_order(tmp_path):
    run = go(
        f"--model.width 5 --trainer.max_steps 2 --run-dir {tmp_path} {TOY} --data.batch_size=3"
    )
    config = saved(run)
    assert config["model"]["class_path"] == "toy_plugins.Net"
    assert config["model"]["init_args"]["width"] == 5
    assert config["data"]["init_args"]["batch_size"] == 3
    assert [row["step"] for row in rows(run)] == ["0", "1", "2"]
    assert (
        float(rows(run)[-1]["val/loss"])
        == json.loads((tmp_path / "train/metrics.json").read_text())["val/loss"]
    )


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.fixture
def layers(tmp_path, monkeypatch):
    """A recipe and two files that disagree."""
    found = write(
        tmp_path / "recipe.yaml",
        "model: {class_path: toy_plugins.Net, init_args: {width: 2, rate: 1e-3}}\n"
        "trainer: {max_steps: 1}",
    )
    monkeypatch.setattr(parser, "recipe", lambda model, data: found)
    write(
        tmp_path / "a.yaml",
        "model:\n  class_path: toy_plugins.Net\n  init_args: {width: 3, pool: roi}\n"
        "data: toy_plugins.Data",
    )
    write(tmp_path / "b.yaml", "model:\n  width: 4\n")
    return tmp_path


@pytest.mark.slow
def test_precedence(layers):
    def model(words: str) -> dict:
        return CLI(
            "fit", f"--model toy_plugins.Net --data toy_plugins.Data {words}".split()
        ).settings()["model"]["init_args"]

    assert model("")["width"] == 2
    assert model("")["rate"] == 1e-3
    assert model("")["pool"] == "moi", "the constructor's default"
    assert model(f"--config {layers}/a.yaml")["width"] == 3
    assert model(f"--config {layers}/a.yaml -c {layers}/b.yaml")["width"] == 4
    assert model(f"--config {layers}/b.yaml -c {layers}/a.yaml")["width"] == 3
    assert model(f"--model.width 9 --config {layers}/a.yaml") | {"rate": 0} == {
        "width": 9,
        "rate": 0,
        "pool": "roi",
        "sizes": None,
    }


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["a.jpg", ""], "an argument is empty"),
        (["--run", "r", "--out", ""], "--out is empty"),
        (["--out="], "--out is empty"),
        (["--run_dir", ""], "--run_dir is empty"),
        (["--data.root", ""], r"--data\.root is empty"),
        (["caf\udce9.jpg"], r"caf\\udce9\.jpg: the name is not UTF-8"),
    ],
)
def test_words_that_cannot_be_meant(words, told):
    with pytest.raises(InputError, match=told):
        settings.check_words(words)


def test_an_empty_path_is_told_however_its_flag_is_spelled():
    with pytest.raises(InputError, match="--run_dir is empty"):
        settings.arrange(["--run-dir", ""])


def test_settings_that_may_be_empty():
    settings.check_words(
        ["--data.labels", "", "--classes=", "--classes", "", "--per_class", "a.jpg"]
    )


def test_a_verb_without_a_model_takes_none():
    with pytest.raises(InputError, match="unknown setting 'model': propose makes no model"):
        CLI("propose", ["--data", "shapes", "--model", "cam"], kinds=("data",))


@pytest.mark.slow
def test_a_group_that_a_file_replaces_is_noted(tmp_path):
    def parsed(settings: dict, *more: str) -> tuple[list[str], dict]:
        path = write(tmp_path / "mine.yaml", json.dumps({"model": settings}))
        words = ["--model", "em_paste", "--data.root", str(tmp_path / "s"), "--data.train", "2"]
        cli = CLI("fit", [*words, "--config", str(path), *more])
        return cli.left_out, cli.settings()["model"]["init_args"]["pretraining"]

    told = f"{tmp_path}/mine.yaml: model.pretraining replaces the recipe's, without its "
    mine = {"steps": 9, "lr": 0.1, "backbone": {"frozen_stages": 5}}
    notes, made = parsed({"pretraining": mine})
    assert notes == [f"{told}pooling, backbone.feature_level; write what you want to keep"]
    assert made == mine
    assert parsed({"class_path": "em_paste", "init_args": {"pretraining": mine}})[0] == notes
    for other in ({"model": "cam", "steps": 9}, None):
        assert parsed({"pretraining": other})[0] == []
    notes, made = parsed({"patch_size": 32}, "--model.pretraining.steps", "9")
    assert notes == []
    assert (made["steps"], made["pooling"]) == (9, "average"), "a flag keeps the others"


def test_file_written_for_another_model_gives_only_the_rest(tmp_path):
    path = write(
        tmp_path / "x.yaml",
        "model: {class_path: toy_plugins.Staged, width: 9}\ntrainer: {max_steps: 3}",
    )
    cli = CLI("fit", f"--config {path} --model toy_plugins.Net --data toy_plugins.Data".split())
    assert cli.left_out == [f"{path}: settings of model staged are left out, not for net"]
    made = cli.settings()
    assert made["model"]["init_args"]["width"] == 4
    assert made["trainer"]["max_steps"] == 3


def test_saved_settings_reproduce_the_run(tmp_path):
    a = go(
        f"{TOY} --model.sizes [3,4] --data.labels {write(tmp_path / 'l', 'x')} --trainer.max_steps 3 --run_dir {tmp_path}/a"
    )
    b = go(f"--config {tmp_path}/a/config.yaml --run_dir {tmp_path}/b")
    assert saved(a) == saved(b)
    assert rows(a) == rows(b)
    assert (a.folder / "config.yaml").read_text() == (b.folder / "config.yaml").read_text()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--model pdls", "no model is called 'pdls'; did you mean 'pdsl'?"),
        ("--data shapes", "give --model, one of: "),
        ("--model toy_plugins.Net --data shaeps", "did you mean 'shapes'?"),
        ("--model no_such.Net", "no module 'no_such'"),
        ("--model toy_plugins.Nett", "module 'toy_plugins' has no class 'Nett'"),
        (f"{TOY} --model.widht 3", "unknown setting 'model.widht'; did you mean 'model.width'?"),
        (
            f"{TOY} --trainer.max_stepz 3",
            "unknown setting 'trainer.max_stepz'; did you mean 'trainer.max_steps'?",
        ),
        (f"{TOY} --epochs 3", "; did you mean 'trainer.max_steps' or 'trainer.max_epochs'?"),
        (f"{TOY} --trainer.batch_sampler 3", "unknown setting 'trainer.batch_sampler'\n"),
        (f"{TOY} --max_epochs 3", "; did you mean 'trainer.max_epochs'?"),
        (f"{TOY} --model.pretraining.steps 3", "unknown setting 'model.pretraining.steps'\n"),
        (f"{TOY} --wandb.projct x", "did you mean 'wandb.project'?"),
        (f"{TOY} --run_dri x", "did you mean 'run_dir'?"),
        ("--model cam --data.simulate.box x", "--data.simulate.box x: expected 'float'"),
        ("--model cam --data.simulate.bax 1", "--data.simulate has no setting 'bax'"),
        (f"{TOY} --model.width three", "--model.width three: expected 'int'"),
        (f"{TOY} --model.pool mean", "--model.pool mean: expected Literal['moi', 'roi']"),
        (f"{TOY} --model.sizes x", "--model.sizes x: expected one of tuple[int, ...]"),
        (f"{TOY} --trainer.callbacks Nope", "--trainer.callbacks Nope: expected one of"),
        (f"{TOY} --trainer.max_steps 3 --trainer.max_epochs 2", "are both set"),
        (f"{TOY} --trainer.logger true", "--trainer.logger true: metrics.csv is always written"),
        (f"{TOY} --trainer.precision bf16-true", "give bf16-mixed, 16-mixed or 32-true"),
        (f"{TOY} --trainer.precision 64", "give bf16-mixed, 16-mixed or 32-true"),
        (f"{TOY} --config nowhere.yaml", "cannot read settings file nowhere.yaml"),
        ("--resume nowhere", "nowhere is not the folder of a run"),
        ("--model", "--model needs a value"),
        (f"{TOY} --save_every 0", "--save_every: 0 does not conform to restriction v>0"),
        (f"{TOY} --seed_everything -1", "--seed_everything: -1 does not conform"),
        (f"{TOY} --seed_everything 4294967296", "--seed_everything: 4294967296 does not conform"),
        (f"{TOY} --trainer.accelerator gpuu", "the Trainer refuses its settings: "),
        (f"{TOY} --trainer.strategy dpp", "the Trainer refuses its settings: "),
        (f"{TOY} --trainer.devices x", "the Trainer refuses its settings: "),
    ],
)
def test_mistakes_are_one_line(words, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        go(words)
    err = capsys.readouterr().err
    assert stop.value.code == 2, err
    assert says in err
    assert err.count("\n") == 1
    assert len(err) < 400


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("model: {widht: 3}", "unknown setting 'model.widht' in {}; did you mean 'model.width'?"),
        (
            "trainer: {max_stepz: 3}",
            "unknown setting 'trainer.max_stepz' in {}; did you mean 'trainer.max_steps'?",
        ),
        ("modle: {width: 3}", "unknown setting 'modle' in {}; did you mean 'model"),
        ("a: [", "settings file {} is not YAML"),
        ("- 3", "settings file {} must hold"),
        ("model: [pdsl]", "settings file {}: `model` is a name, or"),
        ("data: 3", "settings file {}: `data` is a name, or"),
        ("data: false", "settings file {}: `data` is a name, or"),
        ("model: {init_args: [1]}", "settings file {}: `model` is a name, or"),
        ("model: {class_path: 3}", "settings file {}: `model` is a name, or"),
    ],
)
def test_mistakes_in_files_are_one_line(text, says, capsys, tmp_path):
    path = write(tmp_path / "x.yaml", text)
    with pytest.raises(SystemExit):
        go(f"{TOY} --config {path}")
    err = capsys.readouterr().err
    assert says.format(path) in err
    assert err.count("\n") == 1


def help_of(capsys, *words: str) -> str:
    with pytest.raises(SystemExit) as stop:
        fit.main([*words])
    assert not stop.value.code
    return capsys.readouterr().out


@pytest.mark.parametrize("name", registry.names("model"))
def test_help_is_short_and_every_setting_has_a_sentence(name, capsys):
    out = help_of(capsys, "--model", name, "--help")
    assert len(out.splitlines()) < 80
    assert not re.search(r"^  --(trainer|data)\.", out, re.MULTILINE), "they have their own help"
    settings = re.findall(r"^  (--\S+)(.*(?:\n {10,}.*)*)", out, re.MULTILINE)
    assert len(settings) > 10
    for flag, rest in settings:
        assert len(re.findall(r"[A-Za-z]{2,}", rest)) >= 2, f"{flag} has no sentence"


def test_help_shows_the_recipe(layers, capsys):
    assert re.search(
        r"--model.width 2 ",
        help_of(capsys, "--model", "toy_plugins.Net", "--data", "toy_plugins.Data", "--help"),
    )


def test_help_has_headings_said_once(capsys):
    """Settings in a dataclass of their own are a group, under the sentence of its docstring."""
    for words, groups in {
        ("--model", "pdsl", "--help"): ("model.backbone", "model.optimisation"),
        ("--data", "voc", "--help", "data"): ("data.augment", "data.loading"),
    }.items():
        lines = help_of(capsys, *words).splitlines()
        headings = [line for line in lines if not line.startswith(" ")]
        assert len(set(headings)) == len(headings)
        for group in groups:
            first = next(i for i, line in enumerate(lines) if line.startswith(f"  --{group}."))
            assert re.fullmatch(r"[A-Z][a-z -]{10,}:", lines[first - 1])


def test_help_of_the_trainer_and_of_names(capsys):
    assert "--trainer.accumulate_grad_batches" in help_of(capsys, "--help", "trainer")
    out = help_of(capsys, "--help")
    assert all(
        re.search(rf"^  {name} .+", out, re.MULTILINE)
        for kind in registry.KINDS
        for name in registry.names(kind)
    )


def test_default_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run = go(f"{TOY} --trainer.max_steps 1")
    assert re.fullmatch(r"runs/net/data/\d{8}-\d{6}", str(run.folder))
    assert "WSIS_RUN_DIR" not in os.environ
    assert str(run.folder / "train") in capsys.readouterr().out


def test_recipe_of_a_data_set(tmp_path, monkeypatch):
    (tmp_path / "configs/shapes").mkdir(parents=True)
    for name in ("pdsl", "pdsl_coco", "shapes/pdsl"):
        write(tmp_path / f"configs/{name}.yaml", "")
    monkeypatch.setattr(settings, "__file__", str(tmp_path / "wsis/command_line/settings.py"))
    found = {data: settings.recipe("pdsl", data) for data in ("shapes", "voc", "coco", "folder")}
    names = {data: str(path.relative_to(tmp_path / "configs")) for data, path in found.items()}
    assert names == {
        "shapes": "shapes/pdsl.yaml",
        "voc": "pdsl.yaml",
        "coco": "pdsl_coco.yaml",
        "folder": "pdsl.yaml",
    }
    assert settings.recipe("cam", "voc") is None


def test_recipes_are_found_in_the_package(tmp_path, monkeypatch):
    """As README names them, wherever one is, unless a file of one's own is there."""
    packaged = write(tmp_path / "wsis/configs/small/cam_coco.yaml", "")
    monkeypatch.setattr(settings, "__file__", str(tmp_path / "wsis/command_line/settings.py"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    named = Path("configs/small/cam_coco.yaml")
    assert settings.find_config(named) == packaged
    assert settings.arrange(["--config", str(named)]).files == [packaged]
    for missing in (Path("configs/none.yaml"), Path("other/small/cam_coco.yaml")):
        assert settings.find_config(missing) == missing
    write(tmp_path / "here" / named, "")
    assert settings.find_config(named) == named


def test_tensorboard(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    go(f"{TOY} --trainer.max_steps 2 --trainer.logger TensorBoardLogger --run_dir {tmp_path}")
    events = accumulator.EventAccumulator(str(tmp_path / "train"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == [0, 1]
    assert (tmp_path / "train/metrics.csv").is_file()


def test_a_logger_whose_package_is_missing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("wsis.command_line.trainers.find_spec", lambda name: None)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        go(f"{TOY} --trainer.logger TensorBoardLogger")
    said = capsys.readouterr().err
    assert said == (
        "error: --trainer.logger TensorBoardLogger needs a package: pip install tensorboard\n"
    )
    assert not list(tmp_path.iterdir())


def test_input_error_is_raised_to_python():
    with pytest.raises(InputError):
        CLI("fit", ["--model", "pdls"])
