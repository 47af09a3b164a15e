"""EM-Paste on the generated data: its Table 3 but for generated backgrounds, and its long tail.

    python benchmarks/pasting.py [--seeds 3] [--out runs/pasting] [--rows ...] [--jobs 2] [--steps 600]

Each seed draws its own data, from 1 on: settings were chosen on draw 0. The tables are those of wsis.ablate; Mask R-CNN
trains for the recipe's 600 steps unless --steps says otherwise, since with fewer of them less augmentation wins. A repeated
command continues where it was stopped. Images without any of the classes, which `random` pastes on, are the salient set of
draw 1. Of the long tail AP50 is printed class by class, from the most frequent to the rarest.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from wsis import ablate, test
from wsis.datasets.shapes import Shapes
from wsis.files import read_json

TABLES = Path(__file__).parents[1] / "configs" / "ablation" / "em_paste.yaml"
ROWS = ["paste", "long_tail", "own"]
TAIL = ["long_tail_not_pasted", "long_tail", "long_tail_balanced"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("runs/pasting"))
    parser.add_argument("--rows", nargs="+", default=ROWS)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--steps", type=int, default=600)
    asked = parser.parse_args()
    words = [
        "--data",
        "shapes",
        "--data.root",
        str(asked.out / "data"),
        "--data.seed",
        "{seed}",
        "--data.loading.workers",
        "0",
    ]
    words += ["--model.segmentor.steps", str(asked.steps)]
    runs = asked.out / f"runs-{asked.steps}"
    parts = [(asked.rows, list[str]())]
    if "paste" in asked.rows:
        others = Shapes(asked.out / "data", seed=1).salient_folder() / "images"
        parts.append((["random"], ["--model.backgrounds", str(others)]))
    for rows, more in parts:
        ablate.ablate(
            TABLES,
            asked.seeds,
            rows,
            asked.jobs,
            runs,
            first_seed=1,
            settings=[*words, *more],
        )
    for row in TAIL:
        found = [per_class(run) for run in sorted((runs / row).glob("*"))]
        if not found:
            continue
        print(
            row.ljust(20),
            *(
                f"{name} {100 * sum(run[name] for run in found) / len(found):.1f}"
                for name in found[0]
            ),
        )


def per_class(run: Path) -> dict[str, float]:
    """AP50 of each class on the validation images."""
    test.main(["--run", str(run)])
    judged = read_json(run / "test-val" / "metrics.json")
    return {name: figures["AP50"] for name, figures in judged["per_class"].items()}


if __name__ == "__main__":
    main()
