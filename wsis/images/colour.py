"""Colours of pixels."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["lab"]


def lab(image: Tensor) -> Tensor:
    """Return sRGB colours (3,...), 0 to 255, in CIE L*a*b* under daylight (D65), float32."""
    rgb = image.float() / 255
    linear = torch.where(rgb > 0.04045, ((rgb + 0.055) / 1.055) ** 2.4, rgb / 12.92)
    matrix = linear.new_tensor(
        [
            [0.412453, 0.357580, 0.180423],
            [0.212671, 0.715160, 0.072169],
            [0.019334, 0.119193, 0.950227],
        ]
    )
    white = linear.new_tensor([0.950456, 1.0, 1.088754])
    xyz = torch.tensordot((matrix / white[:, None]), linear, 1)
    x, y, z = torch.where(xyz > 0.008856, xyz.clamp(min=1e-8) ** (1 / 3), 7.787 * xyz + 16 / 116)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)])
