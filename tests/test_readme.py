"""The README's commands: those marked `<!-- run -->` run, and every `python -m wsis.X` names what there is."""

from __future__ import annotations

import importlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from jsonargparse import ArgumentParser

from wsis import fit
from wsis.cli import CLI

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
TO_RUN = re.findall(r"<!-- run -->\s*```bash\n(.*?)```", TEXT, re.DOTALL)
LINES = [
    line for block in re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL) for line in re.sub(r"\\\n\s*", " ", block).splitlines()
]
COMMANDS = [found[0].strip() for line in LINES if (found := re.search(r"python -m wsis\.[^#|;&]*", line))]


def test_the_first_two_blocks_are_what_a_newcomer_needs():
    assert "pip install" in LINES[0]
    assert "python -m wsis.fit" in LINES[0]
    assert re.search(r'<!-- test -->\s*```bash\npip install -e "\.\[dev\]" && pytest -n auto\n```', TEXT)


@pytest.mark.parametrize("block", TO_RUN)
def test_marked_blocks_run(block, tmp_path):
    lines = [line for line in block.splitlines() if "pip install" not in line]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    script = "\n".join(["set -e", *lines])
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr


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
