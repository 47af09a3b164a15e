"""The README is short, begins with what a newcomer needs, and its Python runs."""

from __future__ import annotations

import csv
import re
import shutil

import pytest
from pages import ROOT, blocks, read

from wsis import fit

README = ROOT / "README.md"
TEXT = read(README)


def test_it_is_short():
    assert len(TEXT.splitlines()) <= 120


def test_the_first_two_blocks_are_what_a_newcomer_needs():
    first = blocks(README, "bash")[0]
    assert "pip install" in first
    assert "python -m wsis.fit" in first
    assert re.search(
        r'<!-- test -->\s*```bash\npip install -e "\.\[dev\]" && pytest -n auto\n```', TEXT
    )


def test_links_lead_somewhere():
    for page in ("README.md", "CONTRIBUTING.md", "results/README.md"):
        text = (ROOT / page).read_text()
        targets = re.findall(r"\]\((?!http)([^)#]+)", text)
        assert targets
        for target in targets:
            assert (ROOT / page).parent.joinpath(target).exists(), f"{page}: {target}"


def test_figures_are_those_of_the_comparison():
    with (ROOT / "results/shapes.csv").open(newline="") as file:
        measured = {row["method"]: f"{float(row['AP50']):.1f}" for row in csv.DictReader(file)}
    for page in ("README.md", "docs/methods/index.md"):
        text = (ROOT / page).read_text()
        rows = [line for line in text.splitlines() if re.match(r"\| \[.*\.md\)", line)]
        assert len(rows) == len(measured)
        for row in rows:
            method = re.search(r"`(?:--model )?(\w+)`", row)[1]
            assert row.rstrip(" |").rsplit("| ")[-1] == measured[method]
    for method, value in measured.items():
        assert f"AP50 {value}" in (ROOT / f"docs/methods/{method}.md").read_text()


@pytest.mark.slow
def test_python_runs(tmp_path, monkeypatch):
    """On few images, for one step of a small network."""
    monkeypatch.chdir(tmp_path)
    words = "--model pdsl --data.train 4 --data.val 2 --trainer.max_steps 1"
    words += " --trainer.accelerator cpu --model.pretraining null --model.backbone.frozen_stages 0"
    fit.main([*words.split(), "--run_dir", "runs/pdsl/shapes/TIME"])
    shutil.copy(next(tmp_path.glob("data/**/*.jpg")), "image.jpg")
    known: dict = {}
    (block,) = blocks(README, "python")
    exec(block, known)
    assert len(known["prediction"].masks) == len(known["prediction"].boxes) > 0
