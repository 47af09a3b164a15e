"""The extreme points of objects as a label field: four [x, y] under `"extreme_points"`.

They are the top, left, bottom and right one, as Papadopoulos et al. (ICCV 2017) let people click.
"""

from __future__ import annotations

import torch
from torch import Tensor

from wsis.data.targets import FIELDS, Classes, Field
from wsis.data.transforms import Cut, visible
from wsis.types import Record, Target


def read(record: Record, classes: Classes) -> Target:
    """Return the points (M,4,2) of an image's objects, NaN if not clicked, and classes (M,)."""
    annotations, nowhere = record["annotations"], [[float("nan")] * 2] * 4
    extremes = torch.tensor([a.get("extreme_points", nowhere) for a in annotations]).view(-1, 4, 2)
    labels = [classes.things[a["category_id"]] for a in annotations]
    return {"extremes": extremes.float(), "labels": torch.tensor(labels, dtype=torch.int64)}


def of_masks(masks: Tensor, labels: Tensor, like: Target) -> Target:
    """Return the centres of extreme pixels of each mask (M,H,W)."""
    extremes = torch.full((len(masks), 4, 2), float("nan"))
    for k, mask in enumerate(masks):
        pixels = mask.nonzero().flip(1)
        if len(pixels):
            first, last = pixels.min(0).indices, pixels.max(0).indices
            extremes[k] = pixels[torch.cat([first.flip(0), last.flip(0)])] + 0.5
    return {"extremes": extremes, "labels": labels}


def cut(target: Target, cut: Cut) -> tuple[Target, Tensor]:
    """Return the points, also those outside of the crop, and which objects reach into it."""
    extremes = cut.view.points_to_input(target["extremes"])
    boxes = torch.cat([extremes.amin(1), extremes.amax(1)], 1)
    _, seen = visible(boxes, cut.size)
    order = [0, 3, 2, 1] if cut.flip else [0, 1, 2, 3]
    return {"extremes": extremes[:, order]}, seen | boxes.isnan().any(1)


def cover(target: Target, covered: Tensor) -> Target:
    """Return the points of objects without one on the pixels `covered` (H,W); others become NaN."""
    extremes = target["extremes"].clone()
    clicked = (~extremes.isnan().flatten(1).any(1)).nonzero().flatten()
    x, y = extremes[clicked].long().unbind(-1)
    extremes[clicked[covered[y, x].any(1)]] = float("nan")
    return {"extremes": extremes}


FIELDS["extremes"] = Field(
    tensors=("extremes", "labels"),
    read=read,
    of_masks=of_masks,
    keys=("extreme_points", "category_id"),
    needed="extreme_points",
    cut=cut,
    cover=cover,
)
