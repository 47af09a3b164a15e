"""Write pseudo-labels: `python -m wsis.label --run RUN --out pseudo.json`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ArgumentParser

from wsis.command_line.messages import plain_errors
from wsis.command_line.parser import Help, parse
from wsis.data.module import Loading
from wsis.datasets.folder import Folder
from wsis.errors import InputError
from wsis.files import check_writable
from wsis.images.read import unreadable
from wsis.inference import classes_of, labelling_stage, load, store_labels
from wsis.reports.exports import Format, export
from wsis.runs.checkpoints import Which
from wsis.runs.failures import refuse_failed
from wsis.runs.progress import say_notes
from wsis.sharing.places import find_run

__all__ = ["label_images", "main"]


def main(argv: Sequence[str] | None = None) -> Path:
    """Label the images that `argv` names; return the file."""
    with plain_errors():
        parser = ArgumentParser(
            prog="python -m wsis.label",
            description=__doc__,
            exit_on_error=False,
            formatter_class=Help,
        )
        parser.add_function_arguments(label_images)
        return label_images(**parse(parser, argv))


def label_images(
    run: str,
    out: Path,
    images: Path | None = None,
    labels: str = "",
    split: str = "train",
    stage: str | None = None,
    checkpoint: Which = "last",
    score: float = 0.5,
    formats: tuple[Format, ...] = (),
    accelerator: str = "auto",
    devices: int = 1,
) -> Path:
    """Write a model's labels of its own training images, or of others, as a COCO instances file.

    Methods with their own labels, such as masks in given boxes, write these; others write the best
    detection of each tagged class and all above `score`. Images that fail are listed at the end,
    and the others are done.

    Args:
        run: Folder of a finished run; or a shared model: its folder, archive, URL, or
            hub:USER/NAME.
        out: COCO instances json to write, with `score`, `source` and `ignore` of each annotation.
        images: Folder of images to label in place of the run's own.
        labels: Tags (.csv) or boxes (COCO json) of these images, relative to `images`; labels.csv
            or labels.json there if not given.
        split: Which of the run's own images: train or val.
        stage: Trained stage to use; by default the last with labels of its own, else the last.
        checkpoint: Of the stage: last, or best, that of the best validation if there were several.
        score: Lowest score of a label that is not the best of its class.
        formats: What else to write of the labels, in the folder STEM-formats beside OUT, as in
            `[cvat,yolo]`: any of csv, sheet, png, cutouts, coco, polygons, yolo, label_studio,
            label_studio_polygons and cvat, as `wsis.predict` has them.
        accelerator: What to compute on, as Lightning calls it: auto, cpu, gpu, ...
        devices: How many of them.

    Raises:
        InputError: not a finished run, its data is not there, or the file cannot be written; or,
            after the others are done, an image failed.
    """
    if split not in ("train", "val"):
        raise InputError(f"--split {split}: give train or val")
    place = find_run(run)
    model, data, *_ = load(place, stage or labelling_stage(place), checkpoint)
    if images is not None:
        names = [category["name"] for category in classes_of(place, data)[0]]
        wanted = () if model.needs_boxes else names
        data = _folder(images, labels, wanted, data.loading)  # type: ignore[attr-defined]
        split = "train"
    index = data.index(split)  # type: ignore[attr-defined]
    say_notes(index)
    paths = {image["id"]: image["file_name"] for image in index.images}
    own = images is None
    broken = unreadable(index.root, list(paths.values())) if own else {**index.unreadable}
    total = len(index.images) + len(index.unreadable)
    if len(broken) == total:
        refuse_failed(broken, total, "")
    data = data.without(split, {k for k, name in paths.items() if name in broken})  # type: ignore[attr-defined]
    check_writable(out)
    made = store_labels(model, data, split, out, run, score, accelerator, devices)
    if made is not None:
        exported = export(out.with_name(f"{out.stem}-formats"), made.data, made.labels, formats)
        count = sum(len(prediction.boxes) for prediction in made.labels)
        places = ", ".join(map(str, [out, *exported]))
        print(f"{count} labels on {len(made.data.images)} images: {places}")
        failed = broken | {paths[number]: told for number, told in made.failed.items()}
        for name, reason in failed.items():
            print(f"left out: {name} ({reason})", file=sys.stderr, flush=True)
        refuse_failed(failed, total, places)
    return out


def _folder(images: Path, labels: str, classes: Sequence[str], loading: Loading) -> Folder:
    """Return a user's images as data; without `classes`, those of the labels."""
    if not images.is_dir():
        raise InputError(f"no folder {images}; give --images the folder of the images")
    elsewhere = labels and not (images / labels).is_file()
    found = Folder(
        images,
        str(Path(labels).resolve()) if elsewhere else labels,
        classes=tuple(classes),
        loading=loading,
    )
    found.tolerant = True
    return found


if __name__ == "__main__":
    main()
