"""Merge the proposals of several sources, image by image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchvision.ops import box_iou

from wsis.errors import InputError
from wsis.machine import bar
from wsis.proposals.file import ProposalFile, write
from wsis.proposals.regions import Masks, join, measure, overlaps, repeated
from wsis.types import Index, Proposals

__all__ = ["merge", "merged"]


def merge(files: Sequence[ProposalFile], index: Index, out: Path) -> Path:
    """Write the proposals of the images in `index` that any of `files` has, and return `out`.

    Its provenance has that of each file under `sources`.

    Raises:
        InputError: an image that no file has, or of another size, or of which one file has segments
            and another boxes alone.
    """
    each = [file.provenance for file in files]
    known = [file.files() for file in files]
    provenance = {
        "made": "merged",
        "from": " + ".join(_name(source) for source in each),
        "supervision": " + ".join(dict.fromkeys(str(one.get("supervision")) for one in each)),
        "data": index.name,
        "sources": each,
    }
    with write(out, provenance) as writer:
        for image in bar(index.images, "merge", unit="image"):
            name, size = image["file_name"], (image["height"], image["width"])
            if writer.files.get(name) == size:
                continue
            having = [file for file, names in zip(files, known, strict=True) if name in names]
            if not having:
                paths = " nor ".join(str(file.path) for file in files)
                raise InputError(
                    f"neither {paths} has proposals of {name}; add a source that has them, such as "
                    "--from segments"
                )
            found = [file.read(name, size, segments=None) for file in having]
            _check_kinds(found, having, name)
            writer.add(name, size, merged(found))
    return out


def merged(sources: Sequence[Proposals]) -> Proposals:
    """Return the proposals of one image from several sources, all with segments or all without.

    The sources take turns, each in its own order. Masks or boxes that are equal are kept once, and
    others that nearly equal one of another source before them come last.
    """
    counts = [len(source.boxes) for source in sources]
    origin = np.repeat(np.arange(len(sources)), counts)
    sequence = np.argsort(np.concatenate([np.arange(count) for count in counts]), kind="stable")
    boxes = torch.cat([source.boxes for source in sources])
    scores = torch.cat([source.scores for source in sources])
    if sources[0].labels is None:
        shared, sizes = _box_overlaps(boxes)
        columns: list[Any] = []
        identity = boxes.numpy()
    else:
        parts = [Masks(s.labels.numpy(), s.members.numpy()) for s in sources]  # type: ignore[union-attr]
        masks = join(parts)
        shared, sizes = overlaps(masks.members, measure(masks)[1])
        columns = [torch.from_numpy(masks.labels), torch.from_numpy(masks.members)]
        identity = np.packbits(masks.members, axis=1)
    once = np.unique(identity[sequence], axis=0, return_index=True)[1]
    foreign = origin[:, None] != origin  # each source has put its own in order
    double = repeated(shared * foreign, sizes, sequence)
    kept = sequence[np.sort(once)]
    chosen = torch.from_numpy(kept[np.argsort(double[kept], kind="stable")])
    rows = [boxes[chosen], scores[chosen]]
    return Proposals(*rows, *(columns and [columns[0], columns[1][chosen]]))


def _box_overlaps(boxes: torch.Tensor) -> tuple[Any, Any]:
    """Return the area (P,P) that two boxes share, and the area (P,) of each."""
    sizes = (boxes[:, 2:] - boxes[:, :2]).double().prod(1)
    iou = box_iou(boxes.double(), boxes.double())
    return (iou * (sizes[:, None] + sizes) / (1 + iou)).numpy(), sizes.numpy()


def _check_kinds(found: Sequence[Proposals], files: Sequence[ProposalFile], name: str) -> None:
    masked = [source.labels is not None for source in found]
    if any(masked) and not all(masked):
        one, other = files[masked.index(True)].path, files[masked.index(False)].path
        raise InputError(
            f"{one} has segments of {name}, and {other} boxes alone; merge sources of one kind"
        )


def _name(provenance: dict[str, Any]) -> str:
    return str(provenance.get("from", provenance.get("made")))
