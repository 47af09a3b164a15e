"""Files of others name no code: neither a run's settings, nor a settings file, nor a table."""

from __future__ import annotations

import sys

import pytest
import yaml

import wsis
from wsis import ablate, compare, fit, label, predict, registry
from wsis import test as judging
from wsis.command_line.options import command_options
from wsis.command_line.parser import CLI
from wsis.command_line.settings import read_config
from wsis.errors import InputError

TOY = ["--model", "toy_plugins.Net", "--data", "toy_plugins.Data", "--trainer.accelerator", "cpu"]
SHELL = {"class_path": "subprocess.Popen", "init_args": {"args": "touch PWNED", "shell": True}}


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """A folder with a module that leaves a trace when it is imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "evil.py").write_text(
        "open('PWNED', 'w')\nimport pytorch_lightning as pl, toy_plugins\n"
        "class Net(toy_plugins.Net): pass\nclass Data(toy_plugins.Data): pass\n"
        "class Stop(pl.Callback): pass\n"
    )
    yield tmp_path
    sys.modules.pop("evil", None)


@pytest.mark.parametrize(
    ("kind", "path", "reason"),
    [
        ("model", "os.system", "not installed"),
        ("data", "subprocess.Popen", "not installed"),
        ("model", "evil.Net", "not installed"),
        ("data", "wsis.models.pdsl.PDSL", "not installed"),
        ("data", "wsis.files.whole", "not installed"),
        ("model", "wsis.modelsx.pdsl.PDSL", "not installed"),
        ("model", "wsis.models.pdsl.Path", "is no LightningModule"),
        ("data", "wsis.datasets.voc.VOC_CLASSES", "is no LightningDataModule"),
        ("model", "wsis.models.pdsl.torch.hub.load", "no module"),
        ("model", "wsis.models.pdsl.Nothing", "has no class"),
        ("proposer", "os.system", "not installed"),
    ],
)
def test_only_what_is_installed_is_found(kind, path, reason, place):
    with pytest.raises(InputError, match=reason) as error:
        registry.find(kind, path)
    assert path in str(error.value)
    assert "\n" not in str(error.value)
    assert not (place / "PWNED").exists()


@pytest.mark.parametrize("kind", ["model", "data", "proposer"])
def test_what_is_installed_is_found(kind):
    for name in registry.names(kind):
        assert callable(registry.find(kind, name))
        assert registry.find(kind, registry.class_path(kind, name)) is registry.find(kind, name)


def test_a_plug_in_may_have_other_classes_in_its_module(monkeypatch, place):
    known = registry._plugins
    monkeypatch.setattr(registry, "_plugins", lambda kind: {"evil": "evil.Net"} | known(kind))
    assert registry.find("model", "evil") is registry.find("model", "evil.Net")
    with pytest.raises(InputError, match="is no LightningModule"):
        registry.find("model", "evil.Stop")


def test_the_user_may_type_any_path(place):
    cls = registry.find("model", "evil.Net", typed=True)
    assert (cls.__module__, cls.__name__) == ("evil", "Net")
    with pytest.raises(InputError, match="is no LightningModule"):
        registry.find("model", "evil.Stop", typed=True)


def refused(verb, words, capsys) -> str:
    """The one line with which a verb ends."""
    with pytest.raises(SystemExit) as stop:
        verb.main([str(word) for word in words])
    said = capsys.readouterr().err
    assert stop.value.code == 2, said
    assert said.count("\n") == 1, said
    return said


HOSTILE = {
    "data": ({"data": SHELL}, "data subprocess.Popen"),
    "model": ({"model": {"class_path": "os.system"}}, "model os.system"),
    "importing": ({"data": {"class_path": "evil.Data"}}, "data evil.Data"),
    "inside": ({"data": {"class_path": "folder", "init_args": {"classes": [SHELL]}}}, "Popen"),
    "any": ({"model": {"class_path": "pdsl", "init_args": {"pretraining": {"x": SHELL}}}}, "Popen"),
    "callback": ({"trainer": {"callbacks": [{"class_path": "evil.Stop"}]}}, "evil.Stop"),
    "name": ({"trainer": {"callbacks": "evil.Stop"}}, "evil.Stop"),
    "logger": ({"trainer": {"logger": SHELL}}, "Popen"),
    "colon": ({"trainer": {"strategy": "os:system"}}, "os:system"),
    "function": (
        {
            "trainer": {
                "callbacks": {
                    "class_path": "pytorch_lightning.callbacks.LambdaCallback",
                    "init_args": {"setup": "os.system"},
                }
            }
        },
        "os.system",
    ),
    "no callback": (
        {"trainer": {"callbacks": {"class_path": "pytorch_lightning.Trainer"}}},
        "pytorch_lightning.Trainer",
    ),
}


@pytest.fixture
def run(place, capsys):
    """A run of two steps."""
    fit.main([*TOY, "--trainer.max_steps", "2", "--run_dir", str(place / "run")])
    capsys.readouterr()
    return place / "run"


@pytest.mark.slow
@pytest.mark.parametrize("case", HOSTILE)
def test_no_verb_calls_what_a_run_names(case, run, place, capsys):
    config, code = HOSTILE[case]
    path = run / "config.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | config))
    for verb, words in (
        (predict, ["a.jpg", "--run", run]),
        (label, ["--run", run, "--out", "x.json"]),
        (judging, ["--run", run]),
        (compare, [run]),
        (fit, ["--resume", run]),
        (fit, [*TOY, "--config", path]),
    ):
        line = refused(verb, words, capsys)
        assert "config.yaml: " in line
        assert code in line
    with pytest.raises(InputError, match=r"config\.yaml: "):
        wsis.load(run)
    assert not (place / "PWNED").exists()


def test_a_stage_names_no_code(run, place):
    path = run / "train/stage.json"
    path.write_text(path.read_text().replace("toy_plugins.Net", "evil.Net"))
    with pytest.raises(InputError, match=r"evil\.Net is not installed"):
        wsis.load(run)
    assert not (place / "PWNED").exists()


def test_a_run_of_own_code_continues_when_the_code_is_typed(run, capsys, place):
    path = run / "config.yaml"
    path.write_text(path.read_text().replace("toy_plugins.Net", "evil.Net"))
    assert "or type wsis.fit --model evil.Net" in refused(fit, ["--resume", run], capsys)
    assert not (place / "PWNED").exists()
    words = ["--resume", str(run), "--model", "evil.Net"]
    assert (
        CLI("fit", words, options=command_options, run_flag="--resume").paths["model"] == "evil.Net"
    )


def test_parts_of_lightning_may_be_named(place):
    path = place / "x.yaml"
    stopping = {"class_path": "pytorch_lightning.callbacks.EarlyStopping"}
    parts = [stopping | {"init_args": {"monitor": "val/AP"}}, {"class_path": "ModelSummary"}]
    path.write_text(yaml.safe_dump({"trainer": {"callbacks": parts}}))
    made = CLI("fit", [*TOY, "--config", str(path)]).config_init.trainer.callbacks
    assert [type(part).__name__ for part in made] == ["EarlyStopping", "ModelSummary"]


def test_a_file_reads_no_other_file(place, capsys):
    (place / "other.yaml").write_text("class_path: evil.Stop\n")
    (place / "whole.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": "evil.Stop"}}))
    for config in ({"trainer": {"callbacks": "other.yaml"}}, {"config": "whole.yaml"}):
        (place / "x.yaml").write_text(yaml.safe_dump(config))
        assert "x.yaml" in refused(fit, [*TOY, "--config", "x.yaml"], capsys)
    assert not (place / "PWNED").exists()


@pytest.mark.parametrize(
    "row",
    [
        {"model": "evil.Net"},
        {"set": {"trainer.callbacks": "evil.Stop"}},
        {"set": {"model": "evil.Net"}},
        {"set": {"config": "evil.yaml"}},
    ],
)
def test_a_table_names_no_code(row, place, capsys):
    tables = {"t": {"figures": ["AP"], "rows": {"r": row}}}
    path = place / "tables.yaml"
    path.write_text(yaml.safe_dump({"model": "pdsl", "tables": tables}))
    assert "tables.yaml" in refused(ablate, [path, "--out", place / "out"], capsys)
    assert not (place / "PWNED").exists()


def test_aliases_do_not_grow_without_limit(tmp_path):
    doubled = ["a: &a0 [1, 1]"] + [f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 60)]
    for name, lines, error in (
        ("many", doubled, "has more than 100,000 values once its aliases are written out"),
        ("itself", ["a: &a [*a]"], "holds itself"),
    ):
        (tmp_path / name).write_text("\n".join(lines))
        with pytest.raises(InputError, match=f"{name} {error}"):
            read_config(tmp_path / name)
    (tmp_path / "few").write_text("\n".join(doubled[:10]))
    assert read_config(tmp_path / "few")["a9"][1][0] == read_config(tmp_path / "few")["a8"][0]
