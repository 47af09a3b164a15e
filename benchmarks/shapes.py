"""Mask AP50 on the generated data: PDSL by its recipe, PDSL without the correlation loss, and the floor.

    python benchmarks/shapes.py runs/benchmark [--draws 1 2 3] [--seeds 0 1] [--jobs 2]

Settings were chosen on draw 0 of the data, which is therefore left out. Runs are ordinary runs: a repeated command continues
where it was stopped. PDSL without correlation shares the classifier of the run it is compared with.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from _runs import call

from wsis.files import read_json
from wsis.machine import cores
from wsis.reports.table import mean_and_range, print_table

METHODS = {
    "cam": ["--model", "cam"],
    "pdsl": ["--model", "pdsl"],
    "pdsl, without correlation": ["--model", "pdsl", "--model.correlation_weight", "0"],
}
FIGURES = ("AP25", "AP50", "AP75", "CorLoc")


def fit(folder: Path, name: str, draw: int, seed: int, threads: int) -> None:
    run = folder / name.replace(", ", "-").replace(" ", "-") / f"{draw}-{seed}"
    words = [
        *METHODS[name],
        "--data.seed",
        str(draw),
        "--data.root",
        str(folder / "data"),
        "--seed_everything",
        str(seed),
    ]
    call(
        "fit",
        [*words, "--run_dir", str(run), "--reuse", str(folder), "--trainer.accelerator", "cpu"],
        threads,
    )


def figures(folder: Path, name: str, draws: list[int], seeds: list[int]) -> list[dict[str, float]]:
    runs = [
        folder / name.replace(", ", "-").replace(" ", "-") / f"{draw}-{seed}"
        for draw in draws
        for seed in seeds
    ]
    last = [max(run.glob("*/metrics.json"), key=lambda path: path.parent.name) for run in runs]
    return [
        {figure: 100 * one[f"val/{figure}"] for figure in FIGURES} for one in map(read_json, last)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--draws", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--jobs", type=int, default=2)
    given = parser.parse_args()
    pairs = [(draw, seed) for draw in given.draws for seed in given.seeds]
    threads = max(1, cores() // given.jobs)
    propose = [
        sys.executable,
        "-m",
        "wsis.propose",
        "--data",
        "shapes",
        "--data.root",
        str(given.folder / "data"),
    ]
    for draw in given.draws:
        subprocess.run([*propose, "--data.seed", str(draw)], check=True)
    for name in ("pdsl", "cam", "pdsl, without correlation"):
        with ThreadPoolExecutor(given.jobs) as pool:
            list(pool.map(lambda pair, name=name: fit(given.folder, name, *pair, threads), pairs))
    found = {name: figures(given.folder, name, given.draws, given.seeds) for name in METHODS}
    rows = [
        [name, *(mean_and_range([one[figure] for one in runs]) for figure in FIGURES)]
        for name, runs in found.items()
    ]
    print_table([["", *FIGURES], *rows])
    print("AP50 by (draw, seed): " + ", ".join(map(str, pairs)))
    print_table(
        [[f"  {name}", *(f"{one['AP50']:.1f}" for one in runs)] for name, runs in found.items()]
    )


if __name__ == "__main__":
    main()
