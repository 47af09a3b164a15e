"""Backbones: networks of timm or ResNet-WS, with input normalisation, stride and frozen stages."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsis.errors import InputError
from wsis.files import cache_folder
from wsis.nn._own import OwnNetwork
from wsis.nn._timm import PlainTransformer, build_timm
from wsis.nn._weights import (
    backbone_state,
    by_hand,
    fraction_loaded,
    load_state,
    named,
    read_weights,
    reason,
)
from wsis.nn.feature_store import FeatureStore
from wsis.nn.resnet_ws import ResNetWS, released_weights
from wsis.values import FRACTION, POSITIVE, check_ranges

__all__ = ["SET_FOR_EACH", "Backbone", "BackboneSettings", "weights_follow"]

SET_FOR_EACH = MappingProxyType(
    dict.fromkeys(
        ("backbone.feature_level", "backbone.frozen_stages", "backbone.stored"),
        "as each network has its own: give it to pretraining.backbone or segmentor.backbone",
    )
)
"""Settings of a backbone that several networks share, by the reason that they have no effect."""

_RESNET_WS = re.compile(r"resnet(18|50|101)_ws(_v2)?")

_WS = {"mean": (122.7717 / 255, 115.9465 / 255, 102.9801 / 255), "std": (1 / 255,) * 3}
_IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
_follow: ContextVar[bool] = ContextVar("weights_follow", default=False)


@contextmanager
def weights_follow() -> Iterator[None]:
    """Build backbones without reading weights, because a checkpoint's state dict is loaded next."""
    token = _follow.set(True)
    try:
        yield
    finally:
        _follow.reset(token)


@dataclass(frozen=True)
class BackboneSettings:
    """The network that computes features.

    Args:
        name: A timm network, or resnet18_ws, resnet50_ws, resnet101_ws (add _v2 for JTSM's
            pooling). From Python also an `nn.Module`, see docs/extending.
        weights: "imagenet" (downloaded by timm), "none" (random), or a file: safetensors, a PyTorch
            state dict, the authors' pickle of a ResNet-WS, a checkpoint of this library's
            classifier, or a shared model: its folder, archive, URL, or hub:USER/NAME.
        output_stride: Input pixels per cell of the last map; 8 and 16 use dilation, 32 none.
        feature_level: Index of the feature map, of a plain transformer the block; -1 is the last.
        frozen_stages: Number of leading stages that are not trained: 0 is none, 1 the stem, 5 all.
            Stages 2 to 5 of a plain vision transformer are quarters of its blocks.
        model_args: Further arguments of the timm network, such as pad_type "same" for weights
            trained in TensorFlow.
        mean: Mean per channel (RGB, 0 to 1) that the weights expect; null takes their own.
        std: Standard deviation per channel that the weights expect; null takes their own.
        stored: Whether training keeps features of a frozen network in the user's cache, in half
            precision; training images may then vary by flips alone.
    """

    name: str = "resnet18_ws"
    weights: str = "imagenet"
    output_stride: int = 8
    feature_level: int = -1
    frozen_stages: int = 5
    model_args: dict[str, Any] | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    stored: bool = False

    def __post_init__(self) -> None:
        """Raise InputError for impossible numbers, such as a stride that no network has."""
        if self.output_stride not in (8, 16, 32) or not 0 <= self.frozen_stages <= 5:
            raise InputError(
                f"backbone output_stride {self.output_stride}, frozen_stages {self.frozen_stages}: "
                "give a stride of 8, 16 or 32, and 0 to 5 stages"
            )
        check_ranges("backbone", vars(self), {FRACTION: ("mean",), POSITIVE: ("std",)})

    def shared(self, *more: str) -> dict[str, Any]:
        """Return the settings that define weights and input, and those named in `more`."""
        names = ("name", "weights", "model_args", "mean", "std", *more)
        return {name: getattr(self, name) for name in names}


class Backbone(nn.Module):
    """Images -> features (N, `channels`, H / `stride`, W / `stride`).

    `network` returns every map up to `feature_level` from `normalise`d images; `widths` and
    `strides` list their channels and strides. H and W are padded to a multiple of `divisor`.

    BatchNorm layers are fixed in frozen stages, and everywhere once weights were read or loaded:
    their statistics are better than those of a few images.

    Args:
        settings: see `BackboneSettings`.

    Raises:
        InputError: the network is unknown or does not support the stride, or its weights are
            unavailable, damaged or made for another network.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, settings: BackboneSettings) -> None:
        super().__init__()
        self.settings = settings
        weights, level = settings.weights, settings.feature_level
        given: Any = settings.name
        self.name = name = given if isinstance(given, str) else type(given).__name__
        """Of the network, or of the class of a module."""
        from_file = weights not in ("imagenet", "none") and not _follow.get()
        state = read_weights(weights) if from_file else None
        checkpoint = backbone_state(state)  # loaded last; other files are loaded as it is built
        network = _build(settings, None if checkpoint else state)
        if isinstance(network, (OwnNetwork, ResNetWS, PlainTransformer)):
            channels, reduction = network.channels, network.reduction
        else:
            channels, reduction = network.feature_info.channels(), network.feature_info.reduction()
        expected = _WS if isinstance(network, ResNetWS) else _IMAGENET
        expected = getattr(network, "pretrained_cfg", expected)
        try:
            self.channels, self.stride = channels[level], reduction[level]
        except IndexError:
            raise InputError(
                f"backbone {name} has {len(channels)} feature maps, none at feature_level "
                f"{level}; choose another"
            ) from None
        upto = slice(level + 1 or None)
        self.widths, self.strides = list(channels[upto]), list(reduction[upto])
        self.network, self.feature_level = network, level
        self.divisor = max(reduction)
        self.register_buffer("mean", _per_channel(settings.mean or expected["mean"]))
        self.register_buffer("std", _per_channel(settings.std or expected["std"]))
        if checkpoint:
            load_state(self, checkpoint, name, weights)
        self._frozen = _leading_modules(network, settings.frozen_stages, name)
        self._freeze(every_norm=weights != "none")
        if settings.stored and not self.frozen:
            raise InputError(
                f"backbone.stored keeps features of a frozen network, and {name} is trained; give "
                "frozen_stages 5, or leave stored out"
            )
        self.is_random = weights == "none"
        """Whether no weights were ever loaded."""
        self.store: FeatureStore | None = None
        """Where features are kept; None computes them each time."""

    def forward(self, images: Sequence[Tensor] | Tensor) -> Tensor:
        """Return features of images of any sizes.

        Args:
            images: list of (3,H,W), or one (N,3,H,W); RGB from 0 to 255, uint8 or float.

        Returns:
            (N,D,h,w); smaller images of a list are padded at the right and bottom with zeros after
            normalisation.
        """
        if self.store is not None:
            return self._stored(self.store, images)
        return self.network(self.normalise(images))[self.feature_level]

    @property
    def frozen(self) -> bool:
        """Whether no part of the network is trained."""
        return not any(parameter.requires_grad for parameter in self.parameters())

    def keep_features(self) -> Path:
        """Keep features from now on, in the file of the user's cache that is returned."""
        settings = self.settings
        shape = settings.output_stride, settings.feature_level, settings.model_args
        content = hashlib.sha256(f"{shape}".encode())
        for name, value in sorted(self.state_dict().items()):
            content.update(name.encode() + value.cpu().numpy().tobytes())
        path = cache_folder() / "features" / f"{self.name}-{content.hexdigest()[:12]}.sqlite"
        self.store = FeatureStore(path)
        return path

    @torch.no_grad()
    def _stored(self, store: FeatureStore, images: Sequence[Tensor] | Tensor) -> Tensor:
        """Return features as `forward` does; each image passes the network by itself."""
        device = self.mean.device.type
        kind = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else "float32"

        def compute(image: Tensor) -> Tensor:
            return self.network(self.normalise([image]))[self.feature_level][0]

        maps = store.maps(list(images), compute, f"{device} {kind}")
        height, width = (max(found.shape[i] for found in maps) for i in (1, 2))
        room = [(0, width - found.shape[2], 0, height - found.shape[1]) for found in maps]
        padded = [F.pad(found, sides) for found, sides in zip(maps, room, strict=True)]
        return torch.stack(padded).to(self.mean.dtype)

    def load(self, path: Path) -> None:
        """Load the backbone of a checkpoint of this library.

        The checkpoint's network may have further stages, which are skipped.

        Raises:
            InputError: the checkpoint cannot be read, or it holds another backbone.
        """
        state = backbone_state(read_weights(path))
        names = self.state_dict()
        known = {name: value for name, value in state.items() if name in names}
        load_state(self, known, self.name, str(path))
        self.store = None  # of the weights before
        self._freeze(every_norm=True)
        self.is_random = False

    def holds(self, other: Backbone) -> bool:
        """Return whether it has every weight of another backbone, in the same shape."""
        shapes = {name: value.shape for name, value in self.state_dict().items()}
        return all(shapes.get(name) == value.shape for name, value in other.state_dict().items())

    def normalise(self, images: Sequence[Tensor] | Tensor) -> Tensor:
        """Normalise images, then pad them with zeros to one size that `divisor` divides.

        Channels are last in memory: convolutions of small networks take two thirds of the time.
        """
        if isinstance(images, Tensor):
            batch = self._normalise(images, images.shape[-2], images.shape[-1])
        else:
            height = max(image.shape[-2] for image in images)
            width = max(image.shape[-1] for image in images)
            batch = torch.stack([self._normalise(image, height, width) for image in images])
        return batch.contiguous(memory_format=torch.channels_last)

    def _normalise(self, image: Tensor, height: int, width: int) -> Tensor:
        """Normalise images (...,3,H,W) and pad them at the right and bottom."""
        height, width = (-(-size // self.divisor) * self.divisor for size in (height, width))
        padding = (0, width - image.shape[-1], 0, height - image.shape[-2])
        return F.pad((image.to(self.mean.dtype) - self.mean) / self.std, padding)

    def train(self, mode: bool = True) -> Backbone:
        """Set the mode as nn.Module does, but keep frozen parts in evaluation mode."""
        super().train(mode)
        for module in self._frozen:
            module.training = False
        return self

    def _freeze(self, every_norm: bool) -> None:
        if every_norm:
            norm = nn.modules.batchnorm._BatchNorm
            self._frozen += [
                module for module in self.network.modules() if isinstance(module, norm)
            ]
        for module in self._frozen:
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(False)
        self.train(self.training)


def _build(settings: BackboneSettings, state: dict[str, Any] | None) -> Any:
    """Return a module, a ResNet-WS or timm's network, with the weights of `state` if given."""
    if isinstance(settings.name, nn.Module):
        if state is not None:
            raise InputError(
                f"backbone weights {settings.weights}: a module comes with its weights; give none "
                "if they are random"
            )
        return OwnNetwork(settings.name)
    if match := _RESNET_WS.fullmatch(settings.name):
        return _resnet_ws(settings, int(match[1]), bool(match[2]), state)
    return _timm(settings, state)


def _per_channel(values: Sequence[float]) -> Tensor:
    """Return statistics of a channel (0 to 1) as (3,1,1) on the scale of pixels (0 to 255)."""
    return torch.tensor(values, dtype=torch.float32).view(3, 1, 1) * 255


def _resnet_ws(
    settings: BackboneSettings, depth: int, pool_first: bool, state: dict[str, Any] | None
) -> ResNetWS:
    name, weights = settings.name, settings.weights
    if settings.output_stride == 32:
        raise InputError(f"backbone {name} has stride 8 or 16; choose one as output_stride")
    if weights == "imagenet" and not _follow.get():
        raise InputError(
            f"no ImageNet weights of {name} can be downloaded; give the authors' file as weights, "
            "train them (wsis.fit --model classifier --data imagenet), or name a timm network"
        )
    network = ResNetWS(depth, settings.output_stride, pool_first)
    if state is not None:
        load_state(network, released_weights(state), name, weights)
    return network


def _timm(settings: BackboneSettings, state: dict[str, Any] | None) -> Any:
    name, weights, level = settings.name, settings.weights, settings.feature_level
    if not timm.is_model(name):
        raise _unknown(name)
    model_args, stride = settings.model_args or {}, settings.output_stride
    arguments = {**model_args, **({} if stride == 32 else {"output_stride": stride})}
    given = {} if state is None else {"pretrained_cfg_overlay": {"state_dict": dict(state)}}
    pretrained = (weights == "imagenet" and not _follow.get()) or state is not None
    try:
        network = build_timm(name, arguments, level, pretrained=pretrained, **given)
    except InputError:
        raise
    except (AssertionError, TypeError, NotImplementedError) as error:
        raise InputError(
            f"backbone {name} cannot be built with output_stride {stride} and model_args "
            f"{model_args}{reason(error)}; output_stride 32 leaves its stride as it is"
        ) from error
    except IndexError as error:
        raise InputError(
            f"backbone {name} has no feature_level {level}; choose a smaller one"
        ) from error
    except Exception as error:  # the hub and its clients raise many kinds
        if state is None:
            raise InputError(by_hand(name, error)) from error
        raise InputError(
            f"weights {weights} are not those of backbone {name}{named(state)}"
        ) from error
    fraction = 1.0 if state is None else fraction_loaded(network, state)
    if state is not None and fraction < 0.9:
        raise InputError(
            f"weights {weights} fill only {fraction:.0%} of backbone {name}{named(state)}"
        )
    return network


def _unknown(name: str) -> InputError:
    if "." in name:
        return InputError(
            f"backbone {name} is a module that was given from Python; give it again, as in "
            "load_from_checkpoint(FILE, backbone=MODULE)"
        )
    known = [*timm.list_models(), "resnet18_ws", "resnet50_ws", "resnet101_ws"]
    near = ", ".join(get_close_matches(name, known))
    advice = f"did you mean {near}?" if near else "see timm.list_models()"
    return InputError(f"unknown backbone {name}; {advice}")


def _leading_modules(network: Any, stages: int, name: str) -> list[nn.Module]:
    """Return the modules that compute the first `stages` feature maps, all of them for 5.

    Modules are registered in the order in which they run; parameters of the network itself, such as
    position embeddings, belong to the first stage. A module of the user's has no stages: it is
    trained as it comes unless all of it is frozen.
    """
    if stages == 0 or (isinstance(network, OwnNetwork) and stages < 5):
        return []
    if stages == 5:
        return list(network.modules())
    if isinstance(network, ResNetWS):
        base, names = network, ["stem", "res2", "res3", "res4", "res5"]
    elif isinstance(network, PlainTransformer):
        base, names = network.model, network.stages()
    else:
        base, names = getattr(network, "model", network), network.feature_info.module_name()
    modules = list(base.named_modules())
    last = names[min(stages, len(names)) - 1].replace(".", "_")  # timm flattens some names
    ends = [
        i
        for i, (path, _) in enumerate(modules)
        if f"{path.replace('.', '_')}_".startswith(f"{last}_")
    ]
    if not ends:
        raise InputError(
            f"backbone {name} does not say where its stage {stages} ends; set frozen_stages to 0 "
            "or 5"
        )
    return [module for _, module in modules[: ends[-1] + 1]]
