"""What all data modules share: from an index to batches that hold what the model's supervision allows, and no more."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import cv2
import numpy as np
import pytorch_lightning as pl
import torch
from pycocotools import mask as rle
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from wsis.data._coco_json import Index, Record, class_of
from wsis.data._images import read_image
from wsis.data._samplers import Key, OrderSampler, StepSampler
from wsis.data._transforms import Augment, cut_image, cut_proposals, cut_target, draw_cut, draw_factor, jitter_colours
from wsis.files import InputError
from wsis.types import RLE, Batch, Sample, Target, Truth, View

if TYPE_CHECKING:
    from wsis.data._proposals import ProposalFile

__all__ = ["Augment", "DataModule", "Loading", "Samples", "Supervision", "cache_folder"]

Supervision = Literal["tags", "boxes", "masks"]
_HIDDEN = {"tags": ("bbox", "segmentation", "area"), "boxes": ("segmentation", "area"), "masks": ()}


@dataclass(frozen=True)
class Loading:
    """How batches are loaded.

    Args:
        batch_size: images per step and process.
        workers: loader processes; 0 loads in the training process. The batches are the same with any number.
        seed: of the order of the images and of all augmentation.
    """

    batch_size: int = 4
    workers: int = 2
    seed: int = 0


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
    """

    def __init__(
        self,
        index: Index,
        supervision: Supervision,
        augment: Augment | None = None,
        proposals: ProposalFile | None = None,
        segments: bool = False,
        max_proposals: int = 2000,
    ) -> None:
        self.root, self.classes, self.stuff = index.root, class_of(index.categories), len(index.stuff)
        self.supervision, self.augment = supervision, augment
        self.proposals, self.segments, self.max_proposals = proposals, segments, max_proposals
        training = augment is not None
        # one bytes object per image: workers share its pages, where dicts would be copied as their counts change
        self._records = [pickle.dumps(_record(index, image, supervision if training else "masks")) for image in index.images]

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
            sample["proposals"] = self.proposals.read(image["file_name"], size, self.segments, self.max_proposals)
        if self.augment is None:
            sample["truth"] = _truth(record["annotations"], self.classes, size)
            return sample
        return _vary(sample, self.augment, np.random.default_rng(draw))

    def _target(self, record: Record, size: tuple[int, int]) -> Target:
        target: Target = {"tags": _one_hot(record["tags"], len(self.classes))}
        if record["stuff_tags"] is not None:
            target["stuff_tags"] = _one_hot(record["stuff_tags"], self.stuff)
        if self.supervision == "tags":
            return target
        found = record["annotations"]
        if self.supervision == "masks":
            found = [a for a in found if a.get("segmentation")]
            masks = [torch.from_numpy(rle.decode(_run_lengths(a["segmentation"], size))).bool() for a in found]
            target["masks"] = torch.stack(masks) if masks else torch.zeros((0, *size), dtype=torch.bool)
        target["boxes"], target["labels"], target["crowd"] = _objects(found, self.classes)
        return target


class DataModule(pl.LightningDataModule):
    """A data set for Lightning: `read` gives its index, the rest is the same for all.

    Args:
        name: what the data set is called in files.
        folder: where things made for this data set are kept.
        proposals: "auto" makes segment proposals on first use, "none" gives none, else a file or folder of proposals.
        max_proposals: the best so many proposals of an image are used.
        augment: how training images are varied.
        loading: how batches are loaded.
    """

    def __init__(self, name: str, folder: Path, proposals: str, max_proposals: int, augment: Augment, loading: Loading) -> None:
        super().__init__()
        self.name, self.folder, self.proposals, self.max_proposals = name, Path(folder), proposals, max_proposals
        self.augment, self.loading = augment, loading
        self._indices: dict[str, Index] = {}

    def read(self, split: str) -> Index:
        """Read the index of a split from disk."""
        raise NotImplementedError

    @property
    def has_val(self) -> bool:
        """Whether there is a validation split."""
        return True

    def index(self, split: str) -> Index:
        """Give the index of a split ("train", "val"), read once."""
        if split not in self._indices:
            index = self.read(split)
            if not index.images:
                raise InputError(f"{self.name} has no {split} images in {index.root}; check its lists and settings")
            self._indices[split] = index
        return self._indices[split]

    @property
    def categories(self) -> list[Record]:
        """The thing classes in order: id and name."""
        return self.index("train").categories

    @property
    def class_names(self) -> list[str]:
        """The names of the thing classes in order."""
        return [category["name"] for category in self.categories]

    @property
    def num_classes(self) -> int:
        """How many thing classes there are."""
        return len(self.categories)

    @property
    def stuff(self) -> list[Record]:
        """The stuff classes in order: id and name."""
        return self.index("train").stuff

    @property
    def num_stuff(self) -> int:
        """How many stuff classes there are."""
        return len(self.stuff)

    def prepare_data(self) -> None:
        """Make on disk, in one process, what the coming stage reads: the data where generated, and proposals."""
        for split in self._splits():
            self.index(split)
            self.proposal_file(split)

    def proposal_file(self, split: str) -> ProposalFile | None:
        """Give the proposals of a split, made now where "auto" finds none; None with "none"."""
        if self.proposals == "none" or not getattr(self._model(), "needs_proposals", True):
            return None
        from wsis.data._proposals import ProposalFile, make

        if self.proposals == "auto":
            index = self.index(split)
            path = _writable(self.folder) / f"proposals-{split}-{_digest([i['file_name'] for i in index.images])[:12]}.sqlite"
            if not path.exists():
                make(index, path, self.loading.workers)
            return ProposalFile(path)
        return ProposalFile(Path(self.proposals))

    def samples(self, split: str, train: bool, supervision: Supervision | None = None) -> Samples:
        """Give the samples of a split, for training (varied, only what supervision allows) or evaluation (whole)."""
        model = self._model()
        allowed = supervision or cast(Supervision, getattr(model, "supervision", "tags"))
        if train:
            _require(self.index(split), allowed)
        return Samples(
            self.index(split),
            allowed,
            self.augment if train else None,
            self.proposal_file(split),
            getattr(model, "needs_segments", False),
            self.max_proposals,
        )

    def dataloader(self, split: str, train: bool) -> DataLoader[Batch]:
        """Give batches of a split: in training by (seed, step), in evaluation every image once."""
        samples = self.samples(split, train)
        trainer = self.trainer
        rank, world = (trainer.global_rank, trainer.world_size) if trainer is not None else (0, 1)
        size = self.loading.batch_size
        sampler = self._step_sampler(len(samples), rank, world) if train else OrderSampler(len(samples), size, rank, world)
        return DataLoader(
            samples,
            batch_size=None,  # a key of the sampler is a batch already
            sampler=cast(Any, sampler),
            collate_fn=_as_is,  # the default turns tuples into lists
            num_workers=self.loading.workers,
            worker_init_fn=_begin_worker,
            generator=torch.Generator().manual_seed(self.loading.seed),  # else the loader draws from the model's generator
            pin_memory=torch.cuda.is_available(),
        )

    def train_dataloader(self) -> DataLoader[Batch]:
        """Give the training batches."""
        return self.dataloader("train", train=True)

    def val_dataloader(self) -> DataLoader[Batch] | list[Any]:
        """Give the validation images, or nothing where there is no such split."""
        return self.dataloader("val", train=False) if self.has_val else []

    def test_dataloader(self) -> DataLoader[Batch]:
        """Give the validation images: the sets here keep their test annotations to themselves."""
        return self.dataloader("val", train=False)

    def predict_dataloader(self) -> DataLoader[Batch]:
        """Give the validation images, or the training images where there is no such split."""
        return self.dataloader("val" if self.has_val else "train", train=False)

    def fingerprint(self) -> str:
        """Hash what the model learns from: labels and the provenance of proposals, no paths."""
        index = self.index("train")
        by_image = [sorted(part.items()) for part in (index.annotations, index.tags, index.stuff_tags)]
        learned = [index.images, index.categories, index.stuff, *by_image]
        return _digest([self.name, learned, self._proposal_content(), self.max_proposals])

    def state_dict(self) -> dict[str, Any]:
        """Give the classes, so that a checkpoint knows their names."""
        return {"categories": self.categories, "stuff": self.stuff}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Refuse a checkpoint of other classes."""
        theirs, ours = ([c["name"] for c in categories] for categories in (state_dict["categories"], self.categories))
        if theirs != ours:
            raise InputError(
                f"the checkpoint knows the classes {', '.join(theirs)} but {self.name} has {', '.join(ours)}; use the same data"
            )

    def _proposal_content(self) -> Any:
        if self.proposals in ("auto", "none"):
            return self.proposals
        file = self.proposal_file("train")
        return None if file is None else [file.provenance, len(file)]

    def _model(self) -> pl.LightningModule | None:
        return None if self.trainer is None else getattr(self.trainer, "lightning_module", None)

    def _splits(self) -> Sequence[str]:
        stage = None if self.trainer is None else self.trainer.state.fn
        val = ("val",) if self.has_val else ()
        return ("train", *val) if stage is None or stage == "fit" else val or ("train",)

    def _step_sampler(self, images: int, rank: int, world: int) -> StepSampler:
        batch_size, seed, trainer = self.loading.batch_size, self.loading.seed, self.trainer
        one_pass = -(-images // (batch_size * world))
        if trainer is None:
            return StepSampler(images, batch_size, seed, one_pass, rank=rank, world=world)
        accumulate = trainer.accumulate_grad_batches
        steps = trainer.max_steps * accumulate if trainer.max_steps > 0 else one_pass
        return StepSampler(images, batch_size, seed, steps, lambda: trainer.global_step * accumulate, rank, world)


def cache_folder() -> Path:
    """Give the user's folder for things that can be made again: WSIS_CACHE, else the system's cache folder / wsis."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("WSIS_CACHE") or Path(base) / "wsis")


def _writable(folder: Path) -> Path:
    """Give `folder` where it can be written, else a folder for it in the user's cache."""
    if folder.is_dir() and os.access(folder, os.W_OK):
        return folder
    return cache_folder() / f"{folder.name}-{_digest([str(folder.resolve())])[:12]}"


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=_plain).encode()).hexdigest()


def _require(index: Index, supervision: Supervision) -> None:
    """Refuse to train with a supervision that the annotations do not have."""
    needed = {"tags": None, "boxes": "bbox", "masks": "segmentation"}[supervision]
    if needed and not any(a.get(needed) for found in index.annotations.values() for a in found):
        raise InputError(f"{index.name} has no {supervision} to train with in {index.root}; add them or take a model for tags")


def _as_is(batch: Batch) -> Batch:
    return batch


def _plain(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else str(value)


def _begin_worker(_: int) -> None:
    cv2.setNumThreads(0)
    torch.set_num_threads(1)


def _record(index: Index, image: Record, supervision: str) -> Record:
    number = image["id"]
    hidden = _HIDDEN[supervision]
    kept = [] if supervision == "tags" else index.annotations.get(number, [])
    annotations = [{key: value for key, value in a.items() if key not in hidden} for a in kept]
    tags, stuff_tags = index.tags.get(number, []), index.stuff_tags.get(number)
    return {"image": image, "annotations": annotations, "tags": tags, "stuff_tags": stuff_tags}


def _one_hot(classes: Sequence[int], count: int) -> Tensor:
    tags = torch.zeros(count)
    tags[list(classes)] = 1
    return tags


def _objects(annotations: Sequence[Record], classes: dict[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Give boxes (M,4) xyxy, labels (M,) and crowd (M,); what is marked `ignore` counts as crowd."""
    boxes = torch.tensor([a["bbox"] for a in annotations], dtype=torch.float32).view(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    labels = torch.tensor([classes[a["category_id"]] for a in annotations], dtype=torch.int64)
    crowd = torch.tensor([bool(a.get("iscrowd") or a.get("ignore")) for a in annotations], dtype=torch.bool)
    return boxes, labels, crowd


def _run_lengths(segmentation: Any, size: tuple[int, int]) -> RLE:
    """Give polygons, or run lengths as a list or compressed, as one compressed RLE."""
    if isinstance(segmentation, list):
        return cast(RLE, rle.merge(rle.frPyObjects(segmentation, *size)))
    if isinstance(segmentation["counts"], list):
        return cast(RLE, rle.frPyObjects(segmentation, *size))
    return cast(RLE, segmentation)


def _truth(annotations: Sequence[Record], classes: dict[int, int], size: tuple[int, int]) -> Truth:
    boxes, labels, crowd = _objects(annotations, classes)
    known = all(a.get("segmentation") for a in annotations)
    masks = [_run_lengths(a["segmentation"], size) for a in annotations] if known else []
    return Truth(boxes, labels, masks, crowd)


def _vary(sample: Sample, augment: Augment, rng: np.random.Generator) -> Sample:
    """Cut and colour a sample as `rng` says."""
    cut = draw_cut(rng, sample["size"], augment)
    exposure, saturation = draw_factor(rng, augment.jitter), draw_factor(rng, augment.jitter)
    image = cut_image(sample["image"], cut)
    if augment.jitter > 1:
        image = jitter_colours(image, exposure, saturation)
    varied: Sample = {**sample, "image": image, "view": cut.view, "target": cut_target(sample["target"], cut)}
    if "proposals" in sample:
        varied["proposals"] = cut_proposals(sample["proposals"], cut, augment.min_proposal_side)
    return varied
