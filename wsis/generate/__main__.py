"""Make backgrounds without the target classes: `python -m wsis.generate --data voc --data.root DIR --out DIR`."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from wsis.command_line.messages import plain_errors
from wsis.command_line.parser import CLI
from wsis.datasets.folder import index_of_folder
from wsis.datasets.voc import VOC_CLASSES
from wsis.errors import InputError
from wsis.files import clear_scratch, read_json
from wsis.generate._lexicon import COCO_CLASSES
from wsis.generate._progress import open_progress
from wsis.generate.backgrounds import Backgrounds, found_in
from wsis.generate.captions import Captioner, read_captions
from wsis.generate.pictures import Painter
from wsis.generate.similarity import Clip
from wsis.types import Index

__all__ = ["generate", "main"]

_SOURCES = ("images", "captions", "images_from")
_CLASSES = {"voc": VOC_CLASSES, "coco": COCO_CLASSES}


def main(argv: Sequence[str] | None = None) -> Path:
    """Make the backgrounds that `argv` asks for; started again, it goes on where it was stopped. Returns generated.json."""
    with plain_errors(lambda: "; the same command continues"):
        words = list(sys.argv[1:] if argv is None else argv)
        cli = CLI("generate", words, kinds=("data",), options=_options)
        config = cli.config
        given = [source for source in _SOURCES if config[source] is not None]
        if len(given) > 1:
            raise InputError(f"--{given[0]} and --{given[1]}: give one, what to start from")
        classes = _classes(
            config.classes, cli.datamodule if not given or _names_data(words) else None
        )
        for folder in filter(None, [config.images, config.images_from]):
            if config.out.resolve().is_relative_to(folder.resolve()):
                raise InputError(
                    f"--out {config.out} is in {folder}, whose pictures are read; choose another folder"
                )
        images = (
            _images(config.images, cli.datamodule, config.limit)
            if given in ([], ["images"])
            else {}
        )
        return generate(
            images,
            classes,
            **{name: config[name] for name in _settings()},
            seed=config.seed_everything,
        )


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
    """Describe images, put other objects in place of the classes, paint the captions and keep the best pictures by CLIP.

    Args:
        images: Images to describe, by their names.
        classes: Names of the classes that no picture is to show.
        out: Folder to write to: backgrounds/, candidates/ and generated.json.
        captions: Text file with one caption a line, in place of images and captioner.
        images_from: Folder of pictures to choose among by CLIP, in place of images, captioner and painter.
        captioner: BLIP-like model of transformers: a folder, or a name on the hub.
        painter: Text-to-image pipeline of diffusers: a folder, or a name on the hub.
        clip: CLIP model of open_clip: a folder, or a name on the hub; none keeps every picture.
        captions_per_image: Captions of an image.
        pictures: Pictures painted of a caption.
        keep: So many of these are kept; the paper keeps 5 of 10, which leaves nothing to drop for their likeness to a class.
        steps: Denoising steps; the pipeline's own number if not given.
        size: Side of the square pictures in pixels; the pipeline's own if not given.
        precision: Numbers the painter computes with; auto is float16 on an accelerator, else float32.
        batch: Pictures painted at once.
        device: What to compute on: auto, cpu, cuda, mps.
        seed: Seed of captions and pictures.

    Returns:
        generated.json: of each picture its source, captions, seed, similarities, and whether it is kept.

    Raises:
        InputError: the extra is not installed, a model cannot be loaded, a setting is wrong, or nothing was generated.
    """
    if not 1 <= keep <= pictures or captions_per_image < 1 or batch < 1:
        raise InputError(
            f"--keep {keep} --pictures {pictures} --captions_per_image {captions_per_image} --batch {batch}: "
            "give at least 1 of each, and keep no more than are painted"
        )
    painting = Painter(painter, steps, size, precision, batch, device)
    found = list(_paths(index_of_folder(images_from)).values()) if images_from else []
    texts = read_captions(captions) if captions else {}
    bar = tqdm(
        (texts or images).items(),
        "backgrounds",
        unit="caption" if captions else "image",
        disable=bool(found),
    )
    with (
        bar,
        open_progress(out / "progress.sqlite") as progress,
    ):  # the bar is closed before an error is told
        clear_scratch(out / "candidates")
        work = Backgrounds(out, classes, progress, seed)
        work.made_by |= {
            name: str(given)
            for name, given in (("captions", captions), ("images_from", images_from))
            if given
        }
        if found:
            groups = iter([found_in(found)])
        else:
            described = (
                bar
                if captions
                else work.describe(bar, Captioner(captioner, captions_per_image, device))
            )
            groups = work.paint(described, painting, pictures)
        written = work.finish(
            groups, None if clip == "none" else Clip(clip, device), keep, pictures
        )
    kept = sum(picture["kept"] for picture in read_json(written)["pictures"])
    print(f"{kept} backgrounds: {out / 'backgrounds'}, {written}", flush=True)
    return written


def _options(parser: Any) -> None:
    parser.add_argument(
        "--images",
        type=Path | None,
        default=None,
        help="A folder of images to use in place of a data set.",
    )
    parser.add_argument(
        "--classes",
        type=str,
        default="",
        help="Classes not to show: names with commas between, voc or coco; else the data's.",
    )
    parser.add_argument(
        "--limit",
        type=int | None,
        default=None,
        help="So many of the images, evenly spaced; else all.",
    )
    parser.add_function_arguments(generate, skip={"images", "classes", "seed"})


def _settings() -> list[str]:
    return [
        name
        for name in inspect.signature(generate).parameters
        if name not in ("images", "classes", "seed")
    ]


def _names_data(words: Sequence[str]) -> bool:
    return any(word.partition("=")[0] == "--data" for word in words)


def _classes(given: str, data: Any) -> list[str]:
    """Names of the classes: those given, else the data's."""
    if given:
        names = _CLASSES.get(given.lower()) or [name.strip() for name in given.split(",")]
        if names := [name for name in names if name]:
            return names
        raise InputError(
            f"--classes '{given}' names no class; give names with commas between, voc or coco"
        )
    if data is None:
        raise InputError(
            "give --classes, what no background is to show: names with commas between, voc or coco"
        )
    return list(data.class_names)


def _images(folder: Path | None, data: Any, limit: int | None) -> dict[str, Path]:
    """The images to describe, by their names relative to their folder."""
    if limit is not None and limit < 1:
        raise InputError(f"--limit {limit}: give at least 1")
    paths = list(_paths(data.index("train") if folder is None else index_of_folder(folder)).items())
    count = min(limit or len(paths), len(paths))
    return dict(paths[i * len(paths) // count] for i in range(count))


def _paths(index: Index) -> dict[str, Path]:
    return {image["file_name"]: index.root / image["file_name"] for image in index.images}


if __name__ == "__main__":
    main()
