"""The documentation's commands name what there is, its Python runs, and its tables lead to code."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
import shutil
import tomllib
from pathlib import Path

import pytest
import torch
import yaml
from example_site import install_examples
from jsonargparse import ArgumentParser
from pages import PAGES, ROOT, blocks, commands, read

from wsis import fit, registry
from wsis.command_line.parser import CLI
from wsis.runs.record import stages as stages_of

VERBS = [(page, command) for page in PAGES for command in commands(page, "python -m wsis.")]
BENCHMARKS = [command for page in PAGES for command in commands(page, "python benchmarks/")]
RUN = re.compile(r"\bRUN\b|runs/pdsl/\w+/[\w-]+")
"""A run in a command, whatever it is called."""


def name_of(value: object) -> str:
    return value if isinstance(value, str) else value.relative_to(ROOT).as_posix()


class Parsed(Exception):
    """The command has been understood; nothing more is to happen."""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run, to be named in commands."""
    folder = tmp_path_factory.mktemp("run")
    words = "--model pdsl --data.train 4 --data.val 2 --trainer.max_steps 1 --model.backbone.frozen_stages 0"
    words += f" --trainer.accelerator cpu --model.pretraining null --data.root {folder / 'data'}"
    fit.main([*words.split(), "--run_dir", str(folder / "run")])
    return folder / "run"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    return install_examples(tmp_path_factory.mktemp("site"))


@pytest.fixture
def only_parse(site, monkeypatch):
    """The real parsers, that stop when they have understood; the examples are installed."""

    def stop(*_: object, **__: object) -> None:
        raise Parsed

    parse = ArgumentParser.parse_args

    def parse_and_stop(self: ArgumentParser, *args: object, **options: object) -> None:
        parse(self, *args, **options)
        raise Parsed

    monkeypatch.setattr(CLI, "instantiate_classes", stop)
    for verb in ("label", "predict"):
        monkeypatch.setattr(f"wsis.{verb}.ArgumentParser.parse_args", parse_and_stop)
    for path in reversed(site):
        monkeypatch.syspath_prepend(path)
    registry._plugins.cache_clear()
    yield
    registry._plugins.cache_clear()


@pytest.mark.slow
@pytest.mark.parametrize(("page", "command"), VERBS, ids=name_of)
def test_commands_name_what_there_is(page, command, run, only_parse, monkeypatch):
    monkeypatch.chdir(ROOT)
    _, _, module, *words = shlex.split(RUN.sub(str(run), command))
    words = [
        word for word in words if not re.match(r'\[(?!["a-z])', word)
    ]  # optional ones, not lists
    if module in ("wsis.generate", "wsis.serve"):
        module += ".__main__"
    with pytest.raises((Parsed, SystemExit)) as end:
        importlib.import_module(module).main(words)
    if isinstance(end.value, SystemExit):
        assert "--help" in words
        assert not end.value.code


def test_wrong_commands_are_found(only_parse, capsys):
    for words in (
        ["--model", "pdsl", "--model.refinments", "3"],
        ["--model", "pdls"],
        ["--model", "pdsl", "--sweeep", "sweep.yaml"],
        ["--model", "pdsl", "--config", "gone.yaml"],
    ):
        with pytest.raises(SystemExit):
            fit.main(words)


@pytest.mark.parametrize("command", BENCHMARKS)
def test_benchmarks_have_the_options_that_are_given(command):
    _, script, *words = shlex.split(command)
    text = (ROOT / script).read_text()
    for word in words:
        if word.startswith("--"):
            is_passed_on = "." in word and "parse_known_args" in text  # a setting of wsis.fit
            assert is_passed_on or f'"{word}"' in text


def test_every_python_block_parses():
    found = [block for page in PAGES for block in blocks(page, "python")]
    assert len(found) > 8
    for block in found:
        ast.parse(block)


@pytest.mark.slow
def test_python_runs(run, tmp_path, monkeypatch):
    """The page "From Python", on few images, for one step."""
    monkeypatch.chdir(tmp_path)
    few = "data={'train': 4, 'val': 2}, trainer={'max_steps': 1, 'accelerator': 'cpu'}"
    stages = "model={'pretraining': {'steps': 1}}"
    shutil.copy(next(run.parent.glob("data/**/*.jpg")), "image.jpg")
    long_short = {
        'wsis.fit("cam", "shapes")': f'wsis.fit("cam", "shapes", {few})',
        'wsis.build("cam", "shapes")': f'wsis.build("cam", "shapes", {few})',
        'wsis.build("pdsl", "shapes")': f"wsis.build('pdsl', 'shapes', {few}, {stages})",
    }
    code = "\n".join(blocks(ROOT / "docs/python.md", "python"))
    for long, short in long_short.items():
        assert code.count(long) == 1
        code = code.replace(long, short)
    known = {
        "labels": torch.arange(64 * 96).view(64, 96).int() // 1000,
        "members": torch.ones(2, 7, dtype=torch.bool),
        "boxes": torch.tensor([[0.0, 0, 0, 96, 64], [0, 8, 8, 40, 40]]),
        "features": torch.rand(1, 5, 8, 12),
    }
    exec(code, known)
    assert len(known["names"]) == len(known["masks"]) == len(known["scores"]) > 0
    assert Path("found.jpg").is_file()
    assert [path.name for path, _ in stages_of(Path("runs/mine"))] == ["1-classifier", "2-pdsl"]
    assert known["trainer"].global_step == 1
    assert known["pooled"].shape == (2, 5, 7, 7)


def test_settings_files_are_understood(only_parse, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = [yaml.safe_load(block) for page in PAGES for block in blocks(page, "yaml")]
    wholes = [content for content in found if "class_path" in content.get("model", {})]
    parts = [content for content in found if "segmentor" in content]
    assert wholes
    assert parts
    for content in wholes:
        (tmp_path / "settings.yaml").write_text(yaml.safe_dump(content))
        with pytest.raises(Parsed):
            fit.main(["--config", "settings.yaml"])
    for content in parts:
        with pytest.raises(Parsed):
            fit.main(["--model", "em_paste", f"--model.segmentor={content['segmentor']}"])


def test_pages_show_the_examples():
    for page, example in {
        "dataset": "dataset/class_folders.py",
        "proposer": "proposer/windows.py",
        "label_field": "label_field/extremes.py",
        "segmentor": "segmentor/components.py",
        "backbone": "backbone/pyramid.py",
        "loss": "loss/focal_cam.py",
        "method": "wsddn/wsddn.py",
    }.items():
        shown = blocks(ROOT / f"docs/extending/{page}.md", "python")
        assert (ROOT / "examples" / example).read_text().rstrip() in [b.rstrip() for b in shown]


def test_toml_blocks_are_understood():
    found = [tomllib.loads(block) for page in PAGES for block in blocks(page, "toml")]
    assert all(content["project"]["entry-points"] for content in found)
    assert len(found) == 5


def test_equations_lead_to_code():
    """`wsis/losses.py:image_loss` and `wsis/models/pdsl.py:PDSL.predict` are there."""
    places = [
        place
        for page in PAGES
        for place in re.findall(r"`(wsis/[\w/]+\.py):([\w.]+)`", page.read_text())
    ]
    assert len(places) > 40
    for file, name in places:
        body = ast.parse((ROOT / file).read_text()).body
        for part in name.split("."):
            known = {node.name: node for node in body if hasattr(node, "name")}
            assert part in known, f"{file}:{name}"
            body = known[part].body


def test_files_that_are_named_are_there():
    folders = "configs|notebooks|examples|benchmarks|wsis|tests|results"
    for page in PAGES:
        for path in re.findall(rf"`((?:{folders})/[\w./-]*)`", read(page)):
            if not re.search("[A-Z]{2}", path.replace("README", "")):
                assert (ROOT / path).exists(), f"{page.name}: {path}"


def test_every_method_has_a_page_in_the_navigation():
    methods = {path.stem for path in (ROOT / "docs/methods").glob("*.md")} - {"index"}
    assert {name for name in registry.names("model") if name != "classifier"} == methods
    navigation = (ROOT / "mkdocs.yml").read_text()
    for page in PAGES[2:]:
        assert f"{page.relative_to(ROOT / 'docs').as_posix()}\n" in navigation
