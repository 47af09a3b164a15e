"""Compare runs: `python -m wsis.compare RUN RUN ...` writes one table and one page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ArgumentParser

from wsis.command_line.messages import plain_errors
from wsis.command_line.parser import Help, parse
from wsis.data.labels import relabel
from wsis.errors import InputError
from wsis.inference import read_run
from wsis.label import label_images
from wsis.metrics.errors import Breakdown, break_down
from wsis.metrics.results import read_results
from wsis.reports.gallery import (
    Source,
    make_gallery,
    objects_of_prediction,
    objects_of_proposals,
    objects_of_truth,
)
from wsis.reports.page import write_page
from wsis.reports.picture import write_picture
from wsis.reports.runs import (
    Entry,
    Judged,
    check_alike,
    check_finished,
    last_trained,
    read_entry,
    read_judged,
)
from wsis.reports.table import FIGURES, Row, cells_of, find_place, make_rows, markdown, write_into
from wsis.reports.tables import print_table, write_csv
from wsis.runs.loggers import WandB
from wsis.runs.record import stages
from wsis.test import evaluate, truths_of
from wsis.types import Prediction

__all__ = ["compare_runs", "main"]

_NO_WANDB = WandB()


def main(argv: Sequence[str] | None = None) -> list[Row]:
    """Compare what `argv` names; returns the rows of the table."""
    with plain_errors():
        parser = ArgumentParser(
            prog="python -m wsis.compare",
            description=__doc__,
            exit_on_error=False,
            formatter_class=Help,
        )
        parser.add_argument(
            "runs", nargs="+", type=Path, help="Folders of finished runs on the same data."
        )
        parser.add_function_arguments(compare_runs, skip={"runs"})
        given = parse(parser, argv)
        return compare_runs(**given | {"wandb": WandB(**given["wandb"])})


def compare_runs(
    runs: list[Path],
    split: str = "val",
    out: Path = Path("results"),
    write: Path | None = None,
    images: int = 500,
    accelerator: str = "auto",
    wandb: WandB = _NO_WANDB,
) -> list[Row]:
    """Put runs into one table: printed, as OUT/DATA.csv, and as the page OUT/DATA.html with classes, errors and pictures.

    OUT/DATA.jpg has all methods side by side on four of the images. Runs that differ in nothing but their seed are one row. A
    run that has not been judged yet is judged first, as wsis.test does it.

    Args:
        runs: Folders of finished runs on the same data.
        split: Which images: val or train.
        out: Folder to write DATA.csv, DATA.html and DATA.jpg to, DATA-train.* for the training images.
        write: A file such as README.md, to put the table between its lines `<!-- compare -->` and `<!-- /compare -->`.
        images: Most pictures in the page, those on which methods disagree most; 0 has none.
        accelerator: What to compute on, as Lightning calls it: auto, cpu, gpu, ...
        wandb: Where to log the table, too.

    Raises:
        InputError: what is no finished run, or runs that were not judged on the same images.
    """
    if split not in ("train", "val"):
        raise InputError(f"--split {split}: give train or val")
    if images < 0:
        raise InputError(f"--images {images}: give a number of images, 0 for none")
    if write:
        find_place(write)  # before anything takes long
    folders = list({folder.resolve(): folder for folder in runs}.values())
    for folder in folders:
        check_finished(folder)
    known: dict[str, Judged] = {}
    judged = {folder: read_judged(read_run(folder), split, known) for folder in folders}
    check_alike(list(judged.items()))
    for number, folder in enumerate(folders, 1):
        _judge(folder, judged[folder], split, accelerator, f"{number} of {len(folders)}")
    rows = make_rows(
        read_entry(folder, results_of(folder, split), judged[folder]) for folder in folders
    )
    name = rows[0].first.judged.index.name + ("" if split == "val" else f"-{split}")
    _look(rows, split, images, accelerator, out / name)
    cells = [cells_of(row, split) for row in rows]
    write_csv(out / f"{name}.csv", cells)
    if write:
        write_into(write, markdown(rows, split))
    if wandb.project:
        wandb.log_table(out, f"compare-{name}", cells)
    _print(rows)
    wrote = [
        *(f"{out / name}.{kind}" for kind in ("csv", "html", "jpg")),
        *([str(write)] if write else []),
    ]
    print(f"wrote {', '.join(wrote)}")
    return rows


def results_of(folder: Path, split: str) -> Path:
    """Where wsis.test writes a run's results."""
    return folder / f"test-{split}"


def _judge(folder: Path, judged: Judged, split: str, accelerator: str, which: str) -> None:
    """Let a run predict and be judged, unless that has been done since it was trained."""
    results, checkpoint = results_of(folder, split), last_trained(folder)
    done = [results / name for name in ("predictions.json", "metrics.json")]
    if all(path.is_file() for path in done):
        trained_at = checkpoint.stat().st_mtime if checkpoint.is_file() else 0.0
        if done[0].stat().st_mtime >= trained_at:
            return
    print(f"{folder} has not been judged on {split} yet, doing that now ({which})")
    evaluate(judged.data.variant(), run=folder, split=split, accelerator=accelerator)


def _look(rows: Sequence[Row], split: str, images: int, accelerator: str, out: Path) -> None:
    """Write the page and the picture."""
    index = rows[0].first.judged.index
    truths = truths_of(index)
    sources = [Source("truth", "truth", -1, [objects_of_truth(truth) for truth in truths])]
    if images:
        sources += _hints(rows, split, accelerator)
    errors: list[Breakdown | None] = []
    for number, row in enumerate(rows):  # one after another: a run's predictions may be a gigabyte
        found = read_results(row.first.predictions, index.images, index.categories)
        errors.append(
            None if row.first.given_boxes else break_down(found, truths, len(index.categories))
        )
        sources.append(_method(row, number, found, errors[-1]))
    gallery = make_gallery(index, sources, images)
    gallery["sources"] = [{"name": s.name, "role": s.role, "row": s.row} for s in sources]
    write_page(out.with_name(f"{out.name}.html"), rows, split, errors, gallery)
    write_picture(out.with_name(f"{out.name}.jpg"), index, sources)


def _method(
    row: Row, number: int, predictions: Sequence[Prediction], errors: Breakdown | None
) -> Source:
    """A method's panel; one that never is right is shown from a score of 0.3 on, one that was given boxes as it is."""
    sure = -math.inf if errors is None else errors.sure if math.isfinite(errors.sure) else 0.3
    kinds = [None] * len(predictions) if errors is None else errors.kinds
    objects = [objects_of_prediction(p, k, sure) for p, k in zip(predictions, kinds, strict=True)]
    return Source(row.name, "method", number, objects)


def _hints(rows: Sequence[Row], split: str, accelerator: str) -> list[Source]:
    """Panels of what methods start from: proposals, and pseudo-labels of each method that has some."""
    index, hints = rows[0].first.judged.index, []
    using = next((row.first for row in rows if row.first.segments != "none"), None)
    file = using.judged.data.variant().proposal_file(split) if using else None
    if file is not None:
        hints.append(
            Source(
                "proposals",
                "proposals",
                -1,
                [objects_of_proposals(file, image) for image in index.images],
            )
        )
    for number, row in enumerate(rows):
        labels = _labels(row.first, split, accelerator)
        if labels is not None:
            given = relabel(index, labels).annotations
            said = truths_of(index._replace(annotations=given))
            hints.append(
                Source(
                    f"pseudo-labels of {row.name}",
                    "labels",
                    number,
                    [objects_of_truth(truth) for truth in said],
                )
            )
    return hints


def _labels(entry: Entry, split: str, accelerator: str) -> Path | None:
    """A method's pseudo-labels of the images: of the training images what it learnt from, of others made now."""
    made = [
        path / "labels.json" for path, _ in stages(entry.folder) if (path / "labels.json").is_file()
    ]
    if split == "train":
        given = entry.judged.labels
        return made[-1] if made else given if given and given.is_file() else None
    file = results_of(entry.folder, split) / "labels.json"
    if made and not (file.is_file() and file.stat().st_mtime >= made[-1].stat().st_mtime):
        label_images(entry.folder, file, split=split, accelerator=accelerator)
    return file if made else None


def _print(rows: Sequence[Row]) -> None:
    """The table in short."""
    shown = [f for f in FIGURES if any(not math.isnan(row.figures[f].mean) for row in rows)]
    lines = [["", *(FIGURES[f] for f in shown), "seeds", "minutes", "GiB"]]
    for row in rows:
        *figures, minutes, memory = (
            *(100 * row.figures[f].mean for f in shown),
            row.minutes,
            row.memory,
        )
        cells = [
            "-" if math.isnan(value) else f"{value:.1f}" for value in (*figures, minutes, memory)
        ]
        lines.append([row.name, *cells[:-2], str(len(row.entries)), *cells[-2:]])
    print_table(lines)


if __name__ == "__main__":
    main()
