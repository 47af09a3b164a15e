"""A click on each object as a label field: `"point": [x, y]` in COCO annotations."""

from __future__ import annotations

import torch
from torch import Tensor

from wsis.data.targets import FIELDS, Classes, Field
from wsis.data.transforms import Cut
from wsis.types import Record, Target


def read(record: Record, classes: Classes) -> Target:
    """Return the points (M,2) of an image's objects, NaN if not clicked, and classes (M,)."""
    annotations, nowhere = record["annotations"], [float("nan")] * 2
    points = torch.tensor([a.get("point", nowhere) for a in annotations]).view(-1, 2)
    labels = [classes.things[a["category_id"]] for a in annotations]
    return {"points": points.float(), "point_labels": torch.tensor(labels, dtype=torch.int64)}


def of_masks(masks: Tensor, labels: Tensor, like: Target) -> Target:
    """Return a point inside each mask (M,H,W): the centre of its middle pixel, row by row."""
    points = torch.full((len(masks), 2), float("nan"))
    for k, mask in enumerate(masks):
        pixels = mask.nonzero()
        if len(pixels):
            points[k] = pixels[len(pixels) // 2].flip(0) + 0.5
    return {"points": points, "point_labels": labels}


def cut(target: Target, cut: Cut) -> tuple[Target, Tensor]:
    """Return the points in a crop, scaled and flipped as it is, and which are not outside."""
    points = cut.view.points_to_input(target["points"])
    height, width = cut.size
    outside = (points < 0).any(1) | (points >= torch.tensor([width, height])).any(1)
    return {"points": points}, ~outside


def cover(target: Target, covered: Tensor) -> Target:
    """Return the points of which none lies on the pixels `covered` (H,W); those become NaN."""
    points = target["points"].clone()
    clicked = (~points.isnan().any(1)).nonzero().flatten()
    x, y = points[clicked].long().unbind(1)
    points[clicked[covered[y, x]]] = float("nan")
    return {"points": points}


FIELDS["points"] = Field(
    tensors=("points", "point_labels"),
    read=read,
    of_masks=of_masks,
    keys=("point", "category_id"),
    needed="point",
    cut=cut,
    cover=cover,
)
