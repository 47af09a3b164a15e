"""ResNet-WS: residual networks for weakly supervised detection (Shen et al., DRN-WSOD, ECCV 2020).

No convolution after the stem is strided; 2x2 max-pools reduce the resolution instead, which keeps
the evidence of small objects. Parameter names are detectron2's, so the authors' files load as they
are.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["ResNetWS", "released_weights"]

BLOCKS = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


class ResNetWS(nn.Module):
    """Stem and four residual stages; `forward` returns five feature maps.

    Args:
        depth: 18, 50 or 101.
        output_stride: Stride of the last map: 8 (dilation 2 in res4 and res5) or 16 (no dilation).
        pool_first: False pools at the end of res2 and res3 (v1), True at the start of res3 and res4
            (v2).
    """

    def __init__(self, depth: int = 18, output_stride: int = 8, pool_first: bool = False) -> None:
        super().__init__()
        self.stem = _Stem()
        dilated = output_stride == 8
        widths = [64, 128, 256, 512] if depth == 18 else [256, 512, 1024, 2048]
        step = {1: 2, 2: 1 if dilated else 2} if pool_first else {0: 2, 1: 1 if dilated else 2}
        self.channels, self.reduction = [64], [4]
        for i, (blocks, width) in enumerate(zip(BLOCKS[depth], widths, strict=True)):
            dilation = 2 if dilated and i >= 2 else 1
            inputs = [self.channels[-1]] + [width] * (blocks - 1)
            stage = [
                _Block(size, width, 64 << i, dilation, bottleneck=depth != 18) for size in inputs
            ]
            stage[0 if pool_first else -1].pool_stride = step.get(i, 0)
            stage[0].pool_first = pool_first
            self.add_module(f"res{i + 2}", nn.Sequential(*stage))
            self.channels.append(width)
            self.reduction.append(self.reduction[-1] * max(step.get(i, 1), 1))

    def forward(self, image: Tensor) -> list[Tensor]:
        """(N,3,H,W) -> stem, res2 .. res5."""
        maps = []
        for stage in self.children():
            image = stage(image)
            maps.append(image)
        return maps


class _Convolution(nn.Conv2d):
    """Convolution and its BatchNorm, size-preserving at stride 1."""

    def __init__(
        self, inputs: int, outputs: int, size: int, stride: int = 1, dilation: int = 1
    ) -> None:
        padding = dilation * (size // 2)
        super().__init__(inputs, outputs, size, stride, padding, dilation, bias=False)
        self.norm = nn.BatchNorm2d(outputs)
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(super().forward(x))


class _Stem(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = _Convolution(3, 64, 3, stride=2)
        self.conv2 = _Convolution(64, 64, 3)
        self.conv3 = _Convolution(64, 64, 3)

    def forward(self, x: Tensor) -> Tensor:
        for convolution in self.children():
            x = F.relu(convolution(x))
        return F.max_pool2d(x, 2)


class _Block(nn.Module):
    """Residual block, basic or bottleneck, with a 2x2 max-pool if `pool_stride` is set."""

    def __init__(
        self, inputs: int, outputs: int, width: int, dilation: int, bottleneck: bool
    ) -> None:
        super().__init__()
        self.pool_stride = 0
        self.pool_first = False
        self.shortcut = _Convolution(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        if bottleneck:
            self.conv1 = _Convolution(inputs, width, 1)
            self.conv2 = _Convolution(width, width, 3, dilation=dilation)
            self.conv3 = _Convolution(width, outputs, 1)
        else:
            self.conv1 = _Convolution(inputs, outputs, 3, dilation=dilation)
            self.conv2 = _Convolution(outputs, outputs, 3, dilation=dilation)

    def forward(self, x: Tensor) -> Tensor:
        x = self._pool(x) if self.pool_first else x
        y = self.conv2(F.relu(self.conv1(x)))
        if hasattr(self, "conv3"):
            y = self.conv3(F.relu(y))
        y = F.relu(y + self.shortcut(x))
        return y if self.pool_first else self._pool(y)

    def _pool(self, x: Tensor) -> Tensor:
        if self.pool_stride == 1:  # one more row and column keep the size
            x = F.pad(x, (0, 1, 0, 1))
        return F.max_pool2d(x, 2, self.pool_stride) if self.pool_stride else x


_CAFFE2_PARTS = {
    "branch1": "shortcut",
    "branch2a": "conv1",
    "branch2b": "conv2",
    "branch2c": "conv3",
    "bn_s": "norm.weight",
    "bn_b": "norm.bias",
    "bn_rm": "norm.running_mean",
    "bn_riv": "norm.running_var",
    "w": "weight",
}
_CAFFE2_NAME = re.compile(
    r"(stem_conv|conv1_|res\d_\d+_branch)(\d[abc]?)_(bn_s|bn_b|bn_rm|bn_riv|w)"
)


def released_weights(content: dict[str, Any]) -> dict[str, Tensor]:
    """Convert the authors' pickle to a state dict of `ResNetWS`.

    Parameters have detectron2's or caffe2's names; the stem is converted from BGR to RGB input.
    Other parts (momentum, classifier, detector heads) are skipped.
    """
    state = {}
    for name, value in content.items():
        name = _from_caffe2(name).removeprefix("module.").removeprefix("backbone.")
        if re.match(r"(stem|res[2-5])\.", name) and isinstance(value, np.ndarray):
            state[name] = torch.tensor(value)
    if "stem.conv1.weight" in state:
        state["stem.conv1.weight"] = state["stem.conv1.weight"].flip(1)
    return state


def _from_caffe2(name: str) -> str:
    match = _CAFFE2_NAME.fullmatch(name)
    if not match:
        return name
    part, number, kind = match.groups()
    if part.startswith("res"):
        stage, block, _ = part.split("_")
        return f"{stage}.{block}.{_CAFFE2_PARTS['branch' + number]}.{_CAFFE2_PARTS[kind]}"
    return f"stem.conv{number}.{_CAFFE2_PARTS[kind]}"
