"""One image of an index as a sample: pixels, proposals, and of the annotations what supervision allows."""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch.utils.data import Dataset

from wsis.data.samplers import Key
from wsis.data.targets import (
    Classes,
    check_fields,
    cut_target,
    read_objects,
    read_target,
    record_of,
    run_length,
)
from wsis.data.transforms import (
    Augment,
    cut_image,
    cut_proposals,
    draw_cut,
    draw_factor,
    jitter_colours,
)
from wsis.images.read import read_image
from wsis.types import Batch, Index, Record, Sample, Truth, View, class_of

if TYPE_CHECKING:
    from wsis.proposals.file import ProposalFile

__all__ = ["Samples", "Transform", "truth_of"]


class Transform(Protocol):
    """A change of training samples that a method brings, such as pasting; it travels to loader processes."""

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Return the sample, changed; equal generators give equal bits."""

    def content(self) -> Any:
        """Return what results depend on, without paths, as JSON has it: a part of the data's fingerprint."""


class Samples(Dataset[Batch]):
    """Images of an index as samples; a key is a list of (position, draw seed), so an item is a batch.

    What `supervision` does not allow is not even kept in a training set.

    Args:
        index: The images.
        supervision: Fields that `target` holds, of `wsis.data.targets.FIELDS`.
        augment: Variation in training; None for evaluation, which returns the whole image and the `truth`.
        proposals: Where proposals are read from; None for no proposals.
        segments: Also read the proposals' superpixels.
        max_proposals: Largest number of proposals of an image.
        panoptic: The truth of evaluation also has the panoptic map, where the data set has one.
        transform: Changes training samples before they are varied.
        views: Samples drawn of each training image, with different draws. A batch holds one of each image, in order, then
            another of each.
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
        self.root, self.supervision, self.augment = index.root, supervision, augment
        self.classes = Classes(class_of(index.categories), len(index.stuff))
        self.proposals, self.segments, self.max_proposals = proposals, segments, max_proposals
        training, self.transform, self.views = augment is not None, transform, views
        self.panoptic = index.panoptic if panoptic and not training else None
        seen = supervision if training else None
        # one bytes object per image: workers share its pages, where dicts would be copied as their counts change
        self._records = [pickle.dumps(record_of(index, image, seen)) for image in index.images]

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, keys: list[Key]) -> Batch:
        views = range(self.views if self.augment else 1)
        return [self.sample(position, draw, view) for view in views for position, draw in keys]

    def sample(self, position: int, draw: int = 0, view: int = 0) -> Sample:
        """Return one sample; equal draws give equal bits.

        Args:
            position: Of the image in the index.
            draw: Seed of all that is random.
            view: Number of the view; each has draws of its own.
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
            "target": read_target(record, self.supervision, self.classes),
        }
        if self.proposals is not None:
            sample["proposals"] = self.proposals.read(
                image["file_name"], size, self.segments, self.max_proposals
            )
        if self.augment is None:
            truth = truth_of(record["annotations"], self.classes.things, size)
            panoptic = self.panoptic(image) if self.panoptic else None
            return {**sample, "truth": truth._replace(panoptic=panoptic)}
        rng = np.random.default_rng([draw, view] if view else draw)
        changed = self.transform(sample, rng) if self.transform else sample
        return _vary(changed, self.augment, rng)


def truth_of(
    annotations: Sequence[Record], classes: Mapping[int, int], size: tuple[int, int]
) -> Truth:
    """Return the ground truth of an image. If any object lacks a mask, no masks are returned; `ignore` counts as crowd.

    Args:
        annotations: Of COCO.
        classes: Class (0-based position) of each category id.
        size: (height, width) of the image.
    """
    boxes, labels, crowd = read_objects(annotations, classes)
    crowd |= torch.tensor([bool(a.get("ignore")) for a in annotations], dtype=torch.bool)
    known = all(a.get("segmentation") for a in annotations)
    masks = [run_length(a["segmentation"], size) for a in annotations] if known else []
    return Truth(boxes, labels, masks, crowd)


def _vary(sample: Sample, augment: Augment, rng: np.random.Generator) -> Sample:
    """Crop, scale, flip and colour a sample at random."""
    cut = draw_cut(rng, sample["size"], augment)
    exposure, saturation = draw_factor(rng, augment.jitter), draw_factor(rng, augment.jitter)
    image = sample["image"]
    if augment.jitter > 1:  # before scaling, which mostly enlarges: a quarter of the pixels
        image = jitter_colours(image, exposure, saturation)
    varied: Sample = {
        **sample,
        "image": cut_image(image, cut),
        "view": cut.view,
        "target": cut_target(sample["target"], cut),
    }
    if "proposals" in sample:
        varied["proposals"] = cut_proposals(sample["proposals"], cut, augment.min_proposal_side)
    return varied
