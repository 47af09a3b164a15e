"""Mask R-CNN on BoxCaseg's proxy masks beside Mask R-CNN on true masks, on the generated data (BoxCaseg, Tables 1, 7 and 8).

    python benchmarks/proxy_training.py runs/proxy-training [--draws 1 2 3] [--rows ...] [--jobs 2]

Settings were chosen on draw 0 of the data, which is therefore left out. Runs are ordinary runs: a repeated command continues
where it was stopped. All figures are in percent, of the validation images; a mask is dropped that is not learnt from.
"""

from __future__ import annotations

import argparse
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from _runs import call

from wsis.files import read_json
from wsis.machine import cores
from wsis.reports.ablation import read_ablation
from wsis.reports.table import mean_and_range, print_table

TABLES = Path(__file__).parents[1] / "configs" / "ablation" / "boxcaseg.yaml"
VARIANTS = read_ablation(TABLES).variants
ROWS = {
    "true masks": ["--model", "mask_rcnn"],
    "raw": ["--model", "boxcaseg", *VARIANTS["raw"].words],
    "merge": ["--model", "boxcaseg"],
    "merge + drop 0.75": ["--model", "boxcaseg", *VARIANTS["drop_075"].words],
    "merge + drop 0.9": ["--model", "boxcaseg", *VARIANTS["drop_09"].words],
}
FIGURES = ("AP", "AP25", "AP50", "AP70", "AP75")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--draws", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--rows", nargs="+", default=[*ROWS], choices=[*ROWS])
    parser.add_argument("--jobs", type=int, default=2)
    asked = parser.parse_args()
    threads = max(1, cores() // asked.jobs)
    with ThreadPoolExecutor(asked.jobs) as pool:
        list(
            pool.map(
                lambda job: fit(asked.folder, *job, threads),
                [(row, draw) for draw in asked.draws for row in asked.rows],
            )
        )
    lines = [["", *FIGURES, "mIoU given boxes", "dropped"]]
    for row in asked.rows:
        columns = zip(*(figures(asked.folder, row, draw) for draw in asked.draws), strict=True)
        lines.append([row, *map(mean_and_range, columns)])
    print_table(lines)


def fit(folder: Path, row: str, draw: int, threads: int) -> None:
    words = [
        *ROWS[row],
        "--data.root",
        str(folder / "data"),
        "--data.seed",
        str(draw),
        "--run_dir",
        str(place(folder, row, draw)),
    ]
    call("fit", [*words, "--data.loading.workers", "0"], threads)


def figures(folder: Path, row: str, draw: int) -> list[float | None]:
    """FIGURES of the last stage, the mask IoU of the joint one, and the share of masks that are not learnt from."""
    run = place(folder, row, draw)
    final = read_json(
        next(iter([*run.glob("3-segmentor/metrics.json"), *run.glob("train/metrics.json")]))
    )
    known: list[float | None] = [100 * final[f"val/{name}"] for name in FIGURES]
    if not (run / "1-joint").is_dir():
        return [*known, None, None]
    ignored = [a["ignore"] for a in read_json(run / "2-proxy-masks/labels.json")["annotations"]]
    return [
        *known,
        100 * read_json(run / "1-joint/metrics.json")["val/mIoU"],
        100 * sum(ignored) / len(ignored),
    ]


def place(folder: Path, row: str, draw: int) -> Path:
    return folder / f"{row.replace(' + ', '-').replace(' ', '-')}-{draw}"


if __name__ == "__main__":
    main()
