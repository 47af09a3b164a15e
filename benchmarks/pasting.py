"""EM-Paste on the generated data: its Table 3 but for generated backgrounds, and its long tail.

    python benchmarks/pasting.py runs/pasting [--draws 1 2 3] [--rows ...] [--jobs 2]

Settings were chosen on draw 0 of the data, which is therefore left out; draws are also the seeds of training. Runs are ordinary
runs: a repeated command continues where it was stopped, and rows that differ in later stages alone share the earlier ones.
Figures are mean (least-most) over draws, in percent, of the validation images; `tail` is the mean over the four rarest classes.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from wsis.data.shapes import Shapes

OVERLAYS = Path(__file__).parents[1] / "configs" / "ablation"
STAGES = ("1-classifier", "2-segments", "3-foregrounds")
FIGURES = ("AP", "AP25", "AP50", "AP75")


class Row(NamedTuple):
    """One training."""

    overlay: str = ""
    words: tuple[str, ...] = ()
    like: str | None = "n_p = 4"
    """The row whose first stages are the same."""
    shared: int = 3
    """How many of them."""
    model: str = "em_paste"


ROWS = {
    "n_p = 4": Row(like=None),
    "long tail": Row("long_tail", like=None),
    "true masks": Row(like=None, model="mask_rcnn"),
    "without EM": Row("rounds_0", shared=2),
    "Mahalanobis": Row("mahalanobis", shared=2),
    "n_p = 0": Row(words=("--model.objects", "0")),
    "n_p = 1": Row("objects_1"),
    "n_p = 2": Row("objects_2"),
    "n_p = 6": Row("objects_6"),
    "n_p = 1 to 4": Row("objects_1_4"),
    "n_p = 2, balanced": Row("balanced"),
    "black": Row("black"),
    "random": Row("random"),
    "space": Row("space"),
    "own ignored": Row("own_ignore"),
    "own unknown": Row("own_nothing"),
    "long tail, balanced": Row("long_tail_balanced", like="long tail"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--draws", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--rows", nargs="+", default=[*ROWS], choices=[*ROWS])
    parser.add_argument("--jobs", type=int, default=2)
    asked = parser.parse_args()
    threads = max(1, (os.cpu_count() or 1) // asked.jobs)
    first = {*asked.rows, *(ROWS[row].like for row in asked.rows)}
    for rows in ([row for row in first if row and not ROWS[row].like], [row for row in asked.rows if ROWS[row].like]):
        with ThreadPoolExecutor(asked.jobs) as pool:
            list(pool.map(lambda job: fit(asked.folder, *job, threads), [(row, draw) for draw in asked.draws for row in rows]))
    print("  ".join(["".ljust(20), *(name.rjust(18) for name in (*FIGURES, "tail AP50"))]))
    for row in asked.rows:
        columns = zip(*(figures(asked.folder, row, draw) for draw in asked.draws), strict=True)
        print("  ".join([row.ljust(20), *(spread(column).rjust(18) for column in columns)]))


def fit(folder: Path, name: str, draw: int, threads: int) -> None:
    row, run = ROWS[name], place(folder, name, draw)
    words = ["--model", row.model, "--data", "shapes", "--data.root", str(folder / "data"), "--data.seed", str(draw)]
    words += ["--config", str(OVERLAYS / f"em_paste_{row.overlay}.yaml")] if row.overlay else []
    if name == "random":
        words += ["--model.backgrounds", str(Shapes(folder / "data", seed=draw).read_salient().root)]
    if row.like and not run.exists():
        for stage in STAGES[: row.shared]:
            shutil.copytree(place(folder, row.like, draw) / stage, run / stage)
    words += [*row.words, "--seed_everything", str(draw), "--data.loading.workers", "0", "--run_dir", str(run)]
    call(["-m", "wsis.fit", *words], threads)


def figures(folder: Path, row: str, draw: int) -> list[float]:
    """FIGURES of the last stage, and AP50 of the four classes that the long tail has fewest of."""
    run = place(folder, row, draw)
    if not (run / "test-val" / "metrics.json").is_file():
        call(["-m", "wsis.test", "--run", str(run)], os.cpu_count() or 1)
    judged = read(run / "test-val" / "metrics.json")
    rarest = list(judged["per_class"].values())[-4:]
    return [100 * judged["metrics"][name] for name in FIGURES] + [25 * sum(found["AP50"] for found in rarest)]


def call(words: list[str], threads: int) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(
        [sys.executable, *words], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode:
        sys.exit(done.stdout)


def place(folder: Path, row: str, draw: int) -> Path:
    return folder / f"{row.replace(' = ', '').replace(',', '').replace(' ', '-')}-{draw}"


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def spread(values: tuple[float, ...]) -> str:
    mean = sum(values) / len(values)
    return f"{mean:.1f}" + (f" ({min(values):.1f}-{max(values):.1f})" if len(values) > 1 else "")


if __name__ == "__main__":
    main()
