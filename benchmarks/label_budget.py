"""Draw AP50 against seconds of labelling, from the folder of runs of configs/ablation/label_budget.yaml.

    python benchmarks/label_budget.py runs/ablate/label_budget/shapes [--out docs/images/label_budget.png]

A line for each kind of label: the mean over seeds, and their range. Needs matplotlib (the extra `dev`).
"""

from __future__ import annotations

import argparse
import csv
from collections import defaultdict
from pathlib import Path

import matplotlib.pyplot as plt


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("runs", type=Path, help="folder of wsis.ablate, with ablation.csv")
    arguments.add_argument("--out", type=Path, default=Path("docs/images/label_budget.png"))
    asked = arguments.parse_args()
    lines: dict[str, list[tuple[float, ...]]] = defaultdict(list)
    with (asked.runs / "ablation.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            kind, seconds = row["name"].split("_")
            values = (row["AP50"], row["AP50_min"], row["AP50_max"])
            if all(values):
                lines[kind].append((float(seconds), *map(float, values)))
    figure, axes = plt.subplots(figsize=(7, 4))
    for kind, points in lines.items():
        seconds, mean, low, high = zip(*sorted(points), strict=True)
        (line,) = axes.plot(seconds, mean, marker="o", label=kind)
        axes.fill_between(seconds, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
    ticks = sorted({seconds for points in lines.values() for seconds, *_ in points})
    axes.set(xscale="log", xlabel="seconds of labelling", ylabel="mask AP50 (%)", ylim=(0, 100))
    axes.set_xticks(ticks, labels=[f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(asked.out, dpi=120, bbox_inches="tight")
    print(asked.out)


if __name__ == "__main__":
    main()
