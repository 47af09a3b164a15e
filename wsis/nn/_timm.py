"""timm's networks as networks of a backbone: images of any size -> maps (N,D,h,w)."""

from __future__ import annotations

from typing import Any

import timm
import torch
from torch import Tensor, nn

from wsis.errors import InputError

__all__ = ["PlainTransformer", "build_timm"]


class PlainTransformer(nn.Module):
    """A vision transformer of one stride, and the maps of its blocks after the last norm.

    Those who train on frozen tokens use them after the norm. Networks that average tokens before it
    have none on tokens.

    Args:
        network: has timm's `forward_intermediates`.
        level: index of the last block that runs; -1 is all of them, and gives the last map alone.
    """

    def __init__(self, network: Any, level: int) -> None:
        super().__init__()
        self.model: Any = network
        self.pretrained_cfg = network.pretrained_cfg
        count = len(network.feature_info)
        self.indices = list(range(level + 1)) if level >= 0 else [count - 1]
        if self.indices[-1] >= count:
            raise IndexError(level)
        network.prune_intermediate_layers(self.indices, prune_norm=False)
        last = network.feature_info[self.indices[-1]]
        width = last.get("num_chs_norm", last["num_chs"])  # SAM's norm projects
        self.channels = [width] * len(self.indices)
        self.reduction = [last["reduction"]] * len(self.indices)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the maps (N,D,h,w)."""
        maps: list[Tensor] = self.model.forward_intermediates(
            images, self.indices, norm=True, intermediates_only=True
        )
        return maps

    def stages(self) -> list[str]:
        """Return the last module of each of five stages: what precedes the blocks, and quarters."""
        container = self.model.feature_info[self.indices[-1]]["module"].rpartition(".")[0]
        names = [name for name, _ in self.model.named_children()]
        before = names[names.index(container) - 1]
        count = self.indices[-1] + 1
        ends = [max(count * quarter // 4, 1) - 1 for quarter in (1, 2, 3, 4)]
        return [before, *(f"{container}.{end}" for end in ends)]


def build_timm(name: str, arguments: dict[str, Any], level: int, **weights: Any) -> nn.Module:
    """Return a network of timm that returns its maps up to `level`, or all for -1.

    Args:
        name: of timm.
        arguments: further ones of the network.
        level: index of the last map.
        weights: as `timm.create_model` takes them.

    Raises:
        InputError: it takes images of one size alone.
    """
    plain, config = False, timm.get_pretrained_cfg(name)
    if config is None or config.fixed_input_size or "vit" in name:
        arguments, plain = _outline(name, arguments)
        with torch.device("meta"):
            _check_sizes(name, _build(name, arguments, level, plain))
    return _build(name, arguments, level, plain, **weights)


def _outline(name: str, arguments: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    """Return the arguments for images of any size, and whether it is a plain transformer.

    Networks on the device "meta" have no weights, and take milliseconds to build and to run.
    """
    any_size = {"dynamic_img_size": True, **arguments}  # as most of timm's transformers have it
    with torch.device("meta"):
        try:
            network = timm.create_model(name, **any_size)
        except TypeError as error:
            if "dynamic_img_size" not in str(error):
                raise
            any_size, network = arguments, timm.create_model(name, **arguments)
    described: Any = network.feature_info
    strides = {info["reduction"] for info in described}
    if len(strides) == 1 and hasattr(network, "forward_intermediates"):
        return any_size, True
    if getattr(network, "output_fmt", "NCHW") == "NHWC":
        any_size = {"feature_cls": "getter", **any_size}
    return any_size, False


def _build(
    name: str, arguments: dict[str, Any], level: int, plain: bool, **weights: Any
) -> nn.Module:
    if plain:
        network = timm.create_model(name, num_classes=0, **weights, **arguments)
        return PlainTransformer(network, level)
    maps: dict[str, Any] = {"out_indices": tuple(range(level + 1))} if level >= 0 else {}
    return timm.create_model(name, features_only=True, **maps, **weights, **arguments)


def _check_sizes(name: str, network: Any) -> None:
    """Raise InputError if a network takes images of the size it was made for and of no other."""
    size = network.pretrained_cfg["input_size"][1:]
    plain = isinstance(network, PlainTransformer)
    cell = max(network.reduction if plain else network.feature_info.reduction())
    if _takes(network, *size) and not _takes(network, 2 * cell, 3 * cell):
        raise InputError(
            f"backbone {name} takes images of {size[0]} x {size[1]} px alone; choose one that "
            "takes any size, such as vit_*, swin_* or convnext_*"
        )


@torch.no_grad()
def _takes(network: nn.Module, height: int, width: int) -> bool:
    try:
        network.eval()(torch.empty(1, 3, height, width, device="meta"))
    except Exception:  # assertions, shapes, types: each network has its own
        return False
    return True
