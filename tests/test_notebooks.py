"""Every notebook runs from top to bottom, in an empty folder; it is kept with the outputs of such a run."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
STEPS = 15
IMAGES = 32
"""What notebooks do is tested here, and what they learn is in the outputs kept."""
SHORTER = f"""
import functools
import pytorch_lightning as pl

full = pl.Trainer.__init__

@functools.wraps(full)
def shorter(self, **settings):
    if "max_steps" in settings:
        settings["max_steps"] = min(settings["max_steps"], {STEPS})
    full(self, **settings)

pl.Trainer.__init__ = shorter
"""


def on_few_images(source: str) -> str:
    """Return a cell with less to train on; what is evaluated by its number is left."""
    return re.sub(
        r"\b(train|salient)=(\d+)",
        lambda found: f"{found[1]}={min(int(found[2]), IMAGES)}",
        source,
    )


def code_cells(path: Path) -> list:
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def pictures(cells: list) -> list:
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    return [output for output in outputs if "image/png" in output.get("data", {})]


def test_there_are_notebooks():
    assert NOTEBOOKS


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs(path, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        cell.source = on_few_images(cell.source)
    notebook.cells.insert(0, nbformat.v4.new_code_cell(SHORTER))
    place = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3", resources=place).execute()
    assert pictures(notebook.cells)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_is_kept_as_it_ran(path):
    cells = code_cells(path)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert not [
        output for cell in cells for output in cell.outputs if output.output_type == "error"
    ]
    assert pictures(cells)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_names_no_place_of_one_machine(path):
    assert not re.findall(r"/(?:home|root|tmp|mnt|work|Users)/", path.read_text())
