"""The README's main job, as a newcomer runs it, learns masks from tags."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
FLOOR = 0.17
"""Mask AP50 of class activation maps with the best proposal, as first sketched on such data; the aim is 8 points above."""


def test_first_command_of_the_readme(tmp_path):
    first = re.search(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)[1]
    command = first.partition("&&")[2].strip().replace("python", sys.executable, 1)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert not done.returncode, done.stderr[-3000:]
    metrics = json.loads(next(tmp_path.glob("runs/pdsl/shapes/*/2-pdsl/metrics.json")).read_text())
    assert metrics["val/AP50"] > FLOOR + 0.08
    assert f"{metrics['val/AP50']:.4g}" in done.stdout, "the run says what it reached"
