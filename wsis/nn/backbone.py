"""Image features: any convolutional network of timm, or a ResNet-WS, with its own normalisation, stride and frozen part."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from wsis.errors import InputError
from wsis.files import read_pickle
from wsis.nn.resnet_ws import ResNetWS, released_weights

__all__ = ["Backbone", "BackboneSettings", "weights_follow"]

_RESNET_WS = re.compile(r"resnet(18|50|101)_ws(_v2)?")
_WS_MEAN = (122.7717 / 255, 115.9465 / 255, 102.9801 / 255)
_follow: ContextVar[bool] = ContextVar("weights_follow", default=False)


@contextmanager
def weights_follow() -> Iterator[None]:
    """Build backbones without reading their weights, because a checkpoint's state dict will be loaded next."""
    token = _follow.set(True)
    try:
        yield
    finally:
        _follow.reset(token)


@dataclass(frozen=True)
class BackboneSettings:
    """The network that makes the features.

    Args:
        name: A timm network that has `features_only`, or resnet18_ws, resnet50_ws, resnet101_ws (add _v2 for JTSM's pooling).
        weights: "imagenet" (downloaded by timm), "none" (random), or a file: safetensors, a PyTorch state dict, the authors'
            pickle of a ResNet-WS, or a checkpoint of this library's classifier.
        output_stride: Input pixels per cell of the last feature map: 8 or 16, by dilation; 32 leaves the network as it is.
        feature_level: Index of the feature map that is used; -1 is the last.
        frozen_stages: Number of stages that are not trained, from the first: 0 none, 1 the stem, up to 5 all.
        model_args: Further arguments of the timm network, such as pad_type "same" for weights made in TensorFlow.
        mean: Mean per channel (RGB, 0 to 1) that the weights expect; by default as timm or the ResNet-WS authors state.
        std: Standard deviation per channel that the weights expect; by default as timm or the ResNet-WS authors state.
    """

    name: str = "resnet18_ws"
    weights: str = "imagenet"
    output_stride: int = 8
    feature_level: int = -1
    frozen_stages: int = 5
    model_args: dict[str, Any] | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None

    def __post_init__(self) -> None:
        """Raise InputError for a stride or a number of stages that no network has."""
        if self.output_stride not in (8, 16, 32) or not 0 <= self.frozen_stages <= 5:
            raise InputError(
                f"backbone output_stride {self.output_stride}, frozen_stages {self.frozen_stages}: "
                "give a stride of 8, 16 or 32, and 0 to 5 stages"
            )

    def shared(self, *more: str) -> dict[str, Any]:
        """Return what another network on the same backbone takes over: name, weights, input, and `more`."""
        names = ("name", "weights", "model_args", "mean", "std", *more)
        return {name: getattr(self, name) for name in names}


class Backbone(nn.Module):
    """Images -> features (N, `channels`, H / `stride`, W / `stride`), H and W padded to what the network divides by.

    `network` returns every map up to `feature_level` from `normalise`d images; `widths` and `strides` list their channels and
    strides; sides of images are padded to a multiple of `divisor`.

    BatchNorm keeps its statistics and scales wherever weights are frozen, and everywhere once weights were read.

    Args:
        settings: see `BackboneSettings`.

    Raises:
        InputError: unknown network, stride it cannot take, or weights that cannot be had, are damaged or belong to another.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, settings: BackboneSettings) -> None:
        super().__init__()
        self.settings = settings
        name, weights, stage = settings.name, settings.weights, settings.feature_level
        output_stride, freeze = settings.output_stride, settings.frozen_stages
        mean, std, model_args = settings.mean, settings.std, settings.model_args
        state = (
            _read_weights(Path(weights))
            if weights not in ("imagenet", "none") and not _follow.get()
            else None
        )
        own = _own_state(state)
        if match := _RESNET_WS.fullmatch(name):
            network = _resnet_ws(
                name, int(match[1]), bool(match[2]), output_stride, weights, None if own else state
            )
            channels, reduction = network.channels, network.reduction
            expected = {"mean": _WS_MEAN, "std": (1 / 255,) * 3}
        else:
            network = _timm(
                name, output_stride, stage, model_args or {}, weights, None if own else state
            )
            channels, reduction = network.feature_info.channels(), network.feature_info.reduction()
            expected = network.pretrained_cfg
        try:
            self.channels, self.stride = channels[stage], reduction[stage]
        except IndexError:
            raise InputError(
                f"backbone {name} has {len(channels)} feature maps, none at feature_level {stage}; choose another"
            ) from None
        upto = slice(stage + 1 or None)
        self.widths, self.strides = list(channels[upto]), list(reduction[upto])
        self.network, self.feature_level = network, stage
        self._name = name
        self.divisor = max(reduction)
        self.register_buffer(
            "mean", torch.tensor(mean or expected["mean"], dtype=torch.float32).view(3, 1, 1) * 255
        )
        self.register_buffer(
            "std", torch.tensor(std or expected["std"], dtype=torch.float32).view(3, 1, 1) * 255
        )
        if own:
            _load(self, own, name, weights)
        self._frozen = (
            list(self.network.modules())
            if freeze == 5
            else _leading_modules(self.network, freeze, name)
        )
        self._freeze(every_norm=weights != "none")

    def forward(self, images: Sequence[Tensor] | Tensor) -> Tensor:
        """Features of images of any sizes.

        Args:
            images: list of (3,H,W), or one (N,3,H,W); RGB from 0 to 255, uint8 or float.

        Returns:
            (N,D,h,w); smaller images of a list fill the top left, zeros (after normalisation) the rest.
        """
        return self.network(self.normalise(images))[self.feature_level]

    def load(self, path: Path) -> None:
        """Take the backbone out of a checkpoint of this library whose network has at least the same stages.

        Raises:
            InputError: the checkpoint cannot be read, or its backbone is another.
        """
        state = _own_state(_read_weights(path))
        mine = self.state_dict()
        _load(
            self, {key: value for key, value in state.items() if key in mine}, self._name, str(path)
        )

    def normalise(self, images: Sequence[Tensor] | Tensor) -> Tensor:
        """The network's input: normalised, then padded with zeros at the right and bottom to a size it divides."""
        if isinstance(images, Tensor):
            return self._pad(
                (images.to(self.mean.dtype) - self.mean) / self.std,
                images.shape[-2],
                images.shape[-1],
            )
        height, width = (max(image.shape[d] for image in images) for d in (-2, -1))
        return torch.stack(
            [
                self._pad((image.to(self.mean.dtype) - self.mean) / self.std, height, width)
                for image in images
            ]
        )

    def _pad(self, image: Tensor, height: int, width: int) -> Tensor:
        height, width = (-(-size // self.divisor) * self.divisor for size in (height, width))
        return F.pad(image, (0, width - image.shape[-1], 0, height - image.shape[-2]))

    def train(self, mode: bool = True) -> Backbone:
        """As nn.Module, but frozen parts stay in evaluation mode."""
        super().train(mode)
        for module in self._frozen:
            module.training = False
        return self

    def _freeze(self, every_norm: bool) -> None:
        if every_norm:
            self._frozen += [
                m for m in self.network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)
            ]
        for module in self._frozen:
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(False)
        self.train(self.training)


def _resnet_ws(
    name: str, depth: int, pool_first: bool, stride: int, weights: str, state: dict[str, Any] | None
) -> ResNetWS:
    if stride == 32:
        raise InputError(f"backbone {name} has stride 8 or 16; choose one as output_stride")
    if weights == "imagenet" and not _follow.get():
        raise InputError(
            f"no ImageNet weights of {name} can be downloaded; give the authors' file as weights, or a timm network as name"
        )
    network = ResNetWS(depth, stride, pool_first)
    if state is not None:
        _load(network, released_weights(state), name, weights)
    return network


def _timm(
    name: str,
    stride: int,
    stage: int,
    model_args: dict[str, Any],
    weights: str,
    state: dict[str, Any] | None,
) -> Any:
    if not timm.is_model(name):
        near = ", ".join(
            get_close_matches(
                name, [*timm.list_models(), "resnet18_ws", "resnet50_ws", "resnet101_ws"]
            )
        )
        raise InputError(
            f"unknown backbone {name}; "
            + (f"did you mean {near}?" if near else "see timm.list_models()")
        )
    arguments = {**model_args, **({} if stride == 32 else {"output_stride": stride})}
    if stage >= 0:
        arguments["out_indices"] = tuple(range(stage + 1))  # what comes after is not built
    if state is not None:
        arguments["pretrained_cfg_overlay"] = {"state_dict": dict(state)}
    pretrained = (weights == "imagenet" and not _follow.get()) or state is not None
    try:
        network = timm.create_model(name, pretrained=pretrained, features_only=True, **arguments)
    except (AssertionError, TypeError, NotImplementedError) as error:
        raise InputError(
            f"backbone {name} cannot be built with output_stride {stride} and model_args {model_args}{_reason(error)}; "
            "output_stride 32 leaves its stride as it is"
        ) from error
    except IndexError as error:
        raise InputError(
            f"backbone {name} has no feature_level {stage}; choose a smaller one"
        ) from error
    except Exception as error:  # the hub and its clients raise many kinds
        advice = (
            "another backbone or file"
            if state is not None
            else "a network that timm has weights for, a file, or none"
        )
        raise InputError(
            f"cannot load weights {weights} into backbone {name}{_reason(error)}; give {advice} as weights"
        ) from error
    if state is not None and (share := _share_loaded(network, state)) < 0.9:
        raise InputError(
            f"weights {weights} fill only {share:.0%} of backbone {name}; give a file made for {name}"
        )
    return network


def _share_loaded(network: nn.Module, state: dict[str, Any]) -> float:
    """Part of the network's parameters that the file holds; timm renames and reshapes them, and skips unknown ones silently."""
    known = {(t.numel(), t.double().sum().item()) for t in state.values() if isinstance(t, Tensor)}
    loaded = [
        (p.numel(), (p.numel(), p.double().sum().item()) in known) for p in network.parameters()
    ]
    return sum(size for size, found in loaded if found) / sum(size for size, _ in loaded)


def _read_weights(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise InputError(f'no weights at {path}; give a file, "imagenet" or "none"')
    if path.suffix == ".pkl":
        content = read_pickle(path)
    else:
        try:
            content = (
                load_file(path)
                if path.suffix == ".safetensors"
                else torch.load(path, map_location="cpu", weights_only=True)
            )
        except Exception as error:  # damaged files raise many kinds
            raise InputError(
                f"cannot read weights {path}{_reason(error)}; fetch the file again"
            ) from error
    for wrapper in ("state_dict", "model", "blobs"):
        content = content.get(wrapper, content) if isinstance(content, dict) else content
    if not isinstance(content, dict) or not content:
        raise InputError(f"{path} holds no weights by name; give a state dict")
    return content


def _own_state(state: dict[str, Any] | None) -> dict[str, Any]:
    """The part of a checkpoint of this library that belongs to its backbone; empty for files from elsewhere."""
    for prefix in ("backbone.", ""):
        if state and any(name.startswith(f"{prefix}network.") for name in state):
            return {
                name.removeprefix(prefix): value
                for name, value in state.items()
                if name.startswith(prefix)
            }
    return {}


def _load(module: nn.Module, state: dict[str, Any], name: str, weights: str) -> None:
    counts = {
        key: value
        for key, value in module.state_dict().items()
        if key.endswith("num_batches_tracked")
    }
    try:
        module.load_state_dict({**counts, **state})  # caffe2 keeps no such counts
    except RuntimeError as error:
        raise InputError(
            f"weights {weights} are not those of backbone {name}{_reason(error)}; give a file made for it"
        ) from error


def _reason(error: Exception) -> str:
    """A colon and the first 200 characters of what went wrong, on one line."""
    text = " ".join(str(error).split())[:200]
    return f": {text}" if text else ""


def _leading_modules(network: nn.Module, stages: int, name: str) -> list[nn.Module]:
    """Everything that computes the first `stages` feature maps; modules are registered in the order they run."""
    if stages == 0:
        return []
    modules = list(network.named_modules())
    if isinstance(network, ResNetWS):
        last = ["stem", "res2", "res3", "res4", "res5"][stages - 1]
    else:
        names: list[str] = network.feature_info.module_name()  # type: ignore[operator, union-attr]
        last = names[min(stages, len(names)) - 1].replace(".", "_")  # timm flattens some names so
    ends = [
        i
        for i, (path, _) in enumerate(modules)
        if f"{path.replace('.', '_')}_".startswith(f"{last}_")
    ]
    if not ends:
        raise InputError(
            f"backbone {name} does not say where its stage {stages} ends; set frozen_stages to 0 or 5"
        )
    return [module for _, module in modules[1 : ends[-1] + 1]]
