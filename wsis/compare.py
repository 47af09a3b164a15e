"""Compare runs: `python -m wsis.compare RUN RUN ...` writes one table and one page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ArgumentParser

from wsis.command_line.messages import plain_errors
from wsis.command_line.parser import Help, parse
from wsis.command_line.settings import read_run
from wsis.errors import InputError
from wsis.reports.evaluation import evaluate_run, results_folder
from wsis.reports.gallery import make_gallery, write_picture
from wsis.reports.page import write_page
from wsis.reports.panels import Panels, make_panels
from wsis.reports.runs import (
    EvaluationSet,
    check_alike,
    check_finished,
    last_trained,
    read_entry,
    read_evaluation_set,
)
from wsis.reports.table import (
    METRICS,
    VOC_METRICS,
    Row,
    csv_rows,
    find_place,
    known_metrics,
    lines_of,
    make_rows,
    markdown,
    print_table,
    write_csv,
    write_into,
)
from wsis.runs.loggers import WandB
from wsis.runs.progress import say_notes

__all__ = ["compare_runs", "main"]

_NO_WANDB = WandB()


def main(argv: Sequence[str] | None = None) -> list[Row]:
    """Compare the runs that `argv` names; return the rows of the table."""
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
    """Put runs into one table: printed, as OUT/DATA.csv, and on the page OUT/DATA.html.

    The page also has metrics of each class, errors, pictures and training curves; OUT/DATA.jpg has
    all methods side by side on four images. Runs that differ only in their seed are one row. A run
    that has not been evaluated yet is evaluated first, as wsis.test does it.

    Args:
        runs: Folders of finished runs on the same data.
        split: Which images: val or train.
        out: Folder to write DATA.csv, DATA.html and DATA.jpg to; DATA-train.* for training images.
        write: File such as README.md, to write the table between its lines `<!-- compare -->` and
            `<!-- /compare -->`.
        images: Maximum number of pictures on the page, those on which methods disagree most; 0
            shows none.
        accelerator: What to compute on, as Lightning calls it: auto, cpu, gpu, ...
        wandb: Where to log the table too.

    Raises:
        InputError: a folder that is no finished run, or runs on different images.
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
    known: dict[str, EvaluationSet] = {}
    sets = {folder: read_evaluation_set(read_run(folder), split, known) for folder in folders}
    check_alike(list(sets.items()))
    say_notes(*(known_set.index for known_set in sets.values()))
    for number, folder in enumerate(folders, 1):
        if not _is_evaluated(folder, split):
            which = f"{number} of {len(folders)}"
            print(f"{folder} has not been evaluated on {split} yet, doing that now ({which})")
            evaluate_run(folder, sets[folder].data.variant(), split, accelerator=accelerator)
    rows = make_rows(read_entry(run, results_folder(run, split), sets[run]) for run in folders)
    index = rows[0].first.evaluation_set.index
    place = out / (index.name + ("" if split == "val" else f"-{split}"))
    table, page, picture = (place.with_name(f"{place.name}.{k}") for k in ("csv", "html", "jpg"))
    _write_pictures(page, picture, rows, make_panels(rows, images, accelerator))
    cells = csv_rows(rows, METRICS | VOC_METRICS)
    write_csv(table, cells)
    if write:
        write_into(write, markdown(rows))
    if wandb.project:
        wandb.log_table(out, f"compare-{place.name}", cells)
    print("metrics in %")
    print_table(lines_of(rows, known_metrics(rows), brief=True))
    wrote = [table, page, picture, *([write] if write else [])]
    print(f"wrote {', '.join(map(str, wrote))}")
    return rows


def _is_evaluated(run: Path, split: str) -> bool:
    """Return whether a run has been evaluated since it was trained."""
    results, checkpoint = results_folder(run, split), last_trained(run)
    done = [results / name for name in ("predictions.json", "metrics.json")]
    if not all(path.is_file() for path in done):
        return False
    trained_at = checkpoint.stat().st_mtime if checkpoint.is_file() else 0.0
    return done[0].stat().st_mtime >= trained_at


def _write_pictures(page: Path, picture: Path, rows: Sequence[Row], panels: Panels) -> None:
    index = rows[0].first.evaluation_set.index
    write_page(page, rows, panels.errors, make_gallery(index, panels.sources, panels.ranked))
    write_picture(picture, index, panels.sources)


if __name__ == "__main__":
    main()
