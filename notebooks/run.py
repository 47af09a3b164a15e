"""Run notebooks from top to bottom, each in an empty folder, and keep their outputs.

python notebooks/run.py [NAME ...]
"""

from __future__ import annotations

import base64
import io
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image

FOLDER = Path(__file__).parent


def main(names: list[str]) -> None:
    """Run the notebooks called `names`, by default all."""
    for path in sorted(FOLDER.glob("*.ipynb")):
        if names and path.stem not in names:
            continue
        notebook = nbformat.read(path, as_version=4)
        with tempfile.TemporaryDirectory() as empty:
            place = {"metadata": {"path": empty}}
            NotebookClient(
                notebook, timeout=3600, kernel_name="python3", resources=place, record_timing=False
            ).execute()
        tidy(notebook)
        text = nbformat.writes(notebook)
        for folder, short in (
            (empty, "."),
            (str(FOLDER.resolve().parent), "."),
            (str(Path.home()), "~"),
        ):
            text = text.replace(f"{folder}/", f"{short}/")
        path.write_text(f"{text}\n", encoding="utf-8")
        print(f"{path}: {path.stat().st_size / 1e6:.1f} MB", flush=True)


def tidy(notebook: nbformat.NotebookNode) -> None:
    """Drop warnings, and reduce pictures to 256 colours, a third as large."""
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
        for output in cell.outputs:
            if "image/png" in output.get("data", {}):
                picture = Image.open(io.BytesIO(base64.b64decode(output.data["image/png"])))
                packed = io.BytesIO()
                picture.convert("RGB").quantize(256).save(packed, "png", optimize=True)
                output.data["image/png"] = base64.b64encode(packed.getvalue()).decode()


if __name__ == "__main__":
    main(sys.argv[1:])
