"""Settings of a run that belong to neither model, data nor trainer."""

from __future__ import annotations

from pathlib import Path

from jsonargparse.typing import PositiveInt
from pytorch_lightning.cli import LightningArgumentParser

__all__ = ["command_options", "run_options"]


def run_options(parser: LightningArgumentParser) -> None:
    """Add the settings of a run to a parser."""
    parser.add_argument(
        "--run_dir",
        type=Path | None,
        default=None,
        help="Where this run writes; runs/MODEL/DATA/TIME if not given.",
    )
    parser.add_argument(
        "--save_every",
        type=PositiveInt,
        default=500,
        help="Optimiser steps from one checkpoint to the next.",
    )
    parser.add_argument(
        "--stage",
        type=str | None,
        default=None,
        help="The one stage to work on; those before must be finished, here or in --reuse.",
    )
    parser.add_argument(
        "--reuse",
        type=Path | None,
        default=None,
        help="Folder of runs; stages completed there with the same settings are copied, not "
        "retrained.",
    )


def command_options(parser: LightningArgumentParser) -> None:
    """Add the settings of a run, and what only a command can do with one."""
    run_options(parser)
    parser.add_argument(
        "--resume",
        type=Path | None,
        default=None,
        help="Folder of a run to continue with its own settings.",
    )
    parser.add_argument(
        "--list_stages",
        action="store_true",
        help="Show the stages of the run and how far they are.",
    )
