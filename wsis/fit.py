"""Train a method: `python -m wsis.fit --model pdsl --data voc --data.root DIR`."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch.distributed as dist
from lightning_fabric.utilities.exceptions import MisconfigurationException

from wsis.command_line.build import from_python
from wsis.command_line.messages import plain_errors, quietly
from wsis.command_line.options import command_options, run_options
from wsis.command_line.parser import CLI
from wsis.command_line.trainers import run_folder, write_settings
from wsis.data.module import DataModule
from wsis.data.records import unseen
from wsis.data.summary import describe
from wsis.errors import InputError
from wsis.files import clear_scratch
from wsis.method import Method, describe_supervision
from wsis.reports.live import LivePage
from wsis.runs.progress import percents, say
from wsis.runs.record import stages
from wsis.runs.run import OnlyStage, Run, rank

__all__ = ["fit", "main"]

MAIN = tuple(
    f"{split}/{name}"
    for split in ("val", "train")
    for name in ("AP50", "AP25", "AP75", "AP", "PQ", "CorLoc", "mIoU", "mAP", "tag_mAP")
)
"""Metrics that are printed at the end of a run, in this order."""


def main(argv: Sequence[str] | None = None) -> Run:
    """Train what `argv` asks for, in as many stages as the method has."""
    folder: list[Path] = []
    with plain_errors(
        lambda: f"; to continue: python -m wsis.fit --resume {folder[0]}" if folder else ""
    ):
        cli, place = _parse(list(sys.argv[1:] if argv is None else argv))
        folder.append(place)
        if cli.config.list_stages:
            _list(place)
            return _run(cli, place, cli.make_trainer)
        return _train(cli, place)


def fit(
    model: str | type[pl.LightningModule],
    data: str | type[pl.LightningDataModule] = "shapes",
    /,
    **settings: Any,
) -> Path:
    """Train a method in all its stages, as `python -m wsis.fit` does; return the run's folder.

    `wsis.load` takes the folder. Calling it again with the same `run_dir` and settings continues
    what was interrupted.

    Args:
        model: name or class of a method.
        data: name or class of a data set.
        **settings: what differs from the recipe, spelled as in a settings file: the sections
            `model`, `data`, `trainer` and `wandb`, each a dictionary, and `run_dir`, `save_every`,
            `reuse`, `stage` and `seed_everything`.

    Raises:
        InputError: an unknown name or setting, a value of the wrong type, or data that cannot be
            used.

    Example:
        `wsis.fit("pdsl", "folder", data={"root": "photos"}, trainer={"max_steps": 200})`
    """
    with quietly():
        cli = from_python(model, data, settings, run_options)
        place = run_folder(cli.names["model"], cli.names["data"], cli.config.run_dir)
        return _train(cli, place).folder


def _train(cli: CLI, folder: Path) -> Run:
    """Train every stage, and leave no process group and no folder for other ranks behind."""
    _check_stage(cli)
    page = LivePage(folder, f"{cli.names['model']} on {cli.names['data']}")
    run = _run(cli, folder, page.watching(cli.make_trainer))
    try:
        taken = cli.run is None and cli.config.run_dir is None
        with _only_if_begun(folder, is_new=taken or not folder.exists()):
            _open(cli, folder)
            say(f"open {page.path} to watch it")
            with page.kept():
                _work(run, cli.model, cli.datamodule)
        if dist.is_initialized():
            dist.barrier()
        _report(folder)
        return run
    finally:
        if rank() == 0:
            os.environ.pop("WSIS_RUN_DIR", None)
        if dist.is_initialized():  # left open by Lightning, gloo aborts one exit in five
            dist.destroy_process_group()


def _run(cli: CLI, folder: Path, make_trainer: Callable[..., pl.Trainer]) -> Run:
    config = cli.config
    return Run(
        folder,
        make_trainer,
        config.seed_everything,
        config.save_every,
        config.stage,
        announce=say,
        reuse=config.reuse,
        planned=cli.model.stage_names(),
        supervision=cli.model.supervision,
    )


def _parse(words: list[str]) -> tuple[CLI, Path]:
    """Return the command line and the run's folder; a resumed run has its own settings."""
    cli = CLI("fit", words, options=command_options, run_flag="--resume")
    given = cli.run or cli.config.run_dir
    if cli.config.list_stages and given is None:
        raise InputError("--list_stages lists those of a run: give --resume RUN or --run_dir RUN")
    return cli, given or run_folder(cli.names["model"], cli.names["data"], None)


def _check_stage(cli: CLI) -> None:
    """Raise InputError for a stage that the method does not have."""
    wanted, planned = cli.config.stage, cli.model.stage_names()
    if wanted is not None and planned and wanted not in planned:
        raise InputError(f"no stage is called '{wanted}' (have: {', '.join(planned)})")


def _open(cli: CLI, folder: Path) -> None:
    """Print where settings come from, and save them."""
    os.environ["WSIS_RUN_DIR"] = str(folder)  # for the processes of other ranks
    for path in cli.files:
        say(f"settings from {path}")
    for note in cli.left_out:
        say(f"note: {note}")
    say(f"run in {folder}")
    if rank() == 0:
        clear_scratch(folder)
        write_settings(folder / "config.yaml", cli.settings())
        data = cli.datamodule
        if isinstance(data, DataModule):
            notes = data.index("val").notes if data.has_val else ()
            say("\n".join([*describe(data.index("train")), *notes]))
            if hidden := unseen(data.index("train"), cli.model.supervision):
                fields = describe_supervision(cli.model.supervision)
                say(f"note: {hidden} objects are known by less than {fields}, and are background")


@contextmanager
def _only_if_begun(folder: Path, is_new: bool) -> Iterator[None]:
    """Delete a new run's folder after a mistake that ends it before there is anything to keep."""
    try:
        yield
    except (InputError, MisconfigurationException):
        finished = any(stage.finished for _, stage in stages(folder))
        if rank() == 0 and is_new and not finished and not any(folder.glob("*/*/*.ckpt")):
            shutil.rmtree(folder, ignore_errors=True)
        raise


def _work(run: Run, model: Method, data: pl.LightningDataModule) -> None:
    if isinstance(data, DataModule):
        model.check_augment(data.augment)
    try:
        model.stages(run, data)
    except OnlyStage as unfinished:
        if run.only not in run.names:
            raise InputError(
                f"stage '{unfinished}' is not finished with these settings, so '{run.only}' was "
                "not reached"
            ) from None
    else:
        if run.only not in (None, *run.names):
            raise InputError(f"no stage is called '{run.only}' (have: {', '.join(run.names)})")
        run.drop_others()


def _list(folder: Path) -> None:
    if not stages(folder):
        print(f"no stage has begun in {folder}")
    for path, stage in stages(folder):
        print(f"{path.name:<24}{'finished' if stage.finished else 'begun'}")


def _report(folder: Path) -> None:
    """Say where things are, and the main metrics."""
    for path, stage in stages(folder):
        say(f"{path}  {percents(stage.metrics, MAIN)}".rstrip())
        if stage.best:
            step, figures = f"{stage.best['step']:.0f}", percents(stage.best, MAIN)
            say(f"  best.ckpt of step {step}  {figures}  (used with --checkpoint best)")


if __name__ == "__main__":
    main()
