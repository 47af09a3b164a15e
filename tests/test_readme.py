"""The README's commands name what there is, and its Python runs."""

from __future__ import annotations

import importlib
import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from jsonargparse import ArgumentParser

from wsis import fit
from wsis.cli import CLI

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
LINES = [
    line for block in re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL) for line in re.sub(r"\\\n\s*", " ", block).splitlines()
]
COMMANDS = [found[0].strip() for line in LINES if (found := re.search(r"python -m wsis\.[^#|;&]*", line))]


def test_the_first_two_blocks_are_what_a_newcomer_needs():
    assert "pip install" in LINES[0]
    assert "python -m wsis.fit" in LINES[0]
    assert re.search(r'<!-- test -->\s*```bash\npip install -e "\.\[dev\]" && pytest -n auto\n```', TEXT)


@pytest.mark.slow
def test_python_runs(tmp_path, monkeypatch):
    """On few images, for one step of a small network."""
    monkeypatch.chdir(tmp_path)
    words = "--model pdsl --data.train 4 --data.val 2 --trainer.max_steps 1 --trainer.accelerator cpu --model.pretraining null"
    fit.main([*words.split(), "--run_dir", "runs/pdsl/shapes/TIME"])
    shutil.copy(next(tmp_path.glob("data/**/*.jpg")), "image.jpg")
    train, pooling = PYTHON
    for long, short in {
        "wsis.Shapes()": "wsis.Shapes(train=4, val=2)",
        "test_sides=()": "test_sides=(), hidden=8, features=8, mask_width=8",
        "pl.Trainer(max_steps=100)": "pl.Trainer(max_steps=1, accelerator='cpu')",
    }.items():
        assert train.count(long) == 1
        train = train.replace(long, short)
    known = {
        "labels": torch.arange(64 * 96).view(64, 96).int() // 1000,
        "members": torch.ones(2, 7, dtype=torch.bool),
        "boxes": torch.tensor([[0.0, 0, 0, 96, 64], [0, 8, 8, 40, 40]]),
        "features": torch.rand(1, 5, 8, 12),
    }
    for block in (train, pooling):
        exec(block, known)
    assert len(known["prediction"].masks) == len(known["prediction"].boxes) > 0
    assert known["pooled"].shape == (2, 5, 7, 7)


class Parsed(Exception):
    """The command has been understood; nothing more is to happen."""


@pytest.fixture
def only_parse(monkeypatch):
    """The real parsers, that stop when they have understood."""

    def stop(*_: object, **__: object) -> None:
        raise Parsed

    parse = ArgumentParser.parse_args

    def parse_and_stop(self: ArgumentParser, *args: object, **options: object) -> None:
        parse(self, *args, **options)
        raise Parsed

    monkeypatch.setattr(CLI, "instantiate_classes", stop)
    monkeypatch.setattr(fit, "_saved", stop)
    for verb in ("label", "predict"):
        monkeypatch.setattr(f"wsis.{verb}.ArgumentParser.parse_args", parse_and_stop)
    monkeypatch.setattr("wsis.test._with_data_of_run", lambda words: ["--data", "shapes", *words])


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_name_what_there_is(command, only_parse, monkeypatch):
    monkeypatch.chdir(ROOT)
    _, _, module, *words = shlex.split(command)
    words = [word for word in words if not word.startswith("[")]
    with pytest.raises((Parsed, SystemExit)) as end:
        importlib.import_module(module).main(words)
    if isinstance(end.value, SystemExit):
        assert "--help" in words
        assert not end.value.code


def test_a_wrong_command_is_found(only_parse, capsys):
    for words in (
        ["--model", "pdsl", "--model.refinments", "3"],
        ["--model", "pdls"],
        ["--model", "pdsl", "--config", "gone.yaml"],
    ):
        with pytest.raises(SystemExit):
            fit.main(words)
