"""Generate backgrounds without the target classes.

`python -m wsis.generate --data voc --data.root DIR --out DIR`
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from wsis import machine
from wsis.command_line.messages import plain_errors
from wsis.command_line.parser import CLI
from wsis.datasets.folder import index_of_folder
from wsis.datasets.voc import VOC_CLASSES
from wsis.errors import InputError
from wsis.files import clear_scratch, read_json
from wsis.generate._lexicon import COCO_CLASSES
from wsis.generate._models import check_installed
from wsis.generate._progress import open_progress
from wsis.generate.backgrounds import Backgrounds, found_in
from wsis.generate.captions import Captioner, read_captions
from wsis.generate.pictures import Painter
from wsis.generate.similarity import Clip
from wsis.runs.progress import say_notes
from wsis.types import Index

__all__ = ["generate", "main"]

_SOURCES = ("images", "captions", "images_from")
_CLASSES = {"voc": VOC_CLASSES, "coco": COCO_CLASSES}
_OTHER_ARGUMENTS = {"images", "classes", "seed"}  # of `generate`: not options of the same name


def main(argv: Sequence[str] | None = None) -> Path:
    """Generate the backgrounds that `argv` asks for, and return generated.json.

    The same command continues after an interruption.
    """
    with plain_errors(lambda: "; the same command continues"):
        words = list(sys.argv[1:] if argv is None else argv)
        cli = CLI("generate", words, kinds=("data",), options=_options)
        config = cli.config
        painting = () if config.images_from else ("diffusers", "transformers")
        check_installed(*painting, *(() if config.clip == "none" else ("open_clip",)))
        given = [source for source in _SOURCES if config[source] is not None]
        if len(given) > 1:
            raise InputError(f"--{given[0]} and --{given[1]}: give one, what to start from")
        names_data = any(word.partition("=")[0] == "--data" for word in words)
        classes = _classes(config.classes, cli.datamodule if not given or names_data else None)
        for folder in filter(None, [config.images, config.images_from]):
            if config.out.resolve().is_relative_to(folder.resolve()):
                raise InputError(
                    f"--out {config.out} is in {folder}, whose pictures are read; choose another "
                    "folder"
                )
        images = {}
        if given in ([], ["images"]):
            images = _images(config.images, cli.datamodule, config.limit)
        settings = inspect.signature(generate).parameters.keys() - _OTHER_ARGUMENTS
        given_settings = {name: config[name] for name in settings}
        return generate(images, classes, **given_settings, seed=config.seed_everything)


def generate(
    images: Mapping[str, Path],
    classes: Sequence[str],
    out: Path,
    captions: Path | None = None,
    images_from: Path | None = None,
    captioner: str = "Salesforce/blip-image-captioning-large",
    painter: str = "stable-diffusion-v1-5/stable-diffusion-v1-5",
    clip: str = "laion/CLIP-ViT-B-32-laion2B-s34B-b79K",
    captions_per_image: int = 2,
    pictures: int = 10,
    keep: int = 3,
    steps: int | None = None,
    size: int | None = None,
    precision: Literal["auto", "float32", "float16", "bfloat16"] = "auto",
    batch: int = 5,
    device: str = "auto",
    seed: int = 0,
) -> Path:
    """Caption images, substitute the classes, paint the captions, and keep the best by CLIP.

    Args:
        images: Paths of the images to caption, by name.
        classes: Names of the classes that no picture should show.
        out: Folder to write to: backgrounds/, candidates/ and generated.json.
        captions: Text file with one caption per line, or COCO captions json, in place of images and
            captioner.
        images_from: Folder of pictures to select from by CLIP, in place of images, captioner and
            painter.
        captioner: BLIP-like model of transformers: a folder, or a name on the hub.
        painter: Text-to-image pipeline of diffusers: a folder, or a name on the hub.
        clip: CLIP model of open_clip: a folder, or a name on the hub; none keeps every picture.
        captions_per_image: Number of captions per image.
        pictures: Number of pictures painted per caption.
        keep: Number of these pictures to keep; the paper's 5 of 10 drops none for its likeness to a
            class.
        steps: Number of denoising steps; by default the pipeline's.
        size: Side of the square pictures in pixels; by default the pipeline's.
        precision: Floating-point type of the painter; auto is float16 on an accelerator, else
            float32.
        batch: Number of pictures painted at once.
        device: Device to compute on: auto, cpu, cuda or mps.
        seed: Seed of captions and pictures.

    Returns:
        generated.json: for each picture its source, captions, seed, similarities, and whether it is
        kept.

    Raises:
        InputError: the extra is not installed, a model cannot be loaded, a setting is wrong, or
            nothing was generated.
    """
    if not 1 <= keep <= pictures or captions_per_image < 1 or batch < 1:
        raise InputError(
            f"--keep {keep} --pictures {pictures} --captions_per_image {captions_per_image} "
            f"--batch {batch}: give at least 1 of each, and keep no more than are painted"
        )
    painting = Painter(painter, steps, size, precision, batch, device)
    similarity = None if clip == "none" else Clip(clip, device)
    present = list(_paths(index_of_folder(images_from)).values()) if images_from else []
    sources = read_captions(captions) if captions else images
    unit = "caption" if captions else "image"
    bar = machine.bar(sources.items(), "backgrounds", unit=unit, disable=bool(present))
    # the bar is closed before an error is printed
    with bar, open_progress(out / "progress.sqlite") as progress:
        clear_scratch(out / "candidates")
        work = Backgrounds(out, classes, progress, seed)
        for name, given in (("captions", captions), ("images_from", images_from)):
            if given:
                work.made_by[name] = str(given)
        if present:
            groups = iter([found_in(present)])
        else:
            captioned = bar
            if not captions:
                captioned = work.describe(bar, Captioner(captioner, captions_per_image, device))
            groups = work.paint(captioned, painting, pictures)
        written = work.finish(groups, similarity, keep, pictures)
    kept = sum(picture["kept"] for picture in read_json(written)["pictures"])
    print(f"{kept} backgrounds: {out / 'backgrounds'}, {written}", flush=True)
    return written


def _options(parser: Any) -> None:
    parser.add_argument(
        "--images",
        type=Path | None,
        default=None,
        help="Folder of images to caption in place of a data set.",
    )
    parser.add_argument(
        "--classes",
        type=str,
        default="",
        help="Classes not to show: names separated by commas, voc or coco; by default the data's.",
    )
    parser.add_argument(
        "--limit",
        type=int | None,
        default=None,
        help="Largest number of images to caption, evenly spaced; by default all.",
    )
    parser.add_function_arguments(generate, skip=_OTHER_ARGUMENTS)


def _classes(given: str, data: Any) -> list[str]:
    """Return the names of the given classes, by default of the data's."""
    if given:
        names = _CLASSES.get(given.lower()) or [name.strip() for name in given.split(",")]
        names = [name for name in names if name]
        if names:
            return names
        raise InputError(
            f"--classes '{given}' names no class; give names separated by commas, voc or coco"
        )
    if data is None:
        raise InputError(
            "give --classes that no background should show: names separated by commas, voc or coco"
        )
    return list(data.class_names)


def _images(folder: Path | None, data: Any, limit: int | None) -> dict[str, Path]:
    """Return the paths of the images to caption, by their names relative to their folder."""
    if limit is not None and limit < 1:
        raise InputError(f"--limit {limit}: give at least 1")
    index = data.index("train") if folder is None else index_of_folder(folder)
    say_notes(index)
    paths = list(_paths(index).items())
    count = min(limit or len(paths), len(paths))
    return dict(paths[i * len(paths) // count] for i in range(count))


def _paths(index: Index) -> dict[str, Path]:
    return {image["file_name"]: index.root / image["file_name"] for image in index.images}


if __name__ == "__main__":
    main()
