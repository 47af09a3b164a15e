"""Find the proposals of `--data.proposals`: made, converted or read from a file."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from wsis.errors import InputError
from wsis.files import cache_folder, short_name
from wsis.fingerprint import digest
from wsis.proposals import proposers
from wsis.proposals.convert import convert
from wsis.proposals.file import ProposalFile, forget, is_ours
from wsis.proposals.make import make
from wsis.proposals.merge import merge
from wsis.registry import suggest
from wsis.types import Index, Record

__all__ = ["content_of", "file_name", "merge_sources", "proposals_of_index", "proposer_of"]


def proposals_of_index(
    index: Index,
    folder: Path,
    source: str | Sequence[str],
    workers: int | None = None,
    beside: bool = True,
) -> ProposalFile:
    """Return the proposals of the images of `index`, making or converting missing ones.

    The file is named after the folder of images, so that subsets of a data set share it. One that
    is in `folder` is used and completed there.

    Args:
        index: the images.
        folder: folder of the data set.
        source: name of a proposer, or a file or folder of proposals in any known format; several
            are merged.
        workers: processes that make proposals; one per core if None.
        beside: whether a new file is kept in `folder`; if not, or if that is not writable, it is
            kept in the user's cache, and images that change get new proposals.

    Raises:
        InputError: no such proposer or file, an image without proposals in the file, or an image
            that cannot be read.
    """
    if not isinstance(source, str):
        name = file_name(source, _parts(index.root, folder))
        out = _place(folder, name, beside) / name
        return merge_sources(index, folder, source, out, workers, beside)
    file = _of_one(index, folder, source, workers, beside)
    file.check(index.images)  # now rather than hours into training
    return file


def merge_sources(
    index: Index,
    folder: Path,
    sources: Sequence[str],
    out: Path,
    workers: int | None = None,
    beside: bool = True,
) -> ProposalFile:
    """Return the merged proposals of the images of `index`, in the file `out`.

    The proposals of each source are kept in a file of their own. Images may lack proposals in some
    of the sources. Other arguments and errors are those of `proposals_of_index`.
    """
    if not _is_complete(out, index.images):
        files = [_of_one(index, folder, source, workers, beside, True) for source in sources]
        merge(files, index, out)
    return ProposalFile(out)


def _of_one(
    index: Index,
    folder: Path,
    source: str,
    workers: int | None,
    beside: bool,
    partial: bool = False,
) -> ProposalFile:
    """Return the proposals of one source, which may lack images if it is converted or `partial`."""
    path = None if source in proposers.names() else _existing(source)
    if path is not None and is_ours(path):
        return ProposalFile(path)
    name = file_name(source, _parts(index.root, folder))
    if _is_complete(folder / name, index.images):
        return ProposalFile(folder / name)
    out = _place(folder, name, beside) / name
    if out.parent != folder:
        _forget_changed(out, index)
    if _is_complete(out, index.images):
        return ProposalFile(out)
    if path is not None:
        return ProposalFile(convert(path, index, out, partial))
    return ProposalFile(make(index, out, workers, source))


def content_of(source: str, read: Callable[[], ProposalFile | None]) -> Any:
    """Return what proposals depend on: a proposer with its settings, or a file's content.

    Args:
        source: name of a proposer, or a file or folder.
        read: opens the proposals; called only if `source` is a file or folder.
    """
    if source in proposers.names():
        return proposers.find(source).provenance
    file = read()
    return None if file is None else [file.provenance, file.digest()]


def proposer_of(data: Mapping[str, Any]) -> str:
    """Return the proposer of a run's data settings, for new images; else the built-in one."""
    source = (data.get("init_args") or {}).get("proposals")
    return source if source in proposers.names() else proposers.BUILT_IN


def file_name(source: str | Sequence[str], parts: Sequence[str] = ()) -> str:
    """Return the name of the file for made or converted proposals.

    It has a digest of what they depend on, so that proposals of other settings or of another
    version are never taken for these.

    Args:
        source: name of a proposer, or an existing file or folder; or several of them, merged.
        parts: path of the image folder below the data set's folder, by component.
    """
    known = [_named(one) for one in ([source] if isinstance(source, str) else source)]
    title = "+".join(name for name, _ in known)
    key = known[0][1] if isinstance(source, str) else digest([key for _, key in known])
    return short_name("-".join(("proposals", title, key[:8], *parts))) + ".sqlite"


def _named(source: str) -> tuple[str, str]:
    """Return what to call a source, and a digest of what its proposals depend on."""
    if source in proposers.names():
        return source, digest(proposers.find(source).provenance)
    path = _existing(source)
    state = path.stat()
    return path.stem, digest([str(path.resolve()), state.st_size, state.st_mtime_ns])


def _existing(source: str) -> Path:
    path = Path(source)
    if not path.exists():
        known = proposers.names()
        raise InputError(
            f"no proposals {source}{suggest(source, known)}; give an existing file or folder, "
            f"or a proposer ({', '.join(known)})"
        )
    return path


def _parts(root: Path, folder: Path) -> tuple[str, ...]:
    return root.relative_to(folder).parts if root.is_relative_to(folder) else (root.name,)


def _place(folder: Path, name: str, beside: bool) -> Path:
    """Return where a file is written: in `folder`, or in a folder for it in the user's cache."""
    wanted = beside or (folder / name).is_file()
    if wanted and folder.is_dir() and os.access(folder, os.W_OK):
        return folder
    return cache_folder() / f"{short_name(folder.name)}-{digest(str(folder.resolve()))[:12]}"


def _forget_changed(path: Path, index: Index) -> None:
    """Delete the proposals of images that are newer: a folder of the same path may be another."""
    if path.is_file():
        names = [image["file_name"] for image in index.images]
        made = path.stat().st_mtime
        forget(path, [name for name in names if (index.root / name).stat().st_ctime > made])


def _is_complete(path: Path, images: Sequence[Record]) -> bool:
    """Return whether a file has the proposals of all images; an empty file has none."""
    made = ProposalFile(path).files() if path.exists() and path.stat().st_size else {}
    sizes = {image["file_name"]: (image["height"], image["width"]) for image in images}
    return all(made.get(name) == size for name, size in sizes.items())
