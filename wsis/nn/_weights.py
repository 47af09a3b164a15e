"""Weights of backbones: files of many kinds, and what to say when they do not fit."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from wsis.errors import InputError
from wsis.files import read_pickle
from wsis.sharing.places import weights_file

COMMON = (
    *("resnet50", "resnet18", "resnet34", "resnet101", "mobilenetv2_100", "mobilenetv3_large_100"),
    *("efficientnet_b0", "tf_efficientnet_lite2", "convnext_tiny", "regnety_016"),
)
"""Networks whose weights are recognised when they are given for another one."""


def by_hand(name: str, error: Exception) -> str:
    """Return how to get the weights of a network that could not be downloaded."""
    config = timm.get_pretrained_cfg(name)
    if config is None or not config.hf_hub_id:
        return f"timm has no weights for backbone {name}; give a file as weights"
    return (
        f"cannot download the weights of backbone {name}{reason(error)[:120]}; fetch "
        f"model.safetensors from https://huggingface.co/{config.hf_hub_id} in another way, and "
        f"give --model.backbone.name {name} --model.backbone.weights model.safetensors"
    )


def named(state: Mapping[str, Any]) -> str:
    """Return which common network some weights are of, and what to do."""
    shapes = {key: tuple(value.shape) for key, value in state.items() if isinstance(value, Tensor)}
    for name in COMMON:
        wanted = timm.create_model(name).state_dict()
        same = sum(shapes.get(key) == tuple(value.shape) for key, value in wanted.items())
        if same > 0.9 * len(wanted):
            return f"; they look like {name}: give --model.backbone.name {name}, or another file"
    return "; give a file made for it, or the name of the network that the file is of"


def fraction_loaded(network: nn.Module, state: dict[str, Any]) -> float:
    """Return the fraction of the network's parameters that the file holds.

    timm renames and reshapes parameters and silently skips unknown ones, so they are compared by
    size and sum.
    """
    tensors = [value for value in state.values() if isinstance(value, Tensor)]
    known = {(t.numel(), t.double().sum().item()) for t in tensors}
    total = loaded = 0
    for parameter in network.parameters():
        size = parameter.numel()
        total += size
        if (size, parameter.double().sum().item()) in known:
            loaded += size
    return loaded / total


def read_weights(place: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the tensors of a file, or of a shared model wherever it is, by name.

    Raises:
        InputError: no such file, or it is damaged or holds something else.
    """
    path = weights_file(place)
    if not path.is_file():
        raise InputError(f'no weights at {path}; give a file, "imagenet" or "none"')
    if path.suffix == ".pkl":
        content = read_pickle(path)
    else:
        try:
            if path.suffix == ".safetensors":
                content = load_file(path)
            else:
                content = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # damaged files raise many kinds
            raise unreadable(path, "weights", error) from error
    for wrapper in ("state_dict", "model", "blobs"):
        content = content.get(wrapper, content) if isinstance(content, dict) else content
    if not isinstance(content, dict) or not content:
        raise InputError(f"{path} holds no weights by name; give a state dict")
    return content


def unreadable(path: Path, what: str, error: Exception) -> InputError:
    """Return what to say of a file that torch or safetensors cannot read.

    torch's own words advise to load the file in a way that runs the code in it.
    """
    asked = re.search(r"GLOBAL (\S+)", str(error))
    if asked:
        return InputError(
            f"{what} {path} asks for {asked[1]}, which is not data, and is not opened; get it from "
            "elsewhere"
        )
    if isinstance(error, OSError):
        return InputError(f"cannot read {what} {path}: {error.strerror or error}; check the path")
    return InputError(f"{what} {path} is damaged, or of another kind; get the file again")


def backbone_state(state: dict[str, Any] | None) -> dict[str, Any]:
    """Return the backbone's part of a checkpoint of this library; empty for other files."""
    for prefix in ("backbone.", "classifier.backbone.", ""):
        if state and any(name.startswith(f"{prefix}network.") for name in state):
            return {
                name.removeprefix(prefix): value
                for name, value in state.items()
                if name.startswith(prefix)
            }
    return {}


def load_state(module: nn.Module, state: dict[str, Any], name: str, weights: str) -> None:
    """Load all tensors of a module.

    Raises:
        InputError: names or shapes differ.
    """
    counts = {
        key: value
        for key, value in module.state_dict().items()
        if key.endswith("num_batches_tracked")  # caffe2 files lack them
    }
    try:
        module.load_state_dict({**counts, **state})
    except RuntimeError as error:
        raise InputError(
            f"weights {weights} are not those of backbone {name}{reason(error)}; give a file "
            "made for it"
        ) from error


def reason(error: Exception) -> str:
    """Return a colon and the first 200 characters of an error's text, on one line."""
    text = " ".join(str(error).split())[:200]
    return f": {text}" if text else ""
