"""Pictures of captions, by a text-to-image pipeline."""

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
        steps: denoising steps; the pipeline's own number if None.
        size: side of the square pictures in pixels; the pipeline's own if None.
        precision: float32, float16, bfloat16; "auto" is float16 on an accelerator, else float32.
        batch: pictures made at once.
        device: auto, cpu, cuda, ...

    Raises:
        InputError: a size that no pipeline makes; when first used: diffusers is not installed, or
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
        """Paint one picture per seed; None where the pipeline gives none or its safety checker blanks it."""
        own = {
            "num_inference_steps": self.settings["steps"],
            "height": self.settings["size"],
            "width": self.settings["size"],
        }
        given = {key: value for key, value in own.items() if value is not None}
        pictures: list[Image.Image | None] = []
        for start in range(0, len(seeds), self.batch):
            draws = [
                torch.Generator().manual_seed(seed) for seed in seeds[start : start + self.batch]
            ]
            made = self._pipeline([caption] * len(draws), generator=draws, **given)
            blocked = getattr(made, "nsfw_content_detected", None) or [False] * len(made.images)
            pictures += [
                None if bad else picture for picture, bad in zip(made.images, blocked, strict=True)
            ]
        return pictures

    @cached_property
    def _pipeline(self) -> Any:
        diffusers, name, device = (
            need("diffusers"),
            str(self.settings["model"]),
            device_of(self.device),
        )
        need("transformers")  # without it diffusers speaks of a missing class
        quiet()
        precision = str(self.settings["precision"])
        dtype = (
            DTYPES["float32" if device.type == "cpu" else "float16"]
            if precision == "auto"
            else DTYPES[precision]
        )
        with loading("painter", name):
            options = safe(use_safetensors=True, torch_dtype=dtype)
            pipeline = diffusers.AutoPipelineForText2Image.from_pretrained(name, **options).to(
                device
            )
        pipeline.set_progress_bar_config(disable=True)
        return pipeline


def is_blank(picture: Image.Image) -> bool:
    """Whether all pixels are equal, as in the black picture of a safety checker or of an overflow in float16."""
    extremes = picture.convert("RGB").getextrema()
    return all(low == high for low, high in extremes)  # type: ignore[misc]
