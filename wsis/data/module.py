"""What all data modules share: from an index to batches that hold what the model's supervision allows, and no more."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

import cv2
import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import CombinedLoader
from torch.utils.data import DataLoader

from wsis.data.labels import relabel
from wsis.data.samplers import OrderSampler, StepSampler
from wsis.data.samples import Samples, Transform
from wsis.data.targets import FIELDS, check_fields
from wsis.data.transforms import PHOTOGRAPHS, Augment
from wsis.errors import InputError
from wsis.fingerprint import digest
from wsis.method import Method
from wsis.types import Batch, Index, Record

if TYPE_CHECKING:
    from wsis.proposals.file import ProposalFile

__all__ = ["Augment", "DataModule", "Loading"]


@dataclass(frozen=True)
class Loading:
    """How batches are loaded.

    Args:
        batch_size: Images per step and process.
        workers: Loader processes; 0 loads in the training process, to the same batches.
        seed: Seed of the order of images and of all augmentation.
    """

    batch_size: int = 4
    workers: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse counts that make no batch."""
        if self.batch_size < 1 or self.workers < 0 or self.seed < 0:
            raise InputError(
                f"{self}: batch_size must be at least 1, workers and seed not negative"
            )


_LOADING = Loading()


class DataModule(pl.LightningDataModule):
    """A data set for Lightning: `read` returns the index of a split, the rest is the same for all.

    A data set has settings of its own and passes on those below: `super().__init__("name", root, **settings)`. The command
    line takes them, and their help, from here.

    Args:
        name: Name of the data set in files and messages.
        folder: Folder that holds the data set, and what is made for it.
        labels: COCO json to train on, such as wsis.label writes; empty takes the data set's own labels.
        proposals: name of a proposer ("segments" is built in), a file or folder of proposals, or "none".
        max_proposals: Largest number of proposals of an image, highest ranked first.
        augment: How training images are varied.
        loading: How batches are loaded.
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        *,
        labels: str = "",
        proposals: str = "segments",
        max_proposals: int = 2000,
        augment: Augment = PHOTOGRAPHS,
        loading: Loading = _LOADING,
    ) -> None:
        super().__init__()
        self.name, self.folder = name, Path(folder)
        self.relabelled = Path(labels) if labels else None
        self.proposals, self.max_proposals = proposals, max_proposals
        self.augment, self.loading = augment, loading
        self.transform: Transform | None = None
        self.views = 1
        self.others: dict[str, DataModule] = {}
        self._indices: dict[str, Index] = {}

    def __str__(self) -> str:
        """Name the data set, for error messages; Lightning's text would load every split to count it."""
        return f"{self.name} in {self.folder}"

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
            if split == "train" and self.relabelled:
                index = relabel(index, self.relabelled)
            if not index.images:
                raise InputError(
                    f"{self.name} has no {split} images in {index.root}; check its lists and settings"
                )
            self._indices[split] = index
        return self._indices[split]

    def variant(
        self,
        labels: Path | None = None,
        augment: Augment | None = None,
        batch_size: int | None = None,
        transform: Transform | None = None,
        views: int | None = None,
    ) -> Self:
        """Return the same data for another stage, with what is given in place of what it had; tags stay as they are.

        Args:
            labels: COCO json whose annotations replace those of the training set.
            augment: How training images are varied.
            batch_size: Images per step and process.
            transform: Changes training samples before they are varied.
            views: Samples drawn of each training image, each varied anew; see `Samples`.

        Raises:
            InputError: The file is of other images or other classes.
        """
        other = copy.copy(self)
        other.trainer, other.augment = None, augment or self.augment
        other.loading = replace(self.loading, batch_size=batch_size or self.loading.batch_size)
        other.transform, other.views = transform or self.transform, views or self.views
        if labels:
            own = relabel(self.index("train"), labels)
            other.relabelled, other._indices = labels, {**self._indices, "train": own}
        return other

    def with_loaders(self, **others: DataModule) -> Self:
        """Return the same data, with a batch of each of `others` beside each training batch.

        A training batch is then a dictionary: "images" are of this data set, the rest have the names given here. Each data
        set has its own batch size, order and augmentation.
        """
        other = copy.copy(self)
        other.trainer, other.others = None, {**self.others, **others}
        return other

    def as_annotated(self) -> Self:
        """Give the same data with the training set's own annotations, to judge by."""
        if self.relabelled is None:
            return self
        other = copy.copy(self)
        other.relabelled, other._indices = (
            None,
            {split: index for split, index in self._indices.items() if split != "train"},
        )
        return other

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
        return list(self.index("train").stuff)

    @property
    def num_stuff(self) -> int:
        """How many stuff classes there are."""
        return len(self.stuff)

    def prepare_data(self) -> None:
        """Make on disk, in one process, what the coming stage reads: the data where generated, and proposals."""
        for other in self.others.values() if self._stage() == "fit" else ():
            other.index("train")
        for split in self._splits():
            self.index(split)
            if self.trainer is not None:  # only its model tells whether proposals are needed
                self.proposal_file(split)

    def proposal_file(self, split: str, workers: int | None = None) -> ProposalFile | None:
        """Return the proposals of a split, made now as far as they are missing; None with "none".

        Args:
            split: "train" or "val".
            workers: processes that make them; one per core if None.
        """
        if self.proposals == "none" or not self._needs().needs_proposals:
            return None
        from wsis.proposals.source import proposals_of_index

        return proposals_of_index(self.index(split), self.folder, self.proposals, workers)

    def samples(
        self, split: str, train: bool, supervision: AbstractSet[str] | None = None
    ) -> Samples:
        """Return the samples of a split, for training (varied, only what supervision allows) or evaluation (whole).

        Args:
            split: "train" or "val".
            train: For training.
            supervision: Fields of the target, of `wsis.data.targets.FIELDS`; None takes those of the trainer's model.

        Raises:
            InputError: The data set has no such labels to train with.
        """
        needs = self._needs()
        allowed = needs.supervision if supervision is None else supervision
        check_fields(allowed)
        if train:
            _require(self.index(split), allowed, self.relabelled)
        return Samples(
            self.index(split),
            allowed,
            self.augment if train else None,
            self.proposal_file(split),
            needs.needs_segments,
            self.max_proposals,
            needs.panoptic,
            self.transform if split == "train" else None,
            self.views,
        )

    def dataloader(self, split: str, train: bool, steps: int = 0) -> DataLoader[Batch]:
        """Return batches of a split: in training by (seed, step), in evaluation every image once.

        Args:
            split: "train" or "val".
            train: For training.
            steps: Batches of one pass where the trainer counts in epochs; 0 takes what shows each image once.
        """
        samples, size = self.samples(split, train), self.loading.batch_size
        rank, world = 0, 1
        if self.trainer is not None:
            rank, world = self.trainer.global_rank, self.trainer.world_size
        if self.loading.workers:
            cv2.setNumThreads(0)  # here, because a forked child that touches OpenCV's threads hangs
        return DataLoader(
            samples,
            batch_size=None,  # a key of the sampler is a batch already
            sampler=cast(
                Any,
                self._step_sampler(len(samples), rank, world, steps)
                if train
                else OrderSampler(len(samples), size, rank, world),
            ),
            collate_fn=_as_is,  # the default turns tuples into lists
            num_workers=self.loading.workers,
            worker_init_fn=_begin_worker,
            generator=torch.Generator().manual_seed(
                self.loading.seed
            ),  # else the loader draws from the model's generator
            pin_memory=torch.cuda.is_available(),
        )

    def train_dataloader(self) -> DataLoader[Batch] | CombinedLoader:
        """Return the training batches, beside those of other data sets where there are any."""
        images = self.dataloader("train", train=True)
        loaders = {"images": images}
        for name, other in self.others.items():
            attached = copy.copy(other)
            attached.trainer = self.trainer
            loaders[name] = attached.dataloader("train", train=True, steps=len(images))
        return CombinedLoader(loaders, "min_size") if self.others else images

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
        """Hash what is learned from and asked: images, labels, proposals and how they are varied, no paths."""
        index = self.index("train")
        by_image = [
            sorted(part.items()) for part in (index.annotations, index.tags, index.stuff_tags)
        ]
        asked = self.index("val").images if self.has_val else []
        learned = [index.images, index.categories, index.stuff, *by_image]
        settings = [
            asdict(self.augment),
            self.loading.batch_size,
            self.loading.seed,
            self.max_proposals,
            self.views,
            self.transform.content() if self.transform else None,
        ]
        others = {name: other.fingerprint() for name, other in self.others.items()}
        return digest([self.name, learned, asked, self._proposal_content(), settings, others])

    def state_dict(self) -> dict[str, Any]:
        """Give the classes, so that a checkpoint knows their names."""
        return {"categories": self.categories, "stuff": self.stuff}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Refuse a checkpoint of other classes."""
        theirs, ours = (
            [c["name"] for c in categories]
            for categories in (state_dict["categories"], self.categories)
        )
        if theirs != ours:
            raise InputError(
                f"the checkpoint knows the classes {', '.join(theirs)} but {self.name} has {', '.join(ours)}; use the same data"
            )

    def _proposal_content(self) -> Any:
        if self.proposals == "none":
            return "none"
        from wsis.proposals.source import content_of

        return content_of(self.proposals, lambda: self.proposal_file("train"))

    def _model(self) -> pl.LightningModule | None:
        return None if self.trainer is None else getattr(self.trainer, "lightning_module", None)

    def _needs(self) -> type[Method] | Method:
        """Return the model that samples are made for; without a trainer, what most methods need."""
        model = self._model()
        if model is None or isinstance(model, Method):
            return model or Method
        raise TypeError(f"{type(model).__name__} must derive from wsis.Method to be given samples")

    def _stage(self) -> str | None:
        return None if self.trainer is None else self.trainer.state.fn

    def _splits(self) -> Sequence[str]:
        stage = self._stage()
        val = ("val",) if self.has_val else ()
        return ("train", *val) if stage is None or stage == "fit" else val or ("train",)

    def _step_sampler(self, images: int, rank: int, world: int, steps: int = 0) -> StepSampler:
        """Return the order of images; `steps` is the length of one pass where the trainer counts in epochs."""
        seed, trainer, batch_size = self.loading.seed, self.trainer, self.loading.batch_size
        one_pass = steps or -(-images // (batch_size * world))
        if trainer is None:
            return StepSampler(images, batch_size, seed, one_pass, rank=rank, world=world)
        accumulate = trainer.accumulate_grad_batches
        steps = trainer.max_steps * accumulate if trainer.max_steps > 0 else one_pass

        def position() -> int:
            passes, rest = divmod(
                trainer.global_step, -(-steps // accumulate)
            )  # a pass ends with a step
            return passes * steps + rest * accumulate

        return StepSampler(images, batch_size, seed, steps, position, rank, world)


def _require(index: Index, supervision: AbstractSet[str], labels: Path | None) -> None:
    """Raise InputError for fields that no annotation has."""
    needed = {name: field.needed for name, field in FIELDS.items() if name in supervision}
    keys = {key for found in index.annotations.values() for a in found for key in a if a[key]}
    missing = [name for name, key in needed.items() if key and key not in keys]
    if missing:
        raise InputError(
            f"{index.name} has no {' and no '.join(missing)} to train with in {labels or index.root}; "
            "add them or take a model for tags"
        )


def _as_is(batch: Batch) -> Batch:
    return batch


def _begin_worker(_: int) -> None:
    torch.set_num_threads(1)
