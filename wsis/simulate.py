"""Simulate weaker labels of a data set with masks, by share and seed.

`python -m wsis.simulate --data coco --data.root DIR --mask 0.05 --point 0.95 --out labels.json`
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

from wsis.command_line.messages import plain_errors
from wsis.command_line.parser import CLI
from wsis.data.index import write_coco
from wsis.data.simulated import Seconds, Simulation, seconds_of, simulate
from wsis.errors import InputError
from wsis.files import check_writable
from wsis.machine import bar
from wsis.runs.progress import say_notes
from wsis.types import Index

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> Path:
    """Write the labels that `argv` asks for as a COCO instances file, and return it."""
    with plain_errors():
        cli = CLI("simulate", argv, kinds=("data",), options=_options)
        config, data = cli.config, cli.datamodule
        how = Simulation(**{field.name: config[field.name] for field in fields(Simulation)})
        seconds = Seconds(**config.seconds.as_dict())
        if config.split not in ("train", "val"):
            raise InputError(f"--split {config.split}: give train or val")
        check_writable(config.out)
        index = data.index(config.split)
        say_notes(index)
        made = simulate(index, how, partial(bar, desc="labels", unit="image"), seconds)
        write_coco(config.out, _with_source(made, how))
        for line in _described(made, seconds):
            print(line, flush=True)
        print(f"{len(made.images)} of {len(index.images)} images: {config.out}", flush=True)
        return Path(config.out)


def _options(parser: Any) -> None:
    parser.add_argument("--out", type=Path, required=True, help="COCO json to write.")
    parser.add_argument("--split", type=str, default="train", help="Images to label: train or val.")
    parser.add_class_arguments(Simulation)
    parser.add_class_arguments(Seconds, "seconds")


def _with_source(index: Index, how: Simulation) -> Index:
    """Return the index with annotations that say where they come from, for tables of runs."""
    shares = [f"{getattr(how, kind):g} {kind}" for kind in ("mask", "box", "point", "tag")]
    given = " + ".join(share for share in shares if not share.startswith("0 "))
    source = f"simulation ({given}), by {how.by}, seed {how.seed}"
    return index._replace(
        annotations={
            image: [{**annotation, "source": source} for annotation in found]
            for image, found in index.annotations.items()
        }
    )


def _described(index: Index, seconds: Seconds) -> list[str]:
    """Return a line for each kind of label, with the hours that people take for it."""
    words = {
        "mask": "masks of {} objects",
        "box": "boxes of {} objects",
        "point": "points of {} objects",
        "tag": "classes of {} images",
    }
    found = seconds_of(index, seconds)
    total = sum(spent for _, spent in found.values())
    return [
        f"{words[kind].format(count)}: {spent / 3600:.2f} h"
        for kind, (count, spent) in found.items()
        if count
    ] + [f"in all {total / 3600:.2f} h of labelling"]


if __name__ == "__main__":
    main()
