"""Operators on regions of any shape: MoIPool, its interpolated variant, and feature cells."""

from __future__ import annotations

from wsis.ops.build import backend
from wsis.ops.cells import segment_cells, segment_windows, superpixel_windows
from wsis.ops.interpolation import moi_pool_interpolated
from wsis.ops.moi_pool import moi_pool

__all__ = [
    "backend",
    "moi_pool",
    "moi_pool_interpolated",
    "segment_cells",
    "segment_windows",
    "superpixel_windows",
]
