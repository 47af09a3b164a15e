"""Proposals and targets with points, for tests of what learns from them."""

from __future__ import annotations

import torch

from wsis.types import Proposals

SIZE = (20, 24)


def random_proposals(seed: int, count: int = 12, superpixels: int = 7) -> Proposals:
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(-1, superpixels, SIZE, generator=g).int()
    members = torch.rand(count, superpixels, generator=g) > 0.6
    boxes = torch.rand(count, 4, generator=g) * 10
    boxes[:, 2:] += boxes[:, :2]
    return Proposals(boxes, torch.rand(count, generator=g), labels, members)


def stripes(*rows: tuple[int, ...]) -> Proposals:
    """Proposals of columns, five pixels each, of an image of 10 x 30 pixels."""
    labels = (torch.arange(30) // 5).expand(10, 30).int()
    members = torch.zeros(len(rows), 6, dtype=torch.bool)
    for row, columns in zip(members, rows, strict=True):
        row[list(columns)] = True
    boxes = torch.tensor([[5.0 * min(c), 0, 5.0 * max(c) + 5, 10] for c in rows])
    return Proposals(boxes.view(-1, 4), torch.ones(len(rows)), labels, members)


def label(points, labels, classes=3, kinds=None, crowd=None, complete=None) -> dict:
    """A target of M objects with K points each."""
    points = torch.tensor(points, dtype=torch.float32)
    known = ~points.isnan().any(-1)
    return {
        "points": points,
        "point_labels": torch.where(known, 1, -1) if kinds is None else torch.tensor(kinds),
        "labels": torch.tensor(labels, dtype=torch.int64),
        "crowd": torch.tensor(crowd or [False] * len(labels), dtype=torch.bool),
        "complete": torch.tensor([True] * classes if complete is None else complete),
        "tags": torch.ones(classes),
    }
