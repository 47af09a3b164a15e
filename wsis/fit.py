"""Train a method: `python -m wsis.fit --model pdsl --data voc --data.root DIR`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import pytorch_lightning as pl
import torch.distributed as dist

from wsis.command_line.messages import plain_errors
from wsis.command_line.options import run_options
from wsis.command_line.parser import CLI
from wsis.command_line.trainers import run_folder, write_settings
from wsis.data.module import DataModule
from wsis.data.summary import describe
from wsis.errors import InputError
from wsis.files import clear_scratch
from wsis.method import Method
from wsis.reports.live import LivePage
from wsis.runs.progress import say
from wsis.runs.record import stages
from wsis.runs.run import OnlyStage, Run, rank

__all__ = ["main"]

MAIN = tuple(
    f"{split}/{name}"
    for split in ("val", "train")
    for name in ("AP50", "AP25", "AP75", "AP", "PQ", "CorLoc", "mIoU", "mAP", "tag_mAP")
)
"""Metrics that are printed at the end of a run, in this order."""


def main(argv: Sequence[str] | None = None) -> Run:
    """Train what `argv` asks for, in as many stages as the method has."""
    folder: list[Path] = []
    try:
        with plain_errors(
            lambda: f"; to continue: python -m wsis.fit --resume {folder[0]}" if folder else ""
        ):
            cli, place = _parse(list(sys.argv[1:] if argv is None else argv))
            folder.append(place)
            config = cli.config
            asked = config.seed_everything, config.save_every, config.stage
            page = LivePage(place, f"{cli.names['model']} on {cli.names['data']}")
            run = Run(
                place,
                page.watching(cli.make_trainer),
                *asked,
                announce=say,
                reuse=config.reuse,
                supervision=cli.model.supervision,
            )
            if config.list_stages:
                _list(place)
                return run
            _open(cli, place)
            say(f"open {page.path} to watch it")
            with page.kept():
                _work(run, cli.model, cli.datamodule)
            if dist.is_initialized():
                dist.barrier()
            _report(place)
            return run
    finally:
        if rank() == 0:
            os.environ.pop("WSIS_RUN_DIR", None)
        if dist.is_initialized():  # left open by Lightning, gloo aborts one exit in five
            dist.destroy_process_group()


def _parse(words: list[str]) -> tuple[CLI, Path]:
    """Return the command line and the run's folder; a resumed run has its own settings."""
    cli = CLI("fit", words, options=run_options, run_flag="--resume")
    return cli, cli.run or run_folder(cli.names["model"], cli.names["data"], cli.config.run_dir)


def _open(cli: CLI, folder: Path) -> None:
    """Print where settings come from, and save them."""
    os.environ["WSIS_RUN_DIR"] = str(folder)  # for the processes of other ranks
    for path in cli.files:
        say(f"settings from {path}")
    say(f"run in {folder}")
    if rank() == 0:
        clear_scratch(folder)
        write_settings(folder / "config.yaml", cli.settings())
        if isinstance(cli.datamodule, DataModule):
            say("\n".join(describe(cli.datamodule.index("train"))))


def _work(run: Run, model: Method, data: pl.LightningDataModule) -> None:
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
    """Where things are, and the main metrics."""
    for path, stage in stages(folder):
        measured = ((name, stage.metrics.get(name)) for name in MAIN)
        shown = "  ".join(
            f"{name} {100 * value:.1f}%" for name, value in measured if value is not None
        )
        say(f"{path}  {shown}".rstrip())


if __name__ == "__main__":
    main()
