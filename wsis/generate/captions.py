"""Captions of images, by a model or from a text file."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from wsis.coco.records import Captions, read_records
from wsis.errors import InputError
from wsis.generate._models import device_of, loading, need, quiet, safe

__all__ = ["Captioner", "read_captions"]

_LONGEST = 40  # tokens; COCO's captions have 10 words


class Captioner:
    """A BLIP-like model of transformers.

    Captions are sampled from the most probable words, which make up 90 % of the probability, so
    that the captions of an image differ.

    Args:
        model: folder of the model, or its name on a hub.
        count: number of captions per image.
        device: auto, cpu, cuda, ...

    Raises:
        InputError: when first used: transformers is not installed, or the model cannot be loaded.
    """

    def __init__(self, model: str, count: int = 2, device: str = "auto") -> None:
        self.settings: Mapping[str, Any] = {"model": model, "captions": count}
        self.device = device

    def __call__(self, image: Image.Image, seed: int) -> list[str]:
        """Return captions of an image (RGB), the same for the same seed."""
        processor, model = self._loaded
        inputs = processor(images=image, return_tensors="pt").to(model.device)
        gpu = model.device if model.device.type in ("cuda", "xpu") else None
        with (
            torch.random.fork_rng([gpu] if gpu else [], device_type=gpu.type if gpu else "cuda"),
            torch.inference_mode(),
        ):
            torch.manual_seed(seed)
            words = model.generate(
                **inputs,
                do_sample=True,
                top_p=0.9,
                num_return_sequences=self.settings["captions"],
                max_new_tokens=_LONGEST,
            )
        captions = processor.batch_decode(words, skip_special_tokens=True)
        return [" ".join(caption.split()) for caption in captions]

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        transformers, name = need("transformers"), self.settings["model"]
        quiet()
        with loading("captioner", str(name)):
            processor = transformers.AutoProcessor.from_pretrained(name, **safe())
            model = transformers.AutoModelForImageTextToText.from_pretrained(
                name, **safe(use_safetensors=True)
            )
        return processor, model.to(device_of(self.device)).eval()


def read_captions(path: Path) -> dict[str, list[str]]:
    """Read a text file with one caption per line, or a COCO captions json.

    Returns:
        "line 1" -> [caption], or "image 42" -> its captions; empty lines are left out.

    Raises:
        InputError: the file does not exist, is neither text nor COCO's json, or has no captions.
    """
    captions: dict[str, list[str]] = {}
    for name, text in _of_images(path) if path.suffix.lower() == ".json" else _lines(path):
        if text.strip():
            captions.setdefault(name, []).append(" ".join(text.split()))
    if not captions:
        raise InputError(f"{path} has no captions; write one per line")
    return captions


def _of_images(path: Path) -> list[tuple[str, str]]:
    found = read_records(path, Captions)["annotations"]
    return [(f"image {record['image_id']}", record["caption"]) for record in found]


def _lines(path: Path) -> list[tuple[str, str]]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise InputError(
            f"cannot read {path}: {error.strerror}; give a text file with one caption per line"
        ) from error
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is not text in UTF-8; give a text file with one caption per line"
        ) from error
    return [(f"line {number}", line) for number, line in enumerate(lines, 1)]
