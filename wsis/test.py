"""Evaluate a run, `python -m wsis.test --run RUN`, or a file, `--predictions FILE --data NAME`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pytorch_lightning.cli import LightningArgumentParser

from wsis.command_line.messages import plain_errors
from wsis.command_line.parser import CLI
from wsis.errors import InputError
from wsis.files import check_writable
from wsis.reports.evaluation import (
    PANOPTIC_METRICS,
    Metrics,
    evaluate_file,
    evaluate_run,
    results_folder,
)
from wsis.reports.gallery import make_gallery
from wsis.reports.page import write_page
from wsis.reports.panels import make_panels
from wsis.reports.runs import Entry, EvaluationSet, entry_of_file, read_entry
from wsis.reports.table import make_rows, metric_tables, percent, print_table
from wsis.runs.checkpoints import Which
from wsis.runs.progress import say_notes
from wsis.sharing.folder import is_shared
from wsis.sharing.places import find_run

__all__ = ["evaluate", "main"]

PER_CLASS = ("AP", "AP25", "AP50", "AP70", "AP75", "box_AP50", "CorLoc", "mIoU", "tag_AP")


def main(argv: Sequence[str] | None = None) -> Metrics | None:
    """Evaluate what `argv` names; None on all ranks but the first."""
    with plain_errors():
        cli = CLI("test", argv, kinds=("data",), options=_options, run_flag="--run")
        return evaluate(cli.datamodule, **{name: cli.config[name] for name in cli.own})


def evaluate(
    data: Any,
    run: str | None = None,
    predictions: Path | None = None,
    split: str = "val",
    stage: str | None = None,
    checkpoint: Which = "last",
    out: Path | None = None,
    per_class: bool = False,
    panoptic: Path | None = None,
    images: int = 100,
    accelerator: str = "auto",
    devices: int = 1,
) -> Metrics | None:
    """Evaluate a run or a results file, print its metrics, and write metrics.json and report.html.

    report.html is the page that wsis.compare writes for several runs. Without boxes and masks,
    tags tell how well classes are found: tag_mAP.

    Args:
        data: Data to evaluate on; classes are matched to those of the run by name.
        run: Folder of a finished run; its data is used unless told otherwise. Or a shared model:
            its folder, archive, URL, or hub:USER/NAME.
        predictions: A COCO results file instead of a run.
        split: Which images: val or train. CorLoc is usually reported on train.
        stage: Trained stage of the run; the last if not given. One that segments given boxes is
            evaluated by mask IoU.
        checkpoint: Of the stage: last, or best, that of the best validation if there were several.
        out: Folder to write to; RUN/test-SPLIT (-STAGE, -best), of a shared model ./test-SPLIT, or
            that of the predictions, if not given.
        per_class: Print a line for each class.
        panoptic: A COCO panoptic json beside its folder of pngs; panoptic.json beside the
            predictions if not given.
        images: Maximum number of pictures in report.html, those furthest from the truth first.
        accelerator: What to compute on, as Lightning calls it: auto, cpu, gpu, ...
        devices: How many of them.

    Raises:
        InputError: neither or both of run and predictions, predictions of other data, or classes
            that the run has not learnt.
    """
    if (run is None) == (predictions is None):
        raise InputError("give either --run RUN, or --predictions FILE with --data NAME")
    if split not in ("train", "val"):
        raise InputError(f"--split {split}: give train or val")
    if images < 0:
        raise InputError(f"--images {images}: give a number of images, 0 for none")
    labels, data = data.relabelled, data.as_annotated()
    say_notes(data.index(split))
    if run:
        place = find_run(run)
        where = Path() if is_shared(place) else place
        folder = out or results_folder(where, split, stage, checkpoint)
        check_writable(folder / "metrics.json")
        metrics = evaluate_run(
            place, data, split, stage, folder, panoptic, accelerator, devices, checkpoint
        )
    else:
        file = Path(str(predictions))
        folder = out or file.parent
        metrics = evaluate_file(file, data, split, folder, panoptic)
    if metrics is None:
        return None
    _print(metrics, per_class)
    trained_on = len(data.index("train").images) if run else None
    shown = EvaluationSet(data, split, data.index(split), trained_on, labels)
    entry = read_entry(place, folder, shown) if run else entry_of_file(file, folder, shown)
    which = ", ".join(filter(None, (stage, "best" if checkpoint == "best" else None)))
    _write_page(folder / "report.html", replace(entry, panoptic=panoptic), which, images)
    wrote = [folder / "metrics.json", folder / "report.html", *([entry.predictions] if run else [])]
    print(f"wrote {', '.join(map(str, wrote))}")
    return metrics


def _write_page(path: Path, entry: Entry, which: str, images: int) -> None:
    (row,) = make_rows([entry])
    if which:
        row = replace(row, name=f"{row.name}, {which}")
    panels = make_panels([row], images)
    gallery = make_gallery(entry.evaluation_set.index, panels.sources, panels.ranked)
    write_page(path, [row], panels.errors, gallery)


def _options(parser: LightningArgumentParser) -> None:
    parser.add_function_arguments(evaluate, skip={"data", "per_class"})
    parser.add_argument("--per_class", action="store_true", help="Print a line for each class.")


def _print(metrics: Metrics, per_class: bool) -> None:
    print("metrics in %; metrics.json has fractions")
    first, *more = metric_tables(metrics.overall)
    print_table(first)
    for table in more:
        print()
        print_table(table)
    if per_class:
        known = {name for values in metrics.per_class.values() for name in values}
        columns = [name for name in (*PER_CLASS, *PANOPTIC_METRICS) if name in known]
        lines = [["", *columns]]
        for name, values in metrics.per_class.items():
            lines.append([name, *(percent(values.get(c, math.nan)) for c in columns)])
        print()
        print_table(lines)


if __name__ == "__main__":
    main()
