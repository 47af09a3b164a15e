"""States of metrics: tensors that are concatenated over batches and ranks, and IoU for metrics.

A distributed sampler repeats images so that all ranks have equally many; keys with the image id
make each image count once.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from pycocotools import mask as rle_masks
from torch import Tensor
from torchmetrics.utilities import dim_zero_cat

from wsis.types import RLE

__all__ = [
    "array",
    "box_iou",
    "first_of_each",
    "from_lines",
    "mask_iou",
    "mean",
    "packed",
    "to_lines",
]

Array = np.ndarray[Any, Any]


def to_lines(records: Iterable[dict[str, Any]]) -> Tensor:
    """Return records as JSON lines in bytes (B,) uint8, which ranks can exchange in any length."""
    text = "".join(json.dumps(record, separators=(",", ":")) + "\n" for record in records)
    if not text:
        return torch.empty(0, dtype=torch.uint8)
    return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)


def from_lines(state: list[Tensor] | Tensor) -> list[dict[str, Any]]:
    """Read the records that `to_lines` wrote; only the first of those with the same `image_id`."""
    records = [json.loads(line) for line in array(state).tobytes().splitlines()]
    first = {record["image_id"]: record for record in reversed(records)}
    return list(first.values())[::-1]


def array(state: list[Tensor] | Tensor) -> Array:
    """Return a concatenated state as one array, whether or not it has been synchronised."""
    empty = isinstance(state, list) and not state
    joined: Array = np.empty(0, np.uint8) if empty else dim_zero_cat(state).cpu().numpy()
    return joined


def first_of_each(keys: Array) -> Array:
    """Return the position of the first of each distinct row of `keys` (N,K), ascending."""
    if not len(keys):
        return np.empty(0, np.int64)
    return np.sort(np.unique(keys, axis=0, return_index=True)[1])


def mean(values: Any) -> Tensor:
    """Return the mean of the values that are not nan; nan if there are none."""
    values = np.asarray(values, np.float64)
    values = values[~np.isnan(values)]
    return torch.tensor(values.mean() if values.size else np.nan)


def packed(mask: RLE) -> RLE:
    """Return a run-length mask in its compressed text form, which json can hold."""
    counts = mask["counts"]
    if isinstance(counts, list):
        counts = rle_masks.frPyObjects(mask, *mask["size"])["counts"]
    return {
        "size": [int(n) for n in mask["size"]],
        "counts": counts.decode() if isinstance(counts, bytes) else counts,
    }


def box_iou(a: Tensor, b: Tensor) -> Array:
    """IoU of boxes (N,4) and (M,4) xyxy -> (N,M)."""
    return _iou(_xywh(a), _xywh(b), len(a), len(b))


def mask_iou(a: list[RLE], b: list[RLE]) -> Array:
    """IoU of N and M run-length masks -> (N,M)."""
    return _iou([packed(m) for m in a], [packed(m) for m in b], len(a), len(b))


def _iou(a: Any, b: Any, rows: int, columns: int) -> Array:
    if not rows or not columns:
        return np.zeros((rows, columns))
    return np.asarray(rle_masks.iou(a, b, np.zeros(columns, np.uint8)))


def _xywh(boxes: Tensor) -> Array:
    corners = boxes.detach().cpu().numpy().astype(np.float64).reshape(-1, 4)
    return np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], 1)
