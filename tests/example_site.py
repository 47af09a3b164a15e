"""The examples as if they were installed: what pip would write, in a folder of its own."""

from __future__ import annotations

import tomllib
from pathlib import Path

EXAMPLES = Path(__file__).parents[1] / "examples"


def install_examples(site: Path) -> list[str]:
    """Write the metadata of all examples into `site`; return the folders to search for imports."""
    folders = [path.parent for path in sorted(EXAMPLES.glob("*/pyproject.toml"))]
    for folder in folders:
        _write_metadata(site, folder)
    return [str(site), *map(str, folders)]


def _write_metadata(site: Path, example: Path) -> None:
    project = tomllib.loads((example / "pyproject.toml").read_text())["project"]
    info = site / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    head = f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    info.joinpath("METADATA").write_text(head)
    lines = []
    for group, entries in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {value}" for name, value in entries.items())]
    info.joinpath("entry_points.txt").write_text("\n".join(lines) + "\n")
