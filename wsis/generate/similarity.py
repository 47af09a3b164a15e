"""Similarity of pictures and texts by CLIP."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from wsis.errors import InputError
from wsis.generate._models import device_of, loading, need, quiet

__all__ = ["Clip"]

_FILES = ("open_clip_config.json", "open_clip*.safetensors", "*token*.json", "vocab*", "merges.txt")


class Clip:
    """A CLIP model of open_clip.

    Args:
        model: folder with open_clip_config.json and the weights as safetensors, or the name of such
            a model on a hub.
        device: auto, cpu, cuda, ...

    Raises:
        InputError: when first used: open_clip is not installed, or the model cannot be loaded.
    """

    def __init__(self, model: str, device: str = "auto") -> None:
        self.settings: Mapping[str, Any] = {"model": model}
        self.device = device

    def __call__(self, images: Sequence[Image.Image], texts: Sequence[str]) -> Tensor:
        """Return cosine similarities (images, texts)."""
        model, prepare, tokenize = self._loaded
        device = next(model.parameters()).device
        with torch.inference_mode():
            pixels = torch.stack([prepare(image) for image in images]).to(device)
            pictures = normalize(model.encode_image(pixels).float(), dim=-1)
            words = model.encode_text(tokenize(list(texts)).to(device))
            return (pictures @ normalize(words.float(), dim=-1).T).cpu()

    @cached_property
    def _loaded(self) -> tuple[Any, Any, Any]:
        clip, name, device = need("open_clip"), self.settings["model"], device_of(self.device)
        quiet()
        with loading("clip", name):
            folder = Path(name) if Path(name).is_dir() else _fetch(name)
            # open_clip would load a pickle, or use random weights
            if not any(folder.glob("*.safetensors")):
                raise InputError(
                    f"--clip {name}: no safetensors in {folder}; convert its weights, or give "
                    "another model"
                )
            model, _, prepare = clip.create_model_and_transforms(
                f"local-dir:{folder}", require_pretrained=True, weights_only=True, device=device
            )
            return model.eval(), prepare, clip.get_tokenizer(f"local-dir:{folder}")


def _fetch(name: str) -> Path:
    """Download a model's settings and safetensors, no code or pickles; return the local folder."""
    hub = need("huggingface_hub")
    return Path(hub.snapshot_download(name, allow_patterns=list(_FILES)))
