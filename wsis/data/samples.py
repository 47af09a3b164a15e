"""One image of an index as a sample: pixels, proposals, and of the annotations what supervision allows."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import torch
from pycocotools import mask as rle
from torch import Tensor
from torch.utils.data import Dataset

from wsis.data.samplers import Key
from wsis.data.transforms import (
    Augment,
    cut_image,
    cut_proposals,
    cut_target,
    draw_cut,
    draw_factor,
    jitter_colours,
    visible,
)
from wsis.images.read import read_image
from wsis.types import RLE, Batch, Index, Record, Sample, Target, Truth, View, class_of

if TYPE_CHECKING:
    from wsis.pasting.paster import Paster
    from wsis.proposals.file import ProposalFile

__all__ = ["Samples", "Supervision", "truth_of"]

Supervision = Literal["tags", "boxes", "masks"]
_HIDDEN = {"boxes": ("segmentation", "area"), "masks": ()}


class Samples(Dataset[Batch]):
    """Images of an index as samples; a key is a list of (position, draw seed), so an item is a batch.

    What `supervision` hides is not even kept in a training set.

    Args:
        index: the images.
        supervision: what `target` may hold beside the tags.
        augment: variation in training; None for evaluation, which gives the whole image and the `truth`.
        proposals: where proposals are read from; None for no proposals.
        segments: also give the proposals' superpixels.
        max_proposals: the best so many proposals are used.
        panoptic: the truth of evaluation also has the panoptic map, where the data set has one.
        paster: pastes foregrounds on training images, which are varied afterwards.
    """

    def __init__(
        self,
        index: Index,
        supervision: Supervision,
        augment: Augment | None = None,
        proposals: ProposalFile | None = None,
        segments: bool = False,
        max_proposals: int = 2000,
        panoptic: bool = False,
        paster: Paster | None = None,
    ) -> None:
        self.root, self.classes, self.stuff = (
            index.root,
            class_of(index.categories),
            len(index.stuff),
        )
        self.supervision, self.augment = supervision, augment
        self.proposals, self.segments, self.max_proposals = proposals, segments, max_proposals
        training, self.paster = augment is not None, paster
        self.panoptic = index.panoptic if panoptic and not training else None
        # one bytes object per image: workers share its pages, where dicts would be copied as their counts change
        self._records = [
            pickle.dumps(_record(index, image, supervision if training else "masks"))
            for image in index.images
        ]

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, keys: list[Key]) -> Batch:
        return [self.sample(position, draw) for position, draw in keys]

    def sample(self, position: int, draw: int = 0) -> Sample:
        """Give one sample; equal draws give equal bits."""
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
            "target": self._target(record, size),
        }
        if self.proposals is not None:
            sample["proposals"] = self.proposals.read(
                image["file_name"], size, self.segments, self.max_proposals
            )
        if self.augment is None:
            truth = truth_of(record["annotations"], self.classes, size)
            sample["truth"] = (
                truth._replace(panoptic=self.panoptic(image)) if self.panoptic else truth
            )
            return sample
        rng = np.random.default_rng(draw)
        return _vary(self.paster(sample, rng) if self.paster else sample, self.augment, rng)

    def _target(self, record: Record, size: tuple[int, int]) -> Target:
        target: Target = {"tags": _one_hot(record["tags"], len(self.classes))}
        if record["stuff_tags"] is not None:
            target["stuff_tags"] = _one_hot(record["stuff_tags"], self.stuff)
        if self.supervision == "tags":
            return target
        found = record["annotations"]
        boxes, target["labels"], target["crowd"] = _objects(found, self.classes)
        target["boxes"], _ = visible(boxes, size)
        if found and all("bag" in a for a in found):
            target["bag"] = torch.tensor([a["bag"] for a in found])
        if self.supervision == "masks":
            target["masks"] = (
                torch.stack([_mask(a, size) for a in found])
                if found
                else torch.zeros((0, *size)).bool()
            )
            unsure = [bool(a.get("ignore") or not a.get("segmentation")) for a in found]
            target["unsure"] = torch.tensor(unsure, dtype=torch.bool)
        return target


def _record(index: Index, image: Record, supervision: str) -> Record:
    number = image["id"]
    kept = [] if supervision == "tags" else index.annotations.get(number, [])
    annotations = [
        {key: value for key, value in a.items() if key not in _HIDDEN[supervision]} for a in kept
    ]
    tags, stuff_tags = index.tags.get(number, []), index.stuff_tags.get(number)
    return {"image": image, "annotations": annotations, "tags": tags, "stuff_tags": stuff_tags}


def _one_hot(classes: Sequence[int], count: int) -> Tensor:
    tags = torch.zeros(count)
    tags[list(classes)] = 1
    return tags


def _objects(
    annotations: Sequence[Record], classes: dict[int, int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Give boxes (M,4) xyxy, labels (M,) and crowd (M,)."""
    boxes = torch.tensor([a["bbox"] for a in annotations], dtype=torch.float32).view(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    labels = torch.tensor([classes[a["category_id"]] for a in annotations], dtype=torch.int64)
    crowd = torch.tensor([bool(a.get("iscrowd")) for a in annotations], dtype=torch.bool)
    return boxes, labels, crowd


def _mask(annotation: Record, size: tuple[int, int]) -> Tensor:
    """Give a mask (H,W) bool, empty where the annotation has none."""
    if not annotation.get("segmentation"):
        return torch.zeros(size, dtype=torch.bool)
    return torch.from_numpy(rle.decode(_run_lengths(annotation["segmentation"], size))).bool()


def _run_lengths(segmentation: Any, size: tuple[int, int]) -> RLE:
    """Give polygons, or run lengths as a list or compressed, as one compressed RLE."""
    if isinstance(segmentation, list):
        return cast(RLE, rle.merge(rle.frPyObjects(segmentation, *size)))
    if isinstance(segmentation["counts"], list):
        return cast(RLE, rle.frPyObjects(segmentation, *size))
    return cast(RLE, segmentation)


def truth_of(
    annotations: Sequence[Record], classes: dict[int, int], size: tuple[int, int]
) -> Truth:
    """Give an image's annotations for metrics; no masks at all where an object lacks one, what is to be ignored as crowd.

    Args:
        annotations: of COCO.
        classes: class (0-based position) of each category id.
        size: (height, width) of the image.
    """
    boxes, labels, crowd = _objects(annotations, classes)
    crowd |= torch.tensor([bool(a.get("ignore")) for a in annotations], dtype=torch.bool)
    known = all(a.get("segmentation") for a in annotations)
    masks = [_run_lengths(a["segmentation"], size) for a in annotations] if known else []
    return Truth(boxes, labels, masks, crowd)


def _vary(sample: Sample, augment: Augment, rng: np.random.Generator) -> Sample:
    """Cut and colour a sample as `rng` says."""
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
