"""What metrics keep between batches and ranks: tensors that concatenate, and in which an image counts once.

A distributed sampler repeats images so that all ranks have as many; keys with the image id undo that.
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
    """Write records as bytes of JSON lines, (B,) uint8: text is the one thing of any length that ranks can exchange."""
    text = "".join(json.dumps(record, separators=(",", ":")) + "\n" for record in records)
    return (
        torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
        if text
        else torch.empty(0, dtype=torch.uint8)
    )


def from_lines(state: list[Tensor] | Tensor) -> list[dict[str, Any]]:
    """Read what `to_lines` wrote; of several records with one `image_id` the first."""
    records = [json.loads(line) for line in array(state).tobytes().splitlines()]
    return list({record["image_id"]: record for record in reversed(records)}.values())[::-1]


def array(state: list[Tensor] | Tensor) -> Array:
    """Give a concatenating state as one array, whether or not it has been synchronised."""
    empty = isinstance(state, list) and not state
    joined: Array = np.empty(0, np.uint8) if empty else dim_zero_cat(state).cpu().numpy()
    return joined


def first_of_each(keys: Array) -> Array:
    """Positions of the first of each distinct row of `keys` (N,K), ascending."""
    return (
        np.sort(np.unique(keys, axis=0, return_index=True)[1])
        if len(keys)
        else np.empty(0, np.int64)
    )


def mean(values: Any) -> Tensor:
    """Mean of what is not nan, nan if nothing is."""
    values = np.asarray(values, np.float64)
    values = values[~np.isnan(values)]
    return torch.tensor(values.mean() if values.size else np.nan)


def packed(mask: RLE) -> RLE:
    """Give a run-length mask its compressed text form, which json can hold."""
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
