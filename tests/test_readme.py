"""The README is short, begins with what a newcomer needs, and its Python runs."""

from __future__ import annotations

import csv
import re

import pytest
from pages import ROOT, blocks, read
from PIL import Image

import wsis
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


STEPS, IMAGES, PARAMETERS = (300, 100), 120, 5_000_000
"""Steps of 8 images in each stage, of a network of this size: 157 CPU seconds besides proposals,
validation mask AP25 21.1, AP50 11.6; 0 without training."""


@pytest.mark.slow
def test_python_trains_for_two_minutes_and_runs(tmp_path, monkeypatch):
    """The example is within the budget that was measured, and runs on few images for a step.

    That it learns from random features that nothing trains is refused by `fit`.
    """
    monkeypatch.chdir(tmp_path)
    few = {
        "data": {"train": 4, "val": 2},
        "model": {"pretraining": {"steps": 1}},
        "trainer": {"max_steps": 1, "accelerator": "cpu"},
    }
    asked = []

    def shortened(model, data, /, **settings):
        asked.append(wsis.build(model, data, **settings))
        return fit.fit(model, data, **(settings | few))

    monkeypatch.setattr(wsis, "fit", shortened)
    (block,) = blocks(README, "python")
    known: dict = {}
    exec(block, known)
    ((model, data, trainer),) = asked
    assert model.hparams["pretraining"]["steps"] <= STEPS[0]
    assert trainer["max_steps"] <= STEPS[1]
    assert len(data.index("train").images) + len(data.index("val").images) <= IMAGES
    assert data.loading.batch_size <= 8
    assert sum(parameter.numel() for parameter in model.parameters()) < PARAMETERS
    assert len(known["prediction"].names) > 0
    assert Image.open("found.jpg").size[0] == 800
