"""Predict your own images: `python -m wsis.predict --run RUN image.jpg DIR`."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from os.path import isdir
from pathlib import Path
from typing import TYPE_CHECKING, cast

from jsonargparse import ArgumentParser
from lightning_utilities.core.rank_zero import rank_zero_only

from wsis.command_line.messages import plain_errors
from wsis.command_line.parser import Help, parse
from wsis.data.index import read_coco
from wsis.data.module import Augment, DataModule, Loading
from wsis.errors import InputError
from wsis.files import atomic_write, check_writable
from wsis.images import draw
from wsis.images.read import other_files, pictures, read_image, read_sizes
from wsis.inference import classes_of, load, store_predictions, trained
from wsis.metrics.panoptic_results import PANOPTIC, read_panoptic
from wsis.metrics.results import read_results
from wsis.proposals.make import Fresh
from wsis.proposals.source import proposer_of
from wsis.reports.exports import Format, export, file_names
from wsis.runs.checkpoints import Which
from wsis.runs.failures import Tolerant, TolerantReader, refuse_failed
from wsis.sharing.places import find_run
from wsis.types import Index, Prediction, Record
from wsis.values import FRACTION, check_ranges

if TYPE_CHECKING:
    from wsis.proposals.file import ProposalFile

__all__ = ["main", "predict_images"]


def main(argv: Sequence[str] | None = None) -> Path:
    """Predict the images that `argv` names; return the results file."""
    with plain_errors():
        parser = ArgumentParser(
            prog="python -m wsis.predict",
            description=__doc__,
            exit_on_error=False,
            formatter_class=Help,
        )
        parser.add_argument("images", nargs="+", type=Path, help="Images, and folders of images.")
        parser.add_function_arguments(predict_images, skip={"images"})
        return predict_images(**parse(parser, argv))


def predict_images(
    images: list[Path],
    run: str,
    out: Path = Path("predictions"),
    boxes: Path | None = None,
    stage: str | None = None,
    checkpoint: Which = "last",
    score: float | None = None,
    formats: tuple[Format, ...] = ("csv",),
    workers: int = 2,
    accelerator: str = "auto",
    devices: int = 1,
) -> Path:
    """Predict images; write predictions.json (COCO results), images.json, overlays/ and tables.

    A panoptic method also writes panoptic.json and panoptic/ (COCO's format) and
    overlays/panoptic/. Images that fail are listed at the end, and the others are done.

    Args:
        images: Images, and folders of images.
        run: Folder of a finished run; or a shared model: its folder, archive, URL, or
            hub:USER/NAME.
        out: Folder to write to.
        boxes: COCO json with boxes of the images, for a method that predicts the masks in them.
        stage: Trained stage to use; if not given the last, with `boxes` the last that takes boxes.
        checkpoint: Of the stage: last, or best, that of the best validation if there were several.
        score: Detections below this score are not drawn; if not given, that of the best F1 in the
            run's validation. predictions.json has them all.
        formats: What else to write of the detections that are drawn, as in `[csv,yolo]`. csv:
            tables of objects and of counts. sheet: one picture of at most 64 images with their
            objects. png: images of object numbers. cutouts: objects with alpha. coco, polygons:
            COCO json, masks as run lengths or polygons. yolo: polygons in text files, data.yaml.
            label_studio, label_studio_polygons: tasks with brush masks or polygons. cvat: CVAT for
            images 1.1.
        workers: Processes that read images and make proposals.
        accelerator: What to compute on, as Lightning calls it: auto, cpu, gpu, ...
        devices: How many of them.

    Raises:
        InputError: not a finished run, boxes that no stage takes or of other images; or, after the
            others are done, an image failed.
    """
    check_ranges("predict", {"score": score}, {FRACTION: ("score",)})
    place = find_run(run)
    stage = stage or (_stage_for_boxes(place) if boxes else None)
    model, data, config, threshold = load(place, stage, checkpoint)
    threshold = threshold if score is None else score
    if model.needs_boxes != (boxes is not None):
        raise InputError(
            f"{type(model).__name__} of {run} {'does not take' if boxes else 'needs'} --boxes; "
            "choose a --stage of it"
        )
    things, stuff = classes_of(place, data)
    files = _files(images)
    records, failed = _readable(files)
    index = Index(name="pictures", root=Path(), images=records, categories=things, stuff=stuff)
    index = _with_boxes(index, boxes) if boxes else index
    given, tolerant = _Pictures(index, workers, proposer_of(config["data"])), Tolerant(model)
    check_writable(out / "predictions.json")
    results = store_predictions(tolerant, given, "train", out, accelerator, devices)
    if results is not None:
        failed |= _failures(tolerant, index)
        rest = given.without("train", tolerant.failed.keys()).index("train")
        if rest.images:
            _write(results, rest, threshold, formats)
        refuse_failed(failed, len(files), str(out))
    return out / "predictions.json"


def _write(results: Path, index: Index, threshold: float, formats: Sequence[Format]) -> None:
    """Write what is made of predictions.json beside it, and say so."""
    out = results.parent
    with atomic_write(out / "images.json") as scratch:
        scratch.write_text(
            json.dumps({"images": index.images, "categories": index.categories}, indent=1)
        )
    predictions = read_results(results, index.images, index.categories)
    told = _draw(predictions, index, threshold, out / "overlays")
    shown = [prediction.above(threshold) for prediction in predictions]
    exported = export(out, index, shown, formats)
    if (out / PANOPTIC).is_file():
        _draw_panoptic(out / PANOPTIC, index, out / "overlays" / "panoptic")
    places = [results, out / "images.json", out / "overlays", *exported]
    print(f"{len(index.images)} images: {', '.join(map(str, places))}")
    print(told)


class _Pictures(DataModule):
    """Images without annotations, or with boxes alone; proposals are made as images are read."""

    def __init__(self, index: Index, workers: int, proposer: str) -> None:
        loading = Loading(batch_size=1, workers=workers)
        super().__init__("pictures", Path(), proposals=proposer, augment=Augment(), loading=loading)
        self._index = index

    @property
    def has_val(self) -> bool:
        return False

    def read(self, split: str) -> Index:
        return self._index

    def proposal_file(self, split: str, workers: int | None = None) -> ProposalFile | None:
        needed = self._needs().needs_proposals
        return cast("ProposalFile", TolerantReader(Fresh(self.proposals))) if needed else None


def _stage_for_boxes(run: Path) -> str:
    """Return the last trained stage whose model segments given boxes."""
    able = [name for name, model in trained(run).items() if model.needs_boxes]
    if not able:
        raise InputError(
            f"{run} has no trained stage that segments given boxes; "
            "leave out --boxes, or train boxcaseg"
        )
    return able[-1]


def _with_boxes(index: Index, path: Path) -> Index:
    """Add the boxes of a COCO json, which names images by the end of their paths; drop others."""
    given = read_coco(path, Path(), check_images=False)
    named = {image["file_name"]: image for image in given.images}
    images, boxes = [], {}
    for image in index.images:
        parts = Path(image["file_name"]).parts
        ends = (
            "/".join(parts[i:]) for i in range(len(parts))
        )  # the longest first: names may be equal in two folders
        mine = next((named[end] for end in ends if end in named), None)
        if mine is None:
            _warn(f"left out: {path} has no boxes for {image['file_name']}")
            continue
        if (mine["height"], mine["width"]) != (image["height"], image["width"]):
            theirs = f"{mine['width']} x {mine['height']}"
            raise InputError(
                f"{path} has {image['file_name']} at {theirs} pixels, "
                f"but it is {image['width']} x {image['height']}"
            )
        images.append(image)
        found = given.annotations[mine["id"]]
        boxes[image["id"]] = [a for a in found if "bbox" in a and not a.get("iscrowd")]
    if not images:
        raise InputError(
            f"{path} has boxes for none of the images; its file_name must be the end of their paths"
        )
    return index._replace(images=images, annotations=boxes, categories=given.categories)


def _readable(files: Sequence[Path]) -> tuple[list[Record], dict[str, str]]:
    """Return records of the images that can be read, and why others cannot."""
    records: list[Record] = []
    failed: dict[str, str] = {}
    for path, size in zip(files, read_sizes(files), strict=True):
        if isinstance(size, InputError):
            failed[str(path)] = str(size)
            _warn(f"left out: {size}")
            continue
        place = {"id": len(records) + 1, "file_name": str(path)}
        records.append({**place, "height": size[0], "width": size[1]})
    if not records:
        raise InputError("none of the images can be read; give images or folders of images")
    return records, failed


def _failures(tolerant: Tolerant, index: Index) -> dict[str, str]:
    """Return and print why the model failed on images."""
    names = {image["id"]: image["file_name"] for image in index.images}
    failed = {names[number]: reason for number, reason in tolerant.failed.items()}
    for name, reason in failed.items():
        _warn(f"left out: {name} ({reason})")
    return failed


def _files(given: Iterable[Path]) -> list[Path]:
    """Return the given files, and the pictures in the given folders, each once."""
    files: list[Path] = []
    for path in given:
        is_folder = isdir(path)  # pathlib's raises an error for a name that is too long
        inside = pictures(path) if is_folder else [path]
        if not inside:
            _warn(f"left out: no images in {path}")
        if is_folder and (others := other_files(path)):
            kinds = Counter(other.suffix.lower() or "no suffix" for other in others)
            told = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
            _warn(f"note: {path} has files of other kinds, which are no images: {told}")
        files += inside
    return list(dict.fromkeys(files))


def _draw(predictions: Sequence[Prediction], index: Index, score: float, folder: Path) -> str:
    """Write one overlay per image; return how many objects are drawn on how many images."""
    names = [category["name"] for category in index.categories]
    for image, name, prediction in zip(index.images, file_names(index), predictions, strict=True):
        drawn = draw.overlay(
            read_image(Path(image["file_name"])), prediction, names, score, _long_side(image)
        )
        with atomic_write(folder / f"{name}.jpg") as scratch:
            scratch.write_bytes(draw.jpeg(drawn))
    sure = [int((prediction.scores >= score).sum()) for prediction in predictions]
    guesses = sum(not n and len(p.scores) > 0 for n, p in zip(sure, predictions, strict=True))
    told = (
        f"drawn from a score of {score:.2f}: {sum(sure)} objects on {sum(map(bool, sure))} images"
    )
    return told + (f"; the best guess, marked ?, on {guesses} others" if guesses else "")


def _draw_panoptic(results: Path, index: Index, folder: Path) -> None:
    """Write one overlay per image that has a panoptic map."""
    names, stuff = (
        [category["name"] for category in part] for part in (index.categories, index.stuff)
    )
    maps = read_panoptic(results, index.images, index.categories, index.stuff)
    for image, name in zip(index.images, file_names(index), strict=True):
        panoptic = maps(image)
        if panoptic is not None:
            drawn = draw.overlay_panoptic(
                read_image(Path(image["file_name"])), panoptic, names, stuff, _long_side(image)
            )
            with atomic_write(folder / f"{name}.jpg") as scratch:
                scratch.write_bytes(draw.jpeg(drawn))


def _long_side(image: Record) -> int:
    return max(800, int(image["width"]), int(image["height"]))


@rank_zero_only
def _warn(line: str) -> None:
    print(" ".join(line.split("\n")), file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
