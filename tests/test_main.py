"""`wsis VERB` is `python -m wsis.VERB`."""

from __future__ import annotations

import importlib
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from wsis.__main__ import VERBS, main

ROOT = Path(__file__).parents[1]


def said(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, cwd=ROOT)


def test_verbs_are_all_that_have_a_main():
    modules = {path.stem for path in ROOT.glob("wsis/*.py") if "\ndef main(" in path.read_text()}
    packages = {path.parent.name for path in ROOT.glob("wsis/*/__main__.py")}
    assert set(VERBS) == modules - {"__main__"} | packages


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]])
def test_verbs_are_listed_with_a_sentence(words, capsys):
    main(words)
    lines = capsys.readouterr().out.splitlines()
    for verb in VERBS:
        (line,) = [line for line in lines if line.startswith(f"  {verb} ")]
        assert len(line.split()) >= 3


def test_unknown_verb(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["prdict"])
    assert stop.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith("error: no verb 'prdict'; did you mean 'predict'?")
    assert err.count("\n") == 1


def test_listing_imports_no_verb():
    code = "import sys, wsis.__main__ as w; w.main([]); print('torch' in sys.modules)"
    assert said("-c", code).stdout.rstrip().endswith("False")


@pytest.mark.slow
@pytest.mark.parametrize("words", [["--help"], ["--model", "pdls"], ["--resume", "nowhere"]])
def test_a_verb_does_the_same_either_way(words):
    one, other = said("-m", "wsis", "fit", *words), said("-m", "wsis.fit", *words)
    assert (one.returncode, one.stdout, one.stderr) == (
        other.returncode,
        other.stdout,
        other.stderr,
    )
    assert one.stdout + one.stderr


def test_every_verb_takes_words(capsys):
    for verb, module in VERBS.items():
        with pytest.raises(SystemExit) as stop:
            importlib.import_module(f"wsis.{module}").main(["--help"])
        assert not stop.value.code
        assert f"python -m wsis.{verb} " in capsys.readouterr().out


def test_script_is_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    module, _, function = project["scripts"]["wsis"].partition(":")
    assert getattr(importlib.import_module(module), function) is main


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_without_words_prints_its_help(verb, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main([verb])
    said = capsys.readouterr()
    assert (stop.value.code, said.err) == (0, "")
    assert said.out.startswith(f"usage: python -m wsis.{verb}")
    assert len(said.out.splitlines()) < 60
    assert not list(tmp_path.iterdir())
