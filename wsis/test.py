"""Judge a run or a file: `python -m wsis.test --run RUN`, or `--predictions FILE --data coco --data.root DIR`."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pytorch_lightning.cli import LightningArgumentParser
from torchmetrics import Metric

from wsis.command_line.messages import plain_errors
from wsis.command_line.parser import CLI
from wsis.data.samples import truth_of
from wsis.errors import InputError
from wsis.files import whole
from wsis.images import draw
from wsis.images.panoptic import PanopticMaps
from wsis.images.read import read_image
from wsis.inference import load
from wsis.metrics import VOCAP, CorLoc, InstanceAP, MaskIoU, PanopticQuality
from wsis.metrics.panoptic_results import PANOPTIC, read_panoptic
from wsis.metrics.results import read_results
from wsis.predict import store_predictions
from wsis.reports.report import Pair, read_curves, write_report
from wsis.reports.tables import print_table
from wsis.types import Index, Prediction, Truth, class_of

__all__ = ["Judgement", "evaluate", "judge", "main", "truths_of"]

HEADINGS = ("AP", "AP25", "AP50", "AP70", "AP75", "APs", "APm", "APl", "VOC_AP50", "VOC07_AP50")
PANOPTIC_HEADINGS = ("PQ", "SQ", "RQ")
GIVEN_BOXES = ("mIoU", "IoU50", "IoU75")
PER_CLASS = ("AP", "AP25", "AP50", "AP70", "AP75", "box_AP50", "CorLoc")
GALLERY = 12
"""Images in the report, about 3 MB."""


class Judgement(NamedTuple):
    """Figures from 0 to 1; nan where there is no truth to judge by."""

    figures: dict[str, float]
    per_class: dict[str, dict[str, float]]
    """Class name -> figure -> value."""


def main(argv: Sequence[str] | None = None) -> Judgement | None:
    """Judge what `argv` asks for; None on all ranks but the first."""
    with plain_errors():
        cli = CLI("test", argv, kinds=("data",), options=_options, run_flag="--run")
        return evaluate(cli.datamodule, **{name: cli.config[name] for name in cli.own})


def evaluate(
    data: Any,
    run: Path | None = None,
    predictions: Path | None = None,
    split: str = "val",
    stage: str | None = None,
    out: Path | None = None,
    per_class: bool = False,
    panoptic: Path | None = None,
    accelerator: str = "auto",
    devices: int = 1,
) -> Judgement | None:
    """Judge a run or a results file, print a table, and write metrics.json and report.html.

    Args:
        data: What to judge on.
        run: Folder of a finished run; its data is used unless told otherwise.
        predictions: A COCO results file instead of a run.
        split: Which images: val or train. CorLoc is usually given for train.
        stage: Trained stage of the run to judge; the last if not given. One that segments given boxes is judged by mask IoU.
        out: Folder to write to; RUN/test-SPLIT (-STAGE), or the folder of the predictions, if not given.
        per_class: Print a line for each class.
        panoptic: A COCO panoptic json beside its folder of pngs; panoptic.json beside the predictions if not given.
        accelerator: What to compute on, as Lightning calls it: auto, cpu, gpu, ...
        devices: How many of them.

    Raises:
        InputError: nothing or too much to judge, or predictions that are not of this data set.
    """
    if (run is None) == (predictions is None):
        raise InputError("give either --run RUN, or --predictions FILE with --data NAME")
    if split not in ("train", "val"):
        raise InputError(f"--split {split}: give train or val")
    data = data.as_annotated()
    index = data.index(split)
    if not any(index.annotations.values()):
        raise InputError(
            f"{data.name} has no boxes or masks in its {split} split to judge by; annotate some images"
        )
    folder = out or (
        run / "-".join(filter(None, ("test", split, stage)))
        if run
        else Path(str(predictions)).parent
    )
    model = load(run, stage).model if run else None
    file = predictions or store_predictions(model, data, split, folder, accelerator, devices)  # type: ignore[arg-type]
    if file is None:
        return None
    found = read_results(file, index.images, index.categories)
    if not any(len(p.labels) for p in found):
        if predictions:
            raise InputError(f"{file} holds no predictions; write it again, or name another file")
        print("this model finds nothing in these images")
    names = [category["name"] for category in index.categories]
    judgement = judge(
        found, truths_of(index), names, given_boxes=model is not None and model.needs_boxes
    )
    maps = _maps(panoptic, Path(file).with_name(PANOPTIC), index)
    if maps:
        judgement = _with_panoptic(judgement, maps, index, found)
    _print(judgement, per_class)
    title = str(run or predictions)
    _write(
        folder,
        judgement,
        index,
        {"predictions": title, "data": data.name, "split": split, "images": len(found)},
    )
    _report(folder / "report.html", title, judgement, index, found, maps, run, split)
    print(
        f"wrote {folder / 'metrics.json'}, {folder / 'report.html'}" + (f", {file}" if run else "")
    )
    return judgement


def judge(
    predictions: Sequence[Prediction],
    truths: Sequence[Truth],
    names: Sequence[str],
    given_boxes: bool = False,
) -> Judgement:
    """Give all figures of predictions, one per truth; of boxes alone where predictions have no masks.

    Args:
        predictions: one per image.
        truths: of the same images.
        names: class names.
        given_boxes: whether the boxes were given, so that only the masks in them can be judged.
    """
    kinds: tuple[Literal["mask", "box"], ...]
    kinds = ("mask", "box") if all(len(p.masks) == len(p.labels) for p in predictions) else ("box",)
    metrics: list[Metric] = (
        [MaskIoU(len(names))] if given_boxes else [InstanceAP(len(names)), CorLoc(len(names))]
    )
    if not given_boxes:
        metrics += [
            VOCAP(0.5, points, kind, len(names)) for kind in kinds for points in ("all", "11")
        ]
    values: dict[str, Any] = {}
    for metric in metrics:
        metric.update(list(predictions), list(truths))
        values |= metric.compute()
    figures = {name: float(value) for name, value in values.items() if value.ndim == 0}
    columns = {
        name.removeprefix("per_class/"): value.tolist()
        for name, value in values.items()
        if value.ndim
    }
    return Judgement(
        figures,
        {name: {key: column[c] for key, column in columns.items()} for c, name in enumerate(names)},
    )


def _maps(given: Path | None, beside: Path, index: Index) -> PanopticMaps | None:
    """The predicted panoptic maps that can be judged."""
    if given is None and not beside.is_file():
        return None
    if index.panoptic is not None:
        return read_panoptic(given or beside, index.images, index.categories, index.stuff)
    lack = f"{index.name} as read here has no panoptic annotations"
    if given:
        raise InputError(f"{lack} to judge {given} by; for COCO set --data.panoptic true")
    print(f"{beside} is not judged: {lack}")
    return None


def _with_panoptic(
    judgement: Judgement, maps: PanopticMaps, index: Index, found: Sequence[Prediction]
) -> Judgement:
    """Add panoptic quality, image by image: the maps of a data set would not fit in memory."""
    metric = PanopticQuality(len(index.categories), len(index.stuff))
    for image, prediction, truth in zip(index.images, found, truths_of(index), strict=True):
        true = index.panoptic(image) if index.panoptic else None
        predicted = None if true is None else maps(image)
        if true is not None and predicted is None:
            raise InputError(
                f"{maps.folder}.json has no map of image {image['id']}; predict all images of the split"
            )
        metric.update([prediction._replace(panoptic=predicted)], [truth._replace(panoptic=true)])
    values = metric.compute()
    figures = {name: float(value) for name, value in values.items() if value.ndim == 0}
    per_class = {name: dict(known) for name, known in judgement.per_class.items()}
    for c, category in enumerate([*index.categories, *index.stuff]):
        known = per_class.setdefault(category["name"], {})
        known |= {name: float(values[f"per_class/{name}"][c]) for name in PANOPTIC_HEADINGS}
    return Judgement(judgement.figures | figures, per_class)


def _options(parser: LightningArgumentParser) -> None:
    parser.add_function_arguments(evaluate, skip={"data", "per_class"})
    parser.add_argument("--per_class", action="store_true", help="Print a line for each class.")


def truths_of(index: Index) -> list[Truth]:
    """What each image of an index holds, for metrics."""
    classes = class_of(index.categories)
    return [
        truth_of(index.annotations.get(i["id"], []), classes, (i["height"], i["width"]))
        for i in index.images
    ]


def _rows(figures: Mapping[str, float]) -> list[list[str]]:
    """The table of figures in percent: masks, boxes, and CorLoc."""
    shown = [name for name in HEADINGS if name in figures or f"box_{name}" in figures]
    if "mIoU" in figures:
        return [
            ["", *GIVEN_BOXES],
            ["masks in given boxes", *(_percent(figures[name]) for name in GIVEN_BOXES)],
        ]
    rows = [["", *shown]]
    for kind, prefix in (("masks", ""), ("boxes", "box_")):
        values = [figures.get(prefix + name, math.nan) for name in shown]
        if not all(map(math.isnan, values)):
            rows.append([kind, *map(_percent, values)])
    return rows


def _panoptic_rows(figures: Mapping[str, float]) -> list[list[str]]:
    """The table of panoptic quality in percent; empty where it was not judged."""
    if "PQ" not in figures:
        return []
    kinds = (("panoptic", ""), ("things", "_things"), ("stuff", "_stuff"))
    return [
        ["", *PANOPTIC_HEADINGS],
        *([k, *(_percent(figures[name + end]) for name in PANOPTIC_HEADINGS)] for k, end in kinds),
    ]


def _class_columns(judgement: Judgement) -> dict[str, dict[str, float]]:
    """What is shown of each class; stuff has panoptic quality alone."""
    columns = list(("mIoU",) if "mIoU" in judgement.figures else PER_CLASS)
    columns += PANOPTIC_HEADINGS if "PQ" in judgement.figures else ()
    return {
        name: {c: known.get(c, math.nan) for c in columns}
        for name, known in judgement.per_class.items()
    }


def _percent(share: float) -> str:
    return "-" if math.isnan(share) else f"{100 * share:.1f}"


def _corloc(figures: Mapping[str, float]) -> str:
    if "CorLoc" not in figures:
        return "-"
    return f"{_percent(figures['CorLoc'])} (over images {_percent(figures['CorLoc_images'])})"


def _print(judgement: Judgement, per_class: bool) -> None:
    print_table(_rows(judgement.figures))
    if "CorLoc" in judgement.figures:
        print(f"CorLoc {_corloc(judgement.figures)}")
    if panoptic := _panoptic_rows(judgement.figures):
        print()
        print_table(panoptic)
    if per_class:
        print()
        known = _class_columns(judgement)
        print_table(
            [
                ["", *next(iter(known.values()))],
                *([n, *map(_percent, v.values())] for n, v in known.items()),
            ]
        )


def _write(folder: Path, judgement: Judgement, index: Index, facts: Mapping[str, Any]) -> None:
    def plain(figures: Mapping[str, float]) -> dict[str, float | None]:
        return {
            name: None if math.isnan(value) else value for name, value in figures.items()
        }  # json knows no nan

    classes = {name: plain(figures) for name, figures in judgement.per_class.items()}
    with whole(folder / "metrics.json") as scratch:
        scratch.write_text(
            json.dumps(
                {**facts, "metrics": plain(judgement.figures), "per_class": classes}, indent=1
            )
        )


def _report(
    path: Path,
    title: str,
    judgement: Judgement,
    index: Index,
    found: Sequence[Prediction],
    maps: PanopticMaps | None,
    run: Path | None,
    split: str,
) -> None:
    facts = {
        "Data": f"{index.name}, {split}, {len(found)} images",
        "CorLoc": _corloc(judgement.figures),
    }
    tables = [
        table for table in (_rows(judgement.figures), _panoptic_rows(judgement.figures)) if table
    ]
    curves = read_curves(run) if run else []
    write_report(
        path, title, facts, tables, _class_columns(judgement), curves, _gallery(index, found, maps)
    )


def _gallery(index: Index, found: Sequence[Prediction], maps: PanopticMaps | None) -> list[Pair]:
    """Draw some images, each with its panoptic map where that is judged."""
    names, stuff = (
        [category["name"] for category in part] for part in (index.categories, index.stuff)
    )
    truths = truths_of(index)
    gallery = []
    for i in range(0, len(found), max(1, len(found) // GALLERY))[:GALLERY]:
        image = index.images[i]
        pixels = read_image(index.root / image["file_name"], (image["height"], image["width"]))
        sides = (
            draw.overlay(pixels, found[i], names, 0.3, 640),
            draw.overlay(pixels, truths[i], names, 0, 640),
        )
        gallery.append(Pair(image["file_name"], *sides))
        pair = [
            panoptic
            for reader in (maps, index.panoptic)
            if reader and (panoptic := reader(image)) is not None
        ]
        if len(pair) == 2:
            predicted, true = (
                draw.overlay_panoptic(pixels, panoptic, names, stuff, 640) for panoptic in pair
            )
            gallery.append(Pair(f"{image['file_name']}, panoptic", predicted, true))
    return gallery


if __name__ == "__main__":
    main()
