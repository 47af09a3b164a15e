"""A module of the user's as the network of a backbone."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from wsis.errors import InputError
from wsis.nn._weights import reason

__all__ = ["OwnNetwork"]

SIDE = 256
"""Pixels of the image that shows a module's strides."""


class OwnNetwork(nn.Module):
    """Images (N,3,H,W) -> the feature maps of a copy of a module, as a list.

    Args:
        module: returns one map (N,D,h,w), or a list or dictionary of maps, fine to coarse.

    Raises:
        InputError: it does not, or h and w are not H and W divided by a stride.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.network = copy.deepcopy(module)  # several networks of a method may begin with it
        maps = self._probe(type(module).__name__)
        self.channels = [found.shape[1] for found in maps]
        self.reduction = [SIDE // found.shape[-1] for found in maps]

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the maps, fine to coarse."""
        found = self.network(images)
        if isinstance(found, Tensor):
            return [found]
        return list(found.values() if isinstance(found, Mapping) else found)

    @torch.no_grad()
    def _probe(self, name: str) -> list[Tensor]:
        """Return the maps of an empty image."""
        was_training = self.training
        parameter = next(self.network.parameters(), torch.zeros(()))
        try:
            maps: Any = self.eval()(parameter.new_zeros(1, 3, SIDE, SIDE))
        except Exception as error:  # whatever a module raises
            raise InputError(
                f"backbone {name} does not take images (1,3,{SIDE},{SIDE}) and return feature "
                f"maps{reason(error)}"
            ) from error
        finally:
            self.train(was_training)
        for found in maps:
            if not isinstance(found, Tensor) or not _is_map(found):
                shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
                raise InputError(
                    f"backbone {name} returns {shape} for images (1,3,{SIDE},{SIDE}); return "
                    "feature maps (N,D,H/s,W/s), s a power of 2, without pooling and classifier"
                )
        return list(maps)


def _is_map(found: Tensor) -> bool:
    """Return whether a tensor is (1,D,h,h) with h the side of the image divided by a stride."""
    return found.ndim == 4 and found.shape[2] == found.shape[3] and SIDE % found.shape[3] == 0
