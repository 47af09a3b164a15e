"""Samples of an index: pixels, proposals, and the part of the labels that supervision allows."""

from __future__ import annotations

import math
import pickle
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch.utils.data import Dataset

from wsis.coco.masks import run_length
from wsis.data.records import record_of
from wsis.data.samplers import Key
from wsis.data.targets import (
    FIELDS,
    Classes,
    check_fields,
    cut_target,
    read_objects,
    read_target,
)
from wsis.data.transforms import (
    Augment,
    cut_image,
    cut_proposals,
    draw_cut,
    recolour,
)
from wsis.images.read import read_image
from wsis.types import Batch, GroundTruth, Index, Record, Sample, View, class_of

if TYPE_CHECKING:
    from wsis.proposals.file import ProposalFile

__all__ = ["Samples", "Transform", "is_boxed", "truth_of"]


class Transform(Protocol):
    """A method's change of training samples, such as pasting; it is pickled for loader workers."""

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Return the changed sample; equal generators give identical results."""

    def content(self) -> Any:
        """Return all that results depend on, as JSON without paths, for the data's fingerprint."""


class Samples(Dataset[Batch]):
    """Images of an index as samples; a key is a list of (position, seed), so an item is a batch.

    A training set does not even store the labels that `supervision` does not allow.

    Args:
        index: The images.
        supervision: Fields that `target` holds, of `wsis.data.targets.FIELDS`.
        augment: Augmentation in training; None for evaluation, which returns the whole image and
            the `truth`, if all objects of the index have a box.
        proposals: File of the proposals; None for no proposals.
        segments: Also read the proposals' superpixels.
        max_proposals: Maximum number of proposals per image, highest ranked first.
        panoptic: Add the panoptic map to the truth, if the data set has one.
        transform: Changes training samples before augmentation.
        views: Samples per training image, each augmented independently. A batch holds the first
            view of every image, then the second of every image, and so on.
    """

    def __init__(
        self,
        index: Index,
        supervision: AbstractSet[str],
        augment: Augment | None = None,
        proposals: ProposalFile | None = None,
        segments: bool = False,
        max_proposals: int = 2000,
        panoptic: bool = False,
        transform: Transform | None = None,
        views: int = 1,
    ) -> None:
        check_fields(supervision)
        self.root, self.augment = index.root, augment
        # the fields, not their names: to unpickle them imports their module in a loader worker
        self._fields = [FIELDS[name] for name in sorted(supervision)]
        self.classes = Classes(class_of(index.categories), len(index.stuff))
        self.proposals, self.segments, self.max_proposals = proposals, segments, max_proposals
        training, self.transform, self.views = augment is not None, transform, views
        self.panoptic = index.panoptic if panoptic and not training else None
        self._has_truth = not training and is_boxed(index)
        # One bytes object per image: workers share its memory pages, while changing reference
        # counts would copy those of dicts.
        records = (record_of(index, i, supervision, self._has_truth) for i in index.images)
        self._records = [pickle.dumps(record) for record in records]

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, keys: list[Key]) -> Batch:
        views = range(self.views if self.augment else 1)
        return [self.sample(position, draw, view) for view in views for position, draw in keys]

    def sample(self, position: int, draw: int = 0, view: int = 0) -> Sample:
        """Return one sample; equal arguments give identical results.

        Args:
            position: Position of the image in the index.
            draw: Seed of the augmentation.
            view: Number of the view, which changes the random draws.
        """
        record: Record = pickle.loads(self._records[position])
        image = record["image"]
        size = image["height"], image["width"]
        path = self.root / image["file_name"]
        sample: Sample = {
            "image": read_image(path, size),
            "image_id": image["id"],
            "path": path,
            "size": size,
            "view": View((1.0, 1.0), (0.0, 0.0), size[1], False),
            "target": read_target(record, self._fields, self.classes),
        }
        if self.proposals is not None:
            sample["proposals"] = self.proposals.read(
                image["file_name"], size, self.segments, self.max_proposals
            )
        if self.augment is None:
            return {**sample, "truth": self._truth(record)} if self._has_truth else sample
        rng = np.random.default_rng([draw, view] if view else draw)
        changed = self.transform(sample, rng) if self.transform else sample
        return _vary(changed, self.augment, rng)

    def _truth(self, record: Record) -> GroundTruth:
        image = record["image"]
        truth = truth_of(record["truth"], self.classes.things, (image["height"], image["width"]))
        return truth._replace(panoptic=self.panoptic(image) if self.panoptic else None)


def is_boxed(index: Index) -> bool:
    """Return whether every object of an index has a box; predictions cannot be judged by points."""
    return all("bbox" in a for found in index.annotations.values() for a in found)


def truth_of(
    annotations: Sequence[Record], classes: Mapping[int, int], size: tuple[int, int]
) -> GroundTruth:
    """Return the ground truth of an image; objects with `ignore` count as crowd.

    If any object lacks a mask, no masks are returned.

    Args:
        annotations: COCO annotations; those without a box are left out.
        classes: Class (0-based position) of each category id.
        size: (height, width) of the image.
    """
    annotations = [a for a in annotations if "bbox" in a]
    boxes, labels, crowd = read_objects(annotations, classes)
    crowd |= torch.tensor([bool(a.get("ignore")) for a in annotations], dtype=torch.bool)
    known = all(a.get("segmentation") for a in annotations)
    masks = [run_length(a["segmentation"], size) for a in annotations] if known else []
    areas = [a.get("area") or math.nan for a in annotations]
    return GroundTruth(boxes, labels, masks, crowd, areas=torch.tensor(areas, dtype=torch.float64))


def _vary(sample: Sample, augment: Augment, rng: np.random.Generator) -> Sample:
    """Crop, scale, flip and recolour a sample at random."""
    cut = draw_cut(rng, sample["size"], augment)
    # before scaling, which typically makes four times as many pixels
    image = recolour(sample["image"], rng, augment)
    varied: Sample = {
        **sample,
        "image": cut_image(image, cut),
        "view": cut.view,
        "target": cut_target(sample["target"], cut),
    }
    if "proposals" in sample:
        varied["proposals"] = cut_proposals(sample["proposals"], cut, augment.min_proposal_side)
    return varied
