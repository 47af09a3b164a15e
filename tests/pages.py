"""The pages that a reader sees, README and documentation, and the blocks of code in them."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def read(page: Path) -> str:
    """Return a page with the files that it shows."""
    text = page.read_text(encoding="utf-8")
    return re.sub(r'--8<-- "(.*?)"', lambda name: (ROOT / name[1]).read_text().rstrip(), text)


def blocks(page: Path, language: str) -> list[str]:
    """Return the fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", read(page), re.DOTALL | re.MULTILINE)


def commands(page: Path, program: str) -> list[str]:
    """Return the commands of bash blocks that begin with `program`, without comments."""
    lines = []
    for block in blocks(page, "bash"):
        lines += re.sub(r"\\\n\s*", " ", block).splitlines()
    parts = [part for line in lines for part in re.split("&&|#|;", line)]
    return [part.strip() for part in parts if part.strip().startswith(program)]
