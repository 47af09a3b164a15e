"""Pictures painted from captions by a text-to-image pipeline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from PIL import Image

from wsis.errors import InputError
from wsis.generate._models import DTYPES, device_of, loading, need, quiet, safe

__all__ = ["Painter", "is_blank"]


class Painter:
    """A text-to-image pipeline of diffusers.

    Args:
        model: folder of the pipeline, or its name on a hub.
        steps: number of denoising steps; None for the pipeline's default.
        size: side of the square pictures in pixels; None for the pipeline's default.
        precision: float32, float16 or bfloat16; "auto" is float16 on an accelerator, else float32.
        batch: number of pictures painted at once.
        device: auto, cpu, cuda, ...

    Raises:
        InputError: the size is not a multiple of 8; when first used: diffusers is not installed, or
            the model cannot be loaded.
    """

    def __init__(
        self,
        model: str,
        steps: int | None = None,
        size: int | None = None,
        precision: str = "auto",
        batch: int = 5,
        device: str = "auto",
    ) -> None:
        if size is not None and (size < 8 or size % 8):
            raise InputError(
                f"--size {size}: pictures are made in cells of 8 pixels; give a multiple of 8"
            )
        self.settings: Mapping[str, Any] = {
            "model": model,
            "steps": steps,
            "size": size,
            "precision": precision,
        }
        self.batch, self.device = batch, device

    def __call__(self, caption: str, seeds: Sequence[int]) -> list[Image.Image | None]:
        """Paint one picture per seed; None for a picture that the safety checker blocks."""
        options = {
            "num_inference_steps": self.settings["steps"],
            "height": self.settings["size"],
            "width": self.settings["size"],
        }
        given = {key: value for key, value in options.items() if value is not None}
        pictures: list[Image.Image | None] = []
        for start in range(0, len(seeds), self.batch):
            some = seeds[start : start + self.batch]
            generators = [torch.Generator().manual_seed(seed) for seed in some]
            made = self._pipeline([caption] * len(some), generator=generators, **given)
            blocked = getattr(made, "nsfw_content_detected", None) or [False] * len(made.images)
            for picture, bad in zip(made.images, blocked, strict=True):
                pictures.append(None if bad else picture)
        return pictures

    @cached_property
    def _pipeline(self) -> Any:
        diffusers = need("diffusers")
        name, device = str(self.settings["model"]), device_of(self.device)
        need("transformers")  # without it the error of diffusers names a missing class
        quiet()
        precision = str(self.settings["precision"])
        if precision == "auto":
            precision = "float32" if device.type == "cpu" else "float16"
        with loading("painter", name):
            options = safe(use_safetensors=True, torch_dtype=DTYPES[precision])
            pipeline = diffusers.AutoPipelineForText2Image.from_pretrained(name, **options)
            pipeline = pipeline.to(device)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline


def is_blank(picture: Image.Image) -> bool:
    """Return True if all pixels are equal, as after a safety checker or an overflow of float16."""
    extremes = picture.convert("RGB").getextrema()
    return all(low == high for low, high in extremes)  # type: ignore[misc]
