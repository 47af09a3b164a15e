"""Imports point one way."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1] / "wsis"
LAYERS = [
    {"errors"},
    {"files", "fingerprint", "machine", "registry"},
    {"sharing"},
    {"images", "coco", "values"},
    {"types", "losses", "ops"},
    {"nn", "metrics"},
    {"method", "proposals"},
    {"data"},
    {"layouts"},
    {"datasets", "evidence", "pasting"},
    {"runs"},
    {"parts"},
    {"models"},
    {"graphs"},
    {"command_line"},
    {"inference"},
    {"reports"},
    {"generate"},
    {"serve"},
]
"""From the ground up: a layer imports from those before it, and not from its own."""
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}
VERBS = len(LAYERS)


def part(module: str) -> str:
    """`wsis.datasets.voc` -> `datasets`."""
    return ([*module.split("."), ""])[1]


def imports(path: Path) -> set[str]:
    """Parts of the package that a file imports, for type checking or in functions included."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {part(alias.name) for alias in node.names if alias.name.startswith("wsis.")}
        elif (
            isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "wsis"
        ):
            found |= (
                {part(node.module)} if "." in node.module else {alias.name for alias in node.names}
            )
    return found


FILES = sorted(
    path for path in ROOT.rglob("*.py") if path.name != "__init__.py" or path.parent != ROOT
)


def test_arrows():
    wrong = []
    for path in FILES:
        here = path.relative_to(ROOT).parts[0].removesuffix(".py")
        is_verb = path.name == "__main__.py"  # `python -m wsis.PACKAGE`
        rank = VERBS if is_verb else RANK.get(here, VERBS)
        others = imports(path) - {here, ""}
        wrong += [f"{path}: {there}" for there in others if RANK.get(there, VERBS) >= rank]
    assert not wrong


def test_arrows_can_fail(tmp_path):
    (tmp_path / "x.py").write_text(
        "def f():\n    from wsis.models.pdsl import PDSL\n    import wsis.command_line.parser\n    from wsis import losses\n"
    )
    assert imports(tmp_path / "x.py") == {"models", "command_line", "losses"}


def test_private_modules_are_private_to_their_folder():
    nodes = [(path, node) for path in FILES for node in ast.walk(ast.parse(path.read_text()))]
    wrong = []
    for path, node in nodes:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("wsis."):
            *folder, module = node.module.split(".")
            names = [module, *(alias.name for alias in node.names)]
            private = [name for name in names if name.startswith("_") and name != "__main__"]
            if private and path.parent != ROOT.parent.joinpath(*folder):
                wrong.append(f"{path}: {private}")
    assert not wrong


def test_names_that_say_nothing():
    assert not {path.stem for path in ROOT.rglob("*")} & {"utils", "common", "helpers", "base"}


def test_no_file_is_long():
    assert not [path for path in FILES if len(path.read_text().splitlines()) > 400]
