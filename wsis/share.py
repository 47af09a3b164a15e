"""Share a trained model as a folder or on a hub: `python -m wsis.share RUN DIR|hub:USER/NAME`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

from jsonargparse import ArgumentParser

from wsis import registry
from wsis.command_line.messages import plain_errors
from wsis.command_line.parser import Help, parse
from wsis.command_line.settings import Config
from wsis.command_line.trainers import write_settings
from wsis.errors import InputError
from wsis.files import atomic_write
from wsis.images import draw
from wsis.images.read import read_image
from wsis.inference import Loaded, classes_of, load, store_predictions, trained
from wsis.metrics.results import read_results
from wsis.nn.checkpoint import read_checkpoint, write_shared
from wsis.reports.card import Shared, write_card
from wsis.reports.runs import origin_of
from wsis.reports.settings import TRAINER
from wsis.runs.checkpoints import Which, checkpoint_of
from wsis.runs.record import StageRecord, stages, write_stage
from wsis.sharing import hub
from wsis.sharing.folder import CARD, PICTURE, SETTINGS, check_shared, is_shared, write_digests
from wsis.sharing.portable import without_paths

__all__ = ["main", "share"]

TRIED = 8
"""Images that are predicted for the picture."""


def main(argv: Sequence[str] | None = None) -> str:
    """Share the run that `argv` names; return where it is."""
    with plain_errors():
        parser = ArgumentParser(
            prog="python -m wsis.share",
            description=__doc__,
            exit_on_error=False,
            formatter_class=Help,
        )
        parser.add_argument("run", type=Path, help="Folder of a finished run, or a shared folder.")
        parser.add_argument(
            "to", type=str, help="New folder to write, or hub:USER/NAME on Hugging Face."
        )
        parser.add_function_arguments(share, skip={"run", "to"})
        return share(**parse(parser, argv))


def share(
    run: Path,
    to: str,
    stage: str | None = None,
    checkpoint: Which = "last",
    picture: bool | None = None,
    licence: str = "",
    public: bool = False,
) -> str:
    """Write a self-contained folder that wsis.load, predict, test and label take in place of a run.

    It has model.safetensors, model.json, config.yaml, README.md (a card), digests.json and maybe
    example.jpg, and no path of this machine. A folder that was shared before can be uploaded.

    Args:
        run: Folder of a finished run, or a shared folder.
        to: New folder to write, or hub:USER/NAME on Hugging Face.
        stage: Trained stage to share; the last if not given.
        checkpoint: Of the stage: last, or best, that of the best validation if there were several.
        picture: Whether to show what the model finds in an image of its data. If not given, only
            generated images are shown: photos may be private, or somebody else's.
        licence: Of the weights, for the card, as Hugging Face spells it, such as apache-2.0.
        public: Whether all may see a new model of the hub.

    Returns:
        The folder, or the address on the hub.

    Raises:
        InputError: not a finished run, a folder that is not empty, or a hub that refuses.
    """
    if to.startswith(hub.PREFIX):
        name = to.removeprefix(hub.PREFIX)
        hub.check_name(name)
        hub.check_login()  # before anything takes long
    else:
        name, target = "", Path(to).resolve()
        _check_free(run, target)
        target.parent.mkdir(parents=True, exist_ok=True)
    beside = None if name else target.parent
    with TemporaryDirectory(dir=beside, prefix=".sharing-") as scratch:
        if is_shared(run):
            check_shared(run)
            folder = run
        else:
            folder = Path(scratch, Path(name or target).name)
            _write(run, folder, to if name else folder.name, stage, checkpoint, picture, licence)
        if name:
            to = hub.upload(folder, name, public)
        else:
            os.replace(folder, target)
    print(f"shared as {to}")
    return to


def _check_free(run: Path, folder: Path) -> None:
    """Raise InputError unless a run can be shared as a folder."""
    if is_shared(run):
        raise InputError(f"{run} is shared already; copy it, or upload it to hub:USER/NAME")
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise InputError(f"{folder} is there and not an empty folder; choose a new one")


def _write(
    run: Path,
    folder: Path,
    place: str,
    stage: str | None,
    checkpoint: Which,
    picture: bool | None,
    licence: str,
) -> None:
    """Write all files of a shared model; its card says to load it from `place`."""
    loaded = load(run, stage, checkpoint)
    stage = stage or list(trained(run))[-1]
    content = read_checkpoint(checkpoint_of(run, stage, checkpoint), "hyper_parameters")
    things, stuff = classes_of(run, loaded.data)
    facts = {
        "hyper_parameters": without_paths(dict(content["hyper_parameters"])),
        "classes": {"categories": things, "stuff": stuff},
    }
    folder.mkdir()
    write_shared({**facts, "state_dict": content["state_dict"]}, folder)
    write_settings(folder / SETTINGS, _portable(loaded.config))
    record = _record(run, stage, checkpoint)
    write_stage(folder / stage, record)
    shown = _draw(loaded, folder / PICTURE, picture)
    card = _card_of(loaded, stage, record, checkpoint == "best", shown, licence, place)
    with atomic_write(folder / CARD) as scratch:
        scratch.write_text(write_card(card), encoding="utf-8")
    write_digests(folder)


def _card_of(
    loaded: Loaded,
    stage: str,
    record: StageRecord,
    is_best: bool,
    picture: str,
    licence: str,
    place: str,
) -> Shared:
    """Collect what the card tells."""
    config, data = loaded.config, cast(Any, loaded.data)
    return Shared(
        config=_portable(config),
        origin=origin_of(config, getattr(data, "relabelled", None)),
        stage=stage,
        record=record,
        is_best=is_best,
        class_names=loaded.model.class_names,
        given_boxes=loaded.model.needs_boxes,
        data=_describe(config, data),
        data_licence=getattr(data, "licence", "unknown"),
        picture=picture,
        licence=licence,
        place=place,
    )


def _portable(config: Config) -> Config:
    """Return the settings of a run that another machine can use: no paths and no callbacks."""
    trainer = config.get("trainer") or {}
    kept = {name: trainer[name] for name in TRAINER if trainer.get(name) is not None}
    sections = {kind: without_paths(config[kind]) for kind in registry.KINDS}
    return {"seed_everything": config.get("seed_everything") or 0, "trainer": kept, **sections}


def _record(run: Path, stage: str, checkpoint: Which) -> StageRecord:
    """Return the record of a stage with the costs of the whole run."""
    done = {folder.name: record for folder, record in stages(run)}
    record = done[stage]
    minutes = [other.minutes for other in done.values() if other.minutes is not None]
    best = {name: value for name, value in record.best.items() if name != "step"}
    return replace(
        record,
        fingerprint="",  # or --reuse would take the stage for one of a run
        settings=without_paths(record.settings),
        steps=int(record.best["step"]) if checkpoint == "best" else record.steps,
        metrics=best if checkpoint == "best" else record.metrics,
        minutes=sum(minutes) if minutes else None,
        memory=max(other.memory or 0 for other in done.values()) or None,
        best={},
    )


def _describe(config: Config, data: Any) -> str:
    """Return the data set's name, and the number of its training images if it is there."""
    name = registry.short_name("data", config["data"]["class_path"])
    folder = getattr(data, "folder", None)
    if folder is None or not folder.is_dir():
        return name
    try:
        return f"{name}, {len(data.index('train').images)} training images"
    except InputError:  # changed since
        return name


def _draw(loaded: Loaded, path: Path, wanted: bool | None) -> str:
    """Draw what a model finds in an image of its data; return what is shown, "" for nothing.

    It is the first of the first images in which anything is found.

    Raises:
        InputError: a picture was asked for, and cannot be drawn.
    """
    data: Any = loaded.data
    if wanted is False or (wanted is None and not getattr(data, "is_generated", False)):
        return ""
    try:
        if not data.folder.is_dir():
            raise InputError(f"{data} is not there; leave out --picture")
        split = "val" if data.has_val else "train"
        images = data.index(split).images
        few = data.without(split, {image["id"] for image in images[TRIED:]})
        index = few.index(split)
        with TemporaryDirectory() as scratch:
            results = store_predictions(loaded.model, few, split, Path(scratch), "cpu")
            found = read_results(Path(str(results)), index.images, index.categories)
    except InputError as error:
        if wanted:
            raise
        print(f"no picture: {error}")
        return ""
    counts = [len(prediction.above(loaded.threshold).scores) for prediction in found]
    number = next((k for k, count in enumerate(counts) if count), 0)
    image = read_image(index.root / index.images[number]["file_name"])
    drawn = draw.overlay(image, found[number], data.class_names, loaded.threshold)
    with atomic_write(path) as scratch_file:
        scratch_file.write_bytes(draw.jpeg(drawn))
    kind = "validation" if split == "val" else "training"
    return f"A {kind} image, with what the model finds in it"


if __name__ == "__main__":
    main()
