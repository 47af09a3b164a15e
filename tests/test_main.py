"""`wsis VERB` is `python -m wsis.VERB`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from wsis import fit
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
def test_a_verb_does_the_same_either_way():
    words = ["--model", "pdls"]
    one, other = said("-m", "wsis", "fit", *words), said("-m", "wsis.fit", *words)
    assert (one.returncode, one.stdout, one.stderr) == (2, other.stdout, other.stderr)
    assert other.returncode == 2
    assert one.stderr.startswith("error: no model is called 'pdls'")


@pytest.mark.parametrize("words", [["--help"], ["--resume", "nowhere"]])
def test_words_are_passed_on(words, capsys):
    told = []
    for call in (lambda: main(["fit", *words]), lambda: fit.main(words)):
        with pytest.raises(SystemExit) as stop:
            call()
        told.append((stop.value.code, *capsys.readouterr()))
    assert told[0] == told[1]
    assert "".join(told[0][1:])
