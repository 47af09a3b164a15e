"""Make or convert proposals: `python -m wsis.propose --data coco --data.root DIR`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wsis.datasets.folder import index_of_folder
from wsis.errors import InputError
from wsis.files import short_name
from wsis.proposals.convert import convert
from wsis.proposals.file import ProposalFile
from wsis.proposals.make import make
from wsis.proposals.proposers import BUILT_IN, names
from wsis.proposals.source import file_name, merge_sources
from wsis.runs.failures import refuse_failed
from wsis.runs.progress import say_notes
from wsis.types import Index

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> list[Path]:
    """Write the proposal files that `argv` asks for and print where they are.

    Started again, it continues where it was stopped.
    """
    from wsis.command_line.messages import plain_errors
    from wsis.command_line.parser import CLI

    with plain_errors(lambda: "; the same command continues"):
        cli = CLI("propose", _repeated(argv), kinds=("data",), options=_options)
        config, data = cli.config, cli.datamodule
        if config.images is None and config.out is None:  # where the data set itself looks
            data.proposals, data.writes_beside = _source(data, config["from"]), True
            splits = _splits(data, config.split)
            say_notes(*map(data.index, splits))
            files = [data.proposal_file(split, config.workers) for split in splits]
        else:
            indices = _indices(data, config.split, config.images)
            say_notes(*indices.values())
            source = _source(data, config["from"])
            out = _places(list(indices), config.out, config.images, source)
            files = [
                _write(index, out[name], source, config.workers) for name, index in indices.items()
            ]
            for name, index in indices.items():
                total = len(index.images) + len(index.unreadable)
                refuse_failed(index.unreadable, total, str(out[name]))
        for file in files:
            print(f"proposals of {len(file)} images in {file.path}", flush=True)
        return [file.path for file in files]


def _repeated(argv: Sequence[str] | None) -> list[str]:
    """Return the words in which each of several `--from` adds to a list."""
    words = list(sys.argv[1:] if argv is None else argv)
    flags = [word.partition("=")[0] for word in words]
    if flags.count("--from") < 2:
        return words
    return [w.replace("--from", "--from+", 1) if w.startswith("--from") else w for w in words]


def _source(data: Any, given: list[Path] | Path | None) -> str | list[str]:
    """Return what to convert or merge, else the proposer that the data's settings name."""
    if isinstance(given, list):
        return [str(path) for path in given]
    if given is not None:
        return str(given)
    named = "none" if data is None else str(data.proposals)
    return BUILT_IN if named == "none" else named


def _write(index: Index, out: Path, source: str | list[str], workers: int | None) -> ProposalFile:
    if isinstance(source, list):
        return merge_sources(index, index.root, source, out, workers, beside=False)
    known = source in names()
    return ProposalFile(make(index, out, workers, source) if known else convert(source, index, out))


def _options(parser: Any) -> None:
    parser.add_argument(
        "--out",
        type=Path | None,
        default=None,
        help="The file to write; beside the data, where wsis.fit finds it, if not given.",
    )
    parser.add_argument(
        "--split", type=str, default="all", help="Which images of the data set: train, val or all."
    )
    parser.add_argument(
        "--from",
        type=list[Path] | Path | None,
        default=None,
        help="A file or folder of another tool to convert; given several times, what to merge, of "
        "which each may also be a proposer or a file of proposals.",
    )
    parser.add_argument(
        "--images",
        type=Path | None,
        default=None,
        help="A folder of images to use in place of a data set.",
    )
    parser.add_argument(
        "--workers",
        type=int | None,
        default=None,
        help="Processes; one per core if not given, none beside this if 0.",
    )


def _indices(data: Any, split: str, images: Path | None) -> dict[str, Index]:
    """The images to work on, by the name of their split."""
    if images is not None:
        return {"images": index_of_folder(images)}
    return {name: data.index(name) for name in _splits(data, split)}


def _splits(data: Any, split: str) -> list[str]:
    if split not in ("train", "val", "all"):
        raise InputError(f"--split {split}: give train, val or all")
    return ["train", *(["val"] if data.has_val else [])] if split == "all" else [split]


def _places(
    splits: list[str], out: Path | None, folder: Path, source: str | list[str]
) -> dict[str, Path]:
    """Return one file per split; beside the images where no file is named."""
    out = out or folder / file_name(source)
    return {
        split: out
        if len(splits) == 1
        else out.with_name(f"{short_name(out.stem)}-{split}{out.suffix}")
        for split in splits
    }


if __name__ == "__main__":
    main()
